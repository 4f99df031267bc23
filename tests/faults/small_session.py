"""A session in small: real records, store, lock, fork server, workers and wardens, over a backend that only pretends.

    python -m tests.faults.small_session FOLDER [--resume] [--units N] [--clock SECONDS]

Prints ``kept UNIT`` once a record is on the disk, and ``complete`` at its end; what goes wrong ends as it does in a
session of the suites.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError, WorkerError
from harness.base.interruption import Interruption
from harness.base.interruption import status as interruption_status
from harness.contract.protocol import Job
from harness.machine.lock import only_session
from harness.records.run import Run
from harness.records.schema import (
    Cell,
    Device,
    Failure,
    Header,
    Measurement,
    ModelIdentity,
    RecipeIdentity,
)
from harness.runtime.environment import Environment
from harness.runtime.job import Worker
from harness.runtime.process import ForkServer
from harness.runtime.store import Artifact, Store
from tests.faults import worker_python

DEVICE = Device(name="a pretended device")
CELL = Cell(
    model=ModelIdentity(name="m", source="folder:m", revision="1", weights="random"),
    recipe=RecipeIdentity(name="r", hash="1", config={}),
    hardware="cpu",
    server="",
)
ARTIFACTS = 3


def interpreter(folder: Path) -> str:
    """Return the interpreter of the small workers, written to a folder if it is not there."""
    path = folder / "python"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
        os.close(handle)
        made = Path(name)
        body = Path(worker_python.__file__).read_text(encoding="utf-8")
        made.write_text(f"#!{sys.executable}\n{body}", encoding="utf-8")
        made.chmod(0o755)
        made.replace(path)
    return str(path)


def measurement(unit: int, value: float) -> Measurement:
    return Measurement(
        metric="latency",
        unit="s",
        direction="lower",
        definition=1,
        parameters={"unit": unit},
        value=value,
        cell=CELL,
        packages={},
        device=DEVICE,
    )


class Session:
    """The workers of one session, and what they make."""

    def __init__(self, folder: Path, cache: Path, run: Run) -> None:
        self.run = run
        self.store = Store(cache, say=lambda words: print(words, flush=True))
        self.environment = Environment(python=interpreter(folder / "bin"))
        self.forks: ForkServer | None = None
        self.worker: Worker | None = None

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        if self.forks is None or not self.forks.alive:
            environ = self.environment.environ(self.store)
            log = self.run.logs / "forks.log"
            self.forks = ForkServer("transformers", python=self.environment.python, environ=environ, log=log)
        if self.worker is None or not self.worker.alive:
            self.worker = Worker(
                Job(backend="small", specification={}),
                environment=self.environment,
                store=self.store,
                log=self.run.logs / "worker.log",
                label="small",
                forks=self.forks,
            )
        self.worker.wait_ready(60)
        return self.worker.ask(command, 60, **arguments)

    def artifact(self, number: int) -> Artifact:
        def build(folder: Path) -> None:
            self.ask("make", number=number, folder=str(folder))

        return self.store.get("checkpoint", {"number": number}, build, label=f"checkpoint {number}")

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
        if self.forks is not None:
            self.forks.close()


def measured(run: Run) -> set[int]:
    lines = (it for it in run.lines() if isinstance(it, Measurement))
    return {int(it.parameters["unit"]) for it in lines if "unit" in it.parameters}


def _peak_megabytes() -> float:
    """Return the most memory that this process has had; getrusage tells of what it was forked from too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def _stepped(clock: Callable[[], float], step: float) -> float:
    return clock() + step


def work(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.folder
    runs = arguments.results or folder / "results" / "runs"
    cache = arguments.cache or folder / "cache"
    lock = only_session(folder / "machine.lock", lambda words: print(words, flush=True))
    there = list(runs.glob("*/records.jsonl")) if runs.is_dir() else []
    run = Run.open(runs, "last") if arguments.resume and there else Run.create(runs)
    session = Session(folder, cache, run)
    try:
        run.append(Header(run=run.name, command=["small"], packages={}, device=DEVICE))
        done, failed = measured(run), 0
        for unit in range(arguments.units):
            if unit in done:
                continue
            if arguments.clock and unit == arguments.units // 2:
                time.time = functools.partial(_stepped, time.time, arguments.clock)
            for attempt in range(2):
                try:
                    held = session.artifact(unit % ARTIFACTS).folder / "model.safetensors"
                    if held.read_bytes() != worker_python.contents(unit % ARTIFACTS):
                        print(f"SILENT: artifact {unit % ARTIFACTS}", flush=True)
                        return 3
                    found = session.ask("measure", unit=unit, seconds=arguments.seconds)
                    run.append(measurement(unit, found["value"]))
                    print(f"kept {unit}", flush=True)
                    break
                except WorkerError as error:
                    failed += attempt
                    kept = Failure(cell=CELL, stage=error.stage, failure=error.kind, message=error.message)
                    run.append(kept)
                    print(f"failed {unit}: {error}", flush=True)
        if failed:
            return 1
        print(f"peak {_peak_megabytes():.0f} MB", flush=True)
        print("complete", flush=True)
        return 0
    finally:
        with contextlib.suppress(HarnessError):
            session.close()
        lock.release()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--units", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=0.02)
    parser.add_argument("--clock", type=float, default=0.0)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    with Interruption(lambda: "ended at once; go on with --resume"):
        print("started", flush=True)
        try:
            return work(arguments)
        except HarnessError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as interruption:
            print("interrupted; go on with --resume", file=sys.stderr)
            return interruption_status(str(interruption))


if __name__ == "__main__":
    sys.exit(main())
