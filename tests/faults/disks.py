"""Disks across a network, which are slow, write by parts and fail for a while; a run of 100 MB gone on with."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from harness.records import columns
from harness.records.run import Run
from harness.records.schema import Header
from tests.faults.campaign import Fault, Scenario
from tests.faults.commands import Command
from tests.faults.commands import told as command_told
from tests.faults.engines import KEPT
from tests.faults.sessions import NO_MEMORY, STUCK, TRACEBACK, UNITS, Session, check, orphans
from tests.faults.small_session import DEVICE, measurement
from tests.faults.worker_python import value

SOURCE = Path(__file__).with_name("slow_disk.c")
NO_COMPILER = "nothing here compiles C"
ERRORS = ("EIO", "ESTALE", "ETIMEDOUT", "EDQUOT", "ENOSPC", "EROFS", "EACCES")


@functools.cache
def library(source: Path = SOURCE) -> str:
    """Return the library that stands in for such a disk, or a clock, or an empty text where nothing compiles it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return ""
    folder = tempfile.mkdtemp(prefix="preloaded-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = Path(folder) / f"{source.stem}.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(made), str(source), "-ldl"]
    return "" if subprocess.run(command, capture_output=True, check=False).returncode else str(made)


def network(fault: Fault) -> None:
    """The disk of the results or of the cache is slow, writes by parts, and refuses some operations in the middle."""
    which = fault.draw.choice(["results", "results", "cache"])
    name = fault.draw.choice(ERRORS)
    after, count = fault.draw.randrange(45), fault.draw.choice([1, 1, 2, 5, 1000])
    milliseconds = fault.draw.choice([0, 5, 30])
    fault.what = f"the disk of the {which}: {count} times {name} after {after} operations of {milliseconds} ms"
    if not library():
        fault.lacks = NO_COMPILER
        return
    folder, told = fault.folder / which, fault.folder / "told"
    session = Session(
        fault.folder,
        "--seconds",
        "0.02",
        LD_PRELOAD=library(),
        SLOW_DISK=str(folder),
        SLOW_MS=str(milliseconds),
        SLOW_AFTER=str(after),
        SLOW_COUNT=str(count),
        SLOW_ERRNO=str(getattr(errno, name)),
        SLOW_SHORT=str(fault.draw.randrange(2)),
        SLOW_TOLD=str(told),
    )
    status = session.end(180)
    fault.hit = told.exists()
    words = session.told
    if status == 2 and str(fault.folder) not in words:
        fault.broken("other", f"it does not name the disk: {words[-300:]}")
    check(fault, session, status, ends=(0, 1, 2))


# Of a session that has nothing else to hold; Python with its packages takes some 80 MB of it.
MOST_MEGABYTES = 250


@functools.cache
def _lines() -> list[bytes]:
    """Return lines of which a large run is made: those of a small one, with what real ones have beside."""
    packages = {f"package-{number}": f"1.{number}.0" for number in range(60)}
    state = {f"state_{number}": number * 1.5 for number in range(20)}
    found = []
    for cell in range(40):
        more = {"packages": packages, "state_before": state, "state_after": state, "samples": [1.0 + cell] * 20}
        line = measurement(cell, 1.0 + cell).model_copy(update={**more, "parameters": {"batch_size": cell}})
        found.append(line.model_dump_json().encode() + b"\n")
    return found


SIZE = 100_000_000


