"""One session of the suites: its run folder, flow, measurements and judge, and what is said of them at the end."""

from __future__ import annotations

import json
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from harness import __version__
from harness.base.errors import ArtifactError, HarnessError, WorkerError
from harness.base.files import default_root
from harness.base.text import redact
from harness.judge.limits import Judge
from harness.machine import probe
from harness.machine.lock import Held, machine_lock, only_session
from harness.matrix.plan import Cell, Matrix
from harness.measure.flow import Flow
from harness.measure.measure import Measure
from harness.measure.mobile import MeasureMobile
from harness.plugin.progress import Estimate
from harness.plugin.summary import speed_of_light
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Cell as CellIdentity
from harness.records.schema import Failure, Header, Judgement, Measurement, ModelIdentity, Outcome, Timing
from harness.report import budget, tables
from harness.runtime.environment import Environment, at, overlay
from harness.runtime.store import Store

if TYPE_CHECKING:
    from harness.plugin.against import Against


Section = tuple[str, list[str]]


@dataclass
class HarnessSession:
    """Everything that a session of the suites shares."""

    run: Run
    results: Path
    flow: Flow
    measure: Measure
    mobile: MeasureMobile
    judge: Judge
    documented: Documented
    lock: Held
    started: float
    problems: list[str]
    planner_started: float = field(default_factory=time.process_time)
    against: Against | None = None

    @classmethod
    def start(
        cls,
        *,
        matrix: Matrix,
        results: Path,
        cache: Path | None,
        data: Path | None,
        limit: int | None,
        resume: str | None,
        swap: str | None,
        python: str | None,
        environments: dict[str, Path],
        phone_runner: Path | None,
        gpu: str,
        command: list[str],
        progress: Callable[[str], None],
    ) -> HarnessSession:
        """Open a new run, or go on with an old one, once no other session measures on this machine.

        ``gpu`` names the only GPU that is measured, if nothing else is: sessions on others need not be waited for.
        """
        started = time.monotonic()
        store = Store((cache or default_root()).resolve(), say=progress)
        try:
            store.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(
                f"{store.root}: cannot be made ({error.strerror}); name another with --cache"
            ) from error
        lock = only_session(machine_lock(), progress, gpu)
        environment = Environment(python=python) if python else Environment()
        if swap:
            progress(f"installing {swap} beside the other packages ...")
            environment = overlay(store, swap, environment)
        others = {name: at(path, environment) for name, path in environments.items()}
        runs = results / "runs"
        run = Run.open(runs, resume) if resume else Run.create(runs)
        problems = run.read()[1] if resume else []
        header = Header(
            run=run.name,
            command=command,
            packages=environment.packages(),
            device=probe.device("cpu"),
            harness=_harness(),
        )
        run.append(header)
        flow = Flow(
            store,
            run,
            matrix,
            environment=environment,
            environments=others,
            data=data.resolve() if data else None,
            limit=limit,
            progress=progress,
        )
        measure = Measure(flow, run)
        if resume:
            measure.resume()
            flow.start_ahead = False
        documented = Documented.load()
        judge = Judge(matrix, measure, run, documented)
        mobile = MeasureMobile(flow, measure, run, phone_runner)
        return cls(run, results, flow, measure, mobile, judge, documented, lock, started, problems)

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
                model=model, recipe=cell.recipe.identity, hardware=cell.hardware, server=cell.server
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
        outcome: Literal["passed", "failed", "skipped", "xfailed", "error"] = "passed"
        reason = expected = ""
        if ended:
            outcome = "skipped" if ended[0].skipped else "failed" if ended[0].when == "call" else "error"
            told = ended[0].longrepr[2] if isinstance(ended[0].longrepr, tuple) else ended[0].longreprtext
            reason = redact(next(iter(str(told).removeprefix("Skipped: ").strip().splitlines()), ""))
            if outcome == "skipped" and hasattr(ended[0], "wasxfail"):
                outcome, expected = "xfailed", redact(ended[0].wasxfail)
        known = cell.model.name in self.flow.known_models
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
            return Estimate.load(self.run.folder.parent, probe.device("cpu").name)
        except HarnessError:
            return Estimate({})

    def summary(self, skipped: list[str]) -> list[Section]:
        """Return titled sections for the terminal: tables, failed limits, where the time went, where the files are.

        The tables are written to the results folder as well.
        """
        # Not at the top: collecting the suites need not wait for pyarrow.
        from harness.records import columns

        sections: list[Section] = []
        lines = self.run.read()[0]
        measurements = [line for line in lines if isinstance(line, Measurement)]
        if measurements:
            shown = tables.published_tables(measurements, self.documented)
            shown += tables.quality_tables(measurements, self.documented)
            sections.append(("results", tables.render(shown, "md").splitlines()))
        if self.judge.failures:
            sections.append(("limits that do not hold", self.judge.failures))
        if self.judge.known:
            sections.append(("limits that are known not to hold", self.judge.known))
        if self.judge.unjudged:
            sections.append(("limits that were not judged, for want of a baseline", self.judge.unjudged))
        if skipped:
            sections.append(("skipped", skipped))
        if self.against:
            sections.append(("against the baseline", self.against.lines()))
        if self.problems:
            sections.append(("records that could not be read", self.problems))
        sections.append(("where the time went", self._times([line for line in lines if isinstance(line, Timing)])))
        if light := speed_of_light(measurements):
            sections.append(("speed of light", light))
        if ran := self._kernels(measurements):
            sections.append(("kernels that took longest", ran))
        if cost := budget.cost(lines):
            sections.append(("what the table cost", cost.lines()))
        files = [f"records: {self.run.path}", f"logs: {self.run.logs}"]
        if measurements:
            try:
                written = tables.write(
                    self.results / "tables",
                    measurements,
                    self.documented,
                    runs=[self.run.name],
                    failures=columns.load([self.run]).failures(),
                    skips=tables.skips_of(lines),
                )
                files += [f"table: {path}" for path in written]
            except HarnessError as error:
                files.append(f"no tables: {error}; the records are kept: python -m harness table")
        last = {
            (line.cell.model_dump_json(), line.metric, str(line.parameters), line.comparison, line.limit): line
            for line in lines
            if isinstance(line, Judgement)
        }
        judged = list(last.values())
        files.append(f"limits held: {sum(line.passed for line in judged)} of {len(judged)}")
        sections.append(("files", files))
        return sections

    def _kernels(self, measurements: list[Measurement]) -> list[str]:
        """Name the kernels that took most of each cell's profiled batch, with their share of it."""
        lines: dict[str, str] = {}
        for row in measurements:
            attached = self.run.folder / row.attachment
            if row.metric == "kernel_time" and attached.is_file():
                ran = json.loads(attached.read_text(encoding="utf-8"))["kernels"]
                longest = ", ".join(f"{name[:60]} {1000 * seconds / row.value:.0%}" for name, seconds, _ in ran[:3])
                of = f"{row.cell.model.name} {row.cell.recipe.name} through {row.cell.server} on {row.cell.hardware}"
                lines[of] = f"{of}: {longest}"
        return list(lines.values())

    def _times(self, timings: list[Timing]) -> list[str]:
        now = [timing for timing in timings if timing.time >= time.time() - (time.monotonic() - self.started)]
        total = time.monotonic() - self.started
        planner = time.process_time() - self.planner_started
        stages: dict[str, float] = defaultdict(float)
        for timing in now:
            stages[timing.stage] += timing.seconds
        stages["idle"] = max(0.0, total - sum(stages.values()))
        return [f"{stage:<14}{seconds:8.1f} s {seconds / total:6.1%}" for stage, seconds in stages.items()] + [
            f"{'total':<14}{total:8.1f} s",
            f"of which the planner's own CPU time: {planner:.1f} s, {planner / total:.1%}",
        ]


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
