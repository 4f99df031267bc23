"""Watches the machine during a block of measurement."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from harness.contract.warden import descendants
from harness.machine.vendor import Unseen, over
from harness.machine.vendors import VENDORS
from harness.matrix.hardware import Hardware

NEIGHBOURS = "HARNESS_NEIGHBOURS"
"""Set for a session beside others on one host: what their neighbourhood is known, or not known, to do."""


class Watch:
    """Watches the machine during a block of measurement: throttling, and processes of others on the GPU.

    A context manager; ``problems`` afterwards says what makes the block void. Of a processor nothing is
    watched. Settings are only read, never changed.
    """

    INTERVAL = 0.5

    def __init__(self, hardware: Hardware, gpus: int = 1) -> None:
        self._vendor = hardware.vendor if hardware.watched else ""
        self._gpus = gpus
        self._seen: set[str] = set()
        self._answered: set[str] = set()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def problems(self) -> list[str]:
        return sorted(self._seen)

    def __enter__(self) -> Watch:
        if self._vendor:
            self._look()
            self._thread = threading.Thread(target=self._run, name="hardware-watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread:
            self._thread.join()
            self._look()

    def _run(self) -> None:
        while not self._done.wait(self.INTERVAL):
            self._look()

    def _look(self) -> None:
        vendor = VENDORS[self._vendor]
        # What one of the two questions is refused, the other may be told.
        with self._asking("slowdowns"):
            self._seen |= {f"throttled: {name}" for name in vendor.slowed(*over(self._gpus))}
        with self._asking("processes"):
            others = foreign(vendor.processes(*over(self._gpus)), self._vendor)
            self._seen |= {f"shared: process {pid} is on the GPU too" for pid in others}

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
            self._answered.add(what)
        except Unseen as error:
            if what in self._answered:
                self._seen.add(f"gone: {error}")


@functools.cache
def strangers(vendor: str) -> frozenset[int]:
    """Return the processes that were on the vendor's GPUs when this was first asked, before there were workers of ours.

    One of another container has an id of the host's here, which cannot be told later from that of a worker.
    """
    try:
        return frozenset(VENDORS[vendor].processes(*over(VENDORS[vendor].count())))
    except Unseen:
        return frozenset()


def foreign(processes: list[int], vendor: str) -> list[int]:
    """Return those process ids that are neither this process nor its descendants.

    They exist here, or were on the GPU before the session's own: a container sees its workers under ids of the host's.
    """
    ours = {os.getpid(), *descendants(os.getpid())}
    return [pid for pid in processes if pid not in ours and (pid in strangers(vendor) or Path(f"/proc/{pid}").exists())]
