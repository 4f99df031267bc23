"""What a budget promises: how often a gate of metrics that are as they were would come to its end within it.

Simulated from each metric's calibrated noise, taken for normal, with the level that each look of a gate has: how long
it takes until all of a unit's metrics pass at one look, and what the units take together, since none waits for another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from harness.judge import looks

_GATES = 500
_MOST = 1000
_HELPED = 4
"""So many times as many degrees of freedom as its blocks give has a metric whose noise others help to estimate."""


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
        rng = np.random.default_rng(seed)
        total = np.zeros(_GATES)
        many = sum(len(unit.metrics) for unit in units) >= looks.ALIKE
        for unit in units:
            total += unit.seconds * _blocks(unit, many, rng)
        return cls(sorted(total.tolist()))

    def kept(self, budget: float) -> float:
        """Return the share of gates that pass within a budget."""
        return sum(it <= budget for it in self.taken) / len(self.taken)

    def seconds(self, share: float) -> float:
        """Return the budget within which such a share of gates passes; infinite where none does."""
        return self.taken[min(len(self.taken) - 1, math.ceil(share * len(self.taken)) - 1)]


def _blocks(unit: Expected, many: bool, rng: np.random.Generator) -> np.ndarray:
    """Return the blocks after which all metrics of a unit pass, gate by gate."""
    worst = max((sd / math.log1p(margin) for sd, margin in unit.metrics), default=0.0)
    # Six standard errors to the margin: what has not passed by then, one gate in millions, never does.
    most = int(min(_MOST, looks.MINIMUM_BLOCKS + (6 * worst) ** 2))
    count = np.arange(1, most + 1)
    freedom = np.maximum(count - 1, 1) * (_HELPED if many else 1)
    levels = np.array([looks.level(int(blocks)) for blocks in count])
    reach = -special.stdtrit(freedom, levels) / np.sqrt(count)
    passed = np.ones((_GATES, most), bool)
    for sd, margin in unit.metrics:
        means = np.cumsum(rng.normal(0, sd, (_GATES, most)), axis=1) / count
        passed &= means + sd * reach < math.log1p(margin)
    passed[:, 0] = False
    return np.where(passed.any(axis=1), passed.argmax(axis=1) + 1.0, math.inf)
