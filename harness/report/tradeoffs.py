"""Trade-offs between recipes: quality, speed and memory against each other, with the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.records.schema import Measurement
from harness.report.figure import figure_of
from harness.report.layout import Subject
from harness.report.lines import column_of, recipe_key
from harness.report.plots import MEMORY, NARROW, SPEED, WIDE, Plot, colours, comparable, label_of
from harness.report.svg import COLOURS, Drawing, Placed, Scale, number, place_labels, shortened

# Those that the baseline has too; agreement with the baseline would leave it out of the picture.
_QUALITY = ("perplexity", "program_perplexity", "accuracy")

Row = dict[str, Any]


def pareto(rows: Sequence[Row], x_up: bool, y_up: bool) -> list[Row]:
    """Return the rows that no other row is at least as good as in both ``x`` and ``y`` and better in one, by ``x``."""

    def signed(row: Row) -> tuple[float, float]:
        return row["x"] * (1 if x_up else -1), row["y"] * (1 if y_up else -1)

    def beaten(row: Row) -> bool:
        mine = signed(row)
        return any(
            other[0] >= mine[0] and other[1] >= mine[1] and other != mine for other in map(signed, rows) if other
        )

    return sorted((row for row in rows if not beaten(row)), key=lambda row: (row["x"], row["y"]))


def trade_offs(subject: Subject) -> list[Plot]:
    """Return quality against speed and memory, with the Pareto front; of random weights speed against memory."""
    groups = comparable(subject.measurements)
    speed, size = _most(groups, SPEED), _most(groups, MEMORY)
    quality = None if subject.model.weights == "random" else _most(groups, _QUALITY)
    pairs = [("Quality and speed", speed, quality), ("Quality and memory", size, quality)]
    if quality is None:
        pairs = [("Speed and memory", size, speed)]
    plots = []
    for title, across, up in pairs:
        if across is None or up is None:
            continue
        at = {recipe_key(column_of(it.cell)): it for it in across}
        rows: list[Row] = []
        for it in up:
            beside = at.get(recipe_key(column_of(it.cell)))
            if beside:
                interval = figure_of(beside).interval
                rows.append({"recipe": column_of(it.cell).name, "x": beside.value, "y": it.value, "sure": interval})
        if len(rows) < 2:
            continue
        x, y = _axis(across), _axis(up)
        front = pareto(rows, x.direction == "higher", y.direction == "higher")
        caption = (
            f"{_sentence(y.name)} against {x.name}. Up and right is better; the line joins the Pareto front, which "
            f"nothing else beats in both: {', '.join(row['recipe'] for row in front)}."
        )
        if any(low < high for low, high in (row["sure"] for row in rows)):
            caption += f" A bar is the 95% interval of {x.name}: what two bars share is not told apart."
        svg = "".join(
            _scatter(colours(subject), rows, front, x, y, f"{title}. {caption}", width).markup(kind)
            for width, kind in ((WIDE, "wide"), (NARROW, "narrow"))
        )
        plots.append(Plot(title, caption, svg))
    return plots


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _most(groups: dict[tuple[Any, ...], list[Measurement]], metrics: Sequence[str]) -> list[Measurement] | None:
    """Return the group of the first of these metrics that most recipes have; of its groups the one with most."""
    found = [group for group in groups.values() if group[0].metric in metrics and len(group) > 1]
    if not found:
        return None
    return max(found, key=lambda group: (len(group), -metrics.index(group[0].metric)))


@dataclass(frozen=True)
class _Axis:
    """What stands along one side: its name, which way is better, and the unit that values are divided by ``by`` for."""

    name: str
    direction: str
    unit: str
    by: float = 1.0

    @property
    def title(self) -> str:
        unit = f" in {self.unit}" if self.unit and f"({self.unit})" not in self.name else ""
        return f"{self.name}{unit}, {self.direction} is better"

    def told(self, value: float) -> str:
        return f"{number(value / self.by)} {self.unit}".strip()

    def scale(self, values: Sequence[float], worst: float, best: float) -> Scale:
        low, high = (worst, best) if self.direction == "higher" else (best, worst)
        return Scale.over([value / self.by for value in values], low, high)


def _axis(group: Sequence[Measurement]) -> _Axis:
    first = group[0]
    if first.unit == "B":
        unit, by = ("GB", 1e9) if max(it.value for it in group) >= 1e9 else ("MB", 1e6)
        return _Axis(label_of(first), first.direction, unit, by)
    return _Axis(label_of(first), first.direction, "" if first.unit == "1" else first.unit)


def _scatter(
    series: Mapping[str, int], rows: Sequence[Row], front: Sequence[Row], x: _Axis, y: _Axis, label: str, width: int
) -> Drawing:
    """Draw a point a recipe with its name; the picture becomes taller until all names have a place."""
    texts = [shortened(row["recipe"], width * 0.42) for row in rows]
    height, places = width * 5 // 8, None
    while places is None:
        left, right, top, bottom = 58.0, width - 10.0, 22.0, height - 44.0
        across = x.scale([value for row in rows for value in (row["x"], *row["sure"])], left + 22, right - 22)
        up = y.scale([row["y"] for row in rows], bottom - 18, top + 18)
        points = [(across(row["x"] / x.by), up(row["y"] / y.by)) for row in rows]
        places = place_labels(points, texts, (left, top, right, bottom))
        height += 0 if places else 60
    drawing = Drawing(width, height, label)
    drawing.bottom_axis(across, top, bottom, x.title)
    drawing.left_axis(up, left, right)
    drawing.text(0, 12, shortened(y.title, width - 8), kind="quiet")
    drawn = " ".join(f"{across(row['x'] / x.by)},{up(row['y'] / y.by)}" for row in front)
    drawing.add("polyline", kind="front", points=drawn)
    for row, point, text, place in zip(rows, points, texts, places, strict=True):
        tip = f"{row['recipe']}: {x.told(row['x'])}, {y.told(row['y'])}"
        low, high = (across(end / x.by) for end in row["sure"])
        if low != high:
            drawing.line(low, point[1], high, point[1], f"interval c{series[row['recipe']] % COLOURS}", tip)
        if place.far:
            drawing.line(*point, *_nearest(place, point[0]), "leader")
        drawing.mark(*point, series[row["recipe"]], tip)
        drawing.text(place.x, place.y, text, kind="name", tip=tip)
    return drawing


def _nearest(place: Placed, x: float) -> tuple[float, float]:
    return min(max(x, place.x), place.x + place.width), place.y - 4
