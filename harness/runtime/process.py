"""Commands under a warden, executed or forked from a process that has already imported what they need."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from harness.base.reading import json_value
from harness.base.secrets import without_secrets
from harness.base.text import redact
from harness.contract import warden
from harness.contract.protocol import FORKS_FD

_WARDEN = Path(warden.__file__)
_VMSTAT = Path("/proc/vmstat")
_TAIL_BYTES = 6000
# Some seconds of looking.
_LARGEST_LOG = 4_000_000


class Process:
    """A command under a warden: it and all its descendants end with the planner, and its output goes to a log."""

    def __init__(
        self, command: list[str], *, environ: dict[str, str], log: Path, pass_fds: tuple[int, ...] = ()
    ) -> None:
        control_read = self._begin(log)
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_WARDEN), str(control_read), ",".join(map(str, pass_fds)), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environ,
                pass_fds=(control_read, *pass_fds),
                start_new_session=True,
            )
        os.close(control_read)

    def _begin(self, log: Path) -> int:
        """Note where the log and the time begin; return the warden's end of a new control pipe."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.started = time.monotonic()
        self._oom_kills = _oom_kills()
        self._log_start = log.stat().st_size if log.exists() else 0
        control_read, self._control = os.pipe()
        self._asked = False
        return control_read

    @property
    def pid(self) -> int:
        """The warden's process id; the command is its child."""
        return self._popen.pid

    def age(self, at: float) -> float:
        """Return the seconds from the start until ``at`` (CLOCK_MONOTONIC), the imports of the process included."""
        return at - self.started

    def exit_code(self) -> int | None:
        """Return the command's exit status (128 + signal if a signal ended it), or None while it runs."""
        return self._popen.poll()

    def wait_exit(self) -> int | None:
        """Return the exit status of a command whose pipes or connections have broken, which it outlives a little."""
        return self.wait(5)

    def wait(self, timeout: float) -> int | None:
        """Return the exit status, or None if the command still runs after ``timeout`` seconds."""
        self._wait(timeout)
        return self.exit_code()

    def _wait(self, timeout: float | None) -> bool:
        """Return whether the command ended within ``timeout`` seconds (None: however long it takes)."""
        try:
            self._popen.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def ending(self) -> tuple[str, str]:
        """Return the kind of failure and words for how a command ended whose pipes or connections have broken."""
        code, kills = self.wait_exit(), _oom_kills()
        known = self._oom_kills is not None and kills is not None
        return describe_exit(code, kills != self._oom_kills if known else None)

    def ask_to_end(self) -> None:
        """Send the command SIGTERM, once, and do not wait."""
        if self._control >= 0 and not self._asked and self.exit_code() is None:
            with contextlib.suppress(OSError):
                os.write(self._control, b"T")
                self._asked = True

    def end(self, gently: bool = False) -> None:
        """End the command and everything it started; ``gently`` lets it handle SIGTERM first."""
        if self._control >= 0:
            if gently:
                self.ask_to_end()
            if self._asked:
                self._wait(15)
            os.close(self._control)
            self._control = -1
            self._wait(None)
            self._clean_log()
        self._wait(None)

    def _clean_log(self) -> None:
        """Take credentials out of what was written to the log, which people hand on as it is."""
        with contextlib.suppress(OSError), self.log.open("r+b") as file:
            # Python takes as much memory as it is asked to read, whatever there is.
            there = os.fstat(file.fileno()).st_size - self._log_start
            file.seek(self._log_start)
            text = file.read(max(0, min(there, _LARGEST_LOG))).decode(errors="surrogateescape")
            if (kept := without_secrets(text)) != text:
                rest = file.read()
                file.seek(self._log_start)
                file.write(kept.encode(errors="surrogateescape") + rest)
                file.truncate()

    def kill(self) -> None:
        """End the command and everything it started at once, from whichever thread; who waits for it sees it end."""
        with contextlib.suppress(psutil.Error):
            if self.exit_code() is None and self.pid:
                warden = psutil.Process(self.pid)
                for process in [*warden.children(recursive=True), warden]:
                    process.kill()

    def log_text(self) -> str:
        """Return what this process wrote to its log, without credentials."""
        try:
            with self.log.open("rb") as file:
                file.seek(self._log_start)
                return redact(file.read().decode(errors="replace"))
        except OSError as error:
            return f"(the log {self.log} cannot be read: {error})"

    def log_tail(self) -> str:
        """Return the end of what this process wrote to its log, without credentials."""
        return self.log_text()[-_TAIL_BYTES:]


class ForkServer:
    """A process that imports what one family of workers needs, once, and forks a fresh worker for every job.

    Starting a worker so takes milliseconds instead of the seconds that its imports take. All of its workers share
    its interpreter and, but for those of one's own, its environment variables. ``start`` does not wait for the imports.
    """

    def __init__(self, family: str, *, python: str, environ: dict[str, str], log: Path) -> None:
        # A datagram is one job and the file descriptors that go with it; end of file ends the server.
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = Process(
                [python, "-m", "harness.worker.forkserver", family],
                environ=environ | {FORKS_FD: str(theirs.fileno())},
                log=log,
                pass_fds=(theirs.fileno(),),
            )

    @property
    def alive(self) -> bool:
        return self._socket.fileno() >= 0 and self.process.exit_code() is None

    def start(
        self,
        module: str,
        arguments: list[str],
        *,
        log: Path,
        fds: dict[str, int] | None = None,
        environ: dict[str, str] | None = None,
    ) -> Forked:
        """Run ``python -m module arguments...`` in a forked process; each of ``fds`` is passed under its name.

        ``environ`` are variables of that process alone.
        """
        return Forked(self, module, arguments, log=log, fds=fds or {}, environ=environ or {})

    def send(self, job: dict[str, Any], fds: list[int]) -> None:
        """Send one job; a server that has died says so through the job's own descriptors, which close."""
        with contextlib.suppress(OSError):
            socket.send_fds(self._socket, [json.dumps(job).encode()], fds)

    def close(self) -> None:
        """End the server and every worker that it has forked."""
        self._socket.close()
        self.process.end()