def _large(path: Path) -> None:
    """Copy a run of 100 MB, which is made once, behind what a run has."""
    kept = KEPT / "large.jsonl"
    if not kept.exists():
        lines = b"".join(_lines())
        made = kept.with_suffix(f".{os.getpid()}")
        made.parent.mkdir(parents=True, exist_ok=True)
        with made.open("wb") as file:
            for _ in range(-(-SIZE // len(lines))):
                file.write(lines)
        made.rename(kept)
    with path.open("ab") as file, kept.open("rb") as source:
        shutil.copyfileobj(source, file, 1 << 24)


def large(fault: Fault) -> None:
    """A run of 100 MB with a line cut off in its midst is gone on with: killed, short of memory, on a full disk."""
    how = fault.draw.choice(["killed", "killed", "memory", "full disk", "full disk", "a table, killed"])
    delay, more = fault.draw.uniform(0.4, 4), fault.draw.choice([0, 1 << 20, 8 << 20])
    fault.what = f"100 MB, {how} after {delay:.1f} s"
    run = Run(fault.folder / "results" / "runs" / "20260101-000000")
    run.append(Header(run=run.name, command=["small"], packages={}, device=DEVICE))
    for unit in range(2):
        run.append(measurement(unit, value(unit)))
    own = run.path.stat().st_size
    _large(run.path)
    size = run.path.stat().st_size
    with run.path.open("r+b") as file:
        # A line that a kill cut off, and another that the next session wrote behind it.
        file.seek(fault.draw.randrange(own, size - 100))
        file.write(b"\n")
    if how == "a table, killed":
        _table_of(fault, run, delay)
        units = 2
    else:
        _resumed(fault, run, how, delay, more)
        units = UNITS
    found = columns.load([run], cache=fault.folder / "columns")
    if len(found.standing()) != len(_lines()) + units:
        fault.broken("record lost", f"{len(found.standing())} of {len(_lines()) + units} figures stand in the tables")
    if not found.problems:
        fault.broken("silent pass", "a line that is cut off is not told of")


def _resumed(fault: Fault, run: Run, how: str, delay: float, more: int) -> None:
    size = run.path.stat().st_size
    session = Session(fault.folder, "--resume")
    if how == "full disk":
        # After a record or two, of which one is half on the disk.
        most = size + fault.draw.randrange(3000)
        resource.prlimit(session.process.pid, resource.RLIMIT_FSIZE, (most, most))
    else:
        session.wait_started()
        time.sleep(delay)
        fault.hit = session.process.poll() is None
        if how == "memory" and fault.hit:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                most = psutil.Process(session.process.pid).memory_info().vms + more
                resource.prlimit(session.process.pid, resource.RLIMIT_AS, (most, most))
        elif how == "killed":
            session.process.kill()
    status = session.end(300)
    if how != "killed":
        fault.hit = status not in (0, STUCK)
        if status == 2 and how == "full disk" and str(fault.folder) not in session.told:
            fault.broken("other", f"it does not name the disk: {session.told[-300:]}")
    words = session.told
    if TRACEBACK in words and not any(it in words for it in NO_MEMORY):
        fault.broken("traceback", words[-400:])
    orphans(fault, session)
    again = Session(fault.folder, "--resume")
    status = again.end(300)
    orphans(fault, again)
    if status != 0 or TRACEBACK in again.told:
        fault.broken("not complete", f"--resume ended with {status}: {again.told[-300:]}")
    peak = re.search(r"^peak (\d+) MB", again.told, re.MULTILINE)
    if not peak or int(peak[1]) > MOST_MEGABYTES:
        fault.broken("other", f"it took {peak and peak[0]}, where {MOST_MEGABYTES} MB are enough")


def _table_of(fault: Fault, run: Run, delay: float) -> None:
    words = ("-m", "harness", "table", str(run.folder), "--layout", "all", "-o", str(fault.folder / "out"))
    first = Command(fault.folder, *words)
    time.sleep(delay)
    fault.hit = first.strike(signal.SIGKILL)
    first.end()
    again = Command(fault.folder, *words)
    status = again.end(300)
    command_told(fault, again, status)
    if status != 0 or "left out" not in again.told:
        fault.broken("not complete", f"it ended with {status}: {again.told[-300:]}")
    if left := [it for it in (fault.folder / "xdg").rglob("*.tmp") if not it.name.split(".")[-2].isdigit()]:
        fault.broken("other", f"{left}")


SCENARIOS = [
    Scenario("session: a slow, failing disk, as across a network", network, 6),
    Scenario("resume of 100 MB, a line of it broken: killed, short of memory, a full disk", large, 1, quick=False),
]
