"""A gate's records as series and verdicts, current after every line: told of each line once, as it is written."""

from __future__ import annotations

import threading
from collections.abc import Collection

from harness.judge.family import alarmed, control, dependence
from harness.judge.rules import Margins
from harness.judge.series import Pairs, Series, in_series, place_of
from harness.judge.verdict import Verdict, combined, judge
from harness.records.place import Place
from harness.records.schema import Line, Measurement


class Ledger:
    """Keeps the series and verdicts of a gate's records; only what a line has changed is judged again.

    ``metrics`` are those that are judged. ``interleaved`` says that both sides' rounds were taken in turns. ``kept``
    is how much of a block's deviation the next one keeps on this machine, where that is known. Lines may be added by
    several threads.
    """

    def __init__(self, margins: Margins, metrics: Collection[str], *, interleaved: bool, kept: float = 0.0) -> None:
        self._margins = margins
        self._metrics = frozenset(metrics)
        self._interleaved = interleaved
        self._kept = kept
        self._lock = threading.Lock()
        self._pairs: dict[Place, Pairs] = {}
        self._changed: set[Place] = set()
        self._series: dict[Place, Series] = {}
        self._verdicts: dict[Place, tuple[Series, Verdict]] = {}
        self._lines = 0
        self._controlled: tuple[int, list[Verdict]] = (0, [])

    def add(self, line: Line) -> None:
        """Take one line in."""
        if isinstance(line, Measurement) and in_series(line):
            place = place_of(line)
            with self._lock:
                self._pairs.setdefault(place, Pairs(place)).add(line)
                self._changed.add(place)
                self._lines += 1

    def series(self) -> list[Series]:
        """Return the series of all lines so far, as :func:`harness.judge.series.series` does."""
        with self._lock:
            self._series |= {place: self._pairs[place].series(self._interleaved) for place in self._changed}
            self._changed.clear()
            return [self._series[place] for place in self._pairs]

    def judged(self) -> list[Verdict]:
        """Return the verdict on each metric of which both sides have something, before their family is controlled."""
        return [self._judge(one) for one in self.series() if self._counts(one)]

    def controlled(self) -> list[Verdict]:
        """Return the verdicts, those on several tasks together too, held against the family's false discovery rate."""
        lines = self._lines
        if self._controlled[0] != lines:
            self._controlled = lines, self._control()
        return list(self._controlled[1])

    def _control(self) -> list[Verdict]:
        together = combined(self.series()) if "accuracy" in self._metrics else []
        found = control(self.judged() + [self._judge(one) for one in together], kept=self._kept)
        requests = {one.place: one.requests for one in self._series.values()}
        return alarmed(found, requests, kept=dependence(found, self._kept))

    def dependence(self) -> float:
        """Return how much of a block's deviation the next one keeps, which the verdicts allow for."""
        return dependence(self.judged(), self._kept)

    def _counts(self, one: Series) -> bool:
        # Where nothing is compiled, every compile time is zero.
        told = one.metric != "compile_time" or any((*one.old, *one.new))
        return one.metric in self._metrics and bool(one.old) and told

    def _judge(self, one: Series) -> Verdict:
        """Return the verdict on a series; one that is as it was has been judged."""
        known = self._verdicts.get(one.place)
        if known is None or not _same(known[0], one):
            known = self._verdicts[one.place] = (one, judge(one, self._margins))
        return known[1]


def _same(one: Series, other: Series) -> bool:
    """Return whether a series is another one, or made of the same ones."""
    if not one.parts or len(one.parts) != len(other.parts):
        return one is other
    return all(map(_same, one.parts, other.parts))
