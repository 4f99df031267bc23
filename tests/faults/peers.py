"""Faults of what the planner speaks to: servers over HTTP, and workers over their pipes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from harness.base.errors import WorkerError
from harness.contract.protocol import Job
from harness.runtime.environment import Environment
from harness.runtime.job import Server, Worker, free_port
from harness.runtime.process import Process
from harness.runtime.store import Store
from tests.faults import worker_python
from tests.faults.campaign import Fault, Scenario
from tests.faults.small_session import interpreter

# A server of one behaviour: argv is the port and what it does with a request that is no health check.
SERVER = """
import json, os, signal, socket, sys, time
port, how = int(sys.argv[1]), sys.argv[2]
if how == "dies at start":
    sys.exit(3)
if how == "raises at start":
    raise ValueError("planted")
if how == "never":
    time.sleep(600)
listening = socket.create_server(("127.0.0.1", port))
def answer(body, status="200 OK", length=None):
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\\r\\nContent-Length: {length}\\r\\nConnection: close\\r\\n\\r\\n".encode() + body
while True:
    connection, _ = listening.accept()
    with connection:
        data = connection.recv(65536)
        if data.startswith(b"GET /health"):
            if how != "not healthy":
                connection.sendall(answer(b"", "503 no" if how == "sick" else "200 OK"))
            continue
        if how == "hangs":
            time.sleep(600)
        elif how == "slow":
            time.sleep(0.4)
            connection.sendall(answer(b'{"right": 1}'))
        elif how == "right":
            connection.sendall(answer(b'{"right": 1}'))
        elif how == "500":
            connection.sendall(answer(b"planted", "500 no"))
        elif how == "429":
            connection.sendall(answer(b'{"error": "later"}', "429 later"))
        elif how == "half":
            connection.sendall(answer(b'{"right": 1', length=4000))
        elif how == "closes":
            pass
        elif how == "garbage":
            connection.sendall(b"\\x00\\xff\\r\\n\\r\\n")
        elif how == "not JSON":
            connection.sendall(answer(b"<html>"))
        elif how == "deep JSON":
            connection.sendall(answer(b"[" * 100000))
        elif how == "a list":
            connection.sendall(answer(b"[1]"))
        elif how == "many headers":
            connection.sendall(b"HTTP/1.1 200 OK\\r\\n" + b"a: b\\r\\n" * 5000 + b"\\r\\n")
        elif how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "half, then dies":
            connection.sendall(answer(b'{"right": 1', length=4000))
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "drips":
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 4000\\r\\n\\r\\n")
            for _ in range(4000):
                connection.sendall(b" ")
                time.sleep(0.2)
"""
STARTS = ("dies at start", "raises at start", "never", "not healthy", "sick")
ANSWERS = (
    *("right", "slow", "hangs", "500", "429", "half", "closes", "garbage", "not JSON", "deep JSON", "a list"),
    *("many headers", "dies", "half, then dies"),
)


def server(fault: Fault) -> None:
    """A server that dies, hangs, or answers slowly, wrongly, by half or never."""
    how = fault.draw.choice([*STARTS, *ANSWERS])
    fault.what = f"a server that {'is ' if how in ('slow', 'right', 'sick') else ''}{how}"
    port = free_port()
    command = [sys.executable, "-S", "-c", SERVER, str(port), how]
    process = Process(command, environ=dict(os.environ), log=fault.folder / "server.log")
    found = Server(process, port=port, label="server")
    started = time.monotonic()
    try:
        found.wait_ready(3 if how in ("never", "not healthy", "sick") else 20)
        answer = found.post("/v1/x", {"a": 1}, 1.0)
    except WorkerError as error:
        fault.hit = True
        if error.kind not in ("exception", "crash", "timeout", "http", "start"):
            fault.broken("other", f"kind {error.kind}")
        if how in ("right", "slow"):
            fault.broken("other", f"it failed: {error}")
        elif "Traceback" in str(error):
            fault.broken("traceback", str(error))
    else:
        fault.hit = how in ("slow", "right")
        if how not in ("right", "slow") or answer != {"right": 1}:
            fault.broken("silent pass", f"{answer}")
    finally:
        found.close()
    if time.monotonic() - started > 45:
        fault.broken("other", f"it took {time.monotonic() - started:.0f} s")
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, 0)
        if Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            fault.broken("orphan", f"{process.pid}")


def worker(fault: Fault) -> None:
    """A worker that dies, hangs, runs out of memory, or sends what is no reply."""
    how = fault.draw.choice([*worker_python.RAW, "hang", "exhaust", "killed", "crashes", "unknown command"])
    fault.what = f"a worker: {how}"
    found = Worker(
        Job(backend="small", specification={}),
        environment=Environment(python=interpreter(fault.folder / "bin")),
        store=Store(fault.folder / "cache"),
        log=fault.folder / "worker.log",
        label="small",
    )
    try:
        found.wait_ready(60)
        if how == "hang":
            answer = found.ask("hang", 0.5)
        elif how == "exhaust":
            answer = found.ask("exhaust", 30)
        elif how in ("killed", "crashes"):
            answer = found.ask("die", 30, number=signal.SIGKILL if how == "killed" else signal.SIGSEGV)
        elif how == "unknown command":
            answer = found.ask("no such", 30)
        else:
            answer = found.ask("raw", 30, how=how)
    except WorkerError as error:
        fault.hit = True
        due = {"hang": "timeout", "exhaust": "out_of_memory"}.get(how)
        if due and error.kind != due:
            fault.broken("other", f"kind {error.kind} where {due} is due: {error}")
        if how == "unknown command" and not found.alive:
            fault.broken("other", "a command that it does not know ended it")
    else:
        fault.broken("silent pass", f"{how}: {answer}")
    finally:
        found.close()
    if found.process.exit_code() is None:
        fault.broken("orphan", f"{found.process.pid}")


SCENARIOS = [
    Scenario("server: dead, hung, slow, wrong, half, never", server, 14),
    Scenario("worker: dead, hung, wrong", worker, 8),
]
