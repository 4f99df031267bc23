"""Work in several processes at once: how much of it, what becomes of its errors, and of an interruption."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.errors import HarnessError
from harness.runtime import parallel as module
from harness.runtime.parallel import Work, together


class Machine:
    """How much ran at once at most; each piece of work waits for another to join it, ``patience`` seconds at most."""

    def __init__(self) -> None:
        self.most = 0
        self.patience = 0.05
        self.order: list[str] = []
        self._running = 0
        self._changed = threading.Condition()

    def work(self, name: str, peak: float, error: Exception | None = None) -> Work:
        def run() -> None:
            with self._changed:
                self.order.append(name)
                self._running += 1
                self.most = max(self.most, self._running)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self.most > 1, timeout=self.patience)
                self._running -= 1
            if error:
                raise error

        return Work(run, peak)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], Machine]:
    def make(processors: int, free: float) -> Machine:
        monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(processors)))
        monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
        return Machine()

    return make


@pytest.mark.parametrize(
    ("processors", "free", "most"), [(1, 100.0, 1), (2, 100.0, 2), (2, 20.0, 2), (2, 19.0, 1), (2, 5.0, 1)]
)
def test_as_many_at_once_as_processors_and_memory_allow(machine: Any, processors: int, free: float, most: int) -> None:
    """One runs even where its memory is not free."""
    here = machine(processors, free)
    if most > 1:
        here.patience = 10
    assert together([here.work(name, 10.0) for name in "abc"], lambda: None) == [None] * 3
    assert here.most == most
    assert sorted(here.order) == ["a", "b", "c"]


def test_a_smaller_one_runs_beside_what_leaves_no_room_for_a_larger(machine: Any) -> None:
    here = machine(2, 25.0)
    here.patience = 10
    together([here.work("large", 20.0), here.work("huge", 20.0), here.work("small", 5.0)], lambda: None)
    assert here.order[:2] == ["large", "small"]
    assert here.most == 2


def test_an_error_ends_its_own_work_alone(machine: Any) -> None:
    here = machine(2, 100.0)
    error = HarnessError("it broke")
    assert together([here.work("a", 1.0, error), here.work("b", 1.0)], lambda: None) == [error, None]
    with pytest.raises(ZeroDivisionError):
        together([here.work("a", 1.0, ZeroDivisionError())], lambda: None)


def test_an_interruption_ends_what_runs(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(2, 100.0)
    ended = threading.Event()

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "wait", interrupted)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        together([Work(lambda: ended.wait(60), 1.0)], ended.set)
    assert time.monotonic() - start < 30
