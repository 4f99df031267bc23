"""What ends the rounds of a block before their number, as whoever judges figures has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from harness.matrix.schema import Threshold
from harness.measure.figures import Enough
from harness.records.schema import Measurement


class Rule(Protocol):
    """Says of a figure's samples whether they are all that is needed."""

    def enough(self, samples: Sequence[float]) -> bool:
        """Return whether no further round is needed after these."""

    def told(self, samples: Sequence[float]) -> dict[str, float]:
        """Return what a record's statistics say of rounds that ended early; empty where all were taken."""


class All:
    """Has all rounds taken."""

    def enough(self, samples: Sequence[float]) -> bool:
        return False

    def told(self, samples: Sequence[float]) -> dict[str, float]:
        return {}


Limits = Sequence[tuple[Threshold, Measurement | None]]
"""The limits that are asked of a figure, each with the baseline's record if it needs one and that was measured."""
MakeRule = Callable[..., Rule]
"""``make(rounds, record, limits)`` returns the rule of a figure; ``record`` makes a record of samples.

``fewest`` may be named: how many rounds are taken at least.
"""
FEWEST_SERVED = 3
"""Rounds of serving that are taken at least: each is of many requests, or of one that takes as long as ten batches."""


def check(rule: Rule, samples: Sequence[float]) -> None:
    """Raise Enough if no further round is needed after these."""
    if rule.enough(samples):
        raise Enough


def words(what: str, told: dict[str, float], taken: int) -> str:
    """Say why rounds ended early."""
    return f"{what}: known within {told['half_width']:.2%} after {taken} of {told['rounds_most']:.0f} rounds"
