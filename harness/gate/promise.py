"""What a budget promises: how often a gate of metrics that are as they were would come to its end within it.

Simulated from each metric's calibrated noise, taken for normal, by the rules that a gate has, for many gates at once:
every unit that is not settled takes a block, then all are looked at, with the level that each look has and the noise
that all metrics of that gate together seem to have (Smyth 2004). Where that comes out large every unit takes longer,
and one that had settled may have to go on: so whole gates differ by more than their units by themselves would.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from harness.judge import looks
from harness.judge.intervals import ROUNDING

_GATES = 400
_LEAST = 20
"""Blocks that any gate is given: of few, the noise is hardly known, and the first looks ask much."""
_MOST = 1000
_EVERY = 40
"""Blocks from which on looks are further apart than one block, by a thirtieth: so many do not matter."""
_LOGS = np.linspace(-15.0, 15.0, 3001)


@dataclass(frozen=True)
class Expected:
    """A unit: the seconds of a block, and of each metric the noise (log scale) and the margin (a share)."""

    seconds: float
    metrics: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Promise:
    """Seconds that each of some simulated gates would take until all of its metrics had passed, the shortest first."""

    taken: Sequence[float]

    @classmethod
    def of(cls, units: Sequence[Expected], seed: int = 0) -> Promise:
        """Simulate gates of some units; the same ones for the same seed."""
        gates = _Gates([unit for unit in units if unit.metrics], np.random.default_rng(seed))
        total = gates.seconds() if gates.units else np.zeros(_GATES)
        return cls(sorted(total.tolist()))

    def kept(self, budget: float) -> float:
        """Return the share of gates that pass within a budget."""
        return sum(it <= budget for it in self.taken) / len(self.taken)

    def seconds(self, share: float) -> float:
        """Return the budget within which such a share of gates passes; infinite where none does."""
        return self.taken[min(len(self.taken) - 1, math.ceil(share * len(self.taken)) - 1)]


class _Gates:
    """Simulated gates of the same units: sums and squares of each metric's log ratios, (gates, metrics)."""

    def __init__(self, units: Sequence[Expected], rng: np.random.Generator) -> None:
        self.units = units
        self._rng = rng
        counts = [len(unit.metrics) for unit in units]
        self._unit_of = np.repeat(np.arange(len(units)), counts)
        self._first = np.cumsum([0, *counts[:-1]])
        metrics = [it for unit in units for it in unit.metrics]
        self._sd = np.array([sd for sd, _ in metrics])
        self._bound = np.array([math.log1p(margin) for _, margin in metrics])
        self._sums = np.zeros((_GATES, len(metrics)))
        self._squares = np.zeros((_GATES, len(metrics)))
        self._blocks = np.zeros((_GATES, len(units)), int)
        self._levels = np.array([looks.level(count) for count in range(2 * _MOST)])

    def seconds(self) -> np.ndarray:
        """Return what each gate takes until all of its metrics pass; infinite where that is beyond all measure."""
        # Eight standard errors to the margin: what has not passed by then never does.
        worst = float((self._sd / self._bound).max())
        most = min(_MOST, _LEAST + (8 * worst) ** 2)
        going = np.ones((_GATES, len(self.units)), bool)
        while going.any() and self._blocks.max() < most:
            self._measure(going, 1 + max(0, int(self._blocks.max()) - _EVERY) // 30)
            if self._blocks.max() > 1:
                going = ~self._settled()
        taken = self._blocks @ np.array([unit.seconds for unit in self.units])
        return np.asarray(np.where(going.any(axis=1), math.inf, taken))

    def _measure(self, going: np.ndarray, blocks: int) -> None:
        """Let every unit that goes on take so many blocks."""
        shape = self._sums.shape
        sums = self._rng.normal(0, math.sqrt(blocks), shape) * self._sd
        around = self._rng.chisquare(blocks - 1, shape) * self._sd**2 if blocks > 1 else 0.0
        taking = going[:, self._unit_of]
        self._sums += np.where(taking, sums, 0.0)
        self._squares += np.where(taking, sums**2 / blocks + around, 0.0)
        self._blocks += blocks * going

    def _settled(self) -> np.ndarray:
        """Return which units' metrics all pass at this look, (gates, units)."""
        count = self._blocks[:, self._unit_of]
        own = np.maximum(count - 1, 1)
        variance = np.maximum(self._squares - self._sums**2 / count, 0.0) / own
        freedom = own.astype(float)
        if variance.shape[1] >= looks.ALIKE:
            known, beside = _prior(np.maximum(variance, ROUNDING**2), own)
            freedom = own + beside
            variance = (own * variance + beside * known) / freedom
        reach = -scipy.special.stdtrit(freedom, self._levels[count]) * np.sqrt(variance / count)
        passed = self._sums / count + reach < self._bound
        passed &= (count >= looks.MINIMUM_BLOCKS) & (freedom >= looks.FREEDOM)
        return np.logical_and.reduceat(passed, self._first, axis=1)


@functools.cache
def _trigammas() -> np.ndarray:
    """Return the logarithms of the trigamma function of e to each of _LOGS."""
    found: np.ndarray = np.log(scipy.special.polygamma(1, np.exp(_LOGS)))
    return found


def _prior(variance: np.ndarray, freedom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance and the degrees of freedom that a gate's metrics share: looks.Prior, for many gates."""
    logs = np.log(variance) - scipy.special.digamma(freedom / 2) + np.log(freedom / 2)
    beyond = logs.var(axis=1, ddof=1) - scipy.special.polygamma(1, freedom / 2).mean(axis=1)
    # It falls, and numpy interpolates over what rises.
    half = np.exp(np.interp(-np.log(np.maximum(beyond, 1e-12)), -_trigammas(), _LOGS))
    worth = np.where(beyond > 0, np.minimum(2 * half, looks.MOST_FREEDOM), looks.MOST_FREEDOM)
    known = np.exp(logs.mean(axis=1) + scipy.special.digamma(worth / 2) - np.log(worth / 2))
    return known[:, None], worth[:, None]
