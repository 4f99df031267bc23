"""How far apart a figure's own rounds are, what the figure may be by them, and whether a limit can be held against it.

Rounds are repeats of the same work in one process, so what they say is the least that the figure may be off: another
process adds to it. Times and rates vary by factors, so ranges are those of the mean of the logarithms (geometric means:
Kirkwood, Biometrics 35, 1979), by Student's t; of two figures by Welch's (Biometrika 34, 1947), which asks for no equal
noise on both sides. The figure itself, a mean or a median, is always within.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.records.metrics import METRICS
from harness.records.schema import Measurement
from harness.records.stored import factor

CONFIDENCE = 0.95
MOST_SPREAD = 0.25
"""Rounds whose logarithms have a larger standard deviation (about a quarter of the figure) say nothing of a figure.

As of the runs of a stored baseline; quiet machines are below a tenth.
"""
# Numbers that differ by a smaller share of them are the same.
_ROUNDING = 1e-12
_MANY = 1000

Range = tuple[float, float]


@dataclass(frozen=True)
class _Mean:
    """The mean of some numbers, the variance of that mean, and its degrees of freedom; none where it is not known."""

    center: float
    variance: float
    freedom: int


def rounds(record: Measurement) -> Sequence[float]:
    """Return the samples whose spread is what the machine adds: of rounds or of their requests, two or more."""
    metric = METRICS.get(record.metric)
    known = metric is not None and metric.samples != "inputs" and len(record.samples) > 1
    return record.samples if known else ()


def deviation(record: Measurement) -> float | None:
    """Return the standard deviation (n - 1) of the rounds, in the figure's unit; None where there are not two."""
    found = rounds(record)
    return math.sqrt(_mean(found).variance * len(found)) if found else None


def too_wide(record: Measurement) -> bool:
    """Return whether rounds are so far apart that the figure says nothing, whatever it is held against.

    Requests of one round differ by what is asked of them too, so of them it is said by the rounds' medians alone.
    """
    found, metric = rounds(record), METRICS.get(record.metric)
    if not found or metric is None:
        return False
    if metric.samples == "requests":
        return record.statistics.get("rounds_log_sd", 0.0) > MOST_SPREAD
    return math.sqrt(_log_mean(found).variance * len(found)) > MOST_SPREAD


def of_value(record: Measurement, confidence: float = CONFIDENCE) -> Range | None:
    """Return what a figure may be by its rounds, from the least to the most; None where they do not tell."""
    if not record.value > 0:
        return None
    if known := interval(record):
        return known
    if not rounds(record):
        return None
    found = _of(record)
    return _factor(record.value, found, _NONE, math.exp(found.center), confidence)


def of_ratio(record: Measurement, baseline: Measurement, confidence: float = CONFIDENCE) -> Range | None:
    """Return what the ratio of a figure to the baseline's may be, from the least to the most.

    Where the rounds of one side alone are known, that side's spread is all that is; None where no side's are.
    """
    mine, other = (rounds(it) or interval(it) for it in (record, baseline))
    if not (mine or other) or not (record.value > 0 and baseline.value > 0):
        return None
    new = _of(record) if mine else _Mean(math.log(record.value), 0.0, 0)
    old = _of(baseline) if other else _Mean(math.log(baseline.value), 0.0, 0)
    center = factor(new.center - old.center)
    return _factor(record.value / baseline.value, new, old, center, confidence)


def of_difference(record: Measurement, baseline: Measurement, confidence: float = CONFIDENCE) -> Range | None:
    """Return what the difference of a figure from the baseline's may be; as :func:`of_ratio`."""
    mine, other = rounds(record), rounds(baseline)
    if not (mine or other):
        return None
    new = _mean(mine) if mine else _Mean(record.value, 0.0, 0)
    old = _mean(other) if other else _Mean(baseline.value, 0.0, 0)
    arm, told = _arm(new, old, confidence), record.value - baseline.value
    center = new.center - old.center
    return min(told, center - arm), max(told, center + arm)


