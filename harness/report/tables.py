"""Records to tables: the published layout, quality by task, and what was measured beside what was published."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.base.errors import RecordError
from harness.base.files import write_text
from harness.records.failures import counted
from harness.records.metric import Words
from harness.records.place import Place, figure_of, subject_of
from harness.records.published import Documented
from harness.records.schema import Cell, Failure, Line, Measurement, Outcome
from harness.report import headline
from harness.report.layout import SPEED_SECTIONS, Layout, Subject
from harness.report.lines import NOTHING
from harness.report.rendering import Format, Table, render
from harness.report.table_rows import AGREEMENT, rows_of
from harness.servers.registry import distributions

__all__ = [
    "LAYOUTS",
    "Format",
    "Skip",
    "Subject",
    "Table",
    "collect",
    "comparison_tables",
    "provenance",
    "published_tables",
    "quality_tables",
    "render",
    "skips_of",
    "tables_of",
    "write",
]


KEY_PACKAGES = ("torch", "torchao", "mslk-cuda", "transformers", *distributions(), "executorch", "lm-eval", "lm_eval")


@dataclass(frozen=True)
class Skip:
    """What did not run on a hardware, and why; for the list at the end of a written file.

    Of what failed as ``expected`` the reason is what failed, and ``known`` why the matrix expects it.
    """

    hardware: str
    what: str
    reason: str
    expected: bool = False
    known: str = ""


def collect(measurements: Iterable[Measurement]) -> list[Subject]:
    """Sort records into subjects: one for each model (by name, revision and weights) on each device of a hardware.

    Discarded records are set apart. Of several records of one cell, metric, definition and parameters the latest
    stands, whichever run it is from: repeats of one identity, and measurements under other package versions or
    flags, are not averaged. Give the records of one environment alone to see that environment. What an emulator took
    time for says nothing of a device, and is left out.
    """
    groups: dict[tuple[Place, str, str], list[Measurement]] = {}
    for record in measurements:
        if record.device.detail.get("emulated") and _is_speed(record):
            continue
        groups.setdefault(subject_of(record), []).append(record)
    subjects = [_subject(group) for group in groups.values()]
    often = Counter(subject.heading for subject in subjects)
    return [subject if often[subject.heading] == 1 else _told_apart(subject) for subject in subjects]


def published_tables(measurements: Iterable[Measurement], documented: Documented) -> list[Table]:
    """Return the tutorial's tables, a column a recipe: memory, performance, and what the tutorial did not measure.

    Where one thing was measured through several servers, a column says through which.
    """
    layouts = [Layout(subject, documented) for subject in collect(measurements)]
    return [table for layout in layouts for section in SPEED_SECTIONS for table in layout.section(section)]


def quality_tables(measurements: Iterable[Measurement], documented: Documented) -> list[Table]:
    """Return quality by task with each difference from the baseline.

    Of random weights only what holds two implementations of them against each other: they have no accuracy.
    """
    subjects = [_without_accuracy(it) if it.model.weights == "random" else it for it in collect(measurements)]
    return [table for subject in subjects for table in Layout(subject, documented).section("quality")]


def comparison_tables(measurements: Iterable[Measurement], documented: Documented) -> list[Table]:
    """Return measured beside published, a table for each model, quantized recipe and server.

    Only for recipes of which something is published on that hardware; the others stand in the published layout. What
    was published of such a recipe but not measured has a row too: 'not measured'.
    """
    layouts = [Layout(subject, documented) for subject in collect(measurements)]
    return [table for layout in layouts for table in layout.comparisons()]


def main_tables(measurements: Iterable[Measurement], documented: Documented) -> list[Table]:
    """Return a table for each model on each device with a row a recipe: the few figures that people come for."""
    layouts = [Layout(subject, documented) for subject in collect(measurements)]
    return [table for layout in layouts for table in headline.table(layout)]


LAYOUTS = {"published": published_tables, "quality": quality_tables, "comparison": comparison_tables}
SUMMARIES = {"main": main_tables}
"""Layouts whose figures stand in others too, so that ``all`` leaves them out."""


def tables_of(layout: str, measurements: Sequence[Measurement], documented: Documented) -> list[Table]:
    """Return the tables of one layout, or of ``all`` LAYOUTS: then those of one subject together."""
    chosen = LAYOUTS.values() if layout == "all" else [(LAYOUTS | SUMMARIES)[layout]]
    tables = [table for make in chosen for table in make(measurements, documented)]
    headings = list(dict.fromkeys(subject.heading for subject in collect(measurements)))
    return sorted(tables, key=lambda table: headings.index(table.heading))


def write(
    folder: Path,
    measurements: Sequence[Measurement],
    documented: Documented,
    *,
    runs: Sequence[str] = (),
    failures: Sequence[Failure] = (),
    skips: Sequence[Skip] = (),
) -> list[Path]:
    """Write ``<hardware>.md``, ``.rst`` and ``.csv`` into ``folder`` for each hardware, each in one step.

    ``runs`` names the runs that the records are from. Failures and skips are listed at the end of md and rst, and
    a hardware that has nothing else gets its files too. Returns the paths written.
    """
    seen = [it.cell.hardware for it in measurements] + [it.cell.hardware for it in failures]
    seen += [it.hardware for it in skips]
    paths = []
    for hardware in map(_plain_name, dict.fromkeys(seen)):
        of = [record for record in measurements if record.cell.hardware == hardware]
        tables = tables_of("all", of, documented)
        tables += _publication_tables(hardware, of, documented)
        tables += failure_tables([it for it in failures if it.cell.hardware == hardware])
        tables += _skip_tables([it for it in skips if it.hardware == hardware])
        formats: tuple[Format, ...] = ("md", "rst", "csv")
        for format in formats:
            paths.append(folder / f"{hardware}.{format}")
            write_text(paths[-1], render(tables, format, title=hardware, facts=provenance(of, runs)))
    return paths


def _is_speed(record: Measurement) -> bool:
    return any(row.words is Words.SPEED for row in rows_of(record.metric, record.unit))


def _subject(group: Sequence[Measurement]) -> Subject:
    latest: dict[tuple[Place, str, str], Measurement] = {}
    for record in sorted(group, key=lambda record: record.time):
        if not record.discarded:
            latest[figure_of(record)] = record
    standing = {id(record) for record in latest.values()}
    first = group[0]
    return Subject(
        heading=f"{first.cell.model.name} on {first.cell.hardware} ({first.device.name})",
        model=first.cell.model,
        hardware=first.cell.hardware,
        device=first.device.name,
        measurements=tuple(record for record in group if id(record) in standing),
        discarded=tuple(record for record in group if record.discarded),
    )


def _told_apart(subject: Subject) -> Subject:
    more = f"{subject.model.weights} weights {subject.model.revision[:12]}"
    return replace(subject, heading=f"{subject.heading}, {more}")


def _without_accuracy(subject: Subject) -> Subject:
    return replace(
        subject,
        measurements=tuple(it for it in subject.measurements if it.metric in AGREEMENT),
        discarded=tuple(it for it in subject.discarded if it.metric in AGREEMENT),
    )


def _plain_name(hardware: str) -> str:
    if hardware in ("", ".", "..") or Path(hardware).name != hardware or "\0" in hardware:
        raise RecordError(f"hardware {hardware!r} of a record cannot name a file; give it a plain name")
    return hardware


def provenance(measurements: Sequence[Measurement], runs: Sequence[str]) -> dict[str, str]:
    """Return what some records come from, by name: runs, device, packages, and the days they were measured on."""
    days = [time.strftime("%Y-%m-%d", time.gmtime(record.time)) for record in measurements]
    versions = [
        f"{name} {' and '.join(found)}"
        for name in KEY_PACKAGES
        if (found := sorted({record.packages[name] for record in measurements if name in record.packages}))
    ]
    facts = {
        "runs": ", ".join(runs),
        "device": ", ".join(dict.fromkeys(record.device.name for record in measurements)),
        "packages": ", ".join(versions),
        "measured": " to ".join(dict.fromkeys((min(days), max(days)))) + " (UTC)" if days else "",
    }
    return {name: text for name, text in facts.items() if text}


def _publication_tables(hardware: str, measurements: Sequence[Measurement], documented: Documented) -> list[Table]:
    """Return what was published of models on this hardware that were not measured; the others stand beside theirs."""
    measured = {record.cell.model.name for record in measurements}
    rows = tuple(
        (figure.model, figure.recipe, figure.device, f"{figure.metric} {figure.text} {figure.unit}")
        for publication in documented.publications
        if publication.hardware == hardware and not any(publication.is_of(name) for name in measured)
        for figure in publication.figures
    )
    return [Table("Published, of other models", "", ("model", "recipe", "where", "figure"), rows)] if rows else []


def skips_of(lines: Iterable[Line]) -> list[Skip]:
    """Return what a run skipped, a cell's tests with one reason together; a test that ran later is no longer skipped.

    Tests that failed as expected are among them, as such. A test whose model's weights were not looked for before it is
    left out, since its cell is not known.
    """
    last = {line.test: line for line in lines if isinstance(line, Outcome)}
    tests: dict[tuple[str, str, str, bool, str], dict[str, None]] = {}
    for test, it in last.items():
        if it.outcome in ("skipped", "xfailed") and it.cell:
            name = test.partition("::")[2].partition("[")[0]
            key = (it.cell.hardware, _cell_name(it.cell), it.reason, it.outcome == "xfailed", it.known)
            tests.setdefault(key, {})[name] = None
    return [
        Skip(hardware, f"{of}: {', '.join(names)}", reason, expected, known)
        for (hardware, of, reason, expected, known), names in tests.items()
    ]


def failure_tables(failures: Sequence[Failure]) -> list[Table]:
    rows = tuple(
        (_cell_name(it.cell), it.stage, it.failure, str(times), _first_line(it.message))
        for it, times in counted(failures)
    )
    return [Table("Failures", "", ("cell", "stage", "kind", "times", "message"), rows)] if rows else []


def _skip_tables(skips: Sequence[Skip]) -> list[Table]:
    expected = tuple((skip.what, skip.reason, skip.known or NOTHING) for skip in skips if skip.expected)
    skipped = tuple((skip.what, skip.reason) for skip in skips if not skip.expected)
    found = (
        Table("Failed as expected", "", ("what", "how it failed", "why that is expected"), expected),
        Table("Skipped", "", ("what", "reason"), skipped),
    )
    return [table for table in found if table.rows]


def _cell_name(cell: Cell) -> str:
    through = f" through {cell.server}" if cell.server else ""
    return f"{cell.model.name} x {cell.recipe.name} on {cell.on}{through}"


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")
