"""A gate, a search, an upload and an export while memory runs out, clocks step, disks are slow or read-only, others
run, what they keep is damaged, their servers fail, and names are hostile; then once more as if nothing had been.
"""

from __future__ import annotations

import contextlib
import errno
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.faults import short, tasks
from tests.faults.campaign import Fault, Scenario
from tests.faults.commands import Command
from tests.faults.damage import spoil
from tests.faults.disks import ERRORS, NO_COMPILER, library
from tests.faults.promises import TIMEOUT, afterwards, told, wait_begun
from tests.faults.sessions import NO_MOUNTS
from tests.faults.tasks import Task
from tests.faults.told_by_others import hostile, server

STEPPED = Path(__file__).with_name("stepped_clock.c")
Condition = Callable[[Fault, Task], None]


# --------------------------------------------------------------------------------------------------------------- memory


def memory(fault: Fault, task: Task) -> None:
    """Address space runs out for the planner, from its start or in its midst, or for a worker with its model."""
    whose = fault.draw.choice(["worker", "worker", "planner"] if task.real and task.name != "publish" else ["planner"])
    at_start = fault.draw.random() < 0.5 and not task.begun.startswith("started")
    more, moment = fault.draw.choice([0, 1, 4, 16]), fault.draw.random()
    megabytes = fault.draw.choice([64, 128, 256, 400, 600])
    fault.what = f"{task.name}: memory of the {whose}"
    if whose == "worker":
        # Less than the largest takes undisturbed: that asks for more, and is refused.
        largest = short.most(task)
        size = round(largest * (short.LEAST + moment * (short.MOST - short.LEAST)))
        fault.what += f", {size >> 20} MB of the {largest >> 20} MB that one takes"
        first = task.start()
        limited = short.limit_workers(first, size, TIMEOUT)
    elif at_start:
        fault.what += f" from the start, {megabytes} MB"
        first, limited = task.start(memory=megabytes << 20), True
    else:
        fault.what += f" in its midst, {more} MB more than it has"
        first, limited = task.start(), False
        if wait_begun(first, task):
            time.sleep(moment * 0.3 * task.seconds)
            with contextlib.suppress(psutil.Error):
                limited = short.limit(
                    first.process.pid, psutil.Process(first.process.pid).memory_info().vms + (more << 20)
                )
    status = first.end(TIMEOUT)
    # One that asked for no more was not hit; of a planner that ended otherwise Python has its last words, or none.
    otherwise = whose == "planner" and not task.due(status, first.told)
    fault.hit = limited and (otherwise or short.refused(first, [task.folder]))
    if AT_IMPORT.search(first.told):
        # Python itself, before there is anything of ours that could say it.
        first.output.write_text("error: no memory for Python", encoding="utf-8")
    told(fault, task, first, status)
    afterwards(fault, task, task.lines())


_OUT_OF_MEMORY = r"(MemoryError|SystemError: .*without .*exception.*|.*failed to map segment.*)"
AT_IMPORT = re.compile(
    # The line itself is left out where no memory is left to read it.
    r"(harness/__main__|small_(gates|program))\.py\", line \d+, in <module>\n"
    r"( +(from|import) .*\n|(?= +File |\w+Error))"
    rf"((?!.*, in (main|_run|_called)\n).*\n)*{_OUT_OF_MEMORY}"
    # As Python itself starts, which is the first that it says.
    r"|\A(Error processing line .*\n\n|Python path configuration:\n( .*\n)*)?Fatal Python error: init_"
    rf"|\ATraceback .*\n( +File \"<frozen .*\n)+{_OUT_OF_MEMORY}\n"
)


# ---------------------------------------------------------------------------------------------------------------- clock


def clock(fault: Fault, task: Task) -> None:
    """The wall clock steps by seconds to years in its midst: it comes right all the same."""
    step = round(fault.draw.choice([-1, 1]) * 10 ** fault.draw.uniform(0, 8))
    # A real one asks seldom what time it is, and not at all towards its end.
    after = round(fault.draw.uniform(0, (250 if task.real else 600) * task.seconds))
    fault.what = f"{task.name}: the clock steps by {step:+} s after {after} ms"
    if not library(STEPPED):
        fault.lacks = NO_COMPILER
        return
    file = fault.folder / "stepped"
    first = task.start(LD_PRELOAD=library(STEPPED), CLOCK_STEP=str(step), CLOCK_AFTER=str(after), CLOCK_TOLD=str(file))
    status = first.end(TIMEOUT)
    fault.hit = file.exists()
    told(fault, task, first, status)
    if not task.due(status, first.told):
        fault.broken("not complete", f"it ended with {status}: {first.told[-400:]}")
    afterwards(fault, task, task.lines())


