"""Too little memory for a command: what its workers take is measured, and a fault has hit once it was refused some."""

from __future__ import annotations

import contextlib
import json
import resource
import time
from pathlib import Path

import psutil

from harness.base.files import write_text
from harness.contract.warden import descendants
from tests.faults.commands import Command
from tests.faults.engines import KEPT
from tests.faults.promises import TIMEOUT
from tests.faults.sessions import NO_MEMORY
from tests.faults.tasks import Task

# As Python, torch, the system and the harness itself say it.
_REFUSED = (*NO_MEMORY, "annot allocate memory", "can't allocate memory", "can't start new thread", "out of memory")
# Of what one takes at most. With far less numpy's OpenBLAS waits for ever, and of a limit that is set from outside no
# planner knows (harness.base.memory).
LEAST, MOST = 0.75, 0.97


def refused(command: Command, places: list[Path]) -> bool:
    """Return whether what a command said, or a log below some folders, tells of memory that was not to be had."""
    texts = [command.told]
    for place in places:
        for path in place.rglob("*.log"):
            with contextlib.suppress(OSError):
                texts.append(path.read_text(encoding="utf-8", errors="replace"))
    return any(words in text for text in texts for words in _REFUSED)


def limit_workers(command: Command, size: int, timeout: float) -> bool:
    """Give each worker of a command so many bytes of address space until it ends; return whether it had one."""
    deadline, limited = time.monotonic() + timeout, set[int]()
    while command.process.poll() is None and time.monotonic() < deadline:
        for pid, _ in _workers(command):
            if pid not in limited and limit(pid, size):
                limited.add(pid)
        time.sleep(0.02)
    return bool(limited)


def _workers(command: Command) -> list[tuple[int, int]]:
    found = []
    for pid in descendants(command.process.pid):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if "harness.worker" in " ".join(process.cmdline()) and not process.children():
                found.append((pid, process.memory_info().vms))
    return found


def most(task: Task) -> int:
    """Return the bytes of address space that a worker of a task takes at most; measured once, undisturbed, and kept."""
    file = KEPT / f"most-memory-of-{task.name}.json"
    if not file.exists():
        command, largest = task.start(), 0
        deadline = time.monotonic() + TIMEOUT
        while command.process.poll() is None and time.monotonic() < deadline:
            largest = max([largest, *(size for _, size in _workers(command))])
            time.sleep(0.02)
        status = command.end(TIMEOUT)
        if not task.due(status, command.told) or not largest:
            raise RuntimeError(f"an undisturbed {task.name} ended with {status}: {command.told[-500:]}")
        write_text(file, json.dumps(largest))
    found: int = json.loads(file.read_text(encoding="utf-8"))
    return found


def limit(pid: int, size: int) -> bool:
    """Give a process so much address space and no more; False where it is gone."""
    try:
        resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
    except ProcessLookupError:
        return False
    return True
