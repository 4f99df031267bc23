"""The statistics of verdicts: pure functions of numbers, each citing its source.

The unit of replication is a fresh process: one number a process goes in, never one a request. Old and new are paired
in blocks, so what a machine's drift does to both cancels. Effects are ratios new / old, averaged on the log scale,
where 10 % slower and 10 % fewer tokens a second are the same distance from no change.

Sources
- Kalibera and Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013: replication at the level of processes,
  effects as ratios with intervals, how many inner samples pay.
- Schuirmann, J. Pharmacokin. Biopharm. 15, 1987: equivalence is shown by an interval inside the margin (TOST);
  Piaggio et al., JAMA 308, 2012: non-inferiority is its one-sided half.
- Benjamini and Hochberg, J. R. Statist. Soc. B 57, 1995: the false discovery rate of a family.
- Kirkwood, Geometric Means and Measures of Dispersion, Biometrics 35, 1979: the standard deviation of logarithms.
- Moore, Interval Analysis, Prentice-Hall 1966: what a quotient or a difference of two ranges can be.
- PEP 485, A Function for Testing Approximate Equality, 2015: an absolute and a relative tolerance, of which the larger
  holds.

Intervals of means are in harness/judge/intervals.py; when a gate looks at its blocks and how sure it has to be then, in
looks.py; what is judged document by document, in accuracy.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

from harness.base.errors import SampleError, TooFewSamples
from harness.judge.intervals import Interval, log_ratios, positive
from harness.judge.looks import PRECISION, Look
from harness.records.stored import factor

Direction = Literal["lower", "higher", "none"]
Finding = Literal["pass", "regressed", "inconclusive"]

_FARTHEST = 6.0


@dataclass(frozen=True)
class Decision:
    """A verdict and the short code of the rule that gave it; ``REASONS`` has each code's meaning."""

    verdict: Finding
    reason: str


REASONS = {
    "equivalent": "the whole interval lies within the margin on both sides of no change",
    "improved": "the whole interval lies beyond the margin on the better side",
    "not-worse": "the whole interval lies on the better side of the margin",
    "beyond-margin": "the whole interval lies beyond the margin on the worse side",
    "near-margin": "the interval is narrow and still holds the margin: the effect is about as large as the margin",
    "too-noisy": "the interval holds the margin and is wider than the margin allows: more samples may settle it",
    "mean-beyond-margin": "the mean of the samples, which is published, lies beyond the margin; the median does not",
    "tail-beyond-margin": "the slowest requests are worse by more than the margin; the median is not",
    "mean-undecided": "the median passes, and the mean of a block's samples may still lie beyond the margin",
    "tail-undecided": "the median passes, and the slowest requests may still be worse by more than the margin",
    "false-discovery": "beyond the margin by itself, but not under Benjamini-Hochberg over all primary metrics",
    "within-range": "every pair of samples grew by no more than the margins",
    "beyond-range": "every pair of samples grew by more than both margins",
    "less-sure": "the right answers are less likely than before, by more than may be chance and than the margin allows",
    "as-sure": "the right answers are as likely as before, or less by what may be chance or is within the margin",
    "mixed-range": "some pairs of samples grew by more than the margins and some did not",
}


# ------------------------------------------------------------------------------------------------------------- ratios


