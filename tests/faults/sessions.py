"""Faults of a session's processes, signals, clock, disks and memory, each followed by a ``--resume``."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from harness.contract import warden
from harness.records import columns
from harness.records.run import Run, read
from harness.records.schema import Measurement
from tests.faults import worker_python
from tests.faults.campaign import Fault, Scenario

REPOSITORY = Path(__file__).resolve().parents[2]
MARK = "HARNESS_FAULT_MARK"
TRACEBACK = "Traceback (most recent call last)"
UNITS = 6


NO_MOUNTS = "this user may mount nothing here"
# The status of a process that did not end by itself.
STUCK = -1000


def ended(process: subprocess.Popen[bytes], timeout: float) -> int:
    """Return the status of a process, which is killed where it does not end in time.

    Time in which it, or what it started, wanted a processor that others had is not counted.
    """
    begun = time.monotonic()
    while (left := begun + timeout + starved(process.pid, *warden.descendants(process.pid)) - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(left)
    process.kill()
    process.wait()
    return STUCK


def starved(*processes: int) -> float:
    """Return for how many seconds in all the one that waited longest was ready to run and had no processor."""
    waited = [0.0]
    for pid in processes:
        with contextlib.suppress(OSError, ValueError, IndexError):
            waited.append(int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9)
    return max(waited)


def marked(mark: str, but: int) -> Iterator[tuple[int, str]]:
    """Yield the ids and command lines of all processes but one that have a mark in their environments."""
    for process in psutil.process_iter(["pid"]):
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != but and process.status() != psutil.STATUS_ZOMBIE:
                environ = Path(f"/proc/{process.pid}/environ").read_bytes()
                if f"HARNESS_FAULT={mark}".encode() in environ:
                    yield process.pid, " ".join(process.cmdline())


class Session:
    """One process of a small session, and all that it started, by a mark in their environments."""

    def __init__(self, folder: Path, *words: str, at: Path | None = None, **variables: str) -> None:
        self.mark = uuid.uuid4().hex
        self.output = folder / f"output-{self.mark}"
        (folder / "tmp").mkdir(exist_ok=True)
        environ = {name: it for name, it in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
        environ |= {MARK: self.mark, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder / "tmp")}
        # Handed on to workers by its name.
        environ |= {"HARNESS_FAULT": self.mark, **variables}
        command = [sys.executable, "-m", "tests.faults.small_session", str(at or folder), "--units", str(UNITS), *words]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(command, env=environ, stdout=output, stderr=output, cwd=REPOSITORY)

    @property
    def told(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    @property
    def kept(self) -> set[int]:
        return {int(it) for it in re.findall(r"^kept (\d+)$", self.told, re.MULTILINE)}

    def wait_kept(self, units: int, timeout: float = 60) -> bool:
        """Wait until so many records are kept; False if it ended before."""
        deadline = time.monotonic() + timeout
        while len(self.kept) < units:
            if self.process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.003)
        return True

    def wait_started(self, timeout: float = 60) -> bool:
        deadline = time.monotonic() + timeout
        while "started" not in self.told and time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.003)
        return "started" in self.told

    def end(self, timeout: float = 90) -> int:
        return ended(self.process, timeout)

    def children(self) -> Iterator[tuple[int, str]]:
        """Yield the ids and command lines of all that the session started and that still runs, wherever it hangs."""
        yield from marked(self.mark, self.process.pid)

    def victim(self, name: str) -> int:
        """Return the process id of one part of the session, or 0 where it is not there."""
        if name == "planner":
            return self.process.pid
        below = warden.descendants(self.process.pid)
        words = {pid: _words(pid) for pid in below}
        parents = {pid: _parent(pid) for pid in below}
        forks = [pid for pid in below if "forkserver" in words[pid] and "warden.py" not in words[pid]]
        servers = [pid for pid in forks if parents[pid] not in forks]
        wardens = [pid for pid in below if "warden.py" in words[pid]]
        watchers = [pid for pid in forks if parents[pid] in servers]
        workers = [pid for pid in forks if parents[pid] in watchers]
        found = {"fork server": servers, "warden": wardens, "watcher": watchers, "worker": workers}[name]
        return found[0] if found else 0


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def check(fault: Fault, session: Session, status: int, *, at: Path | None = None, ends: tuple[int, ...] = ()) -> None:
    """Hold what a session left against the promises, then go on with it and hold that against them."""
    folder = at or fault.folder
    told = session.told
    if TRACEBACK in told:
        fault.broken("traceback", told[told.index(TRACEBACK) :][-400:])
    if "SILENT" in told or (status == 0 and "complete" not in told):
        fault.broken("silent pass", told[-300:])
    if ends and status not in ends:
        fault.broken("other", f"it ended with {status}, not with {ends}: {told[-300:]}")
    if status == STUCK:
        fault.broken("other", f"it did not end by itself: {told[-300:]}")
    orphans(fault, session)
    held = kept(folder)
    if lost := session.kept - held.keys():
        fault.broken("record lost", f"units {sorted(lost)} were said to be kept")
    values(fault, held)
    again = Session(fault.folder, "--resume", at=folder)
    status = again.end()
    if status != 0 or kept(folder).keys() != set(range(UNITS)):
        fault.broken("not complete", f"--resume ended with {status}, {sorted(kept(folder))}: {again.told[-300:]}")
    if TRACEBACK in again.told:
        fault.broken("traceback", again.told[-400:])
    if repeated := [unit for unit in again.kept if unit in held]:
        fault.broken("other", f"units {repeated} stood, and were measured again")
    values(fault, kept(folder))
    orphans(fault, again)


def orphans(fault: Fault, session: Session) -> None:
    none_left(fault, lambda: list(session.children()))


def none_left(fault: Fault, children: Callable[[], Sequence[tuple[int, str]]]) -> None:
    """Give processes, by their ids and command lines, five seconds to end; what is left then is told and killed."""
    deadline, before = time.monotonic() + 5, starved(*(pid for pid, _ in children()))
    while left := children():
        if time.monotonic() > deadline + starved(*(pid for pid, _ in left)) - before:
            fault.broken("orphan", f"{left}")
            for pid, _ in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.05)


def kept(folder: Path) -> dict[int, float]:
    """Return what the records of all runs in a folder hold."""
    found = {}
    for path in (folder / "results" / "runs").glob("*/records.jsonl"):
        for line in read(path)[0]:
            if isinstance(line, Measurement) and "unit" in line.parameters:
                found[int(line.parameters["unit"])] = line.value
    return found


def values(fault: Fault, held: dict[int, float]) -> None:
    if wrong := {unit: it for unit, it in held.items() if it != worker_python.value(unit)}:
        fault.broken("silent pass", f"wrong values were recorded: {wrong}")


# ------------------------------------------------------------------------------------------------------------ kills


def killed(fault: Fault) -> None:
    """kill -9 of one process, at a random time of a session."""
    victim = fault.draw.choice(["planner", "worker", "warden", "watcher", "fork server"])
    after, delay = fault.draw.randrange(UNITS), fault.draw.random() * 0.06
    fault.what = f"kill -9 of the {victim}, {delay * 1000:.0f} ms after {after} records"
    session = Session(fault.folder, "--seconds", "0.15")
    if session.wait_kept(after):
        # Before the first record it may not be there yet.
        while not session.victim(victim) and session.process.poll() is None:
            time.sleep(0.002)
        time.sleep(delay)
        if (pid := session.victim(victim)) and session.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                fault.hit = True
    check(fault, session, session.end())


def stopped(fault: Fault) -> None:
    """SIGSTOP of a worker, then of the planner an end."""
    fault.what = "SIGSTOP of the worker, SIGTERM of the planner"
    session = Session(fault.folder, "--seconds", "0.3")
    if session.wait_kept(fault.draw.randrange(1, UNITS)) and (pid := session.victim("worker")):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            session.process.send_signal(signal.SIGTERM)
            fault.hit = session.process.poll() is None
    check(fault, session, session.end())


def signalled(fault: Fault) -> None:
    """Ctrl-C, SIGTERM, SIGHUP, once or twice."""
    number = fault.draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    second = fault.draw.choice([None, 0.0, 0.3, 1.2])
    after, delay = fault.draw.randrange(UNITS), fault.draw.random() * 0.05
    fault.what = f"{number.name} after {after} records" + ("" if second is None else f", again after {second} s")
    session = Session(fault.folder, "--seconds", "0.05")
    # Before that there is nothing that could be lost, and Python itself ends.
    if session.wait_started() and session.wait_kept(after):
        time.sleep(delay)
        fault.hit = session.process.poll() is None
        session.process.send_signal(number)
        if second is not None:
            time.sleep(second)
            session.process.send_signal(number)
    status = session.end()
    if fault.hit and status not in (0, 128 + number):
        fault.broken("other", f"{number.name} ended it with {status}: {session.told[-200:]}")
    if fault.hit and status == 128 + number and "--resume" not in session.told:
        fault.broken("other", f"it does not say how to go on: {session.told[-200:]}")
    check(fault, session, status)


# ---------------------------------------------------------------------------------------------------- clock and others


def clock(fault: Fault) -> None:
    """The wall clock steps in the middle of a session, by seconds to years, either way."""
    step = fault.draw.choice([-1, 1]) * 10 ** fault.draw.uniform(0, 8)
    fault.what = f"the clock steps by {step:+.0f} s"
    session = Session(fault.folder, f"--clock={step}")
    status = session.end()
    fault.hit = len(session.kept) == UNITS
    check(fault, session, status, ends=(0,))
    runs = [Run(path.parent) for path in (fault.folder / "results" / "runs").glob("*/records.jsonl")]
    standing = columns.load(runs, cache=fault.folder / "columns").standing()
    if len(standing) != UNITS:
        fault.broken("record lost", f"{len(standing)} of {UNITS} figures stand in the tables")


def together(fault: Fault) -> None:
    """Several sessions at once on one cache and one results folder, one of them maybe killed."""
    count, kill = fault.draw.choice([2, 2, 3, 5]), fault.draw.random() < 0.5
    fault.what = f"{count} sessions at once" + (", one killed" if kill else "")
    sessions = [Session(fault.folder) for _ in range(count)]
    fault.hit = sum(it.process.poll() is None for it in sessions) > 1
    if kill and sessions[0].wait_kept(fault.draw.randrange(UNITS)):
        sessions[0].process.kill()
    for index, session in enumerate(sessions):
        status = session.end(180)
        if status != 0 and not (kill and index == 0):
            fault.broken("not complete", f"session {index} of {count} ended with {status}: {session.told[-300:]}")
        if TRACEBACK in session.told:
            fault.broken("traceback", session.told[-400:])
        if lost := session.kept - kept(fault.folder).keys():
            fault.broken("record lost", f"units {sorted(lost)} of session {index}")
        orphans(fault, session)
    values(fault, kept(fault.folder))


# ---------------------------------------------------------------------------------------------------------------- disks


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """Have a folder be a disk of that size; False where this user may mount none."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], capture_output=True, check=True)


