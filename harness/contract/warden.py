"""Runs one command and sees to it that nothing of it outlives the planner, however the planner ends.

Run as a script: ``python warden.py CONTROL_FD COMMAND...``. The planner holds the other end of the control pipe.
A byte on it asks for a gentle end (SIGTERM, then SIGKILL after a grace period); end of file, which is what a
killed planner leaves, ends everything at once. The warden makes itself the reaper of orphaned descendants, so
helper processes of an engine whose parent died are found and ended too. Standard library only, no imports of
the harness: it starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

GRACE = 10.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def descendants(pid: int) -> list[int]:
    """Return the ids of all living descendants of ``pid``, parents first."""
    found: list[int] = []
    pending = [pid]
    while pending:
        parent = pending.pop()
        try:
            tasks = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for task in tasks:
            try:
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    children = [int(word) for word in file.read().split()]
            except OSError:
                continue
            found += children
            pending += children
    return found


def _end(child: int) -> None:
    """Kill every descendant until none is left; new ones may appear while the old ones die."""
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        pids = descendants(os.getpid()) or ([child] if _alive(child) else [])
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def supervise(control: int, start: Callable[[], int]) -> int:
    """Start a child, wait for its end or for an order on ``control``, end all its descendants; return its status.

    ``start`` returns the child's process id. The status is the child's own, or 128 + the signal that ended it.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = start()
    status: int | None = None
    kill_at: float | None = None
    watched = [control, woken]
    while status is None:
        timeout = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        ready = select.select(watched, [], [], timeout)[0]
        if woken in ready:
            os.read(woken, 512)
        if control in ready:
            if not os.read(control, 1):
                break
            os.kill(child, signal.SIGTERM)
            kill_at = time.monotonic() + GRACE
        if kill_at is not None and time.monotonic() >= kill_at:
            break
        try:
            while True:
                pid, code = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                if pid == child:
                    status = code
        except ChildProcessError:
            break
    _end(child)
    if status is None:
        return 128 + signal.SIGKILL
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def die_with_parent() -> None:
    """Have the calling process killed when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    control = int(sys.argv[1])
    fds = [int(word) for word in sys.argv[2].split(",") if word]

    started: list[subprocess.Popen[bytes]] = []

    def start() -> int:
        # Kept: one that is let go would take the status of a child that has ended by then.
        started.append(subprocess.Popen(sys.argv[3:], pass_fds=fds, preexec_fn=die_with_parent))
        for fd in fds:
            os.close(fd)
        return started[0].pid

    return supervise(control, start)


if __name__ == "__main__":
    sys.exit(main())
