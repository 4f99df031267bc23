"""One session of the suites: its run folder, flow, measurements and judge, and what is kept of how tests ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness import __version__
from harness.base.errors import ArtifactError, HarnessError
from harness.base.files import default_root
from harness.base.terminal import columns
from harness.cluster.campaign import LATER
from harness.devices import DeviceRunner, Devices
from harness.judge import spread
from harness.judge.limits import Judge
from harness.judge.rounds import Rule
from harness.machine import probe
from harness.machine.lock import Held, machine_lock, only_session
from harness.matrix.plan import Cell, Matrix
from harness.measure.flow import Flow
from harness.measure.kept import Kept
from harness.measure.measure import Measure
from harness.measure.mobile import MeasureMobile
from harness.measure.recorder import Recorder
from harness.plugin import collect
from harness.plugin.collect import Claim
from harness.plugin.command_line import CommandLine
from harness.plugin.progress import Progress
from harness.plugin.reported import Reported, Told
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Cell as CellIdentity
from harness.records.schema import Header
from harness.runtime.environment import Environment, at, overlay
from harness.runtime.shared import Shared
from harness.runtime.store import Store

if TYPE_CHECKING:
    from harness.plugin.comparison import Comparison


@dataclass
class HarnessSession(Reported):
    """Everything that a session of the suites shares."""

    run: Run
    flow: Flow
    devices: Devices
    measure: Measure
    mobile: MeasureMobile
    judge: Judge
    documented: Documented
    lock: Held
    started: float
    problems: list[str]
    planner_started: float = field(default_factory=time.process_time)
    comparison: Comparison | None = None
    wide: int | None = None
    """How many columns the summary may take; none where it may take any."""

    @classmethod
    def start(
        cls,
        matrix: Matrix,
        given: CommandLine,
        claims: Sequence[Claim],
        progress: Progress,
        own_device: Callable[[str], DeviceRunner | None],
    ) -> HarnessSession:
        """Open a new run, or go on with an old one, once no other session measures on this machine.

        ``claims`` are the tests that will run, in order; ``own_device`` gives a device that an extension brings.
        """
        started = time.monotonic()
        shared = Shared.at(given.share, progress) if given.share else None
        store = Store((given.cache or default_root()).resolve(), say=progress, shared=shared)
        with store.writing("this session"):
            try:
                store.root.mkdir(parents=True, exist_ok=True)
            except (NotADirectoryError, FileExistsError) as error:
                raise ArtifactError(
                    f"{store.root}: cannot be made ({error.strerror}); name another with --cache"
                ) from error
        # Where nothing but some GPUs are measured, sessions on others need not be waited for.
        only, most = collect.only_hardware(claims), collect.most_gpus(claims)
        lock = only_session(machine_lock(), progress, probe.gpu_uuids(only, most) if only and only.is_gpu else ())
        passed = (*matrix.pass_env, *given.pass_env)
        environment = Environment(python=given.python or sys.executable, passed=passed)
        if given.swap:
            progress(f"installing {given.swap} beside the other packages ...")
            environment = overlay(store, given.swap, environment)
        others = {name: at(path, environment) for name, path in given.own_environments().items()}
        runs = given.results / "runs"
        run = Run.open(runs, given.resume) if given.resume else Run.create(runs)
        devices = Devices(store, environment, given.phone_runner, own_device)
        flow = Flow.open(
            store,
            run,
            matrix,
            environment=environment,
            environments=others,
            data=given.data.resolve() if given.data else None,
            limit=given.limit,
            progress=progress,
            waiting=progress.waiting,
            # Of a resumed run most is measured already, so nothing is started before it is asked for.
            plan=() if given.resume else collect.workers(claims),
            rule=Rule,
            kept=Kept(store, run, environment) if given.reuse else None,
            memories=lambda: [] if given.resume else collect.memories(claims),
            programs=lambda: collect.programs(claims, lambda device, route: devices(device).lacks(route)),
        )
        if not given.resume:
            # On a processor all that a cell needs stands before anything of it is timed.
            flow.fleet.import_ahead(claim.cell for claim in claims if not (claim.skipped or claim.cell.skip))
        recorder = Recorder(flow, run)
        problems = recorder.resume(spread.too_wide) if given.resume else []
        begun(run, given, environment)
        run.note_cache(store.root)
        documented = Documented.load()
        judge = Judge(matrix, recorder, run, documented)
        judge.later = given.of_a_node and LATER in os.environ
        measure, mobile = Measure(recorder), MeasureMobile(recorder)
        wide = None if given.wide else columns()
        return cls(run, flow, devices, measure, mobile, judge, documented, lock, started, problems, wide=wide)

    @property
    def told(self) -> Told:
        """What its judge has said."""
        return self.judge

    def close(self) -> None:
        """End every worker and let other sessions measure."""
        self.flow.close()
        self.lock.release()

    def compiled(self) -> Collection[str]:
        """Return the ids of the cells whose engine finds what it compiled before."""
        return self.flow.fleet.compiled()

    def knows(self, cell: Cell) -> bool:
        """Return whether it is known which weights a cell is of."""
        return cell.model.name in self.flow.checkpoints.models.names

    def identity(self, cell: Cell) -> CellIdentity:
        """Return the cell as records name it; one whose weights could not be had says so."""
        try:
            return self.flow.cell_identity(cell)
        except HarnessError:
            return super().identity(cell)


def begun(run: Run, given: CommandLine, environment: Environment) -> None:
    """Write the header of a session to its run, which is the latest from then on."""
    run.append(
        Header(
            run=run.name,
            command=["pytest", *given.words],
            packages=environment.packages(),
            device=probe.host(),
            harness=version(),
            python=environment.python_version,
        )
    )
    run.become_latest()


def version() -> str:
    """Return this harness's version, with its commit where it is a checkout and git is there."""
    folder = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    if not (folder / ".git").exists():
        return __version__
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} ({found})"
