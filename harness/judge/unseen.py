"""What the median of a block does not see: the mean of its rounds, which is published, and the tail of its requests.

Two slow rounds of fifteen, or three slow requests of a hundred, are in no median. A metric whose mean or tail lies
beyond the margin is regressed, whatever its median does; one whose median passes while its mean or tail still leans
beyond the margin is measured on. Both are noisier than a median where stragglers come and go on both sides: so a pass
asks for less of them than of the median, one standard error.

Sources
- Dean and Barroso, The Tail at Scale, Communications of the ACM 56, 2013: why the slowest requests are what users see.
- Hyndman and Fan, American Statistician 50, 1996: quantiles of samples (type 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.judge import looks
from harness.judge.intervals import Interval
from harness.judge.looks import Look
from harness.judge.stats import Decision, Direction
from harness.records.stored import factor

_FEWEST = 3
"""Samples of a block from which on its mean is another than its median."""
_BEYOND = 5
"""Samples of a block that lie beyond its tail, at least: so p90 is told from 50 on, and p99 from 500 on."""
_TAILS = (0.9, 0.99)

Samples = Mapping[str, Sequence[Sequence[float]]]
"""Both sides' samples of every block."""


@dataclass(frozen=True)
class Unseen:
    """A further statistic of a block's samples, as its blocks have it."""

    name: str
    reason: str
    look: Look

    def beyond(self, bound: float, direction: Direction) -> bool:
        """Return whether its whole interval lies on the worse side of the bound."""
        return self.look.p(bound, direction) < looks.level(self.look.blocks)

    def leans(self, bound: float, direction: Direction) -> bool:
        """Return whether one standard error of it reaches beyond the bound on the worse side."""
        worse = {"lower": self.look.mean, "higher": -self.look.mean, "none": abs(self.look.mean)}[direction]
        return worse + self.look.error > bound


def of(samples: Samples, direction: Direction, kept: float = 0.0) -> list[Unseen]:
    """Return the mean of blocks' samples and, where there are enough of them, their tail; of two blocks or more."""
    old, new = samples.get("old", ()), samples.get("new", ())
    if len(old) != len(new) or len(old) < 2:
        return []
    fewest = min(map(len, (*old, *new)))
    if fewest < _FEWEST or not all(min(block) > 0 and math.isfinite(max(block)) for block in (*old, *new)):
        return []

    statistics: dict[str, Callable[[Sequence[float]], float]] = {"mean": lambda block: float(np.mean(block))}
    if fewest * (1 - _TAILS[0]) >= _BEYOND - 1e-9:
        percent = math.floor(100 * min(_TAILS[1], 1 - _BEYOND / fewest) + 1e-9)
        percent = 100 - percent if direction == "higher" else percent
        statistics[f"p{percent}"] = lambda block: float(np.quantile(block, percent / 100))
    found = []
    for name, of_block in statistics.items():
        before, after = (np.array([of_block(block) for block in blocks]) for blocks in (old, new))
        # Of numbers near the largest that there are neither a mean nor a ratio can be told.
        if np.isfinite(before).all() and np.isfinite(after).all():
            reason = "mean" if name == "mean" else "tail"
            found.append(Unseen(name, reason, Look.at(np.log(after) - np.log(before), kept=kept)))
    return found


def judged(
    decision: Decision, interval: Interval, p: float, unseen: Sequence[Unseen], margin: float, direction: Direction
) -> tuple[Interval, Decision, float, str]:
    """Return what a median's interval, decision and p-value come to beside the other statistics, and a detail."""
    bound = math.log1p(margin)
    told = f"median {interval.estimate:.3f}"
    for it in unseen if decision.verdict != "regressed" else ():
        if it.beyond(bound, direction):
            # Of two or three statistics the worst is told: each has its share of the level.
            found = it.look.interval(looks.confidence(it.look.blocks)).transformed(factor)
            p = min(1.0, (1 + len(unseen)) * it.look.p(bound, direction))
            detail = f"the {it.name} is {found.estimate:.3f} times the old one's, beyond the margin; {told}"
            return found, Decision("regressed", f"{it.reason}-beyond-margin"), p, detail
    for it in unseen if decision.verdict == "pass" else ():
        if it.leans(bound, direction):
            found = it.look.interval(looks.confidence(it.look.blocks)).transformed(factor)
            detail = f"the {it.name} may be beyond the margin: {found.estimate:.3f} times the old one's; {told}"
            return found, Decision("inconclusive", f"{it.reason}-undecided"), p, detail
    return interval, decision, p, ""
