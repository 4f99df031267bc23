"""One model on one device to tables: which lines, labels, cells and notes, whatever the layout."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.base.errors import SampleError
from harness.judge import spread
from harness.judge.limits import TOO_NOISY
from harness.records.metric import Row, Section, Words
from harness.records.metrics import METRICS, OF_THE_DEVICE
from harness.records.place import Parameters, row_of
from harness.records.published import Documented, Figure
from harness.records.schema import Measurement, ModelIdentity, RecipeIdentity, Scalar
from harness.report import claims, limited
from harness.report.claims import Claim
from harness.report.lines import NOTHING, TableLine, column_of, gpus_of, labels, recipe_key
from harness.report.rendering import Entry, Table
from harness.report.table_rows import AGREEMENT, ROWS, rows_of

REPRODUCTION_TOLERANCE = 0.05
"""A published improvement counts as reproduced if the measured one is at most this share smaller.

An improvement is that of :func:`harness.report.table_rows.improvement`, so 1.16x counts from 1.102x on, and a memory
reduction of 36 % (a factor of 1.563) from a factor of 1.485, which is a reduction of 33 %.
"""

SPEED_SECTIONS: dict[Section, str] = {"memory": "Memory", "performance": "Performance", "detail": "Serving detail"}
SECTIONS: dict[Section, str] = SPEED_SECTIONS | {"quality": "Quality"}


@dataclass(frozen=True)
class Subject:
    """What one set of tables is about: the standing and the discarded records of one model on one device."""

    heading: str
    model: ModelIdentity
    hardware: str
    device: str
    measurements: tuple[Measurement, ...]
    discarded: tuple[Measurement, ...]

    @cached_property
    def recipes(self) -> list[RecipeIdentity]:
        """Every recipe that something was measured of, in order of appearance, the baseline first."""
        records = [it for it in (*self.measurements, *self.discarded) if it.metric not in OF_THE_DEVICE]
        columns = map(column_of, (it.cell for it in records))
        recipes = {recipe_key(column): column for column in columns}
        return sorted(recipes.values(), key=lambda recipe: not recipe.baseline)

    @cached_property
    def baseline(self) -> RecipeIdentity | None:
        return next((recipe for recipe in self.recipes if recipe.baseline), None)

    def baseline_of(self, recipe: RecipeIdentity) -> RecipeIdentity | None:
        """Return the baseline on as many GPUs, which a recipe is held against."""
        return next((one for one in self.recipes if one.baseline and gpus_of(one) == gpus_of(recipe)), None)


@dataclass(frozen=True)
class Layout:
    """The tables of one subject."""

    subject: Subject
    documented: Documented

    def section(self, section: Section) -> list[Table]:
        """Return the section's table; where some line was measured through several servers, with a column for them."""
        lines = self.lines(section)
        often = Counter((it.row, it.unit, it.definition, Parameters(it.parameters)) for it in lines)
        return [self.table(section, lines, servers=max(often.values()) > 1)] if lines and self.subject.recipes else []

    def lines(self, section: Section) -> list[TableLine]:
        found: dict[tuple[object, ...], TableLine] = {}
        for it in (*self.subject.measurements, *self.subject.discarded):
            for row in rows_of(it.metric, it.unit):
                if row.section == section and (not row.statistic or row.statistic in it.statistics):
                    place, *told = row_of(it)
                    place = place.without("gpus").without_parameters(*row.of_recipe)
                    kept = {name: value for name, value in it.parameters.items() if name not in row.of_recipe}
                    line = TableLine(row, it.cell.server, kept, it.unit, it.definition, it.direction)
                    line = found.setdefault((row.statistic, place, *told), line)
                    line.cells.setdefault(recipe_key(column_of(it.cell)), None if it.discarded else it)
        return sorted(found.values(), key=lambda line: line.order)

    def table(self, section: Section, lines: Sequence[TableLine], *, servers: bool) -> Table:
        recipes = [recipe for recipe in self.subject.recipes if any(recipe_key(recipe) in line.cells for line in lines)]
        return Table(
            self.subject.heading,
            SECTIONS[section],
            ("Benchmark", *(["Server"] if servers else []), *(self.column(recipe, section) for recipe in recipes)),
            tuple(
                (
                    label,
                    *([line.server or NOTHING] if servers else []),
                    *(self.cell(line, recipe) for recipe in recipes),
                )
                for label, line in zip(labels(lines), lines, strict=True)
            ),
            (*self.notes(lines), *(self.quality_notes(lines) if section == "quality" else ())),
            self.entries(lines, recipes),
        )

    def column(self, recipe: RecipeIdentity, section: Section) -> str:
        if recipe == self.subject.baseline_of(recipe):
            label = self.documented.label(self.subject.model.name, self.subject.hardware, section)
            return f"{label} ({gpus_of(recipe)} GPUs)" if gpus_of(recipe) > 1 else label
        twice = sum(other.name == recipe.name for other in self.subject.recipes) > 1
        name = f"{recipe.name} ({recipe.hash[:6]})" if twice else recipe.name
        model = self.documented.label(self.subject.model.name, self.subject.hardware)
        # A model that came quantized is usually called after its recipe; beside a baseline both need names.
        once = self.subject.baseline is None and model.endswith(f"-{name}")
        return model if once else f"{model}-{name}"

    def figure(self, line: TableLine, recipe: RecipeIdentity | None) -> Figure | None:
        if recipe is None or line.row.statistic:
            return None
        cell = (self.subject.model.name, recipe.name, self.subject.hardware)
        return self.documented.find(*cell, line.row.metric, line.parameters, server=line.server or None)

    def reference(self, line: TableLine, recipe: RecipeIdentity) -> RecipeIdentity | None:
        """Return the recipe that ``recipe`` is held against in this line."""
        against = self.subject.baseline_of(recipe)
        return None if recipe == against or line.row.words is Words.ALONE else against

    def cell(self, line: TableLine, recipe: RecipeIdentity) -> str:
        value, beside = self.parts(line, recipe)
        return f"{value} ({beside})" if beside else value

    def parts(self, line: TableLine, recipe: RecipeIdentity) -> tuple[str, str]:
        """Return a cell's value, and what stands in brackets after it: mostly how it compares with the baseline."""
        record, value = line.record(recipe), line.value(recipe)
        if record is None or value is None:
            return NOTHING, ""
        text = self.shown(line, recipe)
        baseline = line.value(self.reference(line, recipe))
        if baseline is not None and line.row.words is Words.DIFFERENCE:
            interval = self._paired(line, recipe)
            return text, f"{_signed(line.row, value - baseline)}{interval}"
        if {"lost", "won"} <= record.statistics.keys():
            return text, f"{record.statistics['lost']:.0f} lost, {record.statistics['won']:.0f} won"
        if record.metric == "limit_fraction" and (by := limited.limited_by(record.statistics)):
            return text, by
        return text, claims.words(self.claim(line, recipe), line)

    def shown(self, line: TableLine, recipe: RecipeIdentity | None) -> str:
        """Return a figure with how far its rounds are apart, and a mark where the machine was not quiet."""
        record, text = line.record(recipe), line.text(line.value(recipe), self.figure(line, recipe))
        if record is None or text == NOTHING:
            return text
        return text + claims.plus_minus(line, record) + claims.marks(record)

    def claim(self, line: TableLine, recipe: RecipeIdentity) -> Claim:
        """Return how a recipe's figure compares with that which it is held against."""
        record, against = line.record(recipe), self.reference(line, recipe)
        if record is None:
            return Claim(None)
        return claims.claim(line, record, line.record(against), line.ratio(line.value(against), line.value(recipe)))

    def _paired(self, line: TableLine, recipe: RecipeIdentity) -> str:
        """Return the interval of an accuracy's difference from the baseline, where both have the same documents."""
        record, reference = line.record(recipe), line.record(self.reference(line, recipe))
        if record is None or reference is None or record.metric != "accuracy":
            return ""
        # Not at the top: whoever collects the suites need not wait for scipy.
        from harness.judge.accuracy import noninferiority

        try:
            found = noninferiority(reference.samples, record.samples)
        except SampleError:
            return ""
        return f", {_signed(line.row, found.low)} to {_signed(line.row, found.high)}"

    def entries(self, lines: Iterable[TableLine], recipes: Sequence[RecipeIdentity]) -> tuple[Entry, ...]:
        made = (self.entry(line, recipe) for line in lines for recipe in recipes)
        return tuple(entry for entry in made if entry)

    def entry(self, line: TableLine, recipe: RecipeIdentity) -> Entry | None:
        record, value = line.record(recipe), line.value(recipe)
        if record is None or value is None:
            return None
        against, figure = self.reference(line, recipe), self.figure(line, recipe)
        baseline, within = line.value(against), self.claim(line, recipe).within
        return Entry(
            model=self.subject.model.name,
            weights=self.subject.model.weights,
            recipe=recipe.name,
            hardware=self.subject.hardware,
            device=self.subject.device,
            server=line.server,
            metric=line.row.metric,
            statistic=line.row.statistic,
            parameters=json.dumps(dict(line.parameters), sort_keys=True),
            value=value,
            unit=line.unit,
            baseline=baseline,
            ratio=line.ratio(baseline, value),
            published=figure.value if figure else None,
            published_ratio=_published_ratio(line, self.figure(line, against), figure),
            samples=len(record.samples),
            time=record.time,
            spread=None if line.row.statistic else spread.deviation(record),
            ratio_low=within[0] if within else None,
            ratio_high=within[1] if within else None,
            disturbed=record.disturbed,
            kept_from=record.kept_from,
        )

    def comparisons(self) -> list[Table]:
        """Return a table for each recipe that something is published of and each server, measured or published."""
        measured = [it for section in SPEED_SECTIONS for it in self.lines(section) if it.row.words is not Words.ALONE]
        tables = []
        for recipe in self.subject.recipes:
            figures = self.documented.figures(self.subject.model.name, recipe.name, self.subject.hardware)
            published = [it for it in figures if rows_of(it.metric, it.unit)[0].section in SPEED_SECTIONS]
            if recipe.baseline or not published:
                continue
            lines = [line for line in measured if recipe_key(recipe) in line.cells]
            found = [self.figure(line, recipe) for line in lines]
            lines += [_unmeasured(figure) for figure in published if figure not in found]
            for server in dict.fromkeys(line.server for line in lines):
                tables.append(self.comparison(recipe, server, [it for it in lines if it.server == server]))
        return tables

    def comparison(self, recipe: RecipeIdentity, server: str, lines: list[TableLine]) -> Table:
        lines.sort(key=lambda line: line.order)
        base = self.subject.baseline
        figures = [(self.figure(line, base), self.figure(line, recipe)) for line in lines]
        header = ("Benchmark", "baseline", "quantized", "ratio")
        title = recipe.name + (f" against {base.name}" if base else "") + (f" through {server}" if server else "")
        return Table(
            self.subject.heading,
            f"{title}, measured and published",
            (*header, "published baseline", "published quantized", "published ratio", "reproduced"),
            tuple(
                (label, *self.beside(line, base, recipe, *pair))
                for label, line, pair in zip(labels(lines), lines, figures, strict=True)
            ),
            (*self.notes(lines), *self.publication_notes(figure for pair in figures for figure in pair)),
            self.entries(lines, [base, recipe] if base else [recipe]),
        )

    def beside(
        self,
        line: TableLine,
        base: RecipeIdentity | None,
        recipe: RecipeIdentity,
        base_figure: Figure | None,
        figure: Figure | None,
    ) -> list[str]:
        """Return a line of what was measured beside what was published."""
        claim, published = self.claim(line, recipe), _published_ratio(line, base_figure, figure)
        return [
            self.shown(line, base),
            self.shown(line, recipe),
            claims.words(claim, line) or NOTHING,
            line.published(base_figure),
            line.published(figure),
            line.ratio_text(published),
            _reproduced(claim, published),
        ]

    def publication_notes(self, figures: Iterable[Figure | None]) -> list[str]:
        """Say where the published figures are from, what is known of them, and what counts as reproduced."""
        found = [figure for figure in figures if figure]
        notes = [f"published: {figure.source}; on {figure.device}" for figure in found]
        for figure in found:
            notes += self.documented.remarks(figure.model, figure.hardware, figure.metric)
        if found:
            least = f"{1 - REPRODUCTION_TOLERANCE:.0%}"
            notes.append(
                f"reproduced: the improvement over the baseline, as a factor, is {least} of the published or more"
            )
        return list(dict.fromkeys(notes))

    def notes(self, lines: Sequence[TableLine]) -> list[str]:
        """Return what a reader must know: of the weights, of parameters not named in a row, of discarded records."""
        model = self.subject.model
        about = dict.fromkeys(it.cell.model.note for it in (*self.subject.measurements, *self.subject.discarded))
        here = {(line.row.metric, line.server) for line in lines}
        why = Counter(it.discarded for it in self.subject.discarded if (it.metric, it.cell.server) in here)
        reasons = "; ".join(f"{reason} ({count})" for reason, count in why.items())
        return [
            *(["weights: random, exact shape; accuracy is left out"] if model.weights == "random" else []),
            *(f"model: {note}" for note in about if note),
            *_settings(lines),
            *_unmetered(lines),
            *_parameter_notes(lines, self.documented),
            *claims.notes([record for line in lines for record in line.cells.values() if record]),
            *([f"discarded: {why.total()} record{'s' if why.total() > 1 else ''}: {reasons}"] if why else []),
        ]

    def quality_notes(self, lines: Sequence[TableLine]) -> list[str]:
        records = [record for line in lines for record in line.cells.values() if record]
        stated = [
            f"published for {recipe.name}: {bound.text} ({bound.section})"
            for recipe in self.subject.recipes
            for bound in self.documented.bounds(self.subject.model.name, recipe.name, "accuracy")
        ]
        stated += dict.fromkeys(
            f"{count:.0f} of the {record.parameters['documents']} documents of {record.parameters['task']} are longer "
            "than the program's context and lost their beginning: export it with a longer one "
            "(measurements.arm-mobile.mobile.context) for the task's own score"
            for record in records
            if (count := record.statistics.get("truncated")) and {"documents", "task"} <= record.parameters.keys()
        )
        if any("stderr" in record.statistics for record in records):
            paired = any(record.metric == "accuracy" for record in records)
            interval = ", of an accuracy with its 95 % interval over the same documents (Tango)" if paired else ""
            against = f"; in brackets the difference from the baseline{interval}" if self.subject.baseline else ""
            stated.insert(0, f"± is the task's standard error{against}")
        if self.subject.model.weights == "random" and any(record.metric in AGREEMENT for record in records):
            stated.append(
                "with random weights almost all tokens are equally likely: agreement says that the same model runs "
                "and little of how well; which token is the likeliest is nearly chance"
            )
        return stated


