"""Commands that are run to their end: what they say, and that nothing they start outlives the call or its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.contract import guarded

# Hands its work to a process that holds its output and says which it is, as pip does for another interpreter.
HANDS_ON = (
    "import subprocess, sys; "
    "sys.exit(subprocess.call([sys.executable, '-c', "
    "'import os, sys, time; open(sys.argv[1], \"w\").write(str(os.getpid())); time.sleep(600)', sys.argv[1]]))"
)


def pid_in(file: Path, seconds: float = 20) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if file.exists() and (text := file.read_text()):
            return int(text)
        time.sleep(0.02)
    raise AssertionError(f"{file} was not written")


def ended(pid: int, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not psutil.pid_exists(pid)


def test_it_says_what_the_command_printed_and_how_it_ended() -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    done = guarded.run([sys.executable, "-c", code])
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    killed = guarded.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert killed.returncode == 128 + signal.SIGKILL


def test_it_has_the_variables_that_it_is_given_and_reads_nothing() -> None:
    code = "import os, sys; print(os.environ.get('NAMED'), repr(sys.stdin.read()))"
    assert guarded.run([sys.executable, "-c", code], env={"NAMED": "yes"}).stdout == "yes ''\n"


def test_a_command_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-command"):
        guarded.run([str(tmp_path / "no-such-command")])


def test_what_a_command_handed_its_work_to_ends_with_the_time_that_is_left(tmp_path: Path) -> None:
    """``subprocess.run`` would kill the first process and wait for the second, ten minutes here."""
    told = tmp_path / "pid"
    # A machine that is busy may need longer until there is a process that the work was handed to.
    for seconds in (0.5, 5, 50):
        started = time.monotonic()
        with pytest.raises(subprocess.TimeoutExpired):
            guarded.run([sys.executable, "-c", HANDS_ON, str(told)], timeout=seconds)
        assert time.monotonic() - started < seconds + 55
        if told.exists() and told.read_text():
            break
    assert ended(pid_in(told, seconds=0.1))


def test_what_a_command_handed_its_work_to_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    code = f"from harness.contract import guarded; guarded.run([{sys.executable!r}, '-c', {HANDS_ON!r}, {str(told)!r}])"
    planner = subprocess.Popen([sys.executable, "-c", code])
    pid = pid_in(told)
    os.kill(planner.pid, signal.SIGKILL)
    planner.wait()
    assert ended(pid)
