"""One row of a table before it is text: its records by recipe, and how they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.records.metric import Direction, Row
from harness.records.published import Figure
from harness.records.schema import Cell, Measurement, RecipeIdentity, Scalar
from harness.report.table_rows import improvement, position, ratio_text, rows_of

NOTHING = "-"
"""Stands in a cell that nobody measured, or of which every record was discarded."""


def number_of(record: Measurement, value: float) -> str:
    """Return a value in a record's unit, as the metric's own row shows it."""
    row = next((it for it in rows_of(record.metric, record.unit) if not it.statistic), None)
    return f"{value:.4g} {record.unit}" if row is None else row.number(value) + row.suffix


class Column(RecipeIdentity):
    """A recipe on several GPUs that share a model, as tables have it: a column of its own, by a name of its own."""

    gpus: int


def column_of(cell: Cell) -> RecipeIdentity:
    """Return a cell's recipe as tables have it: on how many GPUs, where they are several."""
    if cell.gpus == 1:
        return cell.recipe
    return Column(**{**cell.recipe.model_dump(), "name": f"{cell.recipe.name} ({cell.gpus} GPUs)"}, gpus=cell.gpus)


def gpus_of(recipe: RecipeIdentity) -> int:
    """Return how many GPUs a column is of."""
    return recipe.gpus if isinstance(recipe, Column) else 1


def recipe_key(recipe: RecipeIdentity) -> tuple[str, str]:
    """Return what tells columns apart: two configs under one name are two recipes."""
    return recipe.name, recipe.hash


@dataclass(frozen=True)
class TableLine:
    """One row of a table before it is text, with each recipe's record; None where all of them were discarded."""

    row: Row
    server: str
    parameters: Mapping[str, Scalar]
    unit: str
    definition: int
    direction: Direction
    cells: dict[tuple[str, str], Measurement | None] = field(default_factory=dict)

    @property
    def order(self) -> tuple[object, ...]:
        """The published order of rows, a task's rows together."""
        parameters = tuple((name, isinstance(it, str), it) for name, it in sorted(self.parameters.items()))
        return str(self.parameters.get("task", "")), position(self.row), self.row.metric, parameters

    @property
    def own(self) -> dict[str, Scalar]:
        return {**self.parameters, "unit": self.unit, "definition": self.definition}

    def record(self, recipe: RecipeIdentity | None) -> Measurement | None:
        return self.cells.get(recipe_key(recipe)) if recipe else None

    def value(self, recipe: RecipeIdentity | None) -> float | None:
        record = self.record(recipe)
        if record is None:
            return None
        return record.statistics.get(self.row.statistic) if self.row.statistic else record.value

    def text(self, value: float | None, figure: Figure | None) -> str:
        """Show a value; one that is the published number itself keeps the digits that it was published with."""
        if value is None:
            return NOTHING
        return (figure.digits if figure and figure.value == value else self.row.number(value)) + self.row.suffix

    def published(self, figure: Figure | None) -> str:
        return figure.text + self.row.suffix if figure else NOTHING

    def ratio(self, baseline: float | None, value: float | None) -> float | None:
        return None if baseline is None or value is None else improvement(baseline, value, self.direction)

    def ratio_text(self, ratio: float | None) -> str:
        return NOTHING if ratio is None else ratio_text(ratio, self.row.words)

    def label(self, also: Sequence[str] = ()) -> str:
        lead = [str(self.own[name]) for name in self.row.lead if name in self.own]
        shown = dict.fromkeys((*self.row.after(self.parameters), *also))
        after = ", ".join(f"{name}={self.own[name]}" for name in shown if name in self.own)
        return " ".join(part for part in (*lead, self.row.label, f"({after})" if after else "") if part)


def labels(lines: Sequence[TableLine]) -> list[str]:
    """Name each line, with whatever else tells lines of one name apart."""
    alike: dict[str, list[TableLine]] = {}
    for line in lines:
        alike.setdefault(line.label(), []).append(line)
    return [line.label(_differing(alike[line.label()])) for line in lines]


def _differing(lines: Sequence[TableLine]) -> list[str]:
    names = dict.fromkeys(name for line in lines for name in line.own)
    return [name for name in names if any(line.own.get(name) != lines[0].own.get(name) for line in lines)]
