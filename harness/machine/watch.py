"""Watches the machine during a block of measurement."""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path

from harness.contract import visible
from harness.contract.warden import descendants
from harness.matrix.hardware import Hardware

# Reasons for lowered clocks that make a measurement void: slowdowns for heat or by the board, not the power cap under
# which a busy GPU always runs. Values: NVML's nvmlClocksEventReasons.
_THROTTLING = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


class Watch:
    """Watches the machine during a block of measurement: throttling, and processes of others on the GPU.

    A context manager; ``problems`` afterwards says what makes the block void. Of a processor nothing is
    watched. Settings are only read, never changed.
    """

    INTERVAL = 0.5

    def __init__(self, hardware: Hardware) -> None:
        self._watched = hardware.watched
        self._seen: set[str] = set()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def problems(self) -> list[str]:
        return sorted(self._seen)

    def __enter__(self) -> Watch:
        if self._watched:
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
        import pynvml

        try:
            pynvml.nvmlInit()
            handle = visible.used()
            reasons = int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
            processes = [int(process.pid) for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        except pynvml.NVMLError:
            return
        self._seen |= {f"throttled: {name}" for bit, name in _THROTTLING.items() if reasons & bit}
        self._seen |= {f"shared: process {pid} is on the GPU too" for pid in foreign(processes)}


@functools.cache
def strangers() -> frozenset[int]:
    """Return the processes that were on the GPU when this was first asked, before there were workers of our own.

    One of another container has an id of the host's here, which cannot be told later from that of a worker.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        return frozenset(int(it.pid) for it in pynvml.nvmlDeviceGetComputeRunningProcesses(visible.used()))
    except pynvml.NVMLError:
        return frozenset()


def foreign(processes: list[int]) -> list[int]:
    """Return those process ids that are neither this process nor its descendants.

    They exist here, or were on the GPU before the session's own: a container sees its workers under ids of the host's.
    """
    ours = {os.getpid(), *descendants(os.getpid())}
    return [pid for pid in processes if pid not in ours and (pid in strangers() or Path(f"/proc/{pid}").exists())]
