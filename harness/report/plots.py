"""Records to Vega-Lite specifications: one plot each, as wide as its place, in colours that suit light and dark."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from harness.judge.gatefile import GateFile
from harness.records.schema import Measurement, Scalar
from harness.report.layout import Subject
from harness.report.rows import improvement, rows_of

CONFIDENCE = 0.95
MOST_SAMPLES = 200
"""More samples of one figure than this are shown by that many evenly spaced quantiles."""

# Okabe and Ito's colours, which people who see red and green alike can tell apart; black is left out for dark pages.
_COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a6d9e", "#7a7a7a"]
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
# Those that the baseline has too; agreement with the baseline would leave it out of the picture.
_QUALITY = ("accuracy", "perplexity")
_SPEED = ("generate_throughput", "request_throughput", "latency", "decode_throughput")
_DISTRIBUTIONS = ("latency", "ttft", "tpot", "itl", "generate_throughput")
_IMPROVED = (*_SPEED, "peak_memory", "weight_size", "ttft", "tpot", "output_throughput")

Row = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """A specification, what it shows, and the same in words for who cannot see it."""

    title: str
    caption: str
    spec: dict[str, Any]
    rows: Sequence[Row]


def _plot(title: str, caption: str, rows: list[Row], height: int, layer: list[dict[str, Any]]) -> Plot:
    spec = {
        "$schema": _SCHEMA,
        "description": f"{title}. {caption}",
        "width": "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "data": {"values": rows},
        "layer": layer,
        "config": _CONFIG,
    }
    return Plot(title, caption, spec, rows)


def sections(subject: Subject) -> list[tuple[str, list[Plot]]]:
    """Return every plot about one model on one device by heading; a recipe has one colour in all of them."""
    made = (
        ("Recipes against their baseline", improvements(subject)),
        ("Memory", memory(subject)),
        ("Trade-offs", trade_offs(subject)),
        ("Distributions of raw samples", distributions(subject)),
    )
    names = list(dict.fromkeys(recipe.name for recipe in subject.recipes))
    for _, found in made:
        for layer in (layer for plot in found for layer in plot.spec["layer"]):
            colour = layer["encoding"].get("color", {})
            if colour.get("field") == "recipe":
                layer["encoding"] = layer["encoding"] | {"color": colour | {"scale": {"domain": names}}}
    return [(title, found) for title, found in made if found]


_AXIS = {"labelColor": "currentColor", "titleColor": "currentColor", "gridOpacity": 0.25, "labelLimit": 150}
_CONFIG: dict[str, Any] = {
    "background": None,
    "font": "system-ui, sans-serif",
    "axis": _AXIS | {"domainColor": "currentColor", "tickColor": "currentColor", "gridColor": "#888888"},
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "orient": "bottom", "columns": 2},
    "view": {"stroke": None},
    "range": {"category": _COLOURS},
}
_STEP = 26


def _height(rows: Sequence[Row], field: str = "recipe") -> int:
    return 40 + _STEP * len({row[field] for row in rows})


def _label(record: Measurement, parameters: Iterable[str] | None = None) -> str:
    row = rows_of(record.metric, record.unit)[0]
    named = record.parameters if parameters is None else {name: record.parameters[name] for name in parameters}
    shown = [name for name in (row.after(named) if parameters is None else named) if name in named]
    after = ", ".join(f"{name}={named[name]}" for name in shown)
    through = f"through {record.cell.server}" if record.cell.server else ""
    return " ".join(part for part in (record.metric, f"({after})" if after else "", through) if part)


def _groups(records: Iterable[Measurement]) -> dict[tuple[Any, ...], list[Measurement]]:
    """Sort records by what makes them comparable between recipes."""
    found: dict[tuple[Any, ...], list[Measurement]] = {}
    for it in records:
        key = (it.metric, it.unit, it.definition, it.direction, it.cell.server, _key(it.parameters))
        found.setdefault(key, []).append(it)
    return found


def _key(parameters: dict[str, Scalar]) -> str:
    return json.dumps(parameters, sort_keys=True)


# ------------------------------------------------------------------------ each recipe and its baseline


def interval(baseline: Sequence[float], samples: Sequence[float], ratio: float) -> tuple[float, float] | None:
    """Return the interval of an improvement: Welch's t (Biometrika 34, 1947) on the logs of both sides' samples.

    It is about the rounds of one process, so it does not cover what differs from process to process. None where a side
    has fewer than three samples, or one that is not positive.
    """
    if min(len(baseline), len(samples)) < 3 or min(*baseline, *samples) <= 0:
        return None
    from scipy.stats import t

    parts = []
    for side in (baseline, samples):
        logs = [math.log(it) for it in side]
        mean = math.fsum(logs) / len(logs)
        parts.append((math.fsum((it - mean) ** 2 for it in logs) / (len(logs) - 1) / len(logs), len(logs) - 1))
    total = math.fsum(part for part, _ in parts)
    if total == 0:
        return ratio, ratio
    freedom = total**2 / math.fsum(part**2 / count for part, count in parts if part)
    half = float(t.ppf(0.5 + CONFIDENCE / 2, freedom)) * math.sqrt(total)
    return ratio * math.exp(-half), ratio * math.exp(half)


def improvements(subject: Subject) -> list[Plot]:
    """Return bars of how many times better each recipe is than its baseline, a plot for each figure."""
    plots = []
    for group in _groups(it for it in subject.measurements if it.metric in _IMPROVED).values():
        base = next((it for it in group if it.cell.recipe.baseline), None)
        rows: list[Row] = []
        for it in group:
            ratio = improvement(base.value, it.value, it.direction) if base and it is not base else None
            if base is None or ratio is None:
                continue
            row: Row = {"recipe": it.cell.recipe.name, "ratio": ratio, "value": it.value, "unit": it.unit}
            if found := interval(base.samples, it.samples, ratio):
                row |= {"low": found[0], "high": found[1]}
            rows.append(row)
        if rows and base:
            caption = f"Times better than {base.cell.recipe.name} ({base.value:.4g} {base.unit}); 1 is no change."
            layer = [dict(_BARS), *([_INTERVALS] if any("low" in row for row in rows) else []), _NO_CHANGE]
            plots.append(_plot(_label(group[0]), caption, rows, _height(rows), layer))
    return plots


_RECIPE_Y = {"field": "recipe", "type": "nominal", "title": None, "sort": None}
_TIPS = [{"field": name, "type": "nominal"} for name in ("recipe", "ratio", "low", "high", "value", "unit")]
_BARS: dict[str, Any] = {
    "mark": {"type": "bar", "opacity": 0.85},
    "encoding": {
        "y": _RECIPE_Y,
        "x": {"field": "ratio", "type": "quantitative", "title": "times better than the baseline"},
        "color": {"field": "recipe", "type": "nominal", "legend": None, "sort": None},
        "tooltip": _TIPS,
    },
}
_INTERVALS: dict[str, Any] = {
    "transform": [{"filter": "isValid(datum.low)"}],
    "mark": {"type": "rule", "strokeWidth": 2, "color": "currentColor"},
    "encoding": {"y": _RECIPE_Y, "x": {"field": "low", "type": "quantitative"}, "x2": {"field": "high"}},
}
_NO_CHANGE: dict[str, Any] = {
    "mark": {"type": "rule", "strokeDash": [4, 3], "color": "currentColor"},
    "encoding": {"x": {"datum": 1}},
}


def memory(subject: Subject) -> list[Plot]:
    """Return memory split into weights and peak, and the key-value cache's capacity in tokens."""
    rows: list[Row] = []
    capacity: list[Row] = []
    for it in subject.measurements:
        if it.metric in ("weight_size", "peak_memory"):
            gigabytes = it.value / 1e9 if it.unit == "B" else it.value
            part = "weights" if it.metric == "weight_size" else "peak"
            rows.append({"recipe": it.cell.recipe.name, "part": part, "value": gigabytes})
        elif it.metric == "kv_cache_capacity":
            capacity.append({"recipe": it.cell.recipe.name, "part": _label(it), "value": it.value})
    plots = []
    for title, found, unit in (("Memory: weights and peak", rows, "GB"), ("KV cache capacity", capacity, "tokens")):
        if found:
            encoding = {
                "y": _RECIPE_Y,
                "yOffset": {"field": "part", "sort": None},
                "x": {"field": "value", "type": "quantitative", "title": unit},
                "color": {"field": "part", "type": "nominal", "title": None, "sort": None},
                "tooltip": [{"field": name, "type": "nominal"} for name in ("recipe", "part", "value")],
            }
            layer = [{"mark": {"type": "bar", "opacity": 0.85}, "encoding": encoding}]
            plots.append(_plot(title, f"In {unit}.", found, _height(found) + 40, layer))
    return plots


