"""A gate in small: everything of it is real but what is quantized, run and measured (tests.fake_gate).

    python -m tests.faults.small_gate FOLDER [--resume]

Prints ``block N`` after each block, and its exit status at the end.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from harness.base.errors import HarnessError
from harness.base.interruption import Interruption
from harness.base.interruption import status as interruption_status
from harness.gate.plan import Unit
from harness.judge.gatefile import Options
from harness.judge.series import Side
from harness.matrix.load import load
from tests import fake_gate

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIONS = Options(
    "a", "b", "cpu", models=(fake_gate.MODEL,), recipes=("int8wo",), servers=("transformers",), budget=1e6
)


def rate(unit: Unit, side: Side, block: int) -> float:
    time.sleep(0.04)
    if side == "new":
        print(f"block {block}", flush=True)
    return (10.0 if side == "old" else 7.0) + 0.01 * ((block * 7 + len(side)) % 5)


def main() -> int:
    folder = Path(sys.argv[1])
    with Interruption(lambda: "ended at once; go on with --resume"), pytest.MonkeyPatch.context() as patch:
        print("started", flush=True)
        try:
            matrix = load(REPOSITORY / "suites" / "matrix.toml")
            resume = "--resume" in sys.argv and (folder / "run" / "gate.json").exists()
            machine = fake_gate.Machine(rate=rate)
            outcome = fake_gate.make(folder, matrix, patch, machine, OPTIONS, resume=resume)()
        except HarnessError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as interruption:
            print("interrupted; go on with --resume", file=sys.stderr)
            return interruption_status(str(interruption))
    told = sorted(f"{it.metric}={it.verdict}" for it in outcome.verdicts if it.primary)
    print(f"verdicts {outcome.exit_status} {' '.join(told)}", flush=True)
    return outcome.exit_status


if __name__ == "__main__":
    sys.exit(main())
