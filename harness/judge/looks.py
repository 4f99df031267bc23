"""Every block of a gate is a look at its timed metrics: how sure each look has to be, and when to look no more.

A verdict may be called at any look, so each asks for more than one look alone would, and later ones for more than
earlier ones: the chance of a wrong verdict grows with the number of times that the blocks double. What that comes to is
simulated in results/simulation.md. Metrics of one gate are as noisy as each other, more or less: how much so is
estimated from all of them, and few blocks of one are then not taken for quiet, or noisy, by luck.

Sources
- Jennison and Turnbull, Group Sequential Methods with Applications to Clinical Trials, 2000: repeated looks.
- Schuirmann, J. Pharmacokin. Biopharm. 15, 1987: two one-sided tests, which stop at either end.
- Kendall, Biometrika 41, 1954: by how much a correlation of neighbours comes out too small.
- Box, Jenkins and Reinsel, Time Series Analysis, 4th edition, 2008, section 2.1: what dependent values are worth.
- Smyth, Statist. Appl. Genet. Mol. Biol. 3, 2004: the moderated t, sections 4 to 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from harness.base.errors import TooFewSamples
from harness.judge.intervals import ROUNDING, Interval

LEVEL = 0.0125
"""How likely each end of a metric's first interval is to be wrong."""
MINIMUM_BLOCKS = 4
"""A gate stops at no fewer blocks."""
FREEDOM = 5
"""Nor with fewer degrees of freedom: six blocks of one metric, or four beside others that are alike."""
PRECISION = 1 / 3
"""Where the interval of 95 % reaches no further than this share of the margin, the effect is as large as the margin."""
NARROW_BLOCKS = 12
"""An interval of fewer blocks may be that narrow by luck."""
ALIKE = 3
"""Metrics from which on it is estimated how alike they are."""
MOST_FREEDOM = 1e6
_ORDERED = 5
"""Blocks from which on their order says something."""
_MOST_KEPT = 0.9


def level(blocks: int) -> float:
    """Return how likely each end of a look's interval may be wrong."""
    return LEVEL / (1 + math.log(max(blocks, MINIMUM_BLOCKS) / MINIMUM_BLOCKS))


def confidence(blocks: int) -> float:
    """Return the confidence of the interval that a look at so many blocks is judged by."""
    return 1 - 2 * level(blocks)


@dataclass(frozen=True)
class Prior:
    """What the noise of all metrics together says of one's: a variance, and for how many blocks' worth it counts."""

    variance: float
    freedom: float

    @classmethod
    def of(cls, variances: Sequence[float], freedoms: Sequence[int]) -> Prior | None:
        """Estimate it from each metric's variance (n - 1) and degrees of freedom; None of fewer than three metrics.

        By the moments of the logarithms of the variances (Smyth 2004, section 6.2). Metrics without any noise say
        nothing, and are left out.
        """
        known = [(one, freedom) for one, freedom in zip(variances, freedoms, strict=True) if one > ROUNDING**2]
        if len(known) < ALIKE:
            return None
        variance, freedom = np.array(known).T
        logs = np.log(variance) - scipy.special.digamma(freedom / 2) + np.log(freedom / 2)
        beyond = float(logs.var(ddof=1) - scipy.special.polygamma(1, freedom / 2).mean())
        worth = min(MOST_FREEDOM, 2 * _inverse_trigamma(beyond)) if beyond > 0 else MOST_FREEDOM
        return cls(math.exp(float(logs.mean()) + float(scipy.special.digamma(worth / 2)) - math.log(worth / 2)), worth)


@dataclass(frozen=True)
class Dependence:
    """How much of a block's deviation the next one keeps (first-order autoregression), and how sure that is."""

    kept: float
    error: float

    @classmethod
    def of(cls, series: Iterable[np.ndarray]) -> Dependence | None:
        """Estimate it from the log ratios of blocks in their order, many series of one machine; None of too few."""
        known = [logs - logs.mean() for logs in series if len(logs) >= _ORDERED and np.ptp(logs) > ROUNDING]
        if not known:
            return None
        counts = np.array([len(one) for one in known])
        found = np.array([float(one[1:] @ one[:-1] / (one @ one)) for one in known])
        # The mean that was taken off makes each come out too small by (1 + 3 kept) / n (Kendall 1954).
        free = float((counts - 3).sum())
        return cls(float((counts * found + 1).sum()) / free, math.sqrt(float(counts.sum())) / free)

    @property
    def certain(self) -> float:
        """The share that is kept if it is more than chance gives one machine in forty, else none."""
        return min(self.kept, _MOST_KEPT) if self.kept > 2 * self.error else 0.0


