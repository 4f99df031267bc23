"""Records to plots: SVG made as the page is, with the same in words for who cannot see it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.judge.gatefile import GateFile
from harness.records.place import Place, row_of
from harness.records.schema import Measurement
from harness.report.layout import Subject
from harness.report.lines import column_of
from harness.report.svg import COLOURS, Drawing, Scale, number, shortened, wrapped
from harness.report.table_rows import improvement, rows_of

CONFIDENCE = 0.95
MOST_SAMPLES = 100
"""More samples of one figure than this are shown by that many evenly spaced quantiles."""
NARROW = 340
"""Pixels of a plot that a phone shows whole."""
WIDE = 480

SPEED = ("generate_throughput", "request_throughput", "latency", "decode_throughput")
MEMORY = ("peak_memory", "weight_size", "checkpoint_size")
_DISTRIBUTIONS = ("latency", "ttft", "tpot", "itl", "generate_throughput", "request_throughput")
_IMPROVED = (*MEMORY, *SPEED, "prefill_throughput", "ttft", "tpot", "output_throughput")


@dataclass(frozen=True)
class Plot:
    """A picture in markup, in one or two widths; what it shows; and how to read it."""

    title: str
    caption: str
    svg: str


def sections(subject: Subject) -> list[tuple[str, list[Plot]]]:
    """Return the plots about one model on one device by heading; a recipe has one colour in all of them."""
    made = (
        ("Recipes against their baseline", improvements(subject)),
        ("Memory", memory(subject)),
        ("Raw samples", distributions(subject)),
    )
    return [(title, found) for title, found in made if found]


def colours(subject: Subject) -> dict[str, int]:
    """Return which colour each recipe has."""
    return {name: place for place, name in enumerate(dict.fromkeys(it.name for it in subject.recipes))}


def label_of(record: Measurement) -> str:
    row = rows_of(record.metric, record.unit)[0]
    shown = [name for name in row.after(record.parameters) if name in record.parameters]
    after = ", ".join(f"{name}={record.parameters[name]}" for name in shown)
    lead = " ".join(str(record.parameters[name]) for name in row.lead if name in record.parameters)
    # What a recipe is loaded with where no server is named, and what every program runs in, tell nothing apart.
    through = f"through {record.cell.server}" if record.cell.server not in ("", "transformers", "executorch") else ""
    on = f"on {record.cell.gpus} GPUs" if record.cell.gpus > 1 else ""
    name = f"{lead} {row.label}".strip() if lead else row.label or record.metric
    return " ".join(part for part in (name, f"({after})" if after else "", through, on) if part)


def comparable(records: Iterable[Measurement]) -> dict[tuple[Place, str, str], list[Measurement]]:
    """Sort records by what makes them comparable between recipes."""
    found: dict[tuple[Place, str, str], list[Measurement]] = {}
    for it in records:
        found.setdefault(row_of(it), []).append(it)
    return found


# ------------------------------------------------------------------------------------------ groups of lanes


@dataclass(frozen=True)
class Lane:
    """One value in a group, with its interval if it has one."""

    value: float
    series: int
    tip: str
    low: float | None = None
    high: float | None = None
    kind: str = ""


@dataclass(frozen=True)
class Group:
    """Values of one figure below its name; ``band`` is a range drawn behind them."""

    name: str
    lanes: Sequence[Lane]
    band: tuple[float, float] | None = None


def _lanes(label: str, title: str, groups: Sequence[Group], origin: float, *, log: bool) -> str:
    """Draw each group's name and below it a line from ``origin`` to each of its values, one under the other."""
    values = [origin] + [
        it for group in groups for lane in group.lanes for it in (lane.value, lane.low, lane.high) if it
    ]
    values += [it for group in groups if group.band for it in group.band]
    scale = Scale.over(values, 10, NARROW - 14, log=log)
    step = 13
    names = [wrapped(group.name, NARROW - 8) for group in groups]
    heights = [len(name) * 15 + len(group.lanes) * step + 8 for group, name in zip(groups, names, strict=True)]
    bottom = sum(heights) + 4
    drawing = Drawing(NARROW, bottom + 40, label)
    drawing.bottom_axis(scale, 2, bottom, title)
    drawing.line(scale(origin), 2, scale(origin), bottom, "origin")
    top = 0.0
    for group, name, height in zip(groups, names, heights, strict=True):
        for count, words in enumerate(name):
            drawing.text(0, top + 12 + 15 * count, words, kind="halo")
        y = top + len(name) * 15 + 7
        if group.band:
            left, right = scale(group.band[0]), scale(group.band[1])
            drawing.rectangle(left, y - 7, right - left, len(group.lanes) * step, "band", "the margin")
        for lane in group.lanes:
            kind = lane.kind or f"c{lane.series % COLOURS}"
            if lane.low is not None and lane.high is not None:
                drawing.line(scale(lane.low), y, scale(lane.high), y, f"interval {kind}", lane.tip)
            else:
                drawing.line(scale(origin), y, scale(lane.value), y, f"stem {kind}")
            drawing.mark(scale(lane.value), y, lane.series, lane.tip, lane.kind)
            y += step
        top += height
    return drawing.markup()


