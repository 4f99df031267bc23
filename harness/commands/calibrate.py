"""``python -m harness calibrate``: gates of this environment against itself, and what they say of the machine."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter

from harness.base.errors import HarnessError
from harness.base.files import write_text
from harness.base.interruption import Interrupted
from harness.base.memory import wanting
from harness.base.reading import json_file
from harness.base.terminal import columns
from harness.commands import sides, workplace
from harness.gate.noise import summarise
from harness.judge import gatefile
from harness.judge.calibration import Calibration
from harness.judge.gatefile import GateFile, Options
from harness.machine.lock import machine_lock, only_session
from harness.report.noise import written
from harness.runtime.environment import worker_threads
from harness.runtime.environment_pair import Pair


class _Kept:
    """The gates that a calibration has finished, so that one that was interrupted can be gone on with."""

    def __init__(self, results: Path, options: Options, device: str) -> None:
        self.path = results / "calibration" / f"{options.hardware}.unfinished.json"
        self.gates = results / "gates"
        self.options = options
        self.device = device
        self.names: list[str] = []

    def resume(self, packages: dict[str, str]) -> list[GateFile]:
        """Return the gates that are there; raises HarnessError if they are of something else, or of another device."""
        try:
            kept = json_file(self.path, once=True)
            changed = self.options.changed(TypeAdapter(Options).validate_python(kept["options"]))
            if kept["threads"] != worker_threads():
                changed.append(f"OMP_NUM_THREADS: {kept['threads']} then, {worker_threads()} now")
            if kept["packages"] != packages:
                changed.append("packages are installed otherwise")
            self.names = list(kept["gates"])
            found = [gatefile.load(self.gates / name) for name in self.names]
            for index, (name, gate) in enumerate(zip(self.names, found, strict=True)):
                wanted = replace(self.options, seed=self.options.seed + index)
                if gate.options is None or wanted.changed(gate.options):
                    changed.append(f"gate {name} is none of its")
            others = sorted({gate.device for gate in found} - {self.device})
            changed += [f"device: {there} then, {self.device} now" for there in others]
        except (OSError, ValueError, KeyError, TypeError, HarnessError) as error:
            raise HarnessError(f"--resume: no unfinished calibration can be read at {self.path} ({error})") from error
        if changed:
            raise HarnessError(f"{self.path}: this calibration was started otherwise: {'; '.join(changed)}")
        return found

    def add(self, folder: Path, packages: dict[str, str]) -> None:
        self.names.append(folder.name)
        kept = {
            "options": asdict(self.options),
            "threads": worker_threads(),
            "packages": packages,
            "gates": self.names,
        }
        write_text(self.path, json.dumps(kept, indent=1) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    workplace.add_common_arguments(parser)
    parser.add_argument("--gates", type=int, default=5, metavar="N", help="gates of old against old (default: 5)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted calibration")


def run(arguments: argparse.Namespace) -> int:
    if arguments.gates < 1:
        raise HarnessError(f"--gates {arguments.gates}: at least one is needed")
    place = workplace.opened(arguments)
    wanted = workplace.options(arguments, "this environment", "this environment")
    sides.check_names(place.matrix, wanted, place.base)
    packages = place.base.packages()
    kept = _Kept(place.results, wanted, place.device.name)
    outcomes = kept.resume(packages) if arguments.resume else []
    wide = None if arguments.wide else columns()
    same = workplace.given(Pair("none", place.base, place.base, ()))

    def summary() -> Calibration:
        found = summarise(outcomes, arguments.hardware, wanted.budget)
        print(written(found, wide), end="")
        return found

    lock = only_session(machine_lock(), place.progress)
    try:
        for index in range(len(outcomes), arguments.gates):
            place.progress(f"gate {index + 1} of {arguments.gates}, old against old")
            with place.working():
                outcome = place.gate(replace(wanted, seed=wanted.seed + index), same, calibrated=False)
            outcomes.append(outcome.file)
            kept.add(outcome.folder, packages)
    except KeyboardInterrupt as interruption:
        if outcomes:
            summary()
        words = f"{len(outcomes)} of {arguments.gates} gates are kept: the same command with --resume goes on"
        raise Interrupted(interruption, words) from None
    except Exception as error:
        if wanting(error):
            print("what was measured is kept; the same command with --resume goes on", file=sys.stderr)
        raise
    finally:
        lock.release()
    print(f"calibration: {summary().write(place.results)}")
    kept.path.unlink(missing_ok=True)
    return 0