class Forked(Process):
    """A command that a fork server runs: the same promises as of a :class:`Process`, without the imports' time."""

    def __init__(
        self,
        server: ForkServer,
        module: str,
        arguments: list[str],
        *,
        log: Path,
        fds: dict[str, int],
        environ: dict[str, str],
    ) -> None:
        control_read = self._begin(log)
        self._server = server
        self._birth: dict[str, float] = {}
        self._code: int | None = None
        self._buffer = b""
        # A server's health is asked for by a thread of its own.
        self._reading = threading.Lock()
        self._status, status_write = os.pipe()
        os.set_blocking(self._status, False)
        with log.open("ab") as output:
            server.send(
                {"module": module, "arguments": arguments, "names": list(fds), "environ": environ},
                [control_read, status_write, output.fileno(), *fds.values()],
            )
        os.close(control_read)
        os.close(status_write)

    @property
    def pid(self) -> int:
        """The id of the process that watches over the command, which is its child; 0 until it is born."""
        self._read(0)
        return int(self._birth.get("pid", 0))

    def age(self, at: float) -> float:
        """Return the seconds from the fork until ``at`` and those that the fork server's imports took, together."""
        self._read(0)
        if not self._birth:
            return at - self.started
        return self._birth["import_seconds"] + at - self._birth["forked_at"]

    def exit_code(self) -> int | None:
        self._read(0)
        return self._code

    def _wait(self, timeout: float | None) -> bool:
        if timeout is None and not self._birth:
            # Its control pipe is closed: it ends when it is born.
            timeout = 0.1
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._status >= 0 and (deadline is None or time.monotonic() < deadline):
            self._read(0.5 if deadline is None else max(0.0, min(0.5, deadline - time.monotonic())))
        return self._status < 0

    def log_text(self) -> str:
        """Return what this process wrote to its log and, if it was never born, what the fork server wrote."""
        own = super().log_text()
        return own if self._birth else self._server.process.log_text() + own

    def _read(self, timeout: float) -> None:
        """Take in what is told of the command, waiting up to ``timeout`` seconds for it; from whichever thread."""
        # What makes the pipe readable, or closes it, may be taken by another thread before this one has the lock.
        with contextlib.suppress(OSError, ValueError):
            if not select.select([self._status], [], [], timeout)[0]:
                return
        with self._reading:
            if self._status >= 0:
                with contextlib.suppress(BlockingIOError):
                    self._take(os.read(self._status, 4096))

    def _take(self, data: bytes) -> None:
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            told = json_value(line)
            if "exit" in told:
                self._code = int(told["exit"])
            else:
                self._birth = told
        if not data:
            os.close(self._status)
            self._status = -1
            if self._code is None:
                # Whoever watches over the command was killed, or the fork server died before it was born.
                self._code = 128 + 9 if self._birth else self._server.process.wait_exit() or 1


_ERROR_LINE = re.compile(r"(?:^|[\s\])])((?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception|OutOfMemoryError)): (.+)$")
_WRAPPERS = ("Engine core initialization failed", "EngineCore encountered", "WorkerProc initialization failed")


def root_cause(log: str) -> str:
    """Return the first error of a log that does not merely wrap another, or an empty string.

    An engine's processes report upwards, so the last error of its log is the least telling one.
    """
    for line in log.splitlines():
        match = _ERROR_LINE.search(line)
        if match and not match.group(2).startswith(_WRAPPERS):
            return f"{match.group(1)}: {match.group(2).strip()}"[:500]
    return ""


def describe_exit(code: int | None, short_of_memory: bool | None = None) -> tuple[str, str]:
    """Return the kind of failure and words for an exit status as :meth:`Process.exit_code` gives it.

    ``short_of_memory`` says whether the kernel has killed for want of memory meanwhile; None where it does not tell.
    """
    if code == 128 + 9 and short_of_memory is False:
        return "crash", "was killed (signal 9) by another process; the kernel killed none for want of memory"
    if code == 128 + 9:
        likely = "" if short_of_memory else "most likely "
        return "out_of_memory", f"was killed (signal 9), {likely}by the kernel for want of memory"
    if code is not None and code > 128:
        return "crash", f"crashed with signal {code - 128}"
    return "crash", f"ended with status {code}"


def _oom_kills() -> int | None:
    """Return how many processes of this machine the kernel has killed for want of memory, or None if it is not told.

    The kernel counts them in /proc/vmstat, those that exceed the limit of a container too (Linux 4.13).
    """
    with contextlib.suppress(OSError):
        match = re.search(r"^oom_kill (\d+)$", _VMSTAT.read_text(encoding="utf-8"), re.MULTILINE)
        return int(match.group(1)) if match else None
    return None
