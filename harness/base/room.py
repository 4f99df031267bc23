"""Room for OpenBLAS: it asks for a buffer a thread as it is loaded, again and again for ever where it gets none.

Where a limit of the process says so beforehand, that is told in words. One that comes while the library is being loaded
cannot be told of, since Python does not run then: a timer of the system ends the process.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from types import ModuleType

from harness.base.memory import limited

_LOADING = ("numpy", "scipy")
# Of address space, seen with numpy 2.4 and scipy 1.17, each of which brings an OpenBLAS: 80 to 100 MB with one thread.
_BESIDE, _A_THREAD, _MOST_THREADS = 64 << 20, 40 << 20, 64
# Of processor time, which loading takes a few hundredths of.
_LONGEST = 20.0


class _Timed(ExtensionFileLoader):
    """Loads an extension module, and whatever libraries it needs, in a time or not at all."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        if any(signal.getitimer(signal.ITIMER_PROF)):
            return super().create_module(spec)
        signal.setitimer(signal.ITIMER_PROF, _LONGEST)
        try:
            return super().create_module(spec)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


class _Room:
    """A finder that looks, before a part of numpy or scipy is loaded, whether there is room for it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Raise MemoryError where the process may not take what OpenBLAS will ask for."""
        if name.partition(".")[0] not in _LOADING:
            return None
        if limited():
            try:
                mmap.mmap(-1, _wanted(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
            except (OSError, MemoryError):
                raise MemoryError(f"{name} was not loaded") from None
        found = PathFinder.find_spec(name, path, target)
        if found is None or type(found.loader) is not ExtensionFileLoader:
            return None
        found.loader = _Timed(found.loader.name, found.loader.path)
        return found


def _wanted() -> int:
    asked = [os.environ.get(name, "") for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")]
    threads = next((int(it) for it in asked if it.isdigit() and int(it)), len(os.sched_getaffinity(0)))
    return _BESIDE + _A_THREAD * min(threads, _MOST_THREADS)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Have imports of numpy and scipy within raise MemoryError where they would wait for ever for want of memory."""
    finder = _Room()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