def legend(series: dict[str, int]) -> str:
    """Return which colour and shape is whose, as a list that wraps."""
    parts = []
    for name, place in series.items():
        drawing = Drawing(14, 14, "")
        drawing.mark(7, 7, place)
        words = Drawing(0, 0, "")
        words.add("span", text=name)
        parts.append(f'<li aria-hidden="false">{drawing.markup()}{"".join(words.parts)}</li>')
    return f'<ul class="legend">{"".join(parts)}</ul>'


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
    """Return one plot of how many times better each recipe is than its baseline, in every figure that has a ratio."""
    series, groups = colours(subject), []
    by_place = comparable(it for it in subject.measurements if it.metric in _IMPROVED)
    for group in sorted(by_place.values(), key=lambda it: (_IMPROVED.index(it[0].metric), label_of(it[0]))):
        base = next((it for it in group if it.cell.recipe.baseline), None)
        lanes = []
        for it in group:
            ratio = improvement(base.value, it.value, it.direction) if base and it is not base else None
            if base is None or ratio is None:
                continue
            low, high = interval(base.samples, it.samples, ratio) or (None, None)
            name, told = column_of(it.cell).name, f"{number(it.value)} {it.unit} of {number(base.value)}"
            tip = f"{name}: {ratio:.3g} times better, {told}"
            tip += f"; {low:.3g} to {high:.3g}" if low and high else ""
            lanes.append(Lane(ratio, series[name], tip, low, high))
        if lanes:
            groups.append(Group(label_of(group[0]), lanes))
    if not groups:
        return []
    caption = "1 is no change, further right is better. A thick line is the interval of the rounds of one process."
    words = "Times better than the baseline, by figure and recipe"
    shown = legend({name: place for name, place in series.items() if any(
        lane.series == place for group in groups for lane in group.lanes)})  # fmt: skip
    parts = [groups[at : at + 8] for at in range(0, len(groups), 8)]
    svg = shown + '<div class="row">' + "".join(
        _lanes(words, "times better than the baseline", part, 1.0, log=True) for part in parts) + "</div>"  # fmt: skip
    return [Plot("Times better than the baseline", caption, svg)]


def memory(subject: Subject) -> list[Plot]:
    """Return memory split into weights and peak, and the key-value cache's capacity in tokens."""
    plots = []
    parts = {"weights": 0, "peak": 1}
    found: dict[str, list[Lane]] = {}
    for it in subject.measurements:
        if it.metric in ("weight_size", "peak_memory"):
            gigabytes = it.value / 1e9 if it.unit == "B" else it.value
            part = "weights" if it.metric == "weight_size" else "peak"
            tip = f"{column_of(it.cell).name}, {part}: {number(gigabytes)} GB"
            found.setdefault(column_of(it.cell).name, []).append(Lane(gigabytes, parts[part], tip))
    if any(len(lanes) > 1 for lanes in found.values()):
        groups = [Group(name, sorted(lanes, key=lambda it: it.series)) for name, lanes in found.items()]
        svg = legend(parts) + _lanes("Memory of each recipe in GB", "GB", groups, 0, log=False)
        plots.append(Plot("Weights and peak", "What is loaded, and the most that was held.", svg))
    return plots


