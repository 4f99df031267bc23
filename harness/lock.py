"""One measuring session a machine, or a GPU: whoever comes second waits, and says for whom."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout


def machine_lock() -> Path:
    """Return the file that a measuring session of this user locks, whatever its cache folder.

    Sessions that CUDA_VISIBLE_DEVICES gives a GPU each have a file each, so that every GPU of a machine can be measured
    at once; which processors each may use is the user's to part (``taskset``).
    """
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return Path(tempfile.gettempdir()) / f"torchao-harness-{os.getuid()}{gpu and '-gpu-' + gpu}.lock"


def only_session(path: Path, progress: Callable[[str], None]) -> FileLock:
    """Take the machine for measuring; two sessions at once would measure each other."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = path.with_suffix(".holder")
        who = holder.read_text(encoding="utf-8").strip() if holder.exists() else "unknown"
        progress(f"waiting: another session measures on this machine (process {who})")
        lock.acquire()
    path.with_suffix(".holder").write_text(str(os.getpid()), encoding="utf-8")
    return lock