# ------------------------------------------------------------------------------------------ trade-offs


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
    """Return quality against speed and against memory, with the Pareto front; random weights have no quality."""
    if subject.model.weights == "random":
        return []
    groups = _groups(subject.measurements)
    quality = _most(groups, _QUALITY)
    plots = []
    for what, wanted in (("speed", _SPEED), ("memory", ("peak_memory", "weight_size"))):
        other = _most(groups, wanted)
        if quality is None or other is None:
            continue
        at = {(it.cell.recipe.name, it.cell.recipe.hash): it for it in other}
        rows: list[Row] = []
        for it in quality:
            beside = at.get((it.cell.recipe.name, it.cell.recipe.hash))
            if beside:
                rows.append({"recipe": it.cell.recipe.name, "x": beside.value, "y": it.value})
        if len(rows) < 2:
            continue
        x, y = other[0], quality[0]
        for row in pareto(rows, x.direction == "higher", y.direction == "higher"):
            row["front"] = True
        caption = (
            f"{_label(y)}, {y.direction} is better, against {_label(x)}, {x.direction} is better. "
            "The line joins the Pareto front: what nothing else beats in both."
        )
        layer = _scatter(f"{x.metric} ({x.unit})", f"{y.metric} ({y.unit})")
        plots.append(_plot(f"Accuracy against {what}", caption, rows, 280, layer))
    return plots


