"""Figures over many runs: a line a recipe, and the runs at which a level changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from harness.report.plots import NARROW, WIDE, Plot
from harness.report.svg import COLOURS, Drawing, Scale, number, shortened, spread, text_width

_MOST_TIPS = 400
"""Beyond this many points of a plot only those where a level changed have a tooltip."""


@dataclass(frozen=True)
class History:
    """One figure of several recipes over runs: recipe -> (seconds since the epoch, value, run), in order of time.

    ``subject`` is the model on a device, ``detail`` what else tells figures of one metric apart: server and parameters.
    """

    metric: str
    subject: str
    detail: str
    unit: str
    series: dict[str, list[tuple[float, float, str]]]

    @property
    def title(self) -> str:
        return " ".join(it for it in (f"{self.metric} of {self.subject}", self.detail) if it)


@dataclass(frozen=True)
class Change:
    """Where the level of a recipe's figure changed: the run, its time, and the levels before and after."""

    recipe: str
    run: str
    time: float
    before: float
    after: float


def changes_of(history: History) -> list[Change]:
    """Return every change of level; none of a recipe with too few runs to tell."""
    from harness.base.errors import HarnessError
    from harness.judge import trend as trends

    found = []
    for recipe, points in history.series.items():
        times = [datetime.fromtimestamp(time, UTC) for time, _, _ in points]
        try:
            changes = trends.change_points([value for _, value, _ in points], times)
        except HarnessError:
            continue
        for it in changes:
            time, _, run = points[it.index]
            found.append(Change(recipe, run, time, it.before, it.after))
    return found


def trend(history: History) -> Plot | None:
    """Return a line for each recipe over the runs, with the points at which its level changed.

    None where no recipe has the figure of two runs: there is no line, and nothing to say.
    """
    if all(len({run for _, _, run in points}) < 2 for points in history.series.values()):
        return None
    history = _readable(history)
    changes = changes_of(history)
    told = [f"{it.recipe} at {it.run}: {it.before:.4g} -> {it.after:.4g} {history.unit}".rstrip() for it in changes]
    caption = f"Change points: {'; '.join(told)}." if told else ""
    label = f"{history.title} over the runs. {caption}".strip()
    svg = "".join(
        _lines(history, changes, label, width).markup(kind) for width, kind in ((WIDE, "wide"), (NARROW, "narrow"))
    )
    return Plot(history.title, caption, svg)


def _readable(history: History) -> History:
    """Return a history whose bytes are told in megabytes or gigabytes, as tables tell them."""
    most = max(value for points in history.series.values() for _, value, _ in points)
    if history.unit != "B" or most < 1e6:
        return history
    scale, unit = (1e9, "GB") if most >= 1e9 else (1e6, "MB")
    series = {name: [(at, value / scale, run) for at, value, run in points] for name, points in history.series.items()}
    return replace(history, unit=unit, series=series)


def _lines(history: History, changes: Sequence[Change], label: str, width: int) -> Drawing:
    names = {recipe: shortened(recipe, width * 0.3) for recipe in history.series}
    height = max(230, 40 + 16 * len(names) + 44)
    right, top, bottom = width - width * 0.3 - 12, 22.0, height - 44.0
    points = [it for series in history.series.values() for it in series]
    up = Scale.over([value for _, value, _ in points], bottom - 6, top + 6)
    left = max(58.0, 12 + max(text_width(number(tick)) for tick in up.ticks()))
    across = Scale.over([time for time, _, _ in points], left + 6, right - 6, pad=0)
    drawing = Drawing(width, height, label)
    drawing.left_axis(up, left, right)
    drawing.text(0, 12, history.unit if history.unit != "1" else "", kind="quiet")
    first, last = min(time for time, _, _ in points), max(time for time, _, _ in points)
    days = dict.fromkeys((_day(first), _day(last)))
    for at, day, anchor in zip((left, right), days, ("start", "end"), strict=False):
        drawing.text(at, bottom + 16, day, anchor, "quiet")
    for it in changes:
        drawing.line(across(it.time), top, across(it.time), bottom, "change")
    ends = spread([up(series[-1][1]) for series in history.series.values()], 15, top + 6, bottom)
    for place, (recipe, series) in enumerate(history.series.items()):
        drawing.add(
            "polyline", kind=f"path c{place % COLOURS}", points=" ".join(f"{across(t)},{up(v)}" for t, v, _ in series)
        )
        changed = {it.run for it in changes if it.recipe == recipe}
        for time, value, run in series:
            if run in changed or len(points) <= _MOST_TIPS:
                tip = f"{recipe}, {run} ({_day(time)}): {number(value)} {history.unit}"
                drawing.add(
                    "circle",
                    tip,
                    f"dot c{place % COLOURS}",
                    cx=across(time),
                    cy=up(value),
                    r=5 if run in changed else 3,
                )
        end = series[-1]
        drawing.line(across(end[0]), up(end[1]), right + 6, ends[place], "leader")
        drawing.text(right + 9, ends[place] + 4, names[recipe], kind=f"name c{place % COLOURS}", tip=recipe)
    return drawing


def _day(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d")