def _signed(row: Row, difference: float) -> str:
    return f"{'-' if difference < 0 else '+'}{row.number(abs(difference))}"


def _unmeasured(figure: Figure) -> TableLine:
    """Return the line that a published figure would stand in, without records."""
    metric = METRICS[figure.metric]
    row = next(row for row in rows_of(figure.metric, figure.unit) if not row.statistic)
    return TableLine(row, figure.server, figure.parameters, figure.unit, metric.version, metric.direction)


def _published_ratio(line: TableLine, baseline: Figure | None, figure: Figure | None) -> float | None:
    return line.ratio(baseline.value, figure.value) if baseline and figure else None


def _reproduced(claim: Claim, published: float | None) -> str:
    if published is None:
        return NOTHING
    if claim.ratio is None:
        return "not measured"
    least = published * (1 - REPRODUCTION_TOLERANCE)
    if claim.noisy or spread.undecided(claim.within, least):
        return TOO_NOISY
    return "yes" if claim.ratio >= least else "no"


def _settings(lines: Sequence[TableLine]) -> list[str]:
    """Say what was set otherwise than the matrix has it, for the records of a table."""
    records = [record for line in lines for record in line.cells.values() if record]
    given = dict.fromkeys(str(record.flags.get("set", "")) for record in records)
    if list(given) in ([], [""]):
        return []
    some = "" if "" not in given else " for some of the figures"
    return [f"set{some}: {' | '.join(filter(None, given))}"]


