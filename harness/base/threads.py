"""A thread that cannot begin for want of memory: whoever starts it is told, where Python would wait for ever."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

# Far longer than a machine that stands still keeps a thread from beginning.
_LONGEST = 60.0


class _Begun(threading.Event):
    """What a thread sets as it begins. One whose first step gets no memory never does, and ends by itself."""

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None and not super().wait(_LONGEST):
            raise MemoryError("a thread did not begin")
        return super().wait(timeout)


@contextlib.contextmanager
def begun() -> Iterator[None]:
    """Let ``start`` of every thread, also those of executors, raise MemoryError within where one does not begin."""
    former = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        # By that name in every release of Python; there is no other way to what it waits for.
        thread._started = _Begun()  # type: ignore[attr-defined]
        former(thread)

    threading.Thread.start = start  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        threading.Thread.start = former  # type: ignore[method-assign]
