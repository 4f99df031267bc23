"""What a session says at its end: tables, limits that do not hold, where the time went, and where the files are.

All of it stands in the run's folder, and on the terminal with -v; there a screen of it is shown otherwise.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.base.errors import HarnessError
from harness.base.files import write_text
from harness.base.terminal import fold
from harness.base.text import duration
from harness.judge import limits
from harness.matrix.config_text import prototypes
from harness.records.coverage import Coverage
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Failure, Line, Measurement, Timing
from harness.report import budget, limited, pays, tables, unsteady
from harness.report.blocks import text as tables_text
from harness.report.brief import LINES, Paragraph, cut, lines_at_least, lines_of_speed_too, main_table
from harness.report.claims import KEPT, earlier

Section = tuple[str, list[str]]
"""A title, and the lines below it."""

EARLIER = "measured in earlier runs"
FASTER = "which recipes are faster here"
OTHERS = "limits of other models, which are not asked of this one"
FILE = "summary.txt"
_MAIN_TABLE = 9
_FILES = 6
_LAST = 9
"""Lines that the main table gets at least; the files, and all that stands below it at most."""


@dataclass(frozen=True)
class Summary:
    """The lines of a run; ``seconds`` is what this session of it took, ``planner`` its own processor time.

    Nothing is wider than ``wide`` columns, if that is given.
    """

    run: Run
    documented: Documented
    lines: Sequence[Line]
    seconds: float
    planner: float
    wide: int | None = None

    @classmethod
    def of(
        cls, run: Run, documented: Documented, *, seconds: float, planner: float, wide: int | None = None
    ) -> Summary:
        """Read what a run has."""
        return cls(run, documented, run.read()[0], seconds, planner, wide)

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
        shown: list[str],
        skipped: list[str],
        comparison: list[str],
        problems: list[str],
    ) -> list[Section]:
        """Return what there is to say; the tables are written into ``folder`` as well."""
        found = [
            ("results", self._tables()),
            ("what was quantized", self._coverage()),
            ("limits that do not hold", failures),
            ("limits that are known not to hold", known),
            ("too noisy to say", unsteady.lines(self.lines)),
            ("the machine was not quiet", unsteady.disturbances(self.lines)),
            (EARLIER, self._earlier()),
            ("limits that were not judged, for want of a baseline", unjudged),
            (OTHERS, shown),
            ("skipped", skipped),
            ("against the baseline", comparison),
            ("records that could not be read", problems),
            ("where the time went", list(self._times())),
            ("speed of light", speed_of_light(self.measurements)),
            (FASTER, pays.lines(self.lines, self.documented)),
            ("kernels that took longest", self._kernels()),
            ("what the table cost", cost.lines() if (cost := budget.cost(list(self.lines))) else []),
            ("files", list(self._files(folder))),
        ]
        return [(title, lines) for title, lines in found if lines]

    def _earlier(self) -> list[str]:
        """Say how many figures are of which earlier run."""
        standing = unsteady.standing(self.lines)
        kept = [it for it in standing if it.kept_from]
        runs = ", ".join(earlier(kept))
        words = f"{len(kept)} of {len(standing)} figures were measured in run {runs}, and not again (--reuse)"
        return [words] if kept else []

    def _tables(self) -> list[str]:
        if not self.measurements:
            return []
        shown = tables.published_tables(self.measurements, self.documented)
        shown += tables.quality_tables(self.measurements, self.documented)
        return tables_text(shown, self.wide).splitlines()

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
                    failures=self._failures(),
                    skips=tables.skips_of(list(self.lines)),
                )
                yield from (f"table: {path}" for path in written)
            except HarnessError as error:
                yield f"no tables: {error}; the records are kept: python -m harness table"
        yield self.limits()

    def _failures(self) -> list[Failure]:
        """Return what failed and was not measured since."""
        if not any(isinstance(line, Failure) for line in self.lines):
            return []
        # Not at the top: a session in which nothing fails need not wait for pyarrow.
        from harness.records import columns

        return columns.load([self.run]).failures()

    def limits(self) -> str:
        """Say how many limits hold, and how many of the others are known not to."""
        judged = limits.last(self.lines)
        known = sum(bool(line.known) for line in judged if not line.passed)
        noisy = sum(line.noisy for line in judged)
        return (
            f"limits held: {sum(line.passed for line in judged)} of {len(judged)}"
            + (f", {known} {'is' if known == 1 else 'are'} known not to" if known else "")
            + (f"; of {noisy} it is {limits.TOO_NOISY}" if noisy else "")
        )

    def brief(self, verdict: tuple[str, str], sections: Sequence[Section], root: Path) -> list[tuple[str, str]]:
        """Return a screen of the sections as (line, colour): ``verdict`` (line, colour) first, the files last.

        Paths below ``root`` are shown from there. The sections are written to the run's folder, whole.
        """
        found = dict(sections)
        wide = self.wide or 10**6
        files, all_of_it = self._places(root, found.get("files", []), sections)
        first = [
            Paragraph("", (verdict[0],), verdict[1], rank=0),
            Paragraph(*_section(found, "limits that do not hold"), "red", least=4, rank=2),
            Paragraph(*_section(found, "limits that are known not to hold"), "yellow", least=3, rank=3),
            Paragraph(*_section(found, "too noisy to say"), "yellow", least=2, rank=4),
            Paragraph(*_section(found, "limits that were not judged, for want of a baseline"), "yellow", least=2),
            Paragraph(*_section(found, "against the baseline"), least=4, rank=4),
            Paragraph("what was quantized:", _covered(found.get("what was quantized", ())), least=1, rank=4),
            Paragraph("", tuple(f"†: {it}" for it in found.get("the machine was not quiet", ())), "yellow", least=1),
            Paragraph("", tuple(f"{KEPT}: {it}" for it in found.get(EARLIER, ())), least=1, rank=6),
            Paragraph("", _covered(found.get(FASTER, ())), least=1, rank=5),
            Paragraph(*_section(found, "records that could not be read"), "red", least=2),
            Paragraph(*_section(found, OTHERS), least=2, rank=6),
        ]
        last = cut(
            [
                Paragraph("", _counted(found, "skipped"), least=1, rank=8),
                Paragraph("", self._time_in_a_line(), least=1, rank=7),
                Paragraph("", tuple(files), least=_FILES, rank=0),
            ],
            wide,
            _LAST,
            all_of_it,
        )
        room = LINES - len(last)
        # Where all may be short, the table shows speed and quality too, and not what a first block has of memory alone.
        asked = lines_of_speed_too(self.measurements, self.documented, wide) if self.measurements else 0
        least = max(_MAIN_TABLE, min(asked, room - lines_at_least(first, wide)))
        above = cut(first, wide, room - (least if self.measurements else 0), all_of_it)
        table = main_table(self.measurements, self.documented, wide, room - len(above)) if self.measurements else []
        # What the table leaves is for what stands above it.
        above = cut(first, wide, room - len(table), all_of_it)
        return [*above, *((line, "") for line in table), *last]

    def _places(self, root: Path, files: Sequence[str], sections: Sequence[Section]) -> tuple[list[str], str]:
        """Write the sections; return where the files are, in few lines, and where all of the summary is."""
        path = self.run.folder / FILE
        try:
            write_text(path, "\n".join(_written(sections, self.wide)))
            whole = _below(path, root)
        except (HarnessError, OSError) as error:
            whole = f"cannot be written: {error}"
        tables_at = sorted({Path(it.removeprefix("table: ")).parent for it in files if it.startswith("table: ")})
        shown = [f"records: {_below(self.run.path, root)}", f"logs: {_below(self.run.logs, root)}"]
        shown += [f"tables: {_below(it, root)}" for it in tables_at]
        shown += [it for it in files if it.startswith("no tables: ")]
        return [*shown, f"all of this summary: {whole}"], whole

    def _time_in_a_line(self) -> tuple[str, ...]:
        stages = sorted(self._stages().items(), key=lambda it: -it[1])
        spent = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in stages if seconds >= 1)
        return (f"where the time went: {spent or 'nowhere'}; {duration(self.seconds)} in all",)

    def _coverage(self) -> list[str]:
        """Say of each checkpoint how much of it is quantized, what is plain and why, and how its size was predicted."""
        found: dict[str, list[str]] = {}
        for row in self.measurements:
            of = f"{row.cell.model.name} {row.cell.recipe.name} on {row.cell.on}"
            if row.cell.recipe.baseline or row.discarded:
                continue
            if row.metric == "quantized_parameters":
                try:
                    first, *rest = Coverage.of(self.run.attached(row.attachment)["weights"]).lines()
                except (HarnessError, ValueError, KeyError, TypeError, AttributeError):
                    continue  # A run whose attachments were taken away, or damaged.
                about = [f"the model: {row.cell.model.note}"] if row.cell.model.note else []
                if names := prototypes(row.cell.recipe.config):
                    about.append(f"a prototype of torchao, which its releases may change: {', '.join(names)}")
                found[of] = [f"{of}: {first}", *(f"  {line}" for line in (*about, *rest))]
            elif row.metric == "size_deviation" and of in found and {"measured", "predicted"} <= row.statistics.keys():
                sizes = " B, predicted ".join(f"{row.statistics[name]:,.0f}" for name in ("measured", "predicted"))
                found[of].append(f"  size of the {row.parameters.get('of', 'checkpoint')}: {sizes} B")
        return [line for lines in found.values() for line in lines]

    def _kernels(self) -> list[str]:
        """Name the kernels that took most of each cell's profiled batch, with their share of it."""
        lines: dict[str, str] = {}
        for row in self.measurements:
            if row.metric == "kernel_time" and row.value:
                try:
                    ran = self.run.attached(row.attachment)["kernels"][:3]
                    longest = ", ".join(f"{name[:60]} {1000 * seconds / row.value:.0%}" for name, seconds, _ in ran)
                except (HarnessError, ValueError, KeyError, TypeError):
                    continue  # As above.
                of = f"{row.cell.model.name} {row.cell.recipe.name} through {row.cell.server} on {row.cell.on}"
                lines[of] = f"{of}: {longest}"
        return list(lines.values())

    def _stages(self) -> dict[str, float]:
        stages: dict[str, float] = defaultdict(float)
        since = time.time() - self.seconds
        for line in self.lines:
            if isinstance(line, Timing) and line.time >= since:
                stages[line.stage] += line.seconds
        stages["idle"] = max(0.0, self.seconds - sum(stages.values()))
        return stages

    def _times(self) -> Iterator[str]:
        for stage, seconds in self._stages().items():
            yield f"{stage:<14}{seconds:8.1f} s {seconds / self.seconds:6.1%}"
        yield f"{'total':<14}{self.seconds:8.1f} s"
        yield f"of which the planner's own CPU time: {self.planner:.1f} s, {self.planner / self.seconds:.1%}"


