"""Workloads on servers as pictures: what one user gets against what a device gives, and latencies over rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.records.schema import Measurement
from harness.report.layout import Subject
from harness.report.lines import column_of
from harness.report.plots import NARROW, WIDE, Plot, colours, legend
from harness.report.svg import COLOURS, Drawing, Scale, number, shortened

_TIMES = (("load_ttft", "time to first token"), ("load_tpot", "time per output token"))


@dataclass(frozen=True)
class Spot:
    """One point of a curve, with what a browser shows where it is pointed at."""

    x: float
    y: float
    tip: str


Curves = Mapping[str, Sequence[Spot]]


def sweeps(subject: Subject) -> list[Plot]:
    """Return the pictures of each workload through each server: one curve a recipe."""
    found: dict[tuple[str, str], list[Measurement]] = {}
    for it in subject.measurements:
        if it.metric.startswith("load_") and not it.discarded:
            found.setdefault((str(it.parameters.get("workload", "")), it.cell.server), []).append(it)
    plots = []
    for (workload, server), records in found.items():
        title = f"{workload} through {server}"
        plots += [plot for plot in (_sweep(subject, title, records), *_latencies(subject, title, records)) if plot]
    return plots


def _points(records: Sequence[Measurement]) -> dict[str, dict[str, dict[str, Measurement]]]:
    """Sort records by recipe, then by the rate or state that they were measured at, then by metric."""
    found: dict[str, dict[str, dict[str, Measurement]]] = {}
    for it in records:
        at = str(it.parameters.get("at", ""))
        found.setdefault(column_of(it.cell).name, {}).setdefault(at, {})[it.metric] = it
    return found


def _sweep(subject: Subject, title: str, records: Sequence[Measurement]) -> Plot | None:
    """Return tokens a second and user against tokens a second of the device."""
    curves: dict[str, list[Spot]] = {}
    for recipe, points in _points(records).items():
        for at, of in points.items():
            if not {"load_tokens", "load_tpot"} <= of.keys() or not of["load_tpot"].value > 0:
                continue
            user, device = 1000 / of["load_tpot"].value, of["load_tokens"].value
            tip = f"{recipe}, {at}: {number(user)} tok/s a user, {number(device)} tok/s of the device"
            curves.setdefault(recipe, []).append(Spot(user, device, tip))
    for spots in curves.values():
        # From the lightest load to the heaviest.
        spots.sort(key=lambda spot: spot.y)
    if not any(len(spots) > 1 for spots in curves.values()):
        return None
    caption = (
        "A point a rate, from few requests (bottom right) to all at once (top left). Up and right is better: more "
        "users on a device at the same speed, or the same users faster."
    )
    axes = ("tokens a second that a user gets (1000 / median TPOT)", "tokens a second of the device")
    return Plot(f"{title}: users and device", caption, _drawn(subject, curves, *axes, title=title, log=False))


def _latencies(subject: Subject, title: str, records: Sequence[Measurement]) -> list[Plot]:
    """Return the median and the 99th percentile of latencies over the rate."""
    plots = []
    for metric, words in _TIMES:
        curves: dict[str, list[Spot]] = {}
        dashed: dict[str, list[Spot]] = {}
        for recipe, points in _points(records).items():
            for of in points.values():
                it = of.get(metric)
                rate = it.statistics.get("asked_rate") if it else None
                if it is None or rate is None or not it.value > 0:
                    continue
                p99 = it.statistics.get("p99", it.value)
                tip = f"{recipe} at {number(rate)} req/s: median {number(it.value)} ms, p99 {number(p99)} ms"
                curves.setdefault(recipe, []).append(Spot(rate, it.value, tip))
                dashed.setdefault(recipe, []).append(Spot(rate, p99, tip))
        for spots in (*curves.values(), *dashed.values()):
            spots.sort(key=lambda spot: spot.x)
        if any(len(spots) > 1 for spots in curves.values()):
            caption = "Lines: medians; dashed: 99th percentiles. Lower is better, and further right before it rises."
            svg = _drawn(subject, curves, "requests a second", f"{words} in ms", title=title, log=True, dashed=dashed)
            plots.append(Plot(f"{title}: {words}", caption, svg))
    return plots


def _drawn(
    subject: Subject, curves: Curves, x: str, y: str, *, title: str, log: bool, dashed: Curves | None = None
) -> str:
    series = {name: place for name, place in colours(subject).items() if name in curves}
    pictures = "".join(
        _picture(series, curves, dashed or {}, x, y, f"{title}: {y} against {x}", width, log=log).markup(kind)
        for width, kind in ((WIDE, "wide"), (NARROW, "narrow"))
    )
    return legend(series) + pictures


def _picture(
    series: Mapping[str, int], curves: Curves, dashed: Curves, x: str, y: str, label: str, width: int, *, log: bool
) -> Drawing:
    height = width * 5 // 8
    left, right, top, bottom = 58.0, width - 10.0, 22.0, height - 44.0
    spots = [spot for of in (*curves.values(), *dashed.values()) for spot in of if math.isfinite(spot.y)]
    across = Scale.over([spot.x for spot in spots], left + 12, right - 12)
    up = Scale.over([spot.y for spot in spots], bottom - 12, top + 12, log=log)
    drawing = Drawing(width, height, label)
    drawing.bottom_axis(across, top, bottom, x)
    drawing.left_axis(up, left, right)
    drawing.text(0, 12, shortened(y, width - 8), kind="quiet")
    for name, place in series.items():
        kind = f"path c{place % COLOURS}"
        for of, further in ((dashed.get(name, ()), " dashed"), (curves[name], "")):
            line = " ".join(f"{across(spot.x)},{up(spot.y)}" for spot in of)
            if line:
                drawing.add("polyline", kind=kind + further, points=line)
        for spot in curves[name]:
            drawing.mark(across(spot.x), up(spot.y), place, spot.tip)
    return drawing
