"""What is at work when a gate's budget ends is cut off, and is told of as that and as nothing else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from harness.base.errors import HarnessError, OutOfTime

_EVERY = 0.5


class CutOff:
    """Ends what is at work once ``until`` says that no second is left, again and again, until the gate has ended.

    ``end`` ends every process that the gate has started; whoever waits for one raises HarnessError then, which
    :meth:`instead` makes an OutOfTime.
    """

    def __init__(self, until: Callable[[], float], end: Callable[[], None]) -> None:
        self._until = until
        self._end = end
        self.happened = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the time while what stands within is at work."""
        done = threading.Event()
        watch = threading.Thread(target=self._watch, args=(done,), name="budget", daemon=True)
        watch.start()
        try:
            yield
        finally:
            done.set()
            watch.join()

    def instead(self, error: HarnessError) -> HarnessError:
        """Return what an error is: OutOfTime, if it was raised after the cut."""
        if not self.happened or isinstance(error, OutOfTime):
            return error
        return OutOfTime(f"cut off where the budget ended ({error})")

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(min(_EVERY, max(0.01, self._until()))):
            if self._until() <= 0:
                self.happened = True
                self._end()