def _most(groups: dict[tuple[Any, ...], list[Measurement]], metrics: Sequence[str]) -> list[Measurement] | None:
    """Return the group of the first of these metrics that was measured; of its groups the one with most recipes."""
    for metric in metrics:
        found = [group for group in groups.values() if group[0].metric == metric and len(group) > 1]
        if found:
            return max(found, key=len)
    return None


def _scatter(x: str, y: str) -> list[dict[str, Any]]:
    encoding = {
        "x": {"field": "x", "type": "quantitative", "title": x, "scale": {"zero": False, "padding": 30}},
        "y": {"field": "y", "type": "quantitative", "title": y, "scale": {"zero": False, "padding": 20}},
    }
    tips = [{"field": name, "type": "nominal"} for name in ("recipe", "x", "y")]
    colour = {"field": "recipe", "type": "nominal", "legend": None, "sort": None}
    return [
        {
            "transform": [{"filter": "datum.front"}],
            "mark": {"type": "line", "color": "currentColor", "strokeDash": [4, 3], "opacity": 0.6},
            "encoding": encoding | {"order": {"field": "x", "type": "quantitative"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
            "encoding": encoding | {"color": colour, "tooltip": tips},
        },
        {
            "mark": {"type": "text", "dy": -11, "color": "currentColor", "limit": 120},
            "encoding": encoding | {"text": {"field": "recipe", "type": "nominal"}},
        },
    ]


# --------------------------------------------------------------------------------------- distributions


def thinned(samples: Sequence[float]) -> list[float]:
    """Return at most MOST_SAMPLES of the samples: all, or evenly spaced quantiles with both ends."""
    if len(samples) <= MOST_SAMPLES:
        return list(samples)
    ordered = sorted(samples)
    return [ordered[round(it * (len(ordered) - 1) / (MOST_SAMPLES - 1))] for it in range(MOST_SAMPLES)]


def distributions(subject: Subject) -> list[Plot]:
    """Return the raw samples behind each latency, a plot for each figure: every sample, and the median."""
    plots = []
    wanted = (it for it in subject.measurements if it.metric in _DISTRIBUTIONS and len(it.samples) > 1)
    for group in _groups(wanted).values():
        rows: list[Row] = [
            {"recipe": it.cell.recipe.name, "value": value} for it in group for value in thinned(it.samples)
        ]
        value = {"field": "value", "type": "quantitative", "title": group[0].unit, "scale": {"zero": False}}
        colour = {"field": "recipe", "type": "nominal", "legend": None, "sort": None}
        layer = [
            {
                "mark": {"type": "boxplot", "size": 12, "opacity": 0.35, "outliers": False, "extent": "min-max"},
                "encoding": {"y": _RECIPE_Y, "x": value, "color": colour},
            },
            {
                "mark": {"type": "tick", "thickness": 1, "opacity": 0.8, "size": 16},
                "encoding": {"y": _RECIPE_Y, "x": value, "color": colour},
            },
        ]
        counts = "; ".join(f"{it.cell.recipe.name}: {len(it.samples)}" for it in group)
        plots.append(
            _plot(_label(group[0]), f"A line a sample, box: quartiles. Samples: {counts}.", rows, _height(rows), layer)
        )
    return plots


# ----------------------------------------------------------------------------------------------- trend


@dataclass(frozen=True)
class History:
    """One figure of several recipes over runs: recipe -> (seconds since the epoch, value, run), in order of time."""

    title: str
    unit: str
    series: dict[str, list[tuple[float, float, str]]]


def trend(history: History) -> Plot | None:
    """Return a line for each recipe over the runs, with the points at which its level changed; None for one run."""
    if len({run for points in history.series.values() for _, _, run in points}) < 2:
        return None
    from harness.base.errors import HarnessError
    from harness.judge import trend as trends

    rows: list[Row] = []
    told: list[str] = []
    for recipe, points in history.series.items():
        times = [datetime.fromtimestamp(time, UTC) for time, _, _ in points]
        values = [value for _, value, _ in points]
        try:
            changes = {it.index: it for it in trends.change_points(values, times)}
        except HarnessError:
            changes = {}  # too few runs to tell
        for index, ((_, value, run), at) in enumerate(zip(points, times, strict=True)):
            row: Row = {"recipe": recipe, "time": at.isoformat(), "value": value, "run": run}
            if index in changes:
                before, after = changes[index].before, changes[index].after
                row["change"] = f"{before:.4g} -> {after:.4g} {history.unit}"
                told.append(f"{recipe} at {run}: {row['change']}")
            rows.append(row)
    encoding = {
        "x": {"field": "time", "type": "temporal", "title": None},
        "y": {"field": "value", "type": "quantitative", "title": history.unit, "scale": {"zero": False}},
        "color": {"field": "recipe", "type": "nominal", "title": None, "sort": None},
    }
    tips = [{"field": name, "type": "nominal"} for name in ("recipe", "run", "value", "change")]
    layer: list[dict[str, Any]] = [
        {"mark": {"type": "line", "point": {"size": 25}}, "encoding": encoding | {"tooltip": tips}},
    ]
    if told:
        layer.append(
            {
                "transform": [{"filter": "isValid(datum.change)"}],
                "mark": {"type": "point", "shape": "diamond", "size": 220, "strokeWidth": 2.5, "fill": None},
                "encoding": encoding | {"tooltip": tips},
            }
        )
    caption = f"Change points: {'; '.join(told)}." if told else "No change of level was found."
    return _plot(history.title, caption, rows, 240, layer)


# ------------------------------------------------------------------------------------------------ gate


def verdicts(gate: GateFile) -> Plot | None:
    """Return each verdict's ratio new / old with its interval and margin."""
    one_model = len({it.model for it in gate.verdicts}) == 1
    rows: list[Row] = [
        {
            # The name is an axis label: a model that all rows share would push the rest of it out of sight.
            "name": it.name.removeprefix(f"{it.model} ") if one_model else it.name,
            "ratio": it.ratio,
            "low": it.low,
            "high": it.high,
            "lowest": 1 / (1 + it.margin),
            "highest": 1 + it.margin,
            "verdict": it.verdict,
        }
        for it in gate.verdicts
        if it.ratio is not None and it.low is not None and it.high is not None
    ]
    if not rows:
        return None
    name = {"field": "name", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 260}}
    scale = {"type": "quantitative", "title": "new / old", "scale": {"zero": False}}
    colour = {
        "field": "verdict",
        "type": "nominal",
        "title": None,
        "scale": {
            "domain": ["pass", "regressed", "inconclusive", "error"],
            "range": ["#009e73", "#d55e00", "#e69f00", "#7a7a7a"],
        },
    }
    tips = [{"field": it, "type": "nominal"} for it in ("name", "verdict", "ratio", "low", "high")]
    layer: list[dict[str, Any]] = [
        {
            "mark": {"type": "bar", "opacity": 0.15, "color": "#888888"},
            "encoding": {"y": name, "x": {"field": "lowest"} | scale, "x2": {"field": "highest"}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 3},
            "encoding": {"y": name, "x": {"field": "low"} | scale, "x2": {"field": "high"}, "color": colour},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {"y": name, "x": {"field": "ratio"} | scale, "color": colour, "tooltip": tips},
        },
        _NO_CHANGE,
    ]
    caption = "New over old with its interval; the grey bar is the margin."
    return _plot(gate.title, caption, rows, _height(rows, "name"), layer)
