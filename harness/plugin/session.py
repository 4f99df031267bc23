"""One session of the suites: its run folder, flow, measurements and judge, and what is kept of how tests ended."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from harness import __version__
from harness.base.errors import ArtifactError, HarnessError, WorkerError
from harness.base.files import default_root
from harness.base.terminal import columns
from harness.base.text import redact
from harness.devices import DeviceRunner, Devices
from harness.judge.limits import Judge
from harness.judge.rounds import Rule
from harness.machine import probe
from harness.machine.lock import Held, machine_lock, only_session
from harness.matrix.plan import Cell, Matrix
from harness.measure.flow import Flow
from harness.measure.measure import Measure
from harness.measure.mobile import MeasureMobile
from harness.measure.recorder import Recorder
from harness.plugin import collect
from harness.plugin.collect import Claim
from harness.plugin.command_line import CommandLine
from harness.plugin.progress import Estimate, Progress
from harness.plugin.summary import Section, Summary
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Cell as CellIdentity
from harness.records.schema import Failure, Header, ModelIdentity, Outcome
from harness.runtime.environment import Environment, at, overlay
from harness.runtime.store import Store

if TYPE_CHECKING:
    from harness.plugin.comparison import Comparison


@dataclass
class HarnessSession:
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
        store = Store((given.cache or default_root()).resolve(), say=progress)
        try:
            with store.writing("this session"):
                store.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(
                f"{store.root}: cannot be made ({error.strerror}); name another with --cache"
            ) from error
        # Where nothing but one GPU is measured, sessions on others need not be waited for.
        only = collect.only_hardware(claims)
        gpu = probe.gpu_uuid(only) if only and only.is_gpu else ""
        lock = only_session(machine_lock(), progress, gpu)
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
            memories=lambda: [] if given.resume else collect.memories(claims),
            programs=lambda: collect.programs(claims, lambda device, route: devices(device).lacks(route)),
        )
        recorder = Recorder(flow, run)
        problems = recorder.resume() if given.resume else []
        header = Header(
            run=run.name,
            command=["pytest", *given.words],
            packages=environment.packages(),
            device=probe.host(),
            harness=_harness(),
            python=environment.python_version,
        )
        run.append(header)
        run.become_latest()
        run.note_cache(store.root)
        documented = Documented.load()
        judge = Judge(matrix, recorder, run, documented)
        measure, mobile = Measure(recorder), MeasureMobile(recorder)
        wide = None if given.wide else columns()
        return cls(run, flow, devices, measure, mobile, judge, documented, lock, started, problems, wide=wide)

    def close(self) -> None:
        """End every worker and let other sessions measure."""
        self.flow.close()
        self.lock.release()

    def record_failure(self, cell: Cell, error: WorkerError) -> None:
        """Keep a stage that gave no result, with the end of its log."""
        try:
            identity = self.flow.identity(cell)
        except HarnessError:
            # It is the weights themselves that could not be had.
            model = ModelIdentity(name=cell.model.name, source="none", revision="none", weights="pretrained")
            identity = CellIdentity(
                model=model, recipe=cell.recipe.identity, hardware=cell.hardware.name, server=cell.server
            )
        self.run.append(
            Failure(
                cell=identity,
                stage=error.stage,
                failure=error.kind,
                message=error.message,
                log_tail=error.log_tail,
                worker=error.worker,
                repeated=error.repeated,
            )
        )

    def record_outcome(self, test: str, cell: Cell, reports: Sequence[pytest.TestReport]) -> str:
        """Keep how a test ended, what it cost, and why it was skipped or failed; returns the outcome."""
        ended = [report for report in reports if report.outcome != "passed"]
        outcome: Literal["passed", "failed", "skipped", "xfailed", "noisy", "error"] = "passed"
        reason = expected = ""
        if ended:
            outcome = "skipped" if ended[0].skipped else "failed" if ended[0].when == "call" else "error"
            told = ended[0].longrepr[2] if isinstance(ended[0].longrepr, tuple) else ended[0].longreprtext
            reason = redact(next(iter(str(told).removeprefix("Skipped: ").strip().splitlines()), ""))
            if outcome == "skipped" and hasattr(ended[0], "wasxfail"):
                outcome, expected = "xfailed", redact(ended[0].wasxfail)
            if getattr(ended[0], "noisy", False):
                outcome = "noisy"
        known = cell.model.name in self.flow.checkpoints.models.names
        self.run.append(
            Outcome(
                test=test,
                cell=self.flow.identity(cell) if known else None,
                outcome=outcome,
                seconds=sum(report.duration for report in reports),
                reason=reason,
                known=expected,
            )
        )
        return outcome

    def estimate(self) -> Estimate:
        """Return what earlier runs on this machine say of how long tests take; nothing where they cannot be read."""
        try:
            return Estimate.load(self.run.folder.parent, probe.host().name)
        except HarnessError:
            return Estimate({})

    def summary(self, skipped: list[str]) -> list[Section]:
        """Return titled sections for the terminal, and write the tables; ``skipped`` are the reasons of skipped tests.

        The seconds are those of this process, also where a run was resumed.
        """
        return self._sections(self._summary(), skipped)

    def brief(
        self, verdict: tuple[str, str], skipped: list[str], root: Path
    ) -> tuple[list[tuple[str, str]], list[Section]]:
        """Return a screen of the summary as (line, colour), ``verdict`` with the limits first, and all sections."""
        summary = self._summary()
        sections = self._sections(summary, skipped)
        line, colour = verdict
        return summary.brief((f"{line}; {summary.limits()}", colour), sections, root), sections

    def _summary(self) -> Summary:
        return Summary.of(
            self.run,
            self.documented,
            seconds=time.monotonic() - self.started,
            planner=time.process_time() - self.planner_started,
            wide=self.wide,
        )

    def _sections(self, summary: Summary, skipped: list[str]) -> list[Section]:
        return summary.sections(
            self.run.folder / "tables",
            failures=self.judge.failures,
            known=self.judge.known,
            unjudged=self.judge.unjudged,
            shown=self.judge.shown,
            skipped=skipped,
            comparison=self.comparison.lines() if self.comparison else [],
            problems=self.problems,
        )


def _harness() -> str:
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
