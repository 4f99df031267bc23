"""Nights: what a night shares is told from what one figure did, and a whole year has a number of false alarms.

A figure of a night is its level, what the whole machine did that night, and its own noise: the night is a random
effect. What the machine did is read off the controls, figures that the package under test has no part in (the
unquantized baseline of the same session). The baseline rolls: a night is held against those before it.

Sources
- Searle, Casella and McCulloch, Variance Components, 1992: a random effect, and its regression towards the mean.
- Bonferroni over figures and windows; a year's nights are counted as if each were a test of its own, though
  neighbours share most of their data, so that fewer alarms are false than are allowed.
- Box, Jenkins and Reinsel, Time Series Analysis, 2008, section 2.1: what dependent nights are worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import scipy

from harness.judge.trend import Trend
from harness.records.metric import Direction
from harness.records.metrics import METRICS

WINDOW = 5
"""The nights within which a step is to be found: the last one to five are held against those before all five."""

MOST, FEWEST = 60, 10
"""Nights of the rolling baseline."""

NIGHTS_A_YEAR = 365

_POWER = 0.9
# How much the night is shared, and what the next one keeps of it, are estimated from the same few nights: over nights
# that walk or depend on each other alarms come up to three times as often as the level says (results/simulation.md).
_CAUTION = 4.0
_MOST_KEPT = 0.9
_UNUSUAL = 4.0
# Clocks repeat no better than this share, however alike a few nights happen to be.
_LEAST_NOISE = 0.001
# Of its margin: a smaller step is not worth an alarm.
_OF_MARGIN = 0.5
# Of what no gate judges block by block: requests a second of a server, say.
_MARGIN = 0.1


@dataclass(frozen=True)
class Figure:
    """One figure over the nights; ``logs`` has the log of each night's mean, NaN where it was not measured."""

    label: str
    direction: Direction
    margin: float
    control: bool
    logs: np.ndarray

    @property
    def slower(self) -> np.ndarray:
        """The logs, turned so that they rise where the figure gets worse."""
        return -self.logs if self.direction == "higher" else self.logs


@dataclass(frozen=True)
class Finding:
    """How a figure's last nights differ from those before, once what the machine did is taken out.

    ``shift`` is a log ratio, above zero where it is worse; ``nights`` is how many of the last nights tell it best, and
    ``p`` is one-sided and of those alone. ``detectable`` is the step, as a share, that five nights tell in nine of ten
    cases.
    """

    figure: Figure
    shift: float
    nights: int
    p: float
    alarm: bool
    detectable: float
    adjusted: bool


def figures(trends: Sequence[Trend]) -> dict[str, tuple[list[date], list[Figure]]]:
    """Return the figures of speed of each device, by the nights (UTC) on which it measured any: the mean of a night's.

    What is no time and no rate is left out: it has no noise that a night could share.
    """
    by_device: dict[str, list[Trend]] = {}
    for one in trends:
        row = one.rows[-1][1]
        if METRICS[row.metric].timed and min(one.values) > 0:
            by_device.setdefault(f"{row.cell.hardware} ({row.device.name})", []).append(one)
    found = {}
    for device, timed in by_device.items():
        dates = sorted({time.date() for one in timed for time in one.times})
        found[device] = (dates, [_figure(one, dates) for one in timed])
    return found


def _figure(one: Trend, dates: Sequence[date]) -> Figure:
    by_date: dict[date, list[float]] = {}
    for time, value in zip(one.times, one.values, strict=True):
        by_date.setdefault(time.date(), []).append(math.log(value))
    row = one.rows[-1][1]
    rule, metric = METRICS[row.metric].rule, METRICS[row.metric]
    return Figure(
        label=one.label,
        direction=metric.direction,
        margin=rule.margin if rule and rule.kind == "blocks" else _MARGIN,
        control=row.cell.recipe.baseline,
        logs=np.array([float(np.mean(by_date[it])) if it in by_date else math.nan for it in dates]),
    )


def level(alarms: float, figures: int) -> float:
    """Return the level of one window of one figure at which a year of all of them has so many false alarms at most."""
    return alarms / _CAUTION / NIGHTS_A_YEAR / max(1, figures) / WINDOW


def look(figures: Sequence[Figure], alarms: float = 1.0) -> list[Finding]:
    """Judge the last night of each figure that has enough nights before it.

    ``alarms`` are the false ones allowed in a year of all figures together. A control is held against the other
    controls; by itself it would tell of the machine.
    """
    judged = [one for one in figures if len(one.logs) > WINDOW and math.isfinite(one.logs[-1]) and _long(one)]
    if not judged:
        return []
    worse = np.array([one.slower for one in judged])
    worse = worse[:, -(MOST + WINDOW) :]
    worse = worse - _means(worse[:, :-WINDOW])
    controls = np.array([one.control for one in judged])
    night = _of_others(worse, controls)
    share = _shares(worse[:, :-WINDOW], night[:, :-WINDOW])
    # What the machine never did before is no part of what those nights tell: all figures have the whole of it.
    usual = _UNUSUAL * night[:, :-WINDOW].std(axis=1)[:, None]
    worse = worse - np.where(np.abs(night) > np.maximum(usual, _LEAST_NOISE), night, share * night)
    return _told(judged, worse, controls.sum() - controls > 0, level(alarms, len(judged)))