# ---------------------------------------------------------------------------------------------------------------- disks


def slow(fault: Fault, task: Task) -> None:
    """One of its disks is slow as across a network, writes by parts, and may refuse some operations."""
    which = fault.draw.choice(list(task.disks))
    name, after = fault.draw.choice(ERRORS), fault.draw.randrange(12)
    count, milliseconds = fault.draw.choice([0, 1, 2, 1000]), fault.draw.choice([1, 5, 30])
    folder, file = task.disks[which], fault.folder / "told"
    fault.what = f"{task.name}: a slow disk of the {which}, {count} times {name} after {after} operations"
    if not library():
        fault.lacks = NO_COMPILER
        return
    first = task.start(
        LD_PRELOAD=library(), SLOW_DISK=str(folder), SLOW_MS=str(milliseconds), SLOW_AFTER=str(after),
        SLOW_COUNT=str(count), SLOW_ERRNO=str(getattr(errno, name)), SLOW_SHORT="1", SLOW_TOLD=str(file),
        SLOW_SEEN=str(fault.folder / "seen"),
    )  # fmt: skip
    status = first.end(TIMEOUT)
    # One that is only slow, and writes by parts, has hit where anything was written.
    fault.hit = file.exists() if count else (fault.folder / "seen").exists()
    told(fault, task, first, status)
    if not count and not task.due(status, first.told):
        fault.broken("not complete", f"a disk that is only slow ended it with {status}: {first.told[-300:]}")
    afterwards(fault, task, task.lines())


