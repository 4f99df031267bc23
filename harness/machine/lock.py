"""One measuring session a machine, or one a GPU: whoever comes second waits, and says for whom."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


def machine_lock() -> Path:
    """Return the file that a measuring session of this user locks, whatever its cache folder."""
    return Path(tempfile.gettempdir()) / f"torchao-harness-{os.getuid()}.lock"


class Held:
    """What a session holds of the machine until it lets go, or ends."""

    def __init__(self) -> None:
        self._files: list[int] = []

    def take(self, path: Path, shared: bool, progress: Callable[[str], None]) -> None:
        """Lock a file, by itself or with others that share it; wait, and say so, while that cannot be."""
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._files.append(file)
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        holder = path.with_suffix(".holder")
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            who = holder.read_text(encoding="utf-8").strip() if holder.exists() else "unknown"
            progress(f"waiting: another session measures on this machine (process {who})")
            fcntl.flock(file, kind)
        holder.write_text(str(os.getpid()), encoding="utf-8")

    def release(self) -> None:
        while self._files:
            os.close(self._files.pop())


def only_session(path: Path, progress: Callable[[str], None], gpu: str | Sequence[str] = ()) -> Held:
    """Take the machine for measuring; two sessions at once would measure each other.

    A session that measures on some GPUs alone names them (their UUIDs): it waits for those on one of them and for those
    that have the whole machine, and leaves the other GPUs to others. Which processors each of them may use is for
    the user to part (``taskset``).
    """
    gpus = [gpu] if isinstance(gpu, str) and gpu else sorted(gpu)
    held = Held()
    held.take(path, bool(gpus), progress)
    # In one order, so that no two wait for each other.
    for one in gpus:
        held.take(path.with_name(f"{path.stem}-{one}.lock"), False, progress)
    return held
