"""Work in several processes at once: as many as there are processors, and as the free memory holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import psutil

from harness.base.errors import HarnessError
from harness.base.memory import within_share


@dataclass(frozen=True)
class Work:
    """What keeps one processor busy, in a process of its own that may come to hold so many bytes."""

    run: Callable[[], object]
    peak_bytes: float


def together(works: Sequence[Work], abort: Callable[[], None]) -> list[HarnessError | None]:
    """Do all works, each waited for by a thread; return the errors that they raised, in their order.

    One always runs, however much memory it needs. ``abort`` is called when this is interrupted, and must end those
    that run.
    """
    processors, free = len(os.sched_getaffinity(0)), within_share(psutil.virtual_memory().available)
    left = list(range(len(works)))
    started: dict[int, Future[object]] = {}
    with ThreadPoolExecutor(max_workers=processors, thread_name_prefix="together") as pool:
        try:
            while left:
                running = [index for index, future in started.items() if not future.done()]
                held = sum(works[index].peak_bytes for index in running)
                fits = [index for index in left if not running or held + works[index].peak_bytes <= free]
                if fits and len(running) < processors:
                    started[fits[0]] = pool.submit(works[fits[0]].run)
                    left.remove(fits[0])
                else:
                    wait([started[index] for index in running], return_when=FIRST_COMPLETED)
            wait(started.values())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            abort()
            raise
    return [_error(started[index]) for index in range(len(works))]


def _error(future: Future[object]) -> HarnessError | None:
    error = future.exception()
    if error is not None and not isinstance(error, HarnessError):
        raise error
    return error