def machine(figures: Sequence[Figure]) -> float | None:
    """Return the log ratio of the last night to the baseline's mean, over the controls: above zero is slower.

    None without controls that were measured often enough.
    """
    controls = [one for one in figures if one.control and math.isfinite(one.logs[-1]) and _long(one)]
    logs = [one.slower[-(MOST + WINDOW) :] for one in controls]
    return float(np.mean([it[-1] - np.nanmean(it[:-WINDOW]) for it in logs])) if logs else None


def _told(judged: Sequence[Figure], worse: np.ndarray, adjusted: np.ndarray, at: float) -> list[Finding]:
    before = worse[:, :-WINDOW]
    count = np.isfinite(before).sum(axis=1)
    mean, deviation = np.nanmean(before, axis=1), np.maximum(np.nanstd(before, axis=1, ddof=1), _LEAST_NOISE)
    kept = _kept(before)
    worth = (1 - kept) / (1 + kept)
    # The level, and how much of the night it has, are estimated.
    freedom = np.maximum(2.0, count * worth - 1 - adjusted)
    p, nights, shift = np.ones(len(judged)), np.ones(len(judged)), np.zeros(len(judged))
    for length in range(1, WINDOW + 1):
        window = worse[:, -length:]
        there = np.isfinite(window).sum(axis=1)
        moved = np.nanmean(window, axis=1) - mean
        error = deviation * np.sqrt(1 / np.maximum(1.0, there * worth) + 1 / (count * worth))
        found = scipy.special.stdtr(freedom, -moved / error)
        better = found < p
        nights[better], shift[better], p[better] = length, moved[better], found[better]
    least = np.log1p([one.margin * _OF_MARGIN for one in judged])
    error = deviation * np.sqrt(1 / np.maximum(1.0, WINDOW * worth) + 1 / (count * worth))
    detectable = np.expm1((scipy.special.stdtrit(freedom, 1 - at) + scipy.special.stdtrit(freedom, _POWER)) * error)
    return [
        Finding(
            figure=one,
            shift=float(shift[number]),
            nights=int(nights[number]),
            p=float(p[number]),
            alarm=bool(p[number] < at and shift[number] > least[number]),
            detectable=float(detectable[number]),
            adjusted=bool(adjusted[number]),
        )
        for number, one in enumerate(judged)
    ]


def _long(one: Figure) -> bool:
    """Return whether enough nights were measured before those in which a step is looked for."""
    return int(np.isfinite(one.logs[:-WINDOW][-MOST:]).sum()) >= FEWEST


def _means(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.nanmean(rows, axis=1))[:, None]


def _of_others(worse: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Return for each figure what the controls but itself did each night, on the mean; 0 where there is none."""
    there = np.isfinite(worse) & controls[:, None]
    values = np.where(there, worse, 0.0)
    total, count = values.sum(axis=0) - values, there.sum(axis=0) - there
    return np.asarray(total / np.maximum(1, count))


def _shares(figures: np.ndarray, night: np.ndarray) -> np.ndarray:
    """Return how much of what a night does each figure has, 0 to 1, by regression over the baseline's nights."""
    there = np.isfinite(figures)
    ours, theirs = np.where(there, figures, 0.0), np.where(there, night, 0.0)
    count = there.sum(axis=1)
    together = (ours * theirs).sum(axis=1) / count - ours.sum(axis=1) * theirs.sum(axis=1) / count**2
    spread = (theirs**2).sum(axis=1) / count - (theirs.sum(axis=1) / count) ** 2
    share = np.divide(together, spread, out=np.zeros_like(together), where=spread > 0)
    return np.asarray(np.clip(share, 0.0, 1.0))[:, None]


def _kept(before: np.ndarray) -> np.ndarray:
    """Return the share of a night's deviation that the next one keeps, 0 and more: what chance gives is none."""
    around = np.nan_to_num(before - _means(before))
    squares, count = (around**2).sum(axis=1), np.isfinite(before).sum(axis=1)
    product = (around[:, 1:] * around[:, :-1]).sum(axis=1)
    # An autocorrelation is estimated 1 / n too low, and chance alone gives as much as its standard error.
    found = np.divide(product, squares, out=np.zeros_like(product), where=squares > 0) + 1 / count
    return np.asarray(np.where(found > 1 / np.sqrt(count), np.minimum(found, _MOST_KEPT), 0.0))
