"""The page's main table: a row a recipe, and the few figures that people come for, each beside its limit's state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.records.place import Place
from harness.records.schema import RecipeIdentity
from harness.report.layout import Layout
from harness.report.lines import NOTHING, TableLine, labels
from harness.report.rendering import Table

Flags = Mapping[Place, Literal["known", "noisy", "failed"]]

_MEMORY = ("peak_memory",)
_SIZE = ("program_size", "checkpoint_size", "weight_size")
_SPEED = (
    "latency",
    "capacity",
    "saturation_throughput",
    "request_throughput",
    "generate_throughput",
    "decode_throughput",
    "prefill_throughput",
    "first_token_time",
    "energy_per_token",
    "token_cost",
)
_QUALITY = ("perplexity", "program_perplexity", "accuracy", "kl_divergence", "program_top1")
_QUALITIES = 3
_SPEEDS = 6
_COLUMNS = 9
"""What a screen of 1280 pixels shows beside the contents."""
_SAME = 0.02
"""An improvement within this share of 1 is called neither better nor worse."""


@dataclass(frozen=True)
class Cell:
    """A figure, what is said beside it, whether that is better than the baseline, and the state of its limits."""

    value: str
    beside: str = ""
    tone: Literal["", "better", "worse"] = ""
    flag: Literal["", "known", "noisy", "failed"] = ""


@dataclass(frozen=True)
class Headline:
    """The main table of one model on one device; ``columns`` are labels, each with its server or an empty text."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, bool, tuple[Cell, ...]], ...]


def headline(layout: Layout, flags: Flags) -> Headline | None:
    """Return the main table, or None where nothing was measured of any recipe."""
    lines = _chosen(layout)
    recipes = [it for it in layout.subject.recipes if any(line.record(it) for line in lines)]
    if not lines or not recipes:
        return None
    named = labels(lines)
    several = len({line.server for line in lines if line.row.section == "performance"}) > 1
    columns = tuple(
        (label, line.server if named.count(label) > 1 or (several and line.row.section == "performance") else "")
        for label, line in zip(named, lines, strict=True)
    )
    rows = tuple((it.name, it.baseline, tuple(_cell(layout, line, it, flags) for line in lines)) for it in recipes)
    return Headline(columns, rows)


def table(layout: Layout) -> list[Table]:
    """Return the main table as other tables are, without marks for limits; none where nothing was measured."""
    found = headline(layout, {})
    if found is None:
        return []
    header = ("recipe", *(f"{label}, {server}" if server else label for label, server in found.columns))
    rows = tuple(
        (name, *(f"{it.value} ({it.beside})" if it.beside else it.value for it in cells))
        for name, _, cells in found.rows
    )
    return [Table(layout.subject.heading, "", header, rows, tuple(layout.notes(_chosen(layout))))]


def _cell(layout: Layout, line: TableLine, recipe: RecipeIdentity, flags: Flags) -> Cell:
    value, beside = layout.parts(line, recipe)
    if value == NOTHING:
        return Cell(value)
    record = line.record(recipe)
    place = Place.of(record).without("definition") if record else Place()
    claim = layout.claim(line, recipe)
    ratio = claim.ratio
    clear = ratio is not None and claim.clear and beside and abs(ratio - 1) > _SAME
    return Cell(value, beside, ("better" if ratio and ratio > 1 else "worse") if clear else "", flags.get(place, ""))


def _chosen(layout: Layout) -> list[TableLine]:
    """Choose the lines that make the columns; of what is in none of them, as of a new metric, the first few."""
    often = Counter(line.server for line in layout.lines("performance") for it in line.cells.values() if it)
    sizes = _of(layout.lines("memory"), _MEMORY, 1, each=1) + _of(layout.lines("memory"), _SIZE, 1, each=1)
    quality: list[TableLine] = []
    if layout.subject.model.weights != "random":
        quality = _of(_by_server(layout.lines("quality"), often), _QUALITY, _QUALITIES, each=2)
    most = min(_SPEEDS, _COLUMNS - len(sizes) - len(quality))
    speeds = _of(_by_server(layout.lines("performance"), often), _SPEED, most, each=2)
    return [*sizes, *speeds, *quality] or (layout.lines("quality") + layout.lines("detail"))[:_COLUMNS]


def _by_server(lines: Iterable[TableLine], often: Counter[str]) -> list[TableLine]:
    return sorted(lines, key=lambda line: -often[line.server] if line.server else 0)


def _of(lines: Sequence[TableLine], metrics: Sequence[str], most: int, *, each: int) -> list[TableLine]:
    """Return the lines of these metrics, in the order given, of one metric and server the first and the last."""
    found: list[TableLine] = []
    lines = [it for it in lines if it.row.metric in metrics and not it.row.statistic and any(it.cells.values())]
    for server in dict.fromkeys(line.server for line in lines):
        of_server = [line for line in lines if line.server == server]
        for metric in metrics:
            of_metric = [line for line in of_server if line.row.metric == metric]
            found += of_metric if len(of_metric) <= each else [of_metric[0], *of_metric[-1:]][:each]
    return found[:most]