def dependence(series: Sequence[np.ndarray], known: float = 0.0) -> float:
    """Return the share that a block keeps of the one before: what these blocks show, or is ``known`` of the machine."""
    here = Dependence.of(series)
    return max(known, here.certain if here else 0.0)


@dataclass(frozen=True)
class Look:
    """The mean of some blocks' log ratios, its standard error, and that error's degrees of freedom."""

    mean: float
    error: float
    freedom: float
    blocks: int

    @classmethod
    def at(cls, logs: np.ndarray, prior: Prior | None = None, kept: float = 0.0) -> Look:
        """Return what blocks say, by their own noise and by what is known of it before; raises TooFewSamples.

        Blocks that each keep a share of the one before it are worth fewer that do not: the variance of their mean is
        (1 + kept) / (1 - kept) times as large, and their own variance too small an estimate of it.
        """
        count = len(logs)
        if count < 2:
            raise TooFewSamples("a paired ratio", 2, count)
        variance = 0.0 if np.ptp(logs) <= ROUNDING else float(logs.var(ddof=1))
        freedom = float(count - 1)
        if prior and variance:
            whole = freedom + prior.freedom
            variance, freedom = (freedom * variance + prior.freedom * prior.variance) / whole, whole
        worth = max(1.5, count * (1 - kept) / (1 + kept)) if kept else float(count)
        if kept:
            variance /= max(0.25, 1 - (count / worth - 1) / (count - 1))
            freedom = max(1.0, freedom * (worth - 1) / (count - 1))
        return cls(float(logs.mean()), math.sqrt(variance / worth), freedom, count)

    @classmethod
    def of(cls, interval: Interval) -> Look:
        """Return the look whose interval this is, of logarithms."""
        freedom = interval.freedom or 1.0
        arms = float(scipy.special.stdtrit(freedom, (1 + (interval.confidence or 0.95)) / 2))
        return cls(interval.estimate, (interval.high - interval.estimate) / arms, freedom, interval.n)

    def interval(self, confidence: float) -> Interval:
        """Return the interval of the mean: Student's t."""
        arm = self.error * float(scipy.special.stdtrit(self.freedom, (1 + confidence) / 2))
        method = "Student-t" if self.error else "no spread"
        return Interval(self.mean, self.mean - arm, self.mean + arm, confidence, method, self.blocks, self.freedom)

    def p(self, bound: float, direction: str) -> float:
        """Return the one-sided p-value of "not worse than the bound"; for direction "none" the worse side's, doubled.

        It is below the level exactly where that level's interval lies beyond the bound.
        """
        if direction == "none":
            return min(1.0, 2 * min(self.p(bound, "lower"), self.p(bound, "higher")))
        beyond = (-self.mean if direction == "higher" else self.mean) - bound
        if not self.error:
            return 0.0 if beyond > 0 else 1.0
        return float(scipy.special.stdtr(self.freedom, -beyond / self.error))

    def narrow(self, bound: float) -> bool:
        """Return whether so narrow an interval that still holds the bound means an effect about as large as that."""
        found = self.interval(0.95)
        return self.blocks >= NARROW_BLOCKS and found.high - found.estimate <= PRECISION * bound


def enough(blocks: int, freedom: float) -> bool:
    """Return whether a gate may stop at a verdict."""
    return blocks >= MINIMUM_BLOCKS and freedom >= FREEDOM


def _inverse_trigamma(value: float) -> float:
    """Return where the trigamma function has a value above zero; it falls from infinity to zero."""

    def short(log: float) -> float:
        return math.log(float(scipy.special.polygamma(1, math.exp(log)))) - math.log(value)

    return math.exp(scipy.optimize.brentq(short, -15.0, 15.0)) if short(15.0) < 0 < short(-15.0) else math.exp(15.0)