def _section(found: dict[str, list[str]], title: str) -> tuple[str, tuple[str, ...]]:
    return f"{title}:", tuple(found.get(title, ()))


def _covered(lines: Sequence[str]) -> tuple[str, ...]:
    """Return all that is said of one checkpoint, or of several what is said of each first."""
    first = [line for line in lines if not line.startswith(" ")]
    return tuple(lines if len(first) == 1 else first)


def _counted(found: dict[str, list[str]], title: str) -> tuple[str, ...]:
    """Return one line of a section: its first item, and how many more there are."""
    items = found.get(title, [])
    if not items:
        return ()
    return (f"{title}: {items[0]}" + (f"; and {len(items) - 1} more" if len(items) > 1 else ""),)


def _below(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _written(sections: Sequence[Section], wide: int | None) -> Iterator[str]:
    for title, lines in sections:
        yield title
        yield "-" * len(title)
        for line in lines:
            yield from [line] if wide is None or line.startswith("|") else fold(line, wide)
        yield ""


def speed_of_light(measurements: Sequence[Measurement]) -> list[str]:
    """Say how much of the device's limit each phase reaches, and what limits it, by each one's last good record."""
    lines: dict[str, str] = {}
    for row in measurements:
        if row.metric == "limit_fraction" and not row.discarded:
            cell = row.cell
            of = (
                f"{cell.model.name} {cell.recipe.name} through {cell.server} on {cell.on}, "
                f"batch {row.parameters.get('batch_size', '?')}, {row.parameters.get('phase', 'a step')}"
            )
            by = limited.limited_by(row.statistics)
            lines[of] = f"{of}: {row.value:.0%} of the limit" + (f", limited by {by}" if by else "")
    return list(lines.values())
