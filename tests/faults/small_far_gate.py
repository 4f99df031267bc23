"""A gate over several devices in small: ``python -m tests.faults.small_far_gate FOLDER [--resume last]``.

Command, planner, protocol, node processes and verdicts are real; the devices are wooden ones of this machine in place
of a Ray cluster's, and what a node quantizes, runs and measures is a function (tests.cluster.small_gate).
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from harness import __main__
from harness.cluster.host import Host
from harness.cluster.offer import Device, Offer
from harness.commands import gate_far
from harness.gate.far import Far
from tests import fake_gate

WORDS = (
    *("gate", "tiny==1", "tiny==2", "-m", "cpu", "--model", fake_gate.MODEL, "--recipe", "int8wo"),
    *("--recipe", "8da4w", "--server", "transformers", "-k", "generate", "--budget", "300", "--on", "local"),
)


def main() -> int:
    folder = Path(sys.argv[1]).resolve()
    os.environ["SMALL_GATE"] = str(folder)
    placed = ("--results", str(folder / "results"), "--cache", str(folder / "cache"))

    def devices(*_: Any) -> Host:
        print("started", flush=True)
        return Host(Offer((Device("cpu", "a wooden one", 2),)))

    far = functools.partial(Far, program=("tests.cluster.small_gate",))
    with mock.patch.object(gate_far, "engine_on", devices), mock.patch.object(gate_far, "Far", far):
        return __main__.main([*WORDS, *placed, *sys.argv[2:]])


if __name__ == "__main__":
    sys.exit(main())
