"""What a command prints and nobody takes: its standard output or error is a full disk, or read by one that has gone.

From the start, or once it has taken so many bytes. What was measured stands, and the command goes on with it.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.judge import gatefile
from tests.faults import signals
from tests.faults.campaign import Fault, Scenario
from tests.faults.commands import EXPORTS, Command, prepared
from tests.faults.promises import TIMEOUT, afterwards
from tests.faults.sessions import NO_MOUNTS, STUCK, TRACEBACK, small_disk
from tests.faults.surroundings import under
from tests.faults.tasks import Task

STREAMS = {"output": ("stdout",), "error": ("stderr",), "output and error": ("stdout", "stderr")}
FULL, GONE = "a full disk", "a reader that has gone"
_PAGE = 4096


@dataclass
class Taker:
    """What takes ``room`` bytes of a command's streams, ``names`` of them, and no more."""

    names: tuple[str, ...]
    how: str
    room: int
    stream: IO[bytes]
    taken: Path
    before: int = 0
    reader: subprocess.Popen[bytes] | None = None

    def end(self) -> None:
        """Let it take the rest of what there is, once nothing more is written."""
        self.stream.close()
        if self.reader:
            self.reader.wait()

    @property
    def streams(self) -> dict[str, IO[bytes]]:
        return dict.fromkeys(self.names, self.stream)

    @property
    def data(self) -> bytes:
        """What it took."""
        return self.taken.read_bytes()[self.before :]


@contextlib.contextmanager
def taking(fault: Fault, names: tuple[str, ...], how: str, room: int) -> Iterator[Taker | None]:
    """Yield what takes so many bytes; None where this user may mount no disk."""
    if how == GONE:
        taken = fault.folder / "taken"
        with taken.open("wb") as file:
            reader = subprocess.Popen(["head", "-c", str(room)], stdin=subprocess.PIPE, stdout=file)
        assert reader.stdin is not None
        if room == 0:
            reader.wait()
        try:
            yield Taker(names, how, room, reader.stdin, taken, reader=reader)
        finally:
            reader.stdin.close()
            reader.wait()
        return
    folder = fault.folder / "disk"
    with small_disk(folder, _PAGE >> 10) as mounted:
        if not mounted:
            fault.lacks = NO_MOUNTS
            yield None
            return
        taken = folder / "taken"
        taken.write_bytes(bytes(_PAGE - room))
        with taken.open("ab") as file:
            yield Taker(names, how, room, file, taken, _PAGE - room)


def drawn(fault: Fault, said: int) -> tuple[str, str, int, dict[str, str]]:
    """Draw which streams, how, and after how many bytes of about so many that it says; often from the start.

    Then the variables by which Python buffers them, or does not.
    """
    which, how = fault.draw.choice(list(STREAMS)), fault.draw.choice([FULL, GONE])
    room = fault.draw.choice([0, fault.draw.randrange(min(said, _PAGE))])
    unbuffered = fault.draw.choice(["", "1"])
    fault.what = f"standard {which}{', unbuffered,' if unbuffered else ''} is {how} after {room} bytes"
    return which, how, room, {"PYTHONUNBUFFERED": unbuffered}


def held(
    fault: Fault,
    taker: Taker,
    command: Command,
    status: int,
    *,
    right: bool,
    ends: tuple[int, ...] = (),
    says: str = "error: standard output: ",
) -> None:
    """Hold how a command ended, maybe not right, against the promises that are left to such streams."""
    words = command.told + taker.data.decode(errors="replace")
    if TRACEBACK in words:
        fault.broken("traceback", words[words.index(TRACEBACK) :][-500:])
    if status == STUCK:
        fault.broken("other", f"it did not end by itself: {words[-300:]}")
    if not right and status not in (*ends, 2, 128 + signal.SIGPIPE, STUCK):
        fault.broken("other", f"it ended with {status}: {words[-300:]}")
    if status == 128 + signal.SIGPIPE and (taker.how != GONE or "stdout" not in taker.names):
        fault.broken("other", f"it ended with {status}, and its reader is there: {words[-300:]}")
    if not right and status == 2 and taker.names == ("stdout",) and says not in command.told:
        fault.broken("other", f"it does not say {says!r}: {command.told[-300:]}")


