"""Intervals of means, and samples that can be calculated with.

Means have Student's interval, however many samples they are of. A bootstrap's (BCa: Efron, JASA 82, 1987) holds the
truth less often, by a tenth of its width at 20 samples (Hesterberg, American Statistician 69, 2015);
results/simulation.md has how often this one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from harness.base.errors import SampleError, TooFewSamples

ROUNDING = 1e-12
"""Logarithms and differences that differ by less are the same number."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval, all in one unit: a ratio new / old, or a difference new - old.

    ``confidence`` is None where no probability is claimed (the range of nearly deterministic samples); ``n`` counts
    the units of replication behind it: blocks or documents. ``freedom`` is that of a Student's t.
    """

    estimate: float
    low: float
    high: float
    confidence: float | None
    method: str
    n: int
    freedom: float | None = None

    def transformed(self, rising: Callable[[float], float]) -> Interval:
        """Return the interval on another scale, by a function that only rises (exp, log)."""
        return replace(self, estimate=rising(self.estimate), low=rising(self.low), high=rising(self.high))


def mean_interval(values: Sequence[float], confidence: float = 0.95, rule: str = "a mean") -> Interval:
    """Return the mean of independent values, by Student's t; ``rule`` names it where there are too few."""
    array = finite(values, "mean's")
    count = len(array)
    if count < 2:
        raise TooFewSamples(rule, 2, count)
    center = float(array.mean())
    if np.ptp(array) <= ROUNDING:
        return Interval(center, center, center, confidence, "no spread", count)
    arm = float(scipy.special.stdtrit(count - 1, (1 + confidence) / 2) * array.std(ddof=1) / math.sqrt(count))
    return Interval(center, center - arm, center + arm, confidence, "Student-t", count, count - 1)


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
