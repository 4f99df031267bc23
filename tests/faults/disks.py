"""Disks across a network, which are slow, write by parts and fail for a while; a run of 100 MB gone on with."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from harness.records import columns
from harness.records.run import Run
from harness.records.schema import Header
from tests.faults.campaign import Fault, Scenario
from tests.faults.commands import Command
from tests.faults.commands import told as command_told
from tests.faults.sessions import TRACEBACK, UNITS, Session, check, orphans
from tests.faults.small_session import DEVICE, measurement
from tests.faults.worker_python import value

SOURCE = Path(__file__).with_name("slow_disk.c")
ERRORS = ("EIO", "ESTALE", "ETIMEDOUT", "EDQUOT", "ENOSPC", "EROFS", "EACCES")


@functools.cache
def library(source: Path = SOURCE) -> str:
    """Return the library that stands in for such a disk, or a clock, or an empty text where nothing compiles it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return ""
    made = Path(tempfile.mkdtemp(prefix="preloaded-")) / f"{source.stem}.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(made), str(source), "-ldl"]
    return "" if subprocess.run(command, capture_output=True, check=False).returncode else str(made)


def network(fault: Fault) -> None:
    """The disk of the results or of the cache is slow, writes by parts, and refuses some operations in the middle."""
    which = fault.draw.choice(["results", "results", "cache"])
    name = fault.draw.choice(ERRORS)
    after, count = fault.draw.randrange(60), fault.draw.choice([1, 1, 2, 5, 1000])
    milliseconds = fault.draw.choice([0, 5, 30])
    fault.what = f"the disk of the {which}: {count} times {name} after {after} operations of {milliseconds} ms"
    if not library():
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


def large(fault: Fault) -> None:
    """A run of 100 MB, broken in the middle, is gone on with, or made a table of, and killed meanwhile."""
    which = fault.draw.choice(["resume", "resume", "table"])
    megabytes = fault.draw.choice([40, 100, 100])
    delay = fault.draw.uniform(0.4, 5)
    fault.what = f"{which} of {megabytes} MB, killed after {delay:.1f} s"
    run = Run(fault.folder / "results" / "runs" / "20260101-000000")
    run.append(Header(run=run.name, command=["small"], packages={}, device=DEVICE))
    for unit in range(2):
        run.append(measurement(unit, value(unit)))
    lines, size = _lines(), run.path.stat().st_size
    broken = fault.draw.randrange(megabytes * 1_000_000)
    with run.path.open("ab") as file:
        index = 0
        while size < megabytes * 1_000_000:
            line = lines[index % len(lines)]
            if size <= broken < size + len(line):
                # A line that a kill cut off, and another that the next session wrote behind it.
                line = line[: max(1, broken - size)] + b"\n" + line
            size += file.write(line)
            index += 1
    if which == "resume":
        session = Session(fault.folder, "--resume")
        time.sleep(delay)
        fault.hit = session.process.poll() is None
        session.process.kill()
        session.end()
        orphans(fault, session)
        again = Session(fault.folder, "--resume")
        status = again.end(300)
        orphans(fault, again)
        if status != 0 or TRACEBACK in session.told + again.told:
            fault.broken("not complete", f"--resume ended with {status}: {again.told[-300:]}")
        peak = re.search(r"^peak (\d+) MB", again.told, re.MULTILINE)
        if not peak or int(peak[1]) > MOST_MEGABYTES:
            fault.broken("other", f"it took {peak and peak[0]}, where {MOST_MEGABYTES} MB are enough")
        units = UNITS
    else:
        words = ("-m", "harness", "table", str(run.folder), "--layout", "all", "-o", str(fault.folder / "out"))
        first = Command(fault.folder, *words)
        time.sleep(delay)
        fault.hit = first.strike(signal.SIGKILL)
        first.end()
        again = Command(fault.folder, *words)
        status = again.end(180)
        command_told(fault, again, status)
        if status != 0 or "left out" not in again.told:
            fault.broken("not complete", f"it ended with {status}: {again.told[-300:]}")
        if left := [it for it in (fault.folder / "xdg").rglob("*.tmp") if not it.name.split(".")[-2].isdigit()]:
            fault.broken("other", f"{left}")
        units = 2
    standing = columns.load([run], cache=fault.folder / "columns").standing()
    if len(standing) != len(lines) + units:
        fault.broken("record lost", f"{len(standing)} of {len(lines) + units} figures stand in the tables")
    with contextlib.suppress(OSError):
        os.unlink(run.path)


SCENARIOS = [
    Scenario("session: a slow, failing disk, as across a network", network, 6, quick=False),
    Scenario("resume of 100 MB, table of it: killed, a broken line", large, 1, quick=False),
]
