"""Watches this machine's processors during a block of measurement: other processes' work on them, and their clocks.

What it finds is told in the words of harness.machine.watch. It does not make a block void, since hardly any machine is
ever without other work: the block's figures are marked. Settings are only read, never changed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.base.text import digest
from harness.contract.warden import descendants
from harness.machine.vendor import State

OTHERS = 0.1
"""The share of the processors' time that other processes may take of a machine that is called quiet."""
SLOWED = 0.8
"""The share of its highest clock that a processor under load keeps if nothing slows it down."""
# Processor times are counted in hundredths of a second, a process and a processor at a time: too coarse for less.
_SHORTEST = 0.5
_CGROUP = Path("/sys/fs/cgroup/cpu.stat")
_THERMAL = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Times:
    """Seconds since some moment, and seconds of processors: all that were busy, and those of this session."""

    now: float
    busy: float
    own: float


def times() -> Times:
    """Return how busy the processors that this process may run on have been, and how much of that was its own work.

    Its own is that of all its descendants, those included that have ended and were waited for. What a hypervisor gave
    to others counts as busy.
    """
    per = psutil.cpu_times(percpu=True)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(per))
    chosen = [per[index] for index in allowed if index < len(per)] or per
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    busy = sum(getattr(one, name, 0.0) for one in chosen for name in names)
    return Times(time.monotonic(), busy, sum(map(_spent, (os.getpid(), *descendants(os.getpid())))))


def processors() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instructions() -> str:
    """Return what code is compiled for here: the architecture, and a digest of the processor's instruction sets."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, told = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return f"{platform.machine()} {digest(sorted(told.split()))}"
    return platform.machine()


def clock() -> float:
    """Return the highest clock of a processor now, in MHz; 0 where that cannot be read."""
    with contextlib.suppress(OSError, NotImplementedError, AttributeError):
        return max((float(it.current) for it in psutil.cpu_freq(percpu=True) or ()), default=0.0)
    return 0.0


def slowdowns() -> dict[str, int]:
    """Return how often each thing that slows a processor down has happened so far; of what is not told, nothing."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in _CGROUP.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "nr_throttled":
                found["the processor time that this container may have"] = int(value)
    counts = []
    for path in _THERMAL.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"):
        with contextlib.suppress(OSError, ValueError):
            counts.append(int(path.read_text(encoding="ascii")))
    if counts:
        found["thermal slowdown"] = sum(counts)
    return found


class ProcessorWatch:
    """A context manager; ``problems`` afterwards says what was not quiet, and ``state`` what was seen.

    ``read`` tells the time that was spent, ``clock`` the clock: now.
    """

    INTERVAL = 2.0

    def __init__(self, read: Callable[[], Times] = times, clock: Callable[[], float] = clock) -> None:
        self._read, self._clock = read, clock
        self._clocks: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="processor-watch", daemon=True)
        self._others: float | None = None
        self._slowed: list[str] = []

    @property
    def problems(self) -> list[str]:
        found = [f"throttled: {name}" for name in self._slowed]
        if self._clocks and min(self._clocks) < SLOWED * max(self._clocks):
            low, high = min(self._clocks), max(self._clocks)
            found.append(f"throttled: the processors' clock fell to {low:,.0f} of {high:,.0f} MHz")
        if self._others is not None and self._others > OTHERS * processors():
            found.append(f"shared: other processes used {self._others:.1f} of {processors()} processors")
        return sorted(found)

    @property
    def state(self) -> State:
        found: State = {} if self._others is None else {"other_cpus_in_use": round(self._others, 2)}
        return found | ({"cpu_mhz_lowest": round(min(self._clocks))} if self._clocks else {})

    def __enter__(self) -> ProcessorWatch:
        self._before, self._counted = self._told(), slowdowns()
        self._last = self._before
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        after, before = self._told(), self._before
        if after and before and after.now - before.now >= _SHORTEST:
            others = (after.busy - before.busy) - (after.own - before.own)
            self._others = max(0.0, others) / (after.now - before.now)
        counted = slowdowns()
        self._slowed = [name for name, count in counted.items() if count > self._counted.get(name, count)]

    def _run(self) -> None:
        while not self._done.wait(self.INTERVAL):
            now, last = self._told(), self._last
            # An idle processor's clock is low by itself.
            if now and last and now.own - last.own > 0.5 * (now.now - last.now) and (mhz := self._clock()):
                self._clocks.append(mhz)
            self._last = now

    def _told(self) -> Times | None:
        try:
            return self._read()
        except (OSError, psutil.Error, NotImplementedError):
            return None


def _spent(pid: int) -> float:
    try:
        found = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(found.user + found.system + found.children_user + found.children_system)
