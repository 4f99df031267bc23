"""What other tools would say of a gate's samples: each is told both sides' seconds, and says whether new is slower.

Sources: asv (``asv compare``: its ``is_different`` and factor 1.1), Mozilla's Perfherder (an alert: t of 7 or more and
a change of 2 % or more), nvbench (``nvbench_compare``: beyond the smaller of both sides' relative deviations).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from scipy import stats as distributions

Rule = Callable[[np.ndarray, np.ndarray], bool]
LEVEL = 0.05
_ASV_LEVEL, _ASV_FACTOR = 0.002, 1.1
_MOZILLA_T, _MOZILLA_CHANGE = 7.0, 0.02


def welch(old: np.ndarray, new: np.ndarray) -> bool:
    return bool(_slower(old, new) and distributions.ttest_ind(new, old, equal_var=False).pvalue < LEVEL)


def paired(old: np.ndarray, new: np.ndarray) -> bool:
    logs = np.log(new / old)
    return bool(logs.mean() > 0 and distributions.ttest_1samp(logs, 0.0).pvalue < LEVEL)


def mann_whitney(old: np.ndarray, new: np.ndarray) -> bool:
    found = distributions.mannwhitneyu(new, old, alternative="two-sided")
    return bool(np.median(new) > np.median(old) and found.pvalue < LEVEL)


def asv(old: np.ndarray, new: np.ndarray) -> bool:
    """Different by Mann-Whitney at .002, or by intervals of 99 % where so few samples cannot reach that; and by 1.1."""
    fewest = 1 / math.comb(len(old) + len(new), min(len(old), len(new)))
    if fewest < _ASV_LEVEL:
        different = distributions.mannwhitneyu(new, old, alternative="two-sided").pvalue < _ASV_LEVEL
    else:
        different = _laplace(new)[0] > _laplace(old)[1]
    return bool(different and np.median(new) > _ASV_FACTOR * np.median(old))


def _laplace(samples: np.ndarray) -> tuple[float, float]:
    """Return asv's interval of 99 % for few samples: the posterior of the place of Laplace's noise of any scale."""
    middle = float(np.median(samples))
    spread = float(np.abs(samples - middle).mean()) or abs(middle) * 1e-9
    at = middle + spread * np.sinh(np.linspace(-9, 9, 20_001))
    log = -len(samples) * np.log(np.abs(samples[:, None] - at).sum(axis=0))
    weight = np.exp(log - log.max()) * np.gradient(at)
    below = np.cumsum(weight) / weight.sum()
    low, high = np.interp([0.005, 0.995], below, at)
    return float(low), float(high)


def mozilla(old: np.ndarray, new: np.ndarray) -> bool:
    error = math.sqrt(old.var(ddof=1) / len(old) + new.var(ddof=1) / len(new))
    change = new.mean() - old.mean()
    return bool(change >= _MOZILLA_CHANGE * old.mean() and (not error or change / error >= _MOZILLA_T))


def nvbench(old: np.ndarray, new: np.ndarray) -> bool:
    noise = min(side.std(ddof=1) / side.mean() for side in (old, new))
    return bool(new.mean() / old.mean() - 1 > noise)


def _slower(old: np.ndarray, new: np.ndarray) -> bool:
    return bool(new.mean() > old.mean())


RULES: Mapping[str, Rule] = {
    "Welch's t, 5 %": welch,
    "paired t, 5 %": paired,
    "Mann-Whitney, 5 %": mann_whitney,
    "asv": asv,
    "Mozilla": mozilla,
    "nvbench": nvbench,
}
FEWEST = 2
"""Samples a side without which no rule says anything."""
