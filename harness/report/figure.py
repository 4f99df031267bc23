"""A figure as it is compared: its value, and how surely that is its mean."""

from __future__ import annotations

from dataclasses import dataclass

from harness.records.schema import Measurement

_SURE = 0.975
_MANY = 1000


@dataclass(frozen=True)
class Figure:
    """A value, and the standard error of its mean over ``count`` samples; an ``error`` of 0 where it has none."""

    value: float
    error: float = 0.0
    count: int = _MANY

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of 95 % of the mean, by Student's t (Biometrika 6, 1908): few samples tell little."""
        if not self.error:
            return self.value, self.value
        from scipy.special import stdtrit

        arm = float(stdtrit(max(1, self.count - 1), _SURE)) * self.error
        return self.value - arm, self.value + arm


def figure_of(record: Measurement) -> Figure:
    """Return a record's value with the standard error that its statistics tell, or that follows from them."""
    told = record.statistics
    count, error = int(told.get("n") or len(record.samples)), told.get("stderr")
    if error is None and count > 1:
        error = told.get("stdev", 0.0) / count**0.5
    # Of an error that came without its samples nothing tells how many they were.
    return Figure(record.value, error or 0.0, count if count > 1 else _MANY)
