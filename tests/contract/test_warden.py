"""The warden: nothing that a command starts outlives it or its planner, however either ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.runtime.process import Process

PYTHON = [sys.executable, "-I", "-S", "-c"]
# Starts a daemon as daemons do (fork, new session, fork again), which survives polite signals, and goes on as told.
DAEMON = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for polite in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(polite, signal.SIG_IGN)
        with open(sys.argv[1] + "-", "w") as file:
            file.write(str(os.getpid()))
        os.rename(sys.argv[1] + "-", sys.argv[1])
        time.sleep(600)
    os._exit(0)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
exec(sys.argv[2])
"""
WAIT = "time.sleep(600)"


def until(condition: object, seconds: float = 20) -> bool:
    """Return whether ``condition()`` comes to hold in time."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def gone(pid: int) -> bool:
    """Return whether a process has ended, whether or not its parent has noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


class Starter:
    """Starts commands under a warden; they are ended with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Process] = []

    def __call__(self, *command: str, pass_fds: tuple[int, ...] = ()) -> Process:
        log = self.folder / "log"
        self.started.append(Process(list(command), environ=dict(os.environ), log=log, pass_fds=pass_fds))
        return self.started[-1]

    def daemon(self, then: str) -> tuple[Process, int]:
        """Start a command with a daemon, which goes on with the statement ``then``; return it and the daemon's id."""
        file = self.folder / "daemon"
        process = self(*PYTHON, DAEMON, str(file), then)
        assert until(file.exists)
        return process, int(file.read_text())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path)
    yield starter
    for process in starter.started:
        process.end()


# ------------------------------------------------------------------------------------------------------- what is ended


@pytest.mark.parametrize("gently", [False, True])
def test_a_daemon_ends_with_its_command(start: Starter, gently: bool) -> None:
    process, daemon = start.daemon(WAIT)
    assert not gone(daemon)
    process.end(gently)
    assert gone(daemon)
    assert gone(process.pid)


@pytest.mark.parametrize("then", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_daemon_ends_when_its_command_does(start: Starter, then: str) -> None:
    process, daemon = start.daemon(then)
    assert process.wait_exit() == (0 if "exit" in then else 137)
    assert gone(daemon)


_PLANNER = """
import os, sys, time
from pathlib import Path
from harness.runtime.process import Process
process = Process(sys.argv[2:], environ=dict(os.environ), log=Path(sys.argv[1]))
print(process.pid, flush=True)
time.sleep(600)
"""


def test_everything_ends_with_a_planner_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "daemon"
    # The command writes its own id too.
    then = f"open({str(tmp_path / 'command')!r}, 'w').write(str(os.getpid())); {WAIT}"
    command = [sys.executable, "-c", _PLANNER, str(tmp_path / "log"), *PYTHON, DAEMON, str(file), then]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as planner:
        assert planner.stdout is not None
        warden = int(planner.stdout.readline())
        assert until(lambda: (tmp_path / "command").exists() and (tmp_path / "command").read_text())
        pids = [warden, int((tmp_path / "command").read_text()), int(file.read_text())]
        assert not any(gone(pid) for pid in pids)
        os.kill(planner.pid, signal.SIGKILL)
    assert until(lambda: all(gone(pid) for pid in pids)), [pid for pid in pids if not gone(pid)]


def test_ending_twice_is_ending_once(start: Starter) -> None:
    process = start(*PYTHON, "import time; time.sleep(600)")
    assert process.exit_code() is None
    process.end()
    process.end(gently=True)
    assert process.exit_code() == 137


# ------------------------------------------------------------------------------------------------- what is passed on


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGUSR1)", 128 + signal.SIGUSR1),
    ],
)
def test_a_status_and_a_signal_are_passed_on(start: Starter, code: str, status: int) -> None:
    assert start(*PYTHON, f"import os, signal, sys; {code}").wait_exit() == status


def test_a_command_that_ends_at_once_keeps_its_status(start: Starter) -> None:
    """It was taken for one that the kernel killed where it had ended before the warden looked."""
    processes = [start("sh", "-c", "exit 255") for _ in range(8)]
    assert [process.wait_exit() for process in processes] == [255] * 8


def test_a_command_that_is_not_there_fails_and_is_named(start: Starter) -> None:
    process = start("/no/such/command")
    assert process.wait_exit() not in (0, None)
    assert "/no/such/command" in process.log_text()


# What it says first is whole once it can be read: a handler that prints in the midst of another print fails.
_POLITE = """
import os, signal, sys, time
def leave(*_):
    print("leaving", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, leave)
os.write(1, b"here\\n")
time.sleep(600)
"""


def test_a_gentle_end_lets_the_command_tidy_up(start: Starter) -> None:
    process = start(*PYTHON, _POLITE)
    assert until(lambda: "here" in process.log_text())
    process.end(gently=True)
    assert process.exit_code() == 5
    assert process.log_text() == "here\nleaving\n"


def test_an_interrupt_at_the_keyboard_is_the_planners_to_handle(start: Starter) -> None:
    process = start(*PYTHON, _POLITE)
    assert until(lambda: "here" in process.log_text())
    assert os.getpgid(process.pid) != os.getpgid(0)
    os.killpg(process.pid, signal.SIGINT)
    process.end(gently=True)
    assert process.exit_code() == 5


def test_descriptors_are_handed_on(start: Starter) -> None:
    read, write = os.pipe()
    process = start(*PYTHON, f"import os; os.write({write}, b'hello')", pass_fds=(write,))
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "hello"
    assert process.wait_exit() == 0


def test_a_process_shows_its_own_part_of_the_log_without_credentials(
    start: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    (tmp_path / "log").write_text("of an earlier process\n")
    process = start(*PYTHON, "import os; print('é' * 9000 + ' the end', 'secret-token')")
    process.wait_exit()
    assert process.log_text() == "é" * 9000 + " the end [token removed]\n"
    assert process.log_tail().endswith("é the end [token removed]\n")
    assert len(process.log_tail()) < 9000
    (tmp_path / "log").unlink()
    assert str(tmp_path / "log") in process.log_tail()