def _fill(path: Path) -> None:
    """Take all that there is left on a disk."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def full(fault: Fault) -> None:
    """The disk of the cache or of the results is full, or read-only, from the start or in the middle."""
    which, how = fault.draw.choice(["cache", "results"]), fault.draw.choice(["full", "read-only"])
    # Records are few and their file stays open: the disk of the results is so from the start; tests.faults.disks has
    # one that refuses in the midst.
    after = fault.draw.randrange(3) if which == "cache" else 0
    size = fault.draw.choice([8, 20, 32, 44, 56, 68]) if which == "cache" else 64
    fault.what = f"the disk of the {which} is {how}" + (
        f" after {after} records" if how == "read-only" else f", {size} kB" if which == "cache" else " from the start"
    )
    folder = fault.folder / which
    with small_disk(folder, size if how == "full" else 4096) as mounted:
        if not mounted:
            fault.lacks = NO_MOUNTS
            return
        filler = folder / "filler"
        if which == "results":
            if how == "read-only":
                remount(folder, "ro")
            else:
                _fill(filler)
        session = Session(fault.folder, "--seconds", "0.05")
        if how == "read-only" and which == "cache" and session.wait_kept(after):
            # Busy where something is being written just now.
            while session.process.poll() is None:
                with contextlib.suppress(subprocess.CalledProcessError):
                    remount(folder, "ro")
                    break
        status = session.end()
        told = session.told
        fault.hit = status not in (0, STUCK)
        if fault.hit and which == "cache" and "--cache" not in told:
            fault.broken("other", f"it does not name --cache: {told[-300:]}")
        if fault.hit and str(folder) not in told and "failed" not in told:
            fault.broken("other", f"it does not name the disk: {told[-300:]}")
        remount(folder, "rw,size=8m")
        filler.unlink(missing_ok=True)
        check(fault, session, status)


NO_MEMORY = ("MemoryError", "failed to map segment", os.strerror(errno.ENOMEM))


def memory(fault: Fault) -> None:
    """Too little memory for the planner or a worker: it may fail, and must not pass by."""
    victim = fault.draw.choice(["planner", "worker"])
    limit = fault.draw.randrange(1, 20)
    # Later the planner asks for none, and a worker is there once a record is.
    after = fault.draw.randrange(2) if victim == "planner" else fault.draw.randrange(1, UNITS - 1)
    fault.what = f"{limit} MB of address space for the {victim} after {after} records"
    session = Session(fault.folder, "--seconds", "0.15")
    if session.wait_kept(after) and (pid := session.victim(victim)):
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_AS, (limit << 20, limit << 20))
    status = session.end()
    fault.hit = status not in (0, STUCK)
    if fault.hit and any(words in session.told for words in NO_MEMORY):
        # Python's own last words, where there is no memory for any of ours.
        session.output.write_text(session.told.replace(TRACEBACK, "out of memory"), encoding="utf-8")
    check(fault, session, status)


assert warden.GRACE > 5, "an orphan is looked for after five seconds"

SCENARIOS = [
    Scenario("session: kill -9 of one process", killed, 12),
    Scenario("session: a stopped worker", stopped, 1),
    Scenario("session: signals", signalled, 6),
    Scenario("session: the clock steps", clock, 2),
    Scenario("session: several at once", together, 2),
    Scenario("session: a full or read-only disk", full, 4),
    Scenario("session: too little memory", memory, 3),
]
