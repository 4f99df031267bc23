"""What a session says while it works: what runs now, how far it is, and how long it will take, by earlier runs."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.foot import Foot, Work
from harness.base.secrets import without_secrets
from harness.base.text import duration
from harness.records.run import Run

_STARTING = ("setup", "engine start", "compile", "quantize", "export")
"""The stages that a session goes through once for a cell."""
_CELL = ("model", "recipe", "hardware", "server")
_EVERY = 10.0
_HEARTBEAT = 30.0
_RUNS = 30


class Estimate:
    """How long tests take: as long as the same test last took on this device, or else as others of its function did.

    What a file's tests start for a cell counts once a session, for the first of them, whichever that is. ``starts``
    tells by a test which cell it is of and how many of its ``known`` seconds went into that, ``cells`` what was started
    for a cell in all.
    """

    def __init__(
        self,
        known: Mapping[str, float],
        starts: Mapping[str, tuple[str, float]] | None = None,
        cells: Mapping[str, float] | None = None,
    ) -> None:
        self._known = dict(known)
        self._starts = dict(starts or {})
        self._cells = dict(cells or {})
        self._begun: set[str] = set()

    @classmethod
    def load(cls, runs: Path, device: str, cache: Path | None = None) -> Estimate:
        """Read the latest runs of a folder that were made on the device of that name."""
        latest = sorted(runs.glob("*/records.jsonl"))[-_RUNS:]
        opened = [Run(path.parent) for path in latest if _has_begun(path)]
        if not opened:
            return cls({})
        # Not at the top: a session that is the first of its folder need not wait for pyarrow.
        from harness.records import columns

        wanted = ["test", "outcome", "seconds", "device", "stage", *_CELL]
        found = columns.load(opened, columns=wanted, cache=cache)
        devices = dict(zip(*(found.kind("header")[name].to_pylist() for name in ("source", "device")), strict=True))
        rows = found.kind("outcome", "timing").sort_by([("time", "ascending")]).to_pylist()
        known: dict[str, float] = {}
        starts: dict[str, tuple[str, float]] = {}
        cells: dict[tuple[str, str], float] = {}
        # What is timed stands before the outcome of its test.
        waited: dict[str, float] = defaultdict(float)
        for row in (row for row in rows if devices.get(row["source"]) == device):
            source = row["source"]
            if row["kind"] == "timing":
                waited[source] += row["seconds"] if row["stage"] in _STARTING else 0.0
                continue
            spent = min(waited.pop(source, 0.0), row["seconds"])
            # Tests of another file ask for another worker, as those of a server do beside those of an engine.
            cell = " ".join([row["test"].split("::")[0], *(row[name] or "" for name in _CELL)])
            if row["model"]:
                # Of the latest run that had it, all its tests.
                cells[cell, source] = cells.pop((cell, source), 0.0) + spent
            if row["outcome"] == "passed":
                known[row["test"]], starts[row["test"]] = row["seconds"], (cell, spent)
        return cls(known, starts, {cell: seconds for (cell, _), seconds in cells.items()})

    def begin(self, test: str) -> None:
        """Note that a test runs now, so that what is started for its cell is no longer to come."""
        self._begun.add(self._starts.get(test, ("", 0.0))[0])

    def learn(self, test: str, seconds: float) -> None:
        """Take in what a test of this session took."""
        self._known[test] = seconds

    def of(self, test: str) -> float | None:
        """Return the seconds that a test is expected to take, or None where nothing like it was ever timed."""
        if test in self._known:
            return self._known[test]
        function = test.split("[")[0]
        alike = [seconds for name, seconds in self._known.items() if name.split("[")[0] == function]
        return statistics.median(alike) if alike else None

    def left(self, tests: Sequence[str]) -> tuple[float, int]:
        """Return the seconds that tests are expected to take, and how many of them nothing is known of."""
        times = [self._work(test) for test in tests]
        due = {self._starts[test][0] for test in tests if test in self._starts} - self._begun
        seconds = sum(it for it in times if it is not None) + sum(self._cells.get(cell, 0.0) for cell in due)
        return seconds, sum(it is None for it in times)

    def _work(self, test: str) -> float | None:
        """Return the seconds of a test without what was started for its cell."""
        found = self.of(test)
        return None if found is None else found - self._starts.get(test, ("", 0.0))[1]


def _has_begun(records: Path) -> bool:
    """Return whether a run has a line below its header."""
    try:
        with records.open("rb") as file:
            file.readline()
            return bool(file.readline())
    except OSError:
        # What is wrong with it is told by who reads it.
        return True


class Progress:
    """Writes whole lines between pytest's own; the same kind of line at most every ten seconds, and none with -q.

    There are no control characters, so a log file reads as a terminal does. ``write`` puts one line out. Threads that
    wait for work of their own may say something at any time.
    """

    def __init__(self, write: Callable[[str], None] | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._spoke = clock()
        self._tests: list[str] = []
        self._now = -1
        self._since = clock()
        self._due = 0.0
        self.estimate = Estimate({})
        self.foot: Foot | None = None
        """The line of a terminal that shows it all the time; then nothing else says what runs."""

    def plan(self, tests: Sequence[str], estimate: Estimate) -> None:
        """Take in which tests will run, in order, and what is known of their times."""
        self._tests = list(tests)
        self.estimate = estimate

    def begin(self, test: str) -> None:
        """Note that a test runs now."""
        if test in self._tests[self._now + 1 :]:
            self._now = self._tests.index(test, self._now + 1)
            self._due, _ = self.estimate.left([test])
            self.estimate.begin(test)
            self._since = self._clock()

    def end(self, test: str, seconds: float, passed: bool) -> None:
        """Note that a test has ended."""
        if passed:
            self.estimate.learn(test, seconds)

    def __call__(self, message: str) -> None:
        """Say something, with how far the session is; of one kind, the words before a colon, not too often."""
        kind, now = message.split(":")[0], self._clock()
        with self._lock:
            if self._write is None or now - self._last.get(kind, -_EVERY) < _EVERY:
                return
            self._last[kind] = now
            self._spoke = now
            self._write(without_secrets(" ".join(part for part in (message, self._place()) if part)))
        if self.foot:
            self.foot.show()

    def work(self) -> Work | None:
        """Return what runs now and how far the session is, for the line of a terminal."""
        if self._now < 0:
            return None
        test, since = self._tests[self._now], self._clock() - self._since
        usual = self.estimate.of(test)
        told = f" of {duration(usual)}" if usual is not None else ""
        return Work(test, f"{duration(since)}{told} {self._place()}", self._now, len(self._tests))

    def waiting(self) -> None:
        """Say what runs, if nothing was said for a while; called again and again while the session waits."""
        if self.foot:
            self.foot.show()
            return
        now = self._clock()
        with self._lock:
            if self._write is None or self._now < 0 or now - max(self._spoke, self._since) < _HEARTBEAT:
                return
            test = self._tests[self._now]
            usual = self.estimate.of(test)
            told = f", usually {duration(usual)}" if usual is not None else ""
            self._spoke = now
            self._write(f"{test}: {duration(now - self._since)} so far{told} {self._place()}")

    def _place(self) -> str:
        if self._now < 0:
            return ""
        here = max(0.0, self._due - (self._clock() - self._since))
        seconds, unknown = self.estimate.left(self._tests[self._now + 1 :])
        unknown += self.estimate.of(self._tests[self._now]) is None
        left = f"about {duration(here + seconds)} left" if here + seconds else "time left unknown"
        beside = f" and {unknown} of unknown time" if unknown and here + seconds else ""
        return f"[test {self._now + 1} of {len(self._tests)}, {left}{beside}]"


def terminal(config: Any) -> Callable[[str], None] | None:
    """Return what writes a line to pytest's terminal; None where there is none to write to, or it is to be quiet."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or capture is None or config.option.verbose < 0:
        return None

    def write(message: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(f"  {time.strftime('%H:%M:%S')} {message}", light=True)
            sys.stdout.flush()

    return write
