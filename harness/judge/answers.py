"""How sure a model is of the right answers: a small loss of accuracy shows in it long before enough documents flip.

The margin of a multiple-choice document is the log-likelihood of its right answer less that of the likeliest wrong one,
so that it is above zero where the answer is right. A model that got a little worse moves all margins a little, while
the few documents near zero alone change sides. How many a shift changes is the margins' density at zero.

Sources
- Miller, Adding Error Bars to Evals, arXiv 2411.00640, 2024: continuous scores of the same documents, paired.
- Silverman, Density Estimation, 1986, equation 3.31: the bandwidth of a Gaussian kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy

from harness.base.errors import SampleError
from harness.judge.accuracy import paired_difference
from harness.judge.intervals import Interval
from harness.judge.stats import Decision

CONFIDENCE = 0.98
"""Of the interval that calls a loss: of models that are as good as each other it calls one in a hundred."""
_SAME = 1e-300
"""Margins no further apart than this are all the same: a density of less spread is beyond all numbers."""


def density(margins: Sequence[float]) -> float:
    """Return the density of margins at zero (a nat), by a Gaussian kernel: the answers that a shift of 1 nat changes.

    Margins that are all the same have none but where they are zero; both are told as 0.
    """
    values = np.asarray(margins, dtype=float)
    with np.errstate(over="ignore", invalid="ignore"):
        return _density(values)


def _density(values: np.ndarray) -> float:
    quartiles = np.subtract(*np.percentile(values, [75, 25])) / 1.349
    spread = min((it for it in (values.std(), quartiles) if it > _SAME), default=0.0)
    if not spread:
        return 0.0
    width = 0.9 * spread * len(values) ** -0.2
    return float(scipy.stats.norm.pdf(values / width).mean() / width)


def changed(old: Sequence[float], new: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the change of the mean margin as the share of answers that it turns right: below zero, wrong.

    ``old`` and ``new`` are the margins of the same documents, in nats. Raises as accuracy.paired_difference does.
    """
    return changed_at(old, new)(confidence)


def changed_at(old: Sequence[float], new: Sequence[float]) -> Callable[[float], Interval]:
    """Return :func:`changed` by its confidence; the density is found once."""
    paired_difference(old, new)
    turned = density([*old, *new])
    if not math.isfinite(turned):
        raise SampleError("the answers' margins are too far apart for a density")
    return lambda confidence: paired_difference(old, new, confidence).transformed(turned.__mul__)


def decide(at: Callable[[float], Interval], least: float, most: float) -> Decision:
    """Judge a change of margins, given its interval at every confidence.

    It is a regression where a loss is certain (:data:`CONFIDENCE`) and more than ``least`` of all answers. It is none
    where a loss beyond ``most``, the margin of accuracy itself, is ruled out.
    """
    found = at(CONFIDENCE)
    if found.high < 0 and found.estimate < -least:
        return Decision("regressed", "less-sure")
    if found.low > 0:
        return Decision("pass", "improved")
    if at(0.95).low > -most:
        return Decision("pass", "as-sure")
    return Decision("inconclusive", "too-noisy")


def right(margins: Sequence[float]) -> float:
    """Return the share of documents whose right answer is the likeliest."""
    return math.fsum(it > 0 for it in margins) / len(margins)
