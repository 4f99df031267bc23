"""How long tests will take, by what earlier runs on this device took."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.records.run import Run

STARTING = ("setup", "engine start", "compile", "quantize", "export")
"""The stages that a session goes through once for a cell."""
_CELL = ("model", "recipe", "hardware", "server")
_MEASURED = ("passed", "noisy", "xfailed")
_RUNS = 30
_LATEST = 5
# How far what was seen once, and what was seen of something else alone, may be off.
_ONCE, _OTHER = 1.4, 2.0
# Seconds below which nothing was started.
_START = 1.0


@dataclass
class Seen:
    """Seconds that something took, the latest last."""

    seconds: list[float] = field(default_factory=list)

    @property
    def last(self) -> float:
        return self.seconds[-1]

    def span(self) -> tuple[float, float]:
        """Return between which seconds it will lie."""
        latest = self.seconds[-_LATEST:]
        if len(latest) == 1:
            return self.last / _ONCE, self.last * _ONCE
        return min(latest), max(latest)


@dataclass(frozen=True)
class Guess:
    """Seconds, and between which they lie; ``other`` says that they are those of something else that is like it."""

    seconds: float
    low: float
    high: float
    other: bool = False


class Estimate:
    """How long tests take: as long as the same test last took on this device, or else as those most like it did.

    Most like it are tests of its function that have most parts of its name in common. What a file's tests start for a
    cell counts once a session, for the first of them, whichever that is. ``starts`` tells by a test which cell it is of
    and how many of its ``known`` seconds went into that, ``cells`` what was started for a cell in all; ``past`` tells
    of either what it took before, the latest last.
    """

    def __init__(
        self,
        known: Mapping[str, float],
        starts: Mapping[str, tuple[str, float]] | None = None,
        cells: Mapping[str, float] | None = None,
        past: Mapping[str, Seen] | None = None,
    ) -> None:
        self._known = dict(known)
        self._starts = dict(starts or {})
        self._cells = dict(cells or {})
        self._past = dict(past or {})
        self._groups = {test: cell for test, (cell, _) in self._starts.items()}
        self._begun: set[str] = set()

    @classmethod
    def load(cls, runs: Path, device: str, cache: Path | None = None, kept: Collection[str] = ()) -> Estimate:
        """Read the latest runs of a folder that were made on the device of that name.

        ``kept`` names the cells (model-recipe-hardware-server) whose compilation is kept: it is not expected again.
        """
        opened = [run for run in Run.below(runs)[-_RUNS:] if _has_begun(run.path)]
        if not opened:
            return cls({})
        # Not at the top: a session that is the first of its folder need not wait for pyarrow.
        from harness.records import columns

        wanted = ["test", "outcome", "seconds", "device", "stage", *_CELL]
        found = columns.load(opened, columns=wanted, cache=cache)
        devices = dict(zip(*(found.kind("header")[name].to_pylist() for name in ("source", "device")), strict=True))
        rows = found.kind("outcome", "timing").sort_by([("time", "ascending")]).to_pylist()
        told = _Told(kept)
        for row in (row for row in rows if devices.get(row["source"]) == device):
            told.take(row)
        return cls(told.known, told.starts, told.cells, told.past)

    def place(self, cells: Mapping[str, str]) -> None:
        """Take in which cell each test is of, as :func:`cell_of` says it, also of tests that never ran here."""
        self._groups = {**cells, **self._groups}

    def begin(self, test: str) -> None:
        """Note that a test runs now, so that what is started for its cell is no longer to come."""
        self._begun.add(self._groups.get(test, ""))

    def learn(self, test: str, seconds: float) -> None:
        """Take in what a test of this session took."""
        self._known[test] = seconds

    def of(self, test: str) -> float | None:
        """Return the seconds that a test is expected to take, or None where nothing like it was ever timed."""
        if test in self._known:
            return self._known[test]
        work = self._work(test)
        return work.seconds if work else None

    def left(self, tests: Sequence[str]) -> tuple[float, int]:
        """Return the seconds that tests are expected to take, and how many of them nothing is known of."""
        works = [self._work(test) for test in tests]
        return sum(it.seconds for it in self._all(tests, works)), works.count(None)

    def between(self, tests: Sequence[str]) -> tuple[float, float]:
        """Return between which seconds tests will take, those that nothing is known of left out.

        What ran here before varies each apart from the others; what is told from something else is off all one way.
        """
        guesses = list(self._all(tests, map(self._work, tests)))
        seconds = sum(it.seconds for it in guesses)
        low, high = (
            math.hypot(*(it for it, other in off if not other)) + sum(it for it, other in off if other)
            for off in (
                [(it.seconds - it.low, it.other) for it in guesses],
                [(it.high - it.seconds, it.other) for it in guesses],
            )
        )
        return max(0.0, seconds - low), seconds + high

    def _all(self, tests: Sequence[str], works: Iterable[Guess | None]) -> Iterable[Guess]:
        yield from (it for it in works if it)
        due = dict.fromkeys(self._groups[test] for test in tests if test in self._groups)
        yield from (it for cell in due if cell not in self._begun and (it := self._start(cell)))

    def _work(self, test: str) -> Guess | None:
        """Return the seconds of a test without what was started for its cell."""
        if test in self._known:
            return self._guess(test, self._alone(test))
        function = test.split("[")[0]
        alike = [name for name in self._known if name.split("[")[0] == function]
        return _median({name: self._alone(name) for name in _most_like(test, alike)})

    def _start(self, cell: str) -> Guess | None:
        """Return the seconds that are spent once for a cell."""
        if cell in self._cells:
            return self._guess(cell, self._cells[cell])
        alike = [name for name in self._cells if name.split()[0] == cell.split()[0]]
        return _median({name: self._cells[name] for name in _most_like(cell, alike)})

    def _alone(self, test: str) -> float:
        return max(0.0, self._known[test] - self._starts.get(test, ("", 0.0))[1])

    def _guess(self, name: str, seconds: float) -> Guess:
        low, high = self._past[name].span() if name in self._past else (seconds / _ONCE, seconds * _ONCE)
        return Guess(seconds, min(low, seconds), max(high, seconds))


def cell_of(file: str, model: str, recipe: str, hardware: str, server: str) -> str:
    """Return what names all that a file's tests start for a cell.

    Tests of another file ask for another worker, as those of a server do beside those of an engine.
    """
    return " ".join([file, model, recipe, hardware, server])


class _Told:
    """What the lines of earlier runs tell, taken in by their time; see :class:`Estimate`."""

    def __init__(self, kept: Collection[str]) -> None:
        self.known: dict[str, float] = {}
        self.starts: dict[str, tuple[str, float]] = {}
        self.cells: dict[str, float] = {}
        self.past: dict[str, Seen] = defaultdict(Seen)
        self._kept = kept
        # What is timed stands before the outcome of its test.
        self._waited: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._seen: dict[tuple[str, str], float] = {}
        self._of_run: dict[tuple[str, str], float] = {}

    def take(self, row: Mapping[str, Any]) -> None:
        source = row["source"]
        if row["kind"] == "timing":
            if row["stage"] in STARTING:
                self._waited[source][row["stage"]] += row["seconds"]
            return
        waited = self._waited.pop(source, {})
        spent = min(sum(waited.values()), row["seconds"])
        cell = cell_of(row["test"].split("::")[0], *(row[name] or "" for name in _CELL))
        if row["model"]:
            compiling = waited.get("compile", 0.0) if "-".join(cell.split()[1:]) in self._kept else 0.0
            self._begin(source, row["test"], cell, max(0.0, spent - compiling))
        if row["outcome"] not in _MEASURED:
            return
        # A run that went on finds what it has measured: then its test is over at once.
        if row["seconds"] < self._seen.get((source, row["test"]), 0.0):
            return
        self._seen[source, row["test"]] = row["seconds"]
        self.known[row["test"]], self.starts[row["test"]] = row["seconds"], (cell, spent)
        self.past[row["test"]].seconds.append(row["seconds"] - spent)

    def _begin(self, source: str, test: str, cell: str, spent: float) -> None:
        """Count what was started for a cell; in a run that went on, the last time that it was."""
        if (source, test) in self._seen:
            self._of_run.pop((source, cell), None)
        if spent < _START:
            # Started for a test of another file, or found: what it takes is not known by that.
            return
        first = (source, cell) not in self._of_run
        self.cells[cell] = self._of_run[source, cell] = self._of_run.get((source, cell), 0.0) + spent
        if first:
            self.past[cell].seconds.append(0.0)
        self.past[cell].seconds[-1] = self.cells[cell]


def _most_like(name: str, others: Sequence[str]) -> list[str]:
    """Return those of others that have most parts of their names in common with a name."""
    own = _parts(name)
    common = {other: (own & _parts(other)).total() for other in others}
    return [other for other, count in common.items() if count == max(common.values())]


def _parts(name: str) -> Counter[str]:
    return Counter(re.split(r"[-\[\]\s]+", name))


def _median(alike: Mapping[str, float]) -> Guess | None:
    if not alike:
        return None
    seconds = statistics.median(alike.values())
    low, high = min(*alike.values(), seconds / _OTHER), max(*alike.values(), seconds * _OTHER)
    return Guess(seconds, low, high, other=True)


def _has_begun(records: Path) -> bool:
    """Return whether a run has a line below its header."""
    try:
        with records.open("rb") as file:
            file.readline()
            return bool(file.readline())
    except OSError:
        # What is wrong with it is told by who reads it.
        return True
