"""What must hold of a command, whatever went on around it, and of the same command once nothing does any more."""

from __future__ import annotations

import time
from pathlib import Path

from tests.faults.campaign import Fault
from tests.faults.commands import Command
from tests.faults.sessions import STUCK, TRACEBACK, marked, none_left
from tests.faults.tasks import Task
from tests.hub_server import TOKEN

TIMEOUT = 400


def told(fault: Fault, task: Task, command: Command, status: int, *, disturbed: bool = True) -> None:
    """Hold how a command ended against the promises."""
    words = command.told
    if TRACEBACK in words:
        fault.broken("traceback", words[words.index(TRACEBACK) :][-500:])
    if TOKEN in words:
        fault.broken("other", "the hub's token is shown")
    if status == STUCK:
        fault.broken("other", f"it did not end by itself: {words[-300:]}")
    elif status == 0 and not task.due(status, words):
        fault.broken("silent pass", f"it ended with 0: {words[-400:]}")
    elif disturbed and status == 2 and "error" not in words.lower():
        fault.broken("other", f"it ended without a word: {words[-300:]}")


def orphans(fault: Fault, task: Task) -> None:
    none_left(fault, lambda: [it for command in task.started for it in marked(command.mark, command.process.pid)])


def afterwards(fault: Fault, task: Task, before: dict[Path, set[bytes]], *, resumed: bool = True) -> None:
    """Look for what is left and lost, then start the command once more, undisturbed: it must come right."""
    orphans(fault, task)
    kept = task.lines()
    if lost := [path for path, lines in before.items() if lines - kept.get(path, set())]:
        fault.broken("record lost", f"lines of {lost} are gone")
    again = task.start(again=resumed)
    status = again.end(TIMEOUT)
    told(fault, task, again, status, disturbed=False)
    if not task.due(status, again.told):
        fault.broken("not complete", f"afterwards it ended with {status}: {again.told[-400:]}")
    held = task.lines()
    if lost := [path for path, lines in kept.items() if lines - held.get(path, set())]:
        fault.broken("record lost", f"lines of {lost} are gone afterwards")
    orphans(fault, task)


def wait_begun(command: Command, task: Task, timeout: float = 60) -> bool:
    deadline = time.monotonic() + timeout
    while task.begun and task.begun not in command.told:
        if command.process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