def of_quantiles(
    record: Measurement, baseline: Measurement, statistic: str, confidence: float = CONFIDENCE
) -> Range | None:
    """Return what the ratio of two records' ``pNN`` may be; None where samples, or such a statistic, are not there.

    Of each side by its order statistics (Conover, Practical Nonparametric Statistics, 1999, section 3.2), whatever the
    distribution; with too few samples one end is open. Both ends taken together, so the range is rather too wide.
    """
    if not (rounds(record) and rounds(baseline)) or statistic[:1] != "p" or not statistic[1:].isdigit():
        return None
    share = int(statistic[1:]) / 100
    new, old = (_quantile(rounds(it), share, confidence) for it in (record, baseline))
    return (new[0] / old[1] if old[1] else math.inf), (new[1] / old[0] if old[0] else math.inf)


def _quantile(samples: Sequence[float], share: float, confidence: float) -> Range:
    from scipy.stats import binom

    ordered, beyond = sorted(samples), (1 - confidence) / 2
    first = int(binom.ppf(beyond, len(ordered), share))
    last = int(binom.ppf(1 - beyond, len(ordered), share)) + 1
    low = ordered[first - 1] if first else 0.0
    return low, (ordered[last - 1] if last <= len(ordered) else math.inf)


def of_comparison(
    comparison: str, record: Measurement, baseline: Measurement | None, confidence: float = CONFIDENCE
) -> Range | None:
    """Return what a limit's ``comparison`` may come to, as :func:`harness.judge.limits.compare` gives it."""
    if comparison in ("max", "min"):
        return of_value(record, confidence)
    if baseline is None:
        return None
    of = of_ratio if comparison.endswith("_ratio") else of_difference
    return of(record, baseline, confidence)


def undecided(within: Range | None, limit: float) -> bool:
    """Return whether a figure may as well be on the one side of a limit as on the other."""
    return within is not None and within[0] < limit < within[1]


_NONE = _Mean(0.0, 0.0, 0)


def _mean(values: Sequence[float]) -> _Mean:
    if max(values) - min(values) <= _ROUNDING * max(map(abs, values)):
        return _Mean(values[0], 0.0, len(values) - 1)
    center = math.fsum(values) / len(values)
    squares = math.fsum((value - center) ** 2 for value in values)
    return _Mean(center, squares / (len(values) - 1) / len(values), len(values) - 1)


def told(record: Measurement) -> Range | None:
    """Return the interval at 95 % that a figure was recorded with, as a search for a rate gives it; else None."""
    low, high = (record.statistics.get(f"interval_{side}") for side in ("low", "high"))
    return None if low is None or high is None or not 0 <= low <= record.value <= high else (low, high)


def interval(record: Measurement) -> Range | None:
    """Return what ``told`` does where it bounds a factor too: one from 0 on does not."""
    return found if (found := told(record)) and found[0] > 0 else None


def _of(record: Measurement) -> _Mean:
    """Return the mean of a record's logarithms; of requests no surer than the rounds' medians let it be."""
    if known := interval(record):
        # As wide as it was told; of so many requests that their number adds no doubt.
        return _Mean(math.log(record.value), (math.log(known[1] / known[0]) / 2 / 1.96) ** 2, _MANY)
    found = _log_mean(rounds(record))
    count, sd = (record.statistics.get(name, 0.0) for name in ("rounds", "rounds_log_sd"))
    between = sd**2 / count if count > 1 else 0.0
    return _Mean(found.center, between, int(count) - 1) if between > found.variance else found


def _log_mean(values: Sequence[float]) -> _Mean:
    """Return the mean of the logarithms; of numbers that have none, by their share of the plain mean."""
    if min(values) > 0:
        return _mean([math.log(value) for value in values])
    plain = _mean(values)
    if plain.center <= 0:
        return _Mean(0.0, math.inf, plain.freedom)
    return _Mean(math.log(plain.center), plain.variance / plain.center**2, plain.freedom)


def _arm(new: _Mean, old: _Mean, confidence: float) -> float:
    """Return half the width of the interval of a difference of means, with Welch's and Satterthwaite's freedom."""
    total = new.variance + old.variance
    if total == 0 or not math.isfinite(total):
        return total
    # Not at the top: whoever collects the suites need not wait for scipy.
    from scipy import special

    shares = [(it.variance / total) ** 2 / it.freedom for it in (new, old) if it.freedom]
    return float(special.stdtrit(1 / sum(shares), (1 + confidence) / 2)) * math.sqrt(total)


def _factor(told: float, new: _Mean, old: _Mean, center: float, confidence: float) -> Range:
    arm = factor(_arm(new, old, confidence))
    if arm == 1:
        return told, told
    return min(told, center / arm), max(told, center * arm)