def command(fault: Fault) -> None:
    """A command that prints data or a table has it whole on standard output, or says that it has not."""
    name = fault.draw.choice([*(it for it in EXPORTS if "-o" in EXPORTS[it] and it != "page"), *OTHERS])
    _, run = prepared(fault.folder)
    given = EXPORTS[name][:-2] if name in EXPORTS else OTHERS[name]
    words = ["-m", "harness", *(word.format(run=run.folder) for word in given)]
    undisturbed = Command(fault.folder, *words)
    due, whole = undisturbed.end(), undisturbed.output.read_bytes()
    which, how, room, variables = drawn(fault, len(whole))
    fault.what = f"{name}: {fault.what}"
    with taking(fault, STREAMS[which], how, room) as taker:
        if taker is None:
            return
        first = Command(fault.folder, *words, streams=taker.streams, **variables)
        taker.stream.close()
        status = first.end()
        taker.end()
        fault.hit = status != due
        # A pipe takes more than its reader does.
        if status == 0 and how == FULL and "stdout" in taker.names and taker.data != whole:
            fault.broken("silent pass", f"it ended with 0, and {len(taker.data)} of {len(whole)} bytes are there")
        if which == "output" and not whole.startswith(taker.data):
            fault.broken("record lost", f"{taker.data[-80:]!r} is no beginning of what it prints")
        held(fault, taker, first, status, right=status == due)
    again = Command(fault.folder, *words)
    if again.end() != due or again.output.read_bytes() != whole:
        fault.broken("not complete", f"afterwards it said {again.told[-300:]}")


OTHERS = {
    "help": ("--help",),
    "help of a command": ("gate", "--help"),
    "no such run": ("table", "nothing-like-this"),
}


def unread(fault: Fault, task: Task) -> None:
    """What it prints is taken to a part, or not at all: it ends in order, and what it has measured is kept."""
    which, how, room, variables = drawn(fault, 600)
    fault.what = f"{task.name}: {fault.what}"
    with taking(fault, STREAMS[which], how, room) as taker:
        if taker is None:
            return
        first = task.start(streams=taker.streams, **variables)
        taker.stream.close()
        status = first.end(TIMEOUT)
        taker.end()
        words = first.told + taker.data.decode(errors="replace")
        right = task.due(status, words)
        fault.hit = not right or len(taker.data) == room > 0
        # Of a session that a choice has measure its status is told.
        says = {"says": "error: the suites ended with"} if task.name == "choose" else {}
        held(fault, taker, first, status, right=right, ends=(1,) if task.name in _JUDGE else (), **says)
    # What they say is held by what was kept: their last words may have been for nobody.
    if not right and (status == 0 or (status == 1 and not _judged(task))):
        fault.broken("silent pass", f"it ended with {status} before its end: {words[-300:]}")
    afterwards(fault, task, task.lines())


_JUDGE = ("gate", "bisect", "choose")


def _judged(task: Task) -> bool:
    """Return whether a gate that came to its end is kept, and says that something is worse; a choice has none."""
    gates = [gatefile.load(path) for path in task.folder.glob("results/gates/*/gate.json")]
    return task.name == "choose" or any(gate.exit_status == 1 and gate.finished is not False for gate in gates)


def choice(fault: Fault) -> None:
    """So it is with a session of the suites, which a choice has measure."""
    asked = signals.choose(fault)
    task = Task(
        "choose", fault.folder, lambda again: asked.again() if again and asked.again else asked.words, asked.due, {},
        real=True, cwd=asked.cwd, variables=asked.variables, seconds=asked.seconds,
    )  # fmt: skip
    unread(fault, task)


# An export into a file says nothing.
_TALK = ("gate", "bisect", "publish")
KIND = "nobody takes what it prints"
SCENARIOS = [
    Scenario(f"table, export, help: {KIND}", command, 8),
    *(Scenario(f"{name}: {KIND}", under(name, unread, real=False), 4) for name in _TALK),
    *(Scenario(f"{name} of a tiny model: {KIND}", under(name, unread, real=True), 1, quick=False) for name in _TALK),
    Scenario(f"choose, with a tiny model: {KIND}", choice, 1, quick=False),
]
