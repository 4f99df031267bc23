"""What a session says while it works: what runs now, how far it is, and how long it will take, by earlier runs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from harness.base.foot import Foot, Work
from harness.base.secrets import without_secrets
from harness.base.spoken import kind_of
from harness.base.text import duration
from harness.plugin.estimate import Estimate

_EVERY = 10.0
_HEARTBEAT = 30.0
_OVERDUE = 1.5
# How many times the least of what may be left the most must be for both to be told.
_WIDE = 2.0


class Progress:
    """Writes whole lines between pytest's own, and none with -q; how far the same work is at most every ten seconds.

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
        """Say something, with how far the session is; how far the same work is not too often."""
        kind, now = kind_of(message), self._clock()
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
        since = self._clock() - self._since
        here = max(0.0, self._due - since)
        # Of a test that takes long beyond what it usually does nobody knows how long it still will.
        overdue = bool(self._due) and since > _OVERDUE * self._due + _EVERY
        seconds, unknown = self.estimate.left(self._tests[self._now + 1 :])
        unknown += self.estimate.of(self._tests[self._now]) is None
        left = (
            f"{'more than' if overdue else 'about'} {duration(here + seconds)} left"
            if here + seconds
            else "time left unknown"
        )
        low, high = (here + it for it in self.estimate.between(self._tests[self._now + 1 :]))
        if high > _WIDE * low:
            left += f" ({duration(low)} to {duration(high)})"
        beside = f" and {unknown} of unknown time" if unknown and here + seconds else ""
        return f"[test {self._now + 1} of {len(self._tests)}, {left}{beside}]"


def terminal(config: Any, *, loud: bool = False) -> Callable[[str], None] | None:
    """Return what writes a line to pytest's terminal; None where there is none to write to, or it is to be quiet.

    With ``loud`` it writes to one that is to be quiet too.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or capture is None or (config.option.verbose < 0 and not loud):
        return None

    def write(message: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(f"  {time.strftime('%H:%M:%S')} {message}", light=True)
            sys.stdout.flush()

    return write