def _unmetered(lines: Sequence[TableLine]) -> list[str]:
    """Say why workloads have no energy a token, where the device's counter could not be read."""
    records = [record for line in lines for record in line.cells.values() if record]
    told = (str(record.state_after.get("energy", "")) for record in records)
    return [f"energy a token: {words}" for words in dict.fromkeys(told) if words]


def _parameter_notes(lines: Sequence[TableLine], documented: Documented) -> list[str]:
    """Say, for each metric, which parameters are not the published ones, or are neither published nor in a label."""
    told: dict[str, dict[str, dict[Scalar, None]]] = {}
    for line in lines:
        published = documented.definition(line.row.metric)
        for name, value in line.parameters.items():
            usual = value in published[name] if name in published else name in line.row.named(line.parameters)
            if not usual:
                told.setdefault(line.row.metric, {}).setdefault(name, {})[value] = None
    alike: dict[str, list[str]] = {}
    for metric, names in told.items():
        label = next((row.label for row in ROWS if row.metric == metric and row.label), metric)
        alike.setdefault(_parameter_note(names, documented.definition(metric)), []).append(label)
    return [f"{', '.join(labels)}: {words}" for words, labels in alike.items()]


def _parameter_note(names: Mapping[str, Iterable[Scalar]], published: Mapping[str, Iterable[Scalar]]) -> str:
    return ", ".join(
        f"{name} {_either(values)}" + (f" (published: {_either(published[name])})" if name in published else "")
        for name, values in names.items()
    )


def _either(values: Iterable[Scalar]) -> str:
    return " or ".join(str(value) for value in values)
