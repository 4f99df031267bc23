"""What a session keeps of how its tests ended, and what it says at its end."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import pytest

from harness.base.errors import HarnessError, WorkerError
from harness.base.text import redact
from harness.machine import probe
from harness.matrix.plan import Cell
from harness.plugin.estimate import Estimate
from harness.plugin.summary import Section, Summary
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Cell as CellIdentity
from harness.records.schema import Failure, ModelIdentity, Outcome

if TYPE_CHECKING:
    from harness.plugin.comparison import Comparison


class Told(Protocol):
    """What a judge has said of limits, a line each."""

    failures: list[str]
    known: list[str]
    unjudged: list[str]
    shown: list[str]


class Reported:
    """A session that has a run, measured here or elsewhere."""

    run: Run
    documented: Documented
    started: float
    planner_started: float
    problems: list[str]
    comparison: Comparison | None
    wide: int | None

    @property
    def told(self) -> Told:
        """What was said of limits."""
        raise NotImplementedError

    def knows(self, cell: Cell) -> bool:
        """Return whether it is known which weights a cell is of."""
        return False

    def compiled(self) -> Collection[str]:
        """Return the ids of the cells whose engine finds what it compiled before."""
        return ()

    def identity(self, cell: Cell) -> CellIdentity:
        """Return the cell as records name it where it is not known of which weights it is."""
        model = ModelIdentity(name=cell.model.name, source="none", revision="none", weights="pretrained")
        recipe, on = cell.recipe.identity, cell.hardware.name
        return CellIdentity(model=model, recipe=recipe, hardware=on, server=cell.server, gpus=cell.gpus)

    def record_failure(self, cell: Cell, error: WorkerError) -> None:
        """Keep a stage that gave no result, with the end of its log."""
        self.run.append(
            Failure(
                cell=self.identity(cell),
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
        self.run.append(
            Outcome(
                test=test,
                cell=self.identity(cell) if self.knows(cell) else None,
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
            return Estimate.load(self.run.folder.parent, probe.host().name, kept=self.compiled())
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
            failures=self.told.failures,
            known=self.told.known,
            unjudged=self.told.unjudged,
            shown=self.told.shown,
            skipped=skipped,
            comparison=self.comparison.lines() if self.comparison else [],
            problems=self.problems,
        )
