"""What one of several GPUs of a host has of its processors and memory: sessions side by side take no other's."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.base.memory import SHARE

_LIBC = ctypes.CDLL(None, use_errno=True)
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}  # asm/unistd.h
_MPOL_PREFERRED_MANY = 5  # linux/mempolicy.h, since Linux 5.15
_SCARCE = 0.1
"""The share of a host's memory below which one that takes more than its own is ended, before the kernel chooses one."""


@dataclass(frozen=True)
class Share:
    """Processors by their numbers, bytes of memory, and the NUMA nodes that its processors are of.

    ``memory`` is 0 where nothing is divided.
    """

    cores: tuple[int, ...]
    memory: int = 0
    nodes: tuple[int, ...] = ()

    @classmethod
    def of(cls, gpus: Sequence[int], among: int, folder: Path = Path("/sys/devices/system")) -> Share:
        """Return what goes with some of a host's GPUs, of which there are ``among``; ``folder`` tells its topology."""
        every = sorted(os.sched_getaffinity(0))
        topology = {core: _place(core, folder) for core in every}
        mine = cores(sorted(every, key=lambda core: (topology[core], core)), gpus, among)
        if not gpus or len(gpus) >= among:
            return cls(tuple(every))
        memory = psutil.virtual_memory().total * len(gpus) // among
        return cls(tuple(sorted(mine)), memory, tuple(sorted({topology[core][0] for core in mine})))

    def take(self) -> None:
        """Keep this process, and what it starts, to its processors, and to the memory that is next to them.

        Memory of other NUMA nodes is taken only where that is full.
        """
        os.sched_setaffinity(0, self.cores)
        number = _SET_MEMPOLICY.get(platform.machine())
        if self.nodes and number:
            # Of a kernel that does not know it, memory is that of the processor which first touches it.
            mask = ctypes.c_ulong(sum(1 << node for node in self.nodes))
            _LIBC.syscall(number, _MPOL_PREFERRED_MANY, ctypes.byref(mask), ctypes.c_ulong(65))

    def variables(self) -> dict[str, str]:
        """Return what tells a session how much memory it has."""
        return {SHARE: str(self.memory)} if self.memory else {}

    def exceeded(self, process: int, host: Callable[[], Mapping[str, int]] | None = None) -> str:
        """Say that a process and what it started hold more than their share while the host's memory is scarce.

        Returns an empty string where they do not. What is shared with other processes counts for none.
        """
        if not self.memory:
            return ""
        memory = host() if host else psutil.virtual_memory()._asdict()
        if memory["available"] >= _SCARCE * memory["total"]:
            return ""
        used = 0
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(process)
            for one in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    held = one.memory_info()
                    used += held.rss - held.shared
        if used <= self.memory:
            return ""
        return (
            f"out of memory: it held {used / 1e9:.1f} GB, more than its share of {self.memory / 1e9:.1f} GB, and only "
            f"{memory['available'] / 1e9:.1f} GB of the host's {memory['total'] / 1e9:.1f} GB were left"
        )

    @property
    def told(self) -> str:
        """What it is, in words."""
        memory = f" and {self.memory / 1e9:.0f} GB of memory" if self.memory else ""
        return f"{len(self.cores)} processors{memory}"


def cores(every: Sequence[int], gpus: Sequence[int], among: int) -> list[int]:
    """Return the processors that go with some of a node's GPUs: neighbouring ones of ``every``, as many for each.

    All of them where there is but one GPU, or where there are fewer processors than GPUs.
    """
    each = len(every) // among if among else 0
    if not gpus or among < 2 or not each:
        return list(every)
    return [core for gpu in sorted(gpus) for core in every[gpu % among * each : (gpu % among + 1) * each]]


def _place(core: int, folder: Path) -> tuple[int, int, int]:
    """Return the NUMA node, the package and the core of a processor: two threads of one core have the same."""
    here = folder / "cpu" / f"cpu{core}"
    nodes = [re.fullmatch(r"node(\d+)", path.name) for path in here.glob("node*")]
    node = next((int(it[1]) for it in nodes if it), 0)
    return node, _number(here / "topology" / "physical_package_id"), _number(here / "topology" / "core_id")


def _number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
