"""Commands of gates in small: gate, calibrate and bisect as they are typed, over gates of tests.fake_gate.

    python -m tests.faults.small_gates FOLDER gate [--resume last]
    python -m tests.faults.small_gates FOLDER calibrate [--resume]
    python -m tests.faults.small_gates FOLDER bisect

Everything is real but what a gate measures: the commands, their files, the machine's lock, the gates and verdicts.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness import __main__
from harness.commands import bisect, calibrate, workplace
from harness.commands import gate as gate_command
from harness.commands.workplace import Environments, Workplace
from harness.gate.gate import GateResult
from harness.gate.plan import Unit
from harness.judge.gatefile import Options
from harness.judge.series import Side
from harness.matrix.load import load
from harness.records.run import Run
from harness.runtime import environment_pair
from harness.runtime.environment import Environment, no_limit
from harness.runtime.environment_pair import Pair
from harness.runtime.store import Store
from tests import fake_gate

REPOSITORY = Path(__file__).resolve().parents[2]
GATES = 3
RELEASES = [f"1.{number}" for number in range(6)]
BAD = "1.3"
WORDS = {
    "calibrate": ["calibrate", "--gates", str(GATES), "--budget", "1000000"],
    "gate": ["gate", "tiny==1.0", "tiny==1.5", "--wide"],
    "bisect": ["bisect", "tiny", "1.0..1.5", "--metric", "generate_throughput"],
}


def main() -> int:
    folder, which, *more = sys.argv[1:]
    place = Path(folder)
    matrix = load(REPOSITORY / "suites" / "matrix.toml")
    say = lambda words: print(words, flush=True)  # noqa: E731
    store, cpu = Store(place / "cache"), matrix.hardware["cpu"]
    work = Workplace(store, place / "results", matrix, cpu, Environment(), say)

    def gate(
        work: Workplace, options: Options, environments: Environments, resume: str | None = None, **_: Any
    ) -> GateResult:
        pair = environments(options, no_limit) if which == "calibrate" else None
        bad = options.new.rpartition("==")[2] >= BAD and which != "calibrate"

        def rate(unit: Unit, side: Side, block: int) -> float:
            time.sleep(0.01)
            worse = 0.7 if bad and side == "new" else 1.0
            return worse * (10.0 + 0.01 * ((block * 7 + len(side) * options.seed) % 5))

        run = Run.open(work.results / "gates", resume) if resume else Run.create(work.results / "gates")
        machine = fake_gate.Machine(rate=rate)
        with pytest.MonkeyPatch.context() as patch:
            one = fake_gate.make(
                place, matrix, patch, machine, options, pair=pair, run=run, resume=bool(resume), cache=work.store.root
            )
            say(f"gate {run.name}")
            return one()

    def begun(_: object) -> Workplace:
        say("started")
        return work

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workplace, "opened", begun)
        patch.setattr(environment_pair, "releases", lambda package, base: RELEASES)
        patch.setattr(environment_pair, "make", lambda store, old, new, base: Pair("tiny", base, base, ()))
        for module in (gate_command, bisect, calibrate):
            patch.setattr(module, "machine_lock", lambda: place / "machine.lock")
        patch.setattr(Workplace, "gate", gate)
        words = [*WORDS[which], "-m", "cpu", "--recipe", "int8wo", "--server", "transformers"]
        words += ["--model", fake_gate.MODEL, "--results", str(work.results), *more]
        # As it is typed: what is printed is the process's own.
        sys.argv = [sys.argv[0], *words]
        return __main__.main()


if __name__ == "__main__":
    sys.exit(main())
