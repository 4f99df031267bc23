"""When rounds of a block end before their number: as soon as more of them would tell nothing that is asked for.

Rounds that are looked at again and again stop on good luck sooner or later, so each look asks for its share of the
error (Bonferroni: Dunn, Multiple Comparisons Among Means, JASA 56, 1961): the interval that ends them holds with 95 %
whatever the number of looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.judge import spread
from harness.matrix.schema import Threshold
from harness.records.schema import Measurement

FEWEST = 5
"""Rounds that a figure has at least, unless it says otherwise; where no more are asked for, all of them are taken."""
PRECISION = 0.01
"""Half the width of the interval of a figure, as a share of it, from which on more rounds tell nothing new."""


@dataclass(frozen=True)
class Rule:
    """Ends rounds once a figure is known within PRECISION and on which side of each of its limits it is.

    ``most`` is the number of rounds that are asked for, ``fewest`` that of those that are taken at least. ``record``
    makes a record of samples; ``limits`` are those that are asked of it, each with the baseline's record if it needs
    one. One whose baseline is not there is never decided.
    """

    most: int
    record: Callable[[Sequence[float]], Measurement]
    limits: Sequence[tuple[Threshold, Measurement | None]] = ()
    fewest: int = FEWEST

    def enough(self, samples: Sequence[float]) -> bool:
        """Return whether these samples say all that is asked for."""
        if not self.fewest <= len(samples) < self.most or min(samples) <= 0:
            return False
        record = self.record(samples)
        if self._half_width(record) > PRECISION:
            return False
        return all(self._decided(record, threshold, baseline) for threshold, baseline in self.limits)

    def told(self, samples: Sequence[float]) -> dict[str, float]:
        """Return what a record's statistics say of rounds that ended early; empty where all were taken."""
        if not self.enough(samples):
            return {}
        return {"rounds_most": float(self.most), "half_width": self._half_width(self.record(samples))}

    @property
    def _confidence(self) -> float:
        return 1 - (1 - spread.CONFIDENCE) / (self.most - self.fewest)

    def _half_width(self, record: Measurement) -> float:
        within = spread.of_value(record, self._confidence)
        return max(within[1] / record.value - 1, 1 - within[0] / record.value) if within else float("inf")

    def _decided(self, record: Measurement, threshold: Threshold, baseline: Measurement | None) -> bool:
        within = spread.of_comparison(threshold.comparison, record, baseline, self._confidence)
        return within is not None and not spread.undecided(within, threshold.limit)
