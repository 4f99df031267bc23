"""What a session says at its end: tables, limits that do not hold, where the time went, and where the files are."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.base.errors import HarnessError
from harness.base.reading import json_file
from harness.judge import limits
from harness.records import columns
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Line, Measurement, Timing
from harness.report import budget, limited, tables, unsteady

Section = tuple[str, list[str]]
"""A title, and the lines below it."""


@dataclass(frozen=True)
class Summary:
    """The lines of a run; ``seconds`` is what this session of it took, ``planner`` its own processor time."""

    run: Run
    documented: Documented
    lines: Sequence[Line]
    seconds: float
    planner: float

    @classmethod
    def of(cls, run: Run, documented: Documented, *, seconds: float, planner: float) -> Summary:
        """Read what a run has."""
        return cls(run, documented, run.read()[0], seconds, planner)

    @property
    def measurements(self) -> list[Measurement]:
        return [line for line in self.lines if isinstance(line, Measurement)]

    def sections(
        self,
        folder: Path,
        *,
        failures: list[str],
        known: list[str],
        unjudged: list[str],
        skipped: list[str],
        comparison: list[str],
        problems: list[str],
    ) -> list[Section]:
        """Return what there is to say; the tables are written into ``folder`` as well."""
        found = [
            ("results", self._tables()),
            ("limits that do not hold", failures),
            ("limits that are known not to hold", known),
            ("too noisy to say", unsteady.lines(self.lines)),
            ("the machine was not quiet", unsteady.disturbances(self.lines)),
            ("limits that were not judged, for want of a baseline", unjudged),
            ("skipped", skipped),
            ("against the baseline", comparison),
            ("records that could not be read", problems),
            ("where the time went", list(self._times())),
            ("speed of light", speed_of_light(self.measurements)),
            ("kernels that took longest", self._kernels()),
            ("what the table cost", cost.lines() if (cost := budget.cost(list(self.lines))) else []),
            ("files", list(self._files(folder))),
        ]
        return [(title, lines) for title, lines in found if lines]

    def _tables(self) -> list[str]:
        if not self.measurements:
            return []
        shown = tables.published_tables(self.measurements, self.documented)
        shown += tables.quality_tables(self.measurements, self.documented)
        return tables.render(shown, "md").splitlines()

    def _files(self, folder: Path) -> Iterator[str]:
        yield f"records: {self.run.path}"
        yield f"logs: {self.run.logs}"
        if self.measurements:
            try:
                written = tables.write(
                    folder,
                    self.measurements,
                    self.documented,
                    runs=[self.run.name],
                    failures=columns.load([self.run]).failures(),
                    skips=tables.skips_of(list(self.lines)),
                )
                yield from (f"table: {path}" for path in written)
            except HarnessError as error:
                yield f"no tables: {error}; the records are kept: python -m harness table"
        judged = limits.last(self.lines)
        noisy = sum(line.noisy for line in judged)
        more = f"; of {noisy} it is {limits.TOO_NOISY}" if noisy else ""
        yield f"limits held: {sum(line.passed for line in judged)} of {len(judged)}{more}"

    def _kernels(self) -> list[str]:
        """Name the kernels that took most of each cell's profiled batch, with their share of it."""
        lines: dict[str, str] = {}
        for row in self.measurements:
            attached = self.run.folder / row.attachment
            if row.metric == "kernel_time" and attached.is_file():
                ran = json_file(attached)["kernels"]
                longest = ", ".join(f"{name[:60]} {1000 * seconds / row.value:.0%}" for name, seconds, _ in ran[:3])
                of = f"{row.cell.model.name} {row.cell.recipe.name} through {row.cell.server} on {row.cell.hardware}"
                lines[of] = f"{of}: {longest}"
        return list(lines.values())

    def _times(self) -> Iterator[str]:
        stages: dict[str, float] = defaultdict(float)
        since = time.time() - self.seconds
        for line in self.lines:
            if isinstance(line, Timing) and line.time >= since:
                stages[line.stage] += line.seconds
        stages["idle"] = max(0.0, self.seconds - sum(stages.values()))
        for stage, seconds in stages.items():
            yield f"{stage:<14}{seconds:8.1f} s {seconds / self.seconds:6.1%}"
        yield f"{'total':<14}{self.seconds:8.1f} s"
        yield f"of which the planner's own CPU time: {self.planner:.1f} s, {self.planner / self.seconds:.1%}"


def speed_of_light(measurements: Sequence[Measurement]) -> list[str]:
    """Say how much of the device's limit each phase reaches, and what limits it, by each one's last good record."""
    lines: dict[str, str] = {}
    for row in measurements:
        if row.metric == "limit_fraction" and not row.discarded:
            cell = row.cell
            of = (
                f"{cell.model.name} {cell.recipe.name} through {cell.server} on {cell.hardware}, "
                f"batch {row.parameters['batch_size']}, {row.parameters['phase']}"
            )
            by = limited.limited_by(row.statistics)
            lines[of] = f"{of}: {row.value:.0%} of the limit" + (f", limited by {by}" if by else "")
    return list(lines.values())
