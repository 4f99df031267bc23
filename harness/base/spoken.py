"""What a command that measures says while it works: lines, a heartbeat, and on a terminal a line at its foot."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from harness.base.foot import Foot, Work
from harness.base.secrets import without_secrets
from harness.base.terminal import Folded, columns, fold, unfolded
from harness.base.text import duration

_EVERY = 10.0
_HEARTBEAT = 30.0
# With its unit; none that is part of a name.
_NUMBER = re.compile(r"(?<![\w.-])[0-9]+(?:[.,][0-9]+)*[A-Za-z]{0,3}\b(?!-)")


def kind_of(message: str) -> str:
    """Return a line as those have it that tell the same further on: they differ by numbers behind its colon."""
    what, colon, how = message.partition(":")
    return what + colon + _NUMBER.sub("0", how)


class Spoken:
    """Writes a line about long work; how far the same work is at most every ten seconds."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic, *, wide: bool = False
    ) -> None:
        self._stream = stream or unfolded(sys.stderr)
        self._clock = clock
        self._wide = 10**9 if wide else columns()
        self._lock = threading.RLock()
        self._started = self._spoke = clock()
        self._last: dict[str, float] = {}
        self._doing, self._since = "", clock()
        self.budget: float | None = None
        """Seconds that all of it may take, where that is bounded."""
        self._foot: Foot | None = None

    def __call__(self, message: str) -> None:
        """Say something, which is what is done from now on."""
        kind, now = kind_of(message), self._clock()
        with self._lock:
            self._doing, self._since = without_secrets(message), now
            if now - self._last.get(kind, -_EVERY) >= _EVERY:
                self._last[kind] = now
                self._write(self._doing)

    def allow(self, seconds: float) -> None:
        """Bound what follows to so many seconds, whatever was waited for before."""
        self.budget = self._clock() - self._started + seconds

    @contextlib.contextmanager
    def working(self, budget: float | None = None) -> Iterator[None]:
        """Say within, again and again, what is being done: every half minute, or always where there is a terminal.

        Where it may take ``budget`` seconds at most, it is said how many are left.
        """
        if budget is not None:
            self.allow(budget)
        done = threading.Event()
        if self._stream.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            self._foot = Foot(self._stream, self.work, _column)
            self._foot.show()
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, Folded):
                    stream.before = self._foot.hide
        beat = threading.Thread(target=self._beat, args=(done,), name="heartbeat", daemon=True)
        beat.start()
        try:
            yield
        finally:
            done.set()
            beat.join()
            if self._foot:
                self._foot.close()
                self._foot = None

    def waiting(self) -> None:
        """Say what is being done, if nothing was said for half a minute and no line shows it."""
        now = self._clock()
        with self._lock:
            if self._doing and self._foot is None and now - self._spoke >= _HEARTBEAT:
                self._write(f"{self._doing}: {duration(now - self._since)} so far{self._left()}")

    def work(self) -> Work | None:
        """Return what is being done, for the line of a terminal."""
        now = self._clock()
        words = f"{duration(now - self._since)}{self._left()}"
        return Work(self._doing or "...", words, now - self._started, self.budget or 0.0)

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(1.0):
            self.waiting()
            if self._foot:
                self._foot.show()

    def _left(self) -> str:
        if self.budget is None:
            return ""
        return f", {duration(max(0.0, self.budget - (self._clock() - self._started)))} of the budget left"

    def _write(self, message: str) -> None:
        self._spoke = self._clock()
        line = f"  {self._spoke - self._started:6.0f} s  {message}"
        if self._foot:
            self._foot.hide()
        self._stream.write("".join(f"{part}\n" for part in fold(line, self._wide, hang=10)))
        self._stream.flush()
        if self._foot:
            self._foot.show()


def _column() -> int:
    """Return where the cursor stands in what was printed."""
    return sys.stdout.column if isinstance(sys.stdout, Folded) else 0