def paired_ratio(old: Sequence[float], new: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the ratio new / old of blocks, each block's two numbers being its processes' medians.

    A process counts once, by its median, however many rounds it gave: the spread of those medians holds what rounds
    within a process add to it already, so no level below needs a term of its own (Kalibera and Jones 2013, section 6).
    The estimate is the geometric mean of the blocks' ratios, its interval Student's t on the log ratios. Raises
    TooFewSamples below two blocks, and SampleError for unequal lengths and for values that are not finite and above
    zero.
    """
    return Look.at(log_ratios(old, new)).interval(confidence).transformed(factor)


@dataclass(frozen=True)
class Components:
    """Variance between processes and within one, of log samples: the squares of T2 and T1 of Kalibera and Jones."""

    between: float
    within: float


def variance_components(blocks: Sequence[Sequence[float]]) -> Components:
    """Split the variance of log samples into that between processes and that within (K. and J. 2013, section 6.1).

    Needs two processes of at least two samples each; the between part is unbiased and therefore cut off at zero.
    """
    if len(blocks) < 2:
        raise TooFewSamples("a split of the variance", 2, len(blocks), "processes")
    shortest = min(len(samples) for samples in blocks)
    if shortest < 2:
        raise TooFewSamples("a split of the variance", 2, shortest, "samples in every process")
    logs = [np.log(positive(samples, f"process {index}")) for index, samples in enumerate(blocks)]
    within = float(np.mean([values.var(ddof=1) for values in logs]))
    inner = len(logs) / sum(1 / len(values) for values in logs)
    between = float(np.var([values.mean() for values in logs], ddof=1)) - within / inner
    return Components(max(0.0, between), within)


def inner_samples(components: Components, process_seconds: float, sample_seconds: float, most: int = 100) -> int:
    """Return how many samples a process should give for the least measuring time (K. and J. 2013, section 6.2).

    ``process_seconds`` is what a process costs before its first counted sample, ``sample_seconds`` what each costs.
    """
    if components.between == 0:
        return most if components.within else 1
    pays = math.sqrt(process_seconds / sample_seconds * components.within / components.between)
    return min(most, max(1, math.ceil(pays)))


def baseline_ratio(runs: Sequence[float], today: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the ratio of today's blocks to a baseline of several runs, whose spread alone is the measure of noise.

    The prediction interval of the mean of ``len(today)`` further blocks of the baseline (Hahn and Meeker, Statistical
    Intervals, 1991, section 4.8) about today's, on the log scale. ``n`` counts the runs: at least two.
    """
    before, after = np.log(positive(runs, "baseline")), np.log(positive(today, "today's"))
    count = len(before)
    if count < 2:
        raise TooFewSamples("a baseline's spread", 2, count)
    center = float(after.mean() - before.mean())
    error = float(before.std(ddof=1)) * math.sqrt(1 / count + 1 / len(after))
    arm = float(scipy.special.stdtrit(count - 1, (1 + confidence) / 2)) * error
    return Interval(center, center - arm, center + arm, confidence, "prediction", count).transformed(factor)


# ----------------------------------------------------------------------------------------------------------- verdicts


def decide(interval: Interval, margin: float, direction: Direction, *, narrow: bool | None = None) -> Decision:
    """Judge a ratio: regressed only if the whole interval lies beyond the margin, pass only if it lies inside.

    ``margin`` is a share: 0.05 allows a ratio of 1.05 where lower is better, and of 1 / 1.05 where higher is, so that
    a time and its rate get the same verdict. An improvement of any size passes. Where neither direction is better
    ("none"), any change beyond the margin counts as regressed. An interval that touches the margin is inconclusive:
    near it if it is ``narrow`` (by default: as :func:`precise_enough` says), else too noisy.
    Source: confidence intervals for equivalence and non-inferiority (Schuirmann 1987; Piaggio et al. 2012).
    """
    bound = math.log1p(_margin(margin))
    near = precise_enough(interval, margin) if narrow is None else narrow
    return _decide(interval.transformed(math.log), bound, direction, near)


def decide_difference(interval: Interval, margin: float, direction: Direction) -> Decision:
    """Judge a difference new - old, e.g. of accuracy or KL divergence, against a margin in its own unit.

    As :func:`decide`, and by its sources, on the plain scale (Schuirmann 1987; Piaggio et al. 2012).
    """
    width = max(interval.high - interval.estimate, interval.estimate - interval.low)
    return _decide(interval, _margin(margin), direction, width <= PRECISION * margin)


def _decide(effect: Interval, bound: float, direction: Direction, precise: bool) -> Decision:
    low, high = (-effect.high, -effect.low) if direction == "higher" else (effect.low, effect.high)
    if low > bound:
        return Decision("regressed", "beyond-margin")
    if direction == "none" and high < -bound:
        return Decision("regressed", "beyond-margin")
    if -bound < low and high < bound:
        return Decision("pass", "equivalent")
    if direction != "none" and high < bound:
        return Decision("pass", "improved" if high < -bound else "not-worse")
    return Decision("inconclusive", "near-margin" if precise else "too-noisy")


def precise_enough(interval: Interval, margin: float) -> bool:
    """Return whether the interval's longer arm is at most PRECISION of the margin (log scale).

    Looks at the width alone, never at which side of anything the interval lies: what is this narrow and still holds the
    margin is about as large as that.
    """
    effect = interval.transformed(math.log)
    arm = max(effect.high - effect.estimate, effect.estimate - effect.low)
    return arm <= PRECISION * math.log1p(_margin(margin))


def regression_p(old: Sequence[float], new: Sequence[float], margin: float, direction: Direction) -> float:
    """Return the one-sided p-value of "not worse than the margin" for a paired ratio: Student's t.

    For direction "none" the p-value of the worse side, doubled.
    """
    return Look.at(log_ratios(old, new)).p(math.log1p(_margin(margin)), direction)


def inverted_p(interval_at: Callable[[float], Interval], margin: float, direction: Direction) -> float:
    """Return the one-sided p-value of "not worse than the margin", from the interval at every confidence.

    It is the level at which the interval's end reaches the margin (duality of tests and intervals: Lehmann and Romano,
    Testing Statistical Hypotheses, 2005, section 3.5), so that it is below (1 - confidence) / 2 exactly where the
    interval lies beyond the margin, whichever kind of interval it is. ``margin`` is in the interval's unit. It is no
    smaller than six standard errors can tell.
    """

    def short(z: float) -> float:
        found = interval_at(float(2 * scipy.special.ndtr(abs(z)) - 1))
        low, high = (-found.high, -found.low) if direction == "higher" else (found.low, found.high)
        return (low if z > 0 else high) - margin

    if short(_FARTHEST) > 0:
        z = _FARTHEST
    elif short(-_FARTHEST) < 0:
        z = -_FARTHEST
    else:
        z = scipy.optimize.brentq(short, -_FARTHEST, _FARTHEST, xtol=1e-9)
    return float(scipy.special.ndtr(-z))


def benjamini_hochberg(p_values: Sequence[float], q: float = 0.05) -> list[bool]:
    """Return which hypotheses are rejected at a false discovery rate of ``q`` (Benjamini and Hochberg 1995)."""
    if not p_values:
        return []
    if any(not 0 <= p <= 1 for p in p_values):
        raise SampleError(f"p-values lie between 0 and 1, got {list(p_values)}")
    adjusted = scipy.stats.false_discovery_control(p_values, method="bh")
    return [bool(value <= q) for value in adjusted]


def control_family(decisions: Sequence[Decision], p_values: Sequence[float], q: float = 0.05) -> list[Decision]:
    """Return a family's decisions, where a regression that is no discovery at ``q`` becomes inconclusive.

    Discoveries are those of Benjamini and Hochberg (1995).
    """
    kept = benjamini_hochberg(p_values, q)
    return [
        Decision("inconclusive", "false-discovery") if decision.verdict == "regressed" and not keep else decision
        for decision, keep in zip(decisions, kept, strict=True)
    ]


# ------------------------------------------------------------------------------------------- nearly deterministic


def range_ratio(old: Sequence[float], new: Sequence[float]) -> Interval:
    """Return the ratio of medians, and the range of the ratios of all pairs: for memory, which hardly varies.

    The range is the quotient of the two sides' ranges in interval arithmetic (Moore 1966). No probability is claimed;
    one sample a side is enough.
    """
    before, after = positive(old, "old"), positive(new, "new")
    ratio = float(np.median(after) / np.median(before))
    low, high = float(after.min() / before.max()), float(after.max() / before.min())
    return Interval(ratio, low, high, None, "range", min(len(before), len(after)))


def decide_memory(old: Sequence[float], new: Sequence[float], *, absolute: float, relative: float) -> Decision:
    """Judge nearly deterministic sizes without a p-value: growth counts only beyond both margins.

    ``absolute`` is in the samples' unit, ``relative`` a share of the old median; allowed is the larger of the two, as
    in PEP 485. Regressed if every pair of samples grew by more, pass if none did, otherwise inconclusive: the range of
    the growth is the difference of the two sides' ranges (Moore 1966).
    """
    before, after = positive(old, "old"), positive(new, "new")
    allowed = max(_margin(absolute), _margin(relative) * float(np.median(before)))
    if after.max() - before.min() <= allowed:
        return Decision("pass", "within-range")
    if after.min() - before.max() > allowed:
        return Decision("regressed", "beyond-range")
    return Decision("inconclusive", "mixed-range")


# -------------------------------------------------------------------------------------------------------------- power


def smallest_effect(sd: float, blocks: int, confidence: float = 0.95, power: float = 0.9) -> float:
    """Return the smallest effect, as a share, that ``blocks`` blocks tell from the margin with this power.

    ``sd`` is the standard deviation of a block's log ratio. The same number is the smallest margin that lets an
    unchanged metric pass with this power: a gate must not be asked for less. Exact, by the noncentral t distribution
    of the one-sample t-test (Cohen, Statistical Power Analysis, 1988, chapter 2).
    """
    if blocks < 2:
        raise TooFewSamples("a detectable effect", 2, blocks, "blocks")
    if not sd >= 0 or not math.isfinite(sd):
        raise SampleError(f"the noise must be a finite standard deviation, got {sd}")
    critical = scipy.special.stdtrit(blocks - 1, (1 + confidence) / 2)
    # In standard errors; the noncentral t's power grows with it.
    effect = scipy.optimize.brentq(lambda x: scipy.stats.nct.sf(critical, blocks - 1, x) - power, 0, 3 * critical + 20)
    return math.expm1(float(effect) * sd / math.sqrt(blocks))


def samples_needed(
    sd: float, margin: float, confidence: float = 0.95, power: float = 0.9, most: int = 100_000
) -> int | None:
    """Return the fewest blocks whose smallest detectable effect is within ``margin``; None if ``most`` are too few."""
    low, high = 2, 2
    while smallest_effect(sd, high, confidence, power) > margin:
        low, high = high + 1, 2 * high
        if high > most:
            return None
    while low < high:
        middle = (low + high) // 2
        if smallest_effect(sd, middle, confidence, power) <= margin:
            high = middle
        else:
            low = middle + 1
    return high


def log_ratio_sd(old: Sequence[float], new: Sequence[float]) -> float:
    """Return the standard deviation (n - 1) of the blocks' log ratios: the noise that power is computed from.

    :func:`log_sd` of the ratios (Kirkwood 1979).
    """
    return log_sd(np.exp(log_ratios(old, new)).tolist())


def log_sd(values: Sequence[float]) -> float:
    """Return the standard deviation (n - 1) of log values: about their coefficient of variation where it is small.

    The logarithm of Kirkwood's geometric standard deviation (1979).
    """
    logs = np.log(positive(values, "noise"))
    if len(logs) < 2:
        raise TooFewSamples("a standard deviation", 2, len(logs))
    return float(logs.std(ddof=1))


def proportion(count: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return a rate with its exact interval (Clopper and Pearson, Biometrika 26, 1934), e.g. of false alarms."""
    if trials < 1:
        raise TooFewSamples("a rate", 1, trials)
    found = scipy.stats.binomtest(count, trials).proportion_ci(confidence, method="exact")
    return Interval(count / trials, float(found.low), float(found.high), confidence, "Clopper-Pearson", trials)


def _margin(margin: float) -> float:
    if not (math.isfinite(margin) and margin > 0):
        raise SampleError(f"a margin is a positive number, got {margin}")
    return margin