# --------------------------------------------------------------------------------------- distributions


def thinned(samples: Sequence[float]) -> list[float]:
    """Return at most MOST_SAMPLES of the samples: all, or evenly spaced quantiles with both ends."""
    if len(samples) <= MOST_SAMPLES:
        return list(samples)
    ordered = sorted(samples)
    return [ordered[round(it * (len(ordered) - 1) / (MOST_SAMPLES - 1))] for it in range(MOST_SAMPLES)]


def distributions(subject: Subject) -> list[Plot]:
    """Return the raw samples behind each timed figure, a plot for each of which more than two values differ."""
    plots = []
    series = colours(subject)
    wanted = (it for it in subject.measurements if it.metric in _DISTRIBUTIONS and len(set(it.samples)) > 2)
    for group in comparable(wanted).values():
        unit = group[0].unit
        scale = Scale.over([sample for it in group for sample in it.samples], 10, NARROW - 14)
        step = 38
        drawing = Drawing(NARROW, step * len(group) + 42, f"Raw samples of {label_of(group[0])}")
        drawing.bottom_axis(scale, 2, step * len(group), unit)
        for count, it in enumerate(group):
            top = step * count
            low, middle, high = _quartiles(it.samples)
            told = f"{column_of(it.cell).name}: median {number(middle)} {unit}, {len(it.samples)} samples"
            drawing.text(0, top + 12, shortened(told, NARROW - 8), kind="halo")
            classes = f"c{series[column_of(it.cell).name] % COLOURS}"
            tip = f"{told}, quartiles {number(low)} and {number(high)}"
            drawing.rectangle(scale(low), top + 18, max(scale(high) - scale(low), 1.0), 10, f"box {classes}", tip)
            strokes = "".join(f"M{scale(sample):g} {top + 17}v12" for sample in thinned(it.samples))
            drawing.add("path", kind=f"ticks {classes}", d=strokes)
        plots.append(Plot(label_of(group[0]), "A stroke a sample, box: the middle half.", drawing.markup()))
    return plots


def _quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    ordered = sorted(samples)
    low, middle, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    return low, middle, high


# ------------------------------------------------------------------------------------------------ gate


def verdicts(gate: GateFile) -> Plot | None:
    """Return each verdict's ratio new / old with its interval and margin; those that are no pass first."""
    one_model = len({it.place.model for it in gate.verdicts}) == 1
    groups: list[Group] = []
    for it in sorted(gate.verdicts, key=lambda it: (it.verdict == "pass", not it.primary)):
        if it.ratio is None or it.low is None or it.high is None:
            continue
        # A model that all rows share says nothing.
        name = it.name.removeprefix(f"{it.place.model} ") if one_model else it.name
        tip = f"{name}: {it.verdict}, {it.ratio:.4g} ({it.low:.4g} to {it.high:.4g}), margin {it.margin:.3g}"
        lane = Lane(it.ratio, 0, tip, it.low, it.high, it.verdict)
        groups.append(Group(name, [lane], (1 / (1 + it.margin), 1 + it.margin)))
    if not groups:
        return None
    label = f"Ratio new / old of each metric: {gate.title}"
    parts = [groups[at : at + 14] for at in range(0, len(groups), 14)]
    svg = "".join(_lanes(label, "new / old", part, 1.0, log=True) for part in parts)
    caption = "New over old with its interval; the grey band is the margin."
    return Plot("Every ratio, with its interval", caption, f'<div class="row">{svg}</div>')
