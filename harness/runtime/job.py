"""What is asked of a worker and what comes back; starts, watches and ends workers and servers."""

from __future__ import annotations

import errno
import http.client
import json
import os
import select
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.base.errors import WorkerError
from harness.base.reading import json_value
from harness.base.text import redact
from harness.contract.protocol import REFUSED, REPLIES_FD, REQUESTS_FD, Job, Reply, Request, written
from harness.runtime.compiled import Compiled
from harness.runtime.environment import Environment
from harness.runtime.process import ForkServer, Process, root_cause
from harness.runtime.store import Store


class Worker:
    """A backend in a fresh process, opened once and asked many times.

    ``info`` is what the backend said when it was ready; ``start_seconds`` the time from the process's start until
    then, imports included. ``forks`` makes the process; without, it is executed in ``environment``. ``compiled`` is
    where its compilers work, if it has any. Every method raises WorkerError when the worker fails, and the worker is
    gone afterwards, unless the backend merely raised an exception: then it goes on (``alive`` tells).
    """

    def __init__(
        self,
        job: Job,
        *,
        environment: Environment,
        store: Store,
        log: Path,
        label: str,
        role: str = "",
        variables: dict[str, str] | None = None,
        forks: ForkServer | None = None,
        compiled: Compiled | None = None,
        progress: Callable[[dict[str, Any]], None] = lambda _: None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self.label = label
        self.role = role
        self.info: dict[str, Any] = {}
        self.start_seconds = 0.0
        self.asked = 0
        self.compiled = compiled
        self._ready = False
        self._leaving = False
        self._progress = progress
        self._waiting = waiting
        self._buffer = b""
        first = self._line(job, "start")
        requests_read, self._requests = os.pipe()
        self._replies, replies_write = os.pipe()
        fds = {REQUESTS_FD: requests_read, REPLIES_FD: replies_write}
        own = compiled.variables if compiled else {}
        self.process = (
            forks.start("harness.worker", [], log=log, fds=fds, environ=own)
            if forks
            else Process(
                [environment.python, "-m", "harness.worker"],
                environ=environment.environ(store, variables) | own | {name: str(fd) for name, fd in fds.items()},
                log=log,
                pass_fds=tuple(fds.values()),
            )
        )
        os.close(requests_read)
        os.close(replies_write)
        self._send(first)

    @property
    def alive(self) -> bool:
        return self._requests >= 0 and self.process.exit_code() is None

    @property
    def ready(self) -> bool:
        return self._ready

    def wait_ready(self, timeout: float) -> dict[str, Any]:
        """Wait until the backend is open and return what it says of itself."""
        if not self._ready:
            self.info = self._receive("start", timeout)
            self._ready = True
            # The worker's own time of readiness (CLOCK_MONOTONIC is one for the whole machine): the planner may have
            # been busy with another worker meanwhile.
            self.start_seconds = self.process.age(self.info.pop("ready_at", time.monotonic()))
        return self.info

    def ask(self, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """Send one command and return its result. ``timeout`` is in seconds; a worker that exceeds it is ended."""
        self._send(self._line(Request(command=command, arguments=arguments), command))
        self.asked += 1
        return self._receive(command, timeout)

    def ask_to_end(self) -> None:
        """Close the worker's requests, which lets it shut down by itself, and do not wait."""
        if self._requests >= 0:
            os.close(self._requests)
            self._requests = -1
            self._leaving = True

    def close(self) -> None:
        """End the worker: what has not shut down by itself once its requests are closed is killed."""
        self.ask_to_end()
        if self._leaving:
            self._leaving = False
            deadline = time.monotonic() + 10
            while self.process.exit_code() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            self.process.end()
            os.close(self._replies)
        if self.compiled:
            self.compiled.close(whole=self._ready)

    def _line(self, message: Job | Request, stage: str) -> bytes:
        try:
            return written(message)
        except ValueError as error:
            raise WorkerError(f"{self.label}: {error}", stage=stage, kind=REFUSED, worker=self.role) from error

    def _send(self, data: bytes) -> None:
        try:
            os.write(self._requests, data)
        except OSError as error:
            raise self._failed("ask", *self.process.ending()) from error

    def _receive(self, stage: str, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while True:
            line = self._read_line(deadline)
            if line is None:
                if time.monotonic() >= deadline:
                    raise self._failed(stage, "timeout", f"did not finish within {timeout:g} s and was ended")
                raise self._failed(stage, *self.process.ending())
            try:
                reply = Reply.model_validate_json(line)
                if reply.kind not in ("progress", "error", "ready" if stage == "start" else "result"):
                    raise ValueError(f"{reply.kind} is not due")
                kind, message = (reply.value["kind"], reply.value["message"]) if reply.kind == "error" else ("", "")
            except (ValueError, KeyError) as error:
                raise self._failed(stage, "crash", f"sent what is not a reply: {line[:200]!r}") from error
            if reply.kind == "progress":
                self._progress(reply.value)
            elif reply.kind == "error":
                if stage == "start":
                    self.process.wait_exit()
                raise self._failed(stage, str(kind), str(message), ended=stage == "start")
            else:
                return reply.value

    def _read_line(self, deadline: float) -> bytes | None:
        while b"\n" not in self._buffer:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            if select.select([self._replies], [], [], min(remaining, 0.5))[0]:
                data = os.read(self._replies, 65536)
                if not data:
                    return None
                self._buffer += data
            elif self.process.exit_code() is not None and not select.select([self._replies], [], [], 0)[0]:
                return None
            else:
                self._waiting()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _failed(self, stage: str, kind: str, words: str, ended: bool = True) -> WorkerError:
        tail = self.process.log_tail()
        if ended and self._requests >= 0:
            os.close(self._requests)
            self._requests = -1
            self.process.end()
            os.close(self._replies)
        log = self.process.log_text() if stage == "start" else ""
        return _error(self.label, self.role, stage, kind, words, log, tail)


def free_port() -> int:
    """Return a TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# The loopback interface is never behind a proxy.
_LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Server:
    """An HTTP server on 127.0.0.1, in a process of its own, asked over its OpenAI-compatible interface."""

    def __init__(
        self, process: Process, *, port: int, label: str, role: str = "server", compiled: Compiled | None = None
    ) -> None:
        self.label = label
        self.compiled = compiled
        self.role = role
        self.url = f"http://127.0.0.1:{port}"
        self.start_seconds = 0.0
        self.process = process
        threading.Thread(target=self._await_health, name=f"health of {label}", daemon=True).start()

    @property
    def alive(self) -> bool:
        return self.process.exit_code() is None

    @property
    def ready(self) -> bool:
        return self.start_seconds > 0

    def wait_ready(self, timeout: float) -> None:
        """Wait until the server answers its health check; raises WorkerError when it dies or takes too long."""
        deadline = self.process.started + timeout
        while not self.start_seconds:
            if self.process.exit_code() is not None:
                kind, words = self.process.ending()
                raise self._failed("start", "exception" if self._raised() else kind, words)
            if time.monotonic() > deadline:
                raise self._failed("start", "timeout", f"was not ready within {timeout:g} s")
            time.sleep(0.05)

    def _raised(self) -> bool:
        """Return whether the server ended by an exception of its own, which would come again: its log names one.

        Not by a signal, nor because another process took its port meanwhile.
        """
        cause = root_cause(self.process.log_text())
        return bool(cause) and (self.process.exit_code() or 0) < 128 and f"[Errno {errno.EADDRINUSE}]" not in cause

    def _await_health(self) -> None:
        """Note when the server first answers, whatever the planner waits for meanwhile."""
        while self.process.exit_code() is None:
            try:
                with _LOOPBACK.open(f"{self.url}/health", timeout=5):
                    self.start_seconds = self.process.age(time.monotonic())
                    return
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)

    def post(self, path: str, body: dict[str, Any], timeout: float) -> dict[str, Any]:
        """POST JSON and return the JSON answer; an error status or a dead server raises WorkerError."""
        data = self._answer(path, json.dumps(body).encode(), timeout)
        try:
            return read_answer(data)
        except ValueError as error:
            raise self._failed(path, "http", f"answered what is not a JSON object: {data[:200]!r}") from error

    def tell(self, path: str, timeout: float) -> None:
        """POST nothing to a path that does something, whatever it answers; raises WorkerError as :meth:`post`."""
        self._answer(path, b"{}", timeout)

    def get(self, path: str, timeout: float) -> str:
        """Return what the server answers to a GET, as text; raises WorkerError as :meth:`post`."""
        return self._answer(path, None, timeout).decode(errors="replace")

    def _answer(self, path: str, body: bytes | None, timeout: float) -> bytes:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=body, headers=headers)  # noqa: S310 - to 127.0.0.1
        try:
            with _LOOPBACK.open(request, timeout=timeout) as response:
                found: bytes = response.read()
                return found
        except urllib.error.HTTPError as error:
            words = error.read().decode(errors="replace")[:500]
            raise self._failed(path, "http", f"answered {error.code}: {words}") from error
        except (OSError, http.client.HTTPException) as error:
            code = self.process.wait_exit()
            kind, words = self.process.ending() if code is not None else ("http", f"did not answer ({error})")
            raise self._failed(path, kind, words) from error

    def check_alive(self, stage: str) -> None:
        """Raise WorkerError if the server has died; to be asked after a failure, since a death is waited for."""
        if self.process.wait_exit() is not None:
            raise self._failed(stage, *self.process.ending())

    def ask_to_end(self) -> None:
        """Have the server shut down, and do not wait."""
        self.process.ask_to_end()

    def close(self) -> None:
        """End the server and everything it started."""
        self.process.end(gently=True)
        if self.compiled:
            self.compiled.close(whole=self.ready)

    def _failed(self, stage: str, kind: str, words: str) -> WorkerError:
        log = self.process.log_text() if stage == "start" else ""
        return _error(self.label, self.role, stage, kind, words, log, self.process.log_tail())


class Shared(Server):
    """A server whose process is a worker too: ``worker`` asks the same engine for what an offline one is asked for."""

    def __init__(self, worker: Worker, *, port: int) -> None:
        super().__init__(worker.process, port=port, label=worker.label, role=worker.role, compiled=worker.compiled)
        self.worker = worker

    @property
    def alive(self) -> bool:
        return self.worker.alive

    @property
    def ready(self) -> bool:
        return self.worker.ready and super().ready

    def wait_ready(self, timeout: float) -> None:
        """Wait until both answer; raises WorkerError when the process dies or takes too long."""
        self.worker.wait_ready(timeout)
        super().wait_ready(timeout)

    def ask_to_end(self) -> None:
        """Have the worker end its server and shut down, and do not wait."""
        self.worker.ask_to_end()

    def close(self) -> None:
        """End the worker, which ends its server, and everything it started."""
        self.worker.close()


def read_answer(data: bytes) -> dict[str, Any]:
    """Return the JSON object that a server answered, empty for an empty answer; raises ValueError for anything else."""
    found = json_value(data) if data.strip() else {}
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} is no object")
    return found


def _error(label: str, role: str, stage: str, kind: str, words: str, log: str, tail: str) -> WorkerError:
    cause = "" if kind == REFUSED else root_cause(log)
    if cause and cause.split(": ", 1)[1][:80] not in words:
        words += f"; its log names the cause: {cause}"
    if "OutOfMemoryError" in words or cause.startswith("MemoryError"):
        kind = "out_of_memory"
    return WorkerError(f"{label}: {stage}: {redact(words)}", stage=stage, kind=kind, log_tail=tail, worker=role)