@contextlib.contextmanager
def bound(folder: Path) -> Iterator[bool]:
    """Have a folder be a mount of its own, with what it has; False where this user may mount none."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True, check=False)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def remount(folder: Path, options: str, seconds: float = 5) -> bool:
    """Remount a bound folder; where something is being written just now, a moment later."""
    deadline = time.monotonic() + seconds
    command = ["mount", "-o", f"remount,bind,{options}", str(folder)]
    while subprocess.run(command, capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            return False
    return True


def read_only(fault: Fault, task: Task) -> None:
    """Its cache, results, output or home is read-only, from the start or from its midst on."""
    which = fault.draw.choice([*task.disks, "home"])
    after = fault.draw.choice([0.0, fault.draw.random() * 0.5 * task.seconds])
    fault.what = f"{task.name}: a read-only {which}" + (f" after {after:.1f} s" if after else "")
    folder = task.disks.get(which, fault.folder / "no-home")
    with bound(folder) as mounted:
        if not mounted:
            fault.lacks = NO_MOUNTS
            return
        variables = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / ".cache")} if which == "home" else {}
        if after:
            first = task.start(**variables)
            wait_begun(first, task)
            time.sleep(after)
            fault.hit = remount(folder, "ro") and first.process.poll() is None
        else:
            fault.hit = remount(folder, "ro")
            first = task.start(**variables)
        status = first.end(TIMEOUT)
        told(fault, task, first, status)
        right = task.due(status, first.told)
        if which == "home" and not right:
            fault.broken("not complete", f"a home is not needed, and it ended with {status}: {first.told[-300:]}")
        if not right and status == 2 and str(folder) not in "".join(first.told.split("\n")):
            fault.broken("other", f"it does not name {folder}: {first.told[-300:]}")
        remount(folder, "rw")
        afterwards(fault, task, task.lines())


# --------------------------------------------------------------------------------------------------------------- others


def together(fault: Fault, task: Task) -> None:
    """Two or five of it at once on one cache, one results folder and one output, one of them maybe killed."""
    count = fault.draw.choice([2, 5])
    kill, delay = fault.draw.random() < 0.4, fault.draw.random() * 0.7 * task.seconds
    fault.what = f"{task.name}: {count} at once" + (f", one killed after {delay:.1f} s" if kill else "")
    running = [task.start() for _ in range(count)]
    if kill:
        time.sleep(delay)
        kill = running[0].strike(signal.SIGKILL)
    fault.hit = sum(it.process.poll() is None for it in running) > 1
    for number, command in enumerate(running):
        status = command.end(TIMEOUT * 2)
        if kill and number == 0:
            continue
        told(fault, task, command, status)
        if not task.due(status, command.told) and not _conflict(task, command):
            fault.broken("not complete", f"{number} of {count} ended with {status}: {command.told[-400:]}")
    afterwards(fault, task, task.lines())


def _conflict(task: Task, command: Command) -> bool:
    """Return whether a hub told one of two that the other was there just now, in words of ours."""
    return task.name == "publish" and "error: " in command.told


def damaged(fault: Fault, task: Task) -> None:
    """What an earlier one kept is cut off, has a bit flipped or is gone: made anew, or refused by its name."""
    stop = fault.draw.random() < 0.5
    first = task.start()
    if stop and wait_begun(first, task):
        time.sleep(fault.draw.random() * task.seconds)
        first.strike(signal.SIGKILL)
    first.end(TIMEOUT)
    before = task.lines()
    files = sorted(it for it in task.stored() if it.stat().st_size)
    if not files:
        fault.what = f"{task.name}: nothing is kept yet"
        afterwards(fault, task, before)
        return
    # As many of large ones as of small ones.
    path = fault.draw.choice(sorted({it.suffix for it in files}))
    path = fault.draw.choice([it for it in files if it.suffix == path])
    data = path.read_bytes()
    how = spoil(fault.draw, path)
    fault.hit = not path.is_file() or path.read_bytes() != data
    fault.what = f"{task.name}: {path.name} of what it keeps: {how}"
    second = task.start(again=True)
    status = second.end(TIMEOUT)
    told(fault, task, second, status)
    resumed = task.due(status, second.told)
    if not resumed and path.name not in second.told and path.parent.name not in second.told:
        fault.broken("other", f"it does not name {path.name}: {second.told[-300:]}")
    if resumed or path.suffix == ".jsonl":
        before.pop(path, None)
    if not resumed and task.name == "publish":
        # It publishes nothing that is not what was measured; the quantization that makes it anew is another command.
        if path.is_dir():
            path.rmdir()
        path.write_bytes(data)
    afterwards(fault, task, before if path.suffix != ".jsonl" else {}, resumed=resumed)


CONDITIONS: dict[str, tuple[Condition, tuple[str, ...]]] = {
    "too little memory": (memory, tasks.ALL),
    "the clock steps": (clock, tasks.ALL),
    "a slow, failing disk": (slow, tasks.ALL),
    "a read-only cache, results or home": (read_only, tasks.ALL),
    "two or five at once": (together, tasks.ALL),
    "what it keeps is damaged": (damaged, tasks.ALL),
    "hostile names": (hostile, tasks.ALL),
}


def under(name: str, condition: Condition, *, real: bool) -> Callable[[Fault], None]:
    def run(fault: Fault) -> None:
        with tasks.TASKS[name](fault, real) as task:
            try:
                condition(fault, task)
            finally:
                for command in task.started:
                    if command.process.poll() is None:
                        command.process.kill()

    return run


def _scenarios() -> list[Scenario]:
    made = []
    for what, (condition, names) in CONDITIONS.items():
        for name in names:
            # Of the real ones that wait for torch fewer.
            made.append(Scenario(f"{name}: {what}", under(name, condition, real=False), 4))
            model = f"{name} of a tiny model: {what}"
            weight = 3 if name == "publish" else 1
            made.append(Scenario(model, under(name, condition, real=True), weight, quick=False))
    for name in ("gate", "bisect"):
        made.append(
            Scenario(
                f"{name} of a tiny model: a package index that fails", under(name, server, real=True), 2, quick=False
            )
        )
    made.append(
        Scenario(
            "publish of a tiny model: a hub that dies, hangs, lies", under("publish", server, real=True), 8, quick=False
        )
    )
    return made


SCENARIOS = _scenarios()
