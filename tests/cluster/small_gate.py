"""What a node runs of a gate in small: all of it is real but what is quantized, run and measured (tests.fake_gate).

``SMALL_GATE`` is a folder. Each block notes there that it was measured, as ``UNIT BLOCK SIDE PROCESS``; while a file
``hold`` there names a unit and a block, that block waits; a device that a file ``throttled`` names measures nothing.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness import __main__
from harness.base.errors import DiscardedBlocks, HarnessError
from harness.commands import gate_far, workplace
from harness.gate.gate import Gate
from harness.gate.plan import Unit
from harness.judge.series import Side
from harness.measure.checkpoints import Checkpoints
from harness.measure.fleet import Fleet
from harness.measure.workers import Workers
from harness.runtime.environment_pair import Pair
from harness.runtime.store import Artifact
from tests import fake_gate

FOLDER = Path(os.environ.get("SMALL_GATE", "."))


def text(name: str) -> str:
    try:
        return (FOLDER / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def rate(unit: Unit, side: Side, block: int) -> float:
    """New is a third slower with int8wo, and as fast with all else."""
    with (FOLDER / "measured").open("a") as file:
        file.write(f"{unit.id} {block} {side} {os.getpid()}\n")
    while f"{unit.id} {block}" in text("hold"):
        time.sleep(0.02)
    worse = 0.7 if side == "new" and unit.cell.recipe.name == "int8wo" else 1.0
    return worse * (10.0 + 0.01 * ((block * 7 + len(side)) % 5))


def fault(unit: Unit, side: Side, block: int) -> HarnessError | None:
    here = os.environ.get("SMALL_GATE_NODE") or os.environ.get("CUDA_VISIBLE_DEVICES") or "none"
    return DiscardedBlocks(f"{here} was throttled") if here in text("throttled").split() else None


def main() -> int:
    machine = fake_gate.Machine(rate=rate, fault=fault, block_seconds=lambda _: 0.0)

    def made(*given: Any, **more: Any) -> Gate:
        gate = Gate(*given, **more)
        fake_gate.primed(gate.bench.base, FOLDER)
        gate.runner._attempt = lambda *about: machine.attempt(gate, *about)  # type: ignore[method-assign]
        return gate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workers, "once", lambda *given, **more: machine.once(*given, **more))
        patch.setattr(Checkpoints, "prompts", lambda _: Artifact(FOLDER, "prompts/1", False))
        for load in ("transformers", "engine", "server"):
            patch.setattr(Fleet, load, lambda fleet, cell: None)
        patch.setattr(workplace, "Gate", made)
        patch.setattr(workplace, "make", lambda store, old, new, base, left: Pair("tiny", base, base, ()))
        # Nodes of one machine measure beside each other here.
        patch.setattr(gate_far, "machine_lock", lambda: FOLDER / f"lock-{os.getpid()}")
        return __main__.main(["gate", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
