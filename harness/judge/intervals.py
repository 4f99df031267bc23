"""Intervals of means, and samples that can be calculated with.

Sources
- Efron, Better Bootstrap Confidence Intervals, JASA 82, 1987: BCa.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
from scipy import special

from harness.base.errors import SampleError, TooFewSamples

# Below this many samples the bootstrap's own intervals are too narrow (Efron and Tibshirani, 1993, section 12) and
# Student's t is used; from here on BCa, which follows skewness.
FEW = 20
RESAMPLES = 4999
# Logarithms and differences that differ by less are the same number, of which a bootstrap could make nothing.
_ROUNDING = 1e-12
_BATCH_NUMBERS = 2_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval, all in one unit: a ratio new / old, or a difference new - old.

    ``confidence`` is None where no probability is claimed (the range of nearly deterministic samples); ``n`` counts
    the units of replication behind it: blocks or documents.
    """

    estimate: float
    low: float
    high: float
    confidence: float | None
    method: str
    n: int

    def transformed(self, rising: Callable[[float], float]) -> Interval:
        """Return the interval on another scale, by a function that only rises (exp, log)."""
        return replace(self, estimate=rising(self.estimate), low=rising(self.low), high=rising(self.high))


def mean_interval(values: Sequence[float], confidence: float = 0.95, rule: str = "a mean") -> Interval:
    """Return the mean of independent values: Student's t for fewer than FEW, BCa from there on."""
    return interval_of_mean(finite(values, "mean's"), confidence, rule)


def interval_of_mean(values: np.ndarray, confidence: float, rule: str) -> Interval:
    """Return the mean of finite values, as :func:`mean_interval` does; ``rule`` names it where there are too few."""
    count = len(values)
    if count < 2:
        raise TooFewSamples(rule, 2, count)
    center = float(values.mean())
    if np.ptp(values) <= _ROUNDING:
        return Interval(center, center, center, confidence, "no spread", count)
    if count < FEW:
        arm = float(special.stdtrit(count - 1, (1 + confidence) / 2) * values.std(ddof=1) / math.sqrt(count))
        return Interval(center, center - arm, center + arm, confidence, "Student-t", count)
    low, high = _bca(values, confidence)
    return Interval(center, low, high, confidence, "BCa", count)


def _bca(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return BCa's interval of a mean; sorted and seeded, so that the same samples give the same one in any order."""
    samples = np.sort(values)
    found = scipy.stats.bootstrap(
        (samples,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_NUMBERS // len(samples)),
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def log_ratios(old: Sequence[float], new: Sequence[float]) -> np.ndarray:
    """Return the logarithm of new / old, block by block; raises SampleError for what is unpaired or not above zero."""
    if len(old) != len(new):
        raise SampleError(f"a paired ratio needs both sides of every block: got {len(old)} old and {len(new)} new")
    if not old:
        raise TooFewSamples("a paired ratio", 2, 0)
    return np.asarray(np.log(positive(new, "new")) - np.log(positive(old, "old")))


def finite(values: Sequence[float], what: str) -> np.ndarray:
    """Return samples as an array; raises SampleError naming the first that is NaN or infinite."""
    array = np.asarray(values, dtype=float)
    if bad := [index for index, value in enumerate(array.tolist()) if not math.isfinite(value)]:
        raise SampleError(f"{what} sample {bad[0]} is {array[bad[0]]}: nothing to calculate with; measure it again")
    return array


def logs(values: Sequence[float], what: str) -> np.ndarray:
    """Return samples' natural logarithms; raises SampleError naming the first that is not finite and above zero."""
    return np.asarray(np.log(positive(values, what)))


def positive(values: Sequence[float], what: str) -> np.ndarray:
    """Return samples as an array; raises SampleError naming the first that is not finite and above zero."""
    array = finite(values, what)
    if not len(array):
        raise TooFewSamples(f"the {what} side", 1, 0)
    if bad := [index for index, value in enumerate(array.tolist()) if value <= 0]:
        raise SampleError(f"{what} sample {bad[0]} is {array[bad[0]]:g}: a ratio needs samples above zero")
    return array
