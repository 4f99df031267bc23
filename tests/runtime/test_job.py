"""Workers and servers: each way to fail has its kind and its words, and only a failed command leaves a worker alive."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import WorkerError
from harness.runtime import process
from harness.runtime.environment import Environment
from harness.runtime.job import Job, Server, Worker, free_port
from harness.runtime.process import Forked, Process, describe_exit, root_cause
from harness.runtime.store import Store

# Stands in for a worker: speaks its protocol and runs the code that it is given, which may break it.
STUB = """\
#!{python} -IS
import json, os, signal, sys, time
assert sys.argv[1:] == ["-m", "harness.worker"]
requests = os.fdopen(int(os.environ["HARNESS_REQUESTS_FD"]))
replies = int(os.environ["HARNESS_REPLIES_FD"])
def send(kind, /, **value):
    raw((json.dumps({{"kind": kind, "value": value}}) + "\\n").encode())
def raw(data):
    while data:
        data = data[os.write(replies, data):]
job = json.loads(requests.readline())
exec(job["specification"]["start"])
for line in requests:
    request = json.loads(line)
    assert request["command"] == "run"
    exec(request["arguments"]["code"])
exec(job["specification"].get("finish", ""))
"""
READY = "send('ready')"
HANG = "time.sleep(600)"

# The worker's own main over a backend of this test: no torch is needed to speak to it.
ECHO = """\
#!{python}
import os, runpy, sys, types
from harness.worker.backend import Backend
class Echo(Backend):
    commands = ("echo", "fail", "exhaust", "exhaust_gpu", "wrap", "leave", "half")
    def open(self, **specification):
        self.report({{"opening": True}})
        if specification.get("broken"):
            raise RuntimeError("it cannot be opened")
        return specification
    def half(self):
        raise FileNotFoundError(os.fsdecode(b"/srv/m\\xff"))
    def echo(self, **arguments):
        print("echoing")
        return arguments
    def fail(self):
        raise ValueError("a bad | value")
    def exhaust(self):
        raise MemoryError("no room")
    def exhaust_gpu(self):
        import torch
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.15 GiB")
        except torch.OutOfMemoryError as error:
            raise RuntimeError("engine failed") from error
    def wrap(self):
        try:
            self.fail()
        except ValueError as error:
            raise RuntimeError("engine failed") from error
    def leave(self):
        sys.exit("on my own")
    def secret(self):
        return {{}}
module = types.ModuleType("harness.worker.echo")
module.BACKEND = Echo
sys.modules[module.__name__] = module
sys.argv = [sys.argv[0]]
runpy.run_module("harness.worker", run_name="__main__")
"""


def gone(pid: int) -> bool:
    """Return whether a process has ended, whether or not its parent has noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("cache"))


Start = Callable[..., Worker]


@pytest.fixture(autouse=True)
def vmstat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's counters, by which it has killed nothing."""
    file = tmp_path / "vmstat"
    file.write_text("oom_kill 0\n")
    monkeypatch.setattr(process, "_VMSTAT", file)
    return file


@pytest.fixture
def start(tmp_path: Path, store: Store) -> Iterator[Start]:
    """``start(specification)`` starts a worker; it ends with the test."""
    workers: list[Worker] = []

    def start(
        program: str = STUB, backend: str = "stub", progress: Callable[..., None] = print, **specification: Any
    ) -> Worker:
        python = tmp_path / backend
        if not python.exists():
            python.write_text(program.format(python=sys.executable))
            python.chmod(0o755)
        worker = Worker(
            Job(backend=backend, specification=specification),
            environment=Environment(python=str(python)),
            store=store,
            log=tmp_path / "logs" / "worker.log",
            label="a worker",
            progress=progress,
        )
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture
def worker(start: Start) -> Worker:
    """A ready worker."""
    worker = start(start=READY)
    worker.wait_ready(20)
    return worker


def failure(worker: Worker, code: str, timeout: float = 20) -> WorkerError:
    """Return the error that running ``code`` in the worker raises."""
    with pytest.raises(WorkerError) as raised:
        worker.ask("run", timeout, code=code)
    return raised.value


# ------------------------------------------------------------------------------------------------------- what is asked


def test_a_worker_is_opened_once_and_asked_many_times(start: Start) -> None:
    seen: list[dict[str, Any]] = []
    worker = start(start="send('progress', step=1); send('ready', layers=7)", progress=seen.append)
    assert not worker.ready
    assert worker.wait_ready(20) == worker.wait_ready(20) == worker.info == {"layers": 7}
    assert worker.ready
    assert worker.alive
    assert worker.start_seconds > 0
    for number in range(3):
        code = f"send('progress', step=2); send('result', number={number})"
        assert worker.ask("run", 20, code=code) == {"number": number}
    assert worker.asked == 3
    assert seen == [{"step": 1}, *[{"step": 2}] * 3]


def test_a_worker_that_says_nothing_of_itself_is_waited_for_once(start: Start) -> None:
    worker = start(start=READY)
    assert worker.wait_ready(20) == {}
    assert worker.wait_ready(20) == {}
    assert worker.ask("run", 20, code="send('result', answer=1)") == {"answer": 1}


def test_an_answer_may_be_large_and_hold_anything(worker: Worker) -> None:
    text = "é|\n\0\u2028" * 50_000
    assert worker.ask("run", 20, code=f"send('result', text={text[:5]!r} * 50_000)") == {"text": text}


def test_what_is_no_unicode_is_refused_by_its_name_and_the_worker_lives_on(worker: Worker, start: Start) -> None:
    folder = os.fsdecode(b"/srv/m\xff")
    with pytest.raises(WorkerError, match=r"'/srv/m\\udcff/x' is no Unicode.*rename it") as raised:
        worker.ask("run", 20, code="pass", places=[{"of": f"{folder}/x"}])
    assert (raised.value.kind, raised.value.stage) == ("refused", "run")
    worker.ask("run", 20, code="send('result')")
    with pytest.raises(WorkerError, match=r"m\\udcff' is no Unicode") as raised:
        start(start=READY, checkpoint=folder)
    assert (raised.value.kind, raised.value.stage) == ("refused", "start")


def test_a_request_may_be_large(worker: Worker) -> None:
    code = "send('result', length=len(code))\ncode = '" + "x" * 200_000 + "'"
    assert worker.ask("run", 20, code="code = line; " + code)["length"] > 200_000


def test_the_token_is_not_passed_on(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    worker = start(start="send('ready', environ=dict(os.environ))")
    assert "secret-token" not in worker.wait_ready(20)["environ"].values()


def test_closing_lets_a_worker_finish_by_itself(start: Start, tmp_path: Path) -> None:
    worker = start(start=READY, finish=f"open({str(tmp_path / 'finished')!r}, 'w')")
    worker.wait_ready(20)
    worker.close()
    worker.close()
    assert (tmp_path / "finished").exists()
    assert worker.process.exit_code() == 0
    assert not worker.alive


# -------------------------------------------------------------------------------------------------------- how it fails


def test_an_error_of_a_command_leaves_the_worker_alive(worker: Worker) -> None:
    error = failure(worker, "print('words', flush=True); send('error', kind='exception', message='ValueError: no')")
    assert (error.kind, error.stage) == ("exception", "run")
    assert str(error) == "a worker: run: ValueError: no"
    assert "words" in error.log_tail
    assert worker.alive
    assert worker.ask("run", 20, code="send('result', answer=1)") == {"answer": 1}


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("os._exit(3)", "crash", "ended with status 3"),
        ("os._exit(0)", "crash", "ended with status 0"),
        ("raise ValueError('no')", "crash", "ended with status 1"),
        ("os.kill(os.getpid(), signal.SIGUSR1)", "crash", f"crashed with signal {10}"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "crash", "killed (signal 9) by another process"),
    ],
)
def test_a_worker_that_ends_is_a_failure_of_its_kind(worker: Worker, code: str, kind: str, words: str) -> None:
    error = failure(worker, f"print('the last words', flush=True); {code}")
    assert (error.kind, error.stage) == (kind, "run")
    assert str(error).startswith("a worker: run: ")
    assert words in str(error)
    assert "the last words" in error.log_tail
    assert not worker.alive
    again = failure(worker, "send('result')")
    assert again.kind == kind


@pytest.mark.parametrize(
    "code",
    [
        "raw(b'not JSON\\n')",
        "raw(b'\\xff\\xfe\\n')",
        "raw(b'[]\\n')",
        "raw(b'\\n')",
        'raw(b\'{"kind": "surprise"}\\n\')',
        'raw(b\'{"kind": "result", "value": 1}\\n\')',
        'raw(b\'{"kind": "result", "more": {}}\\n\')',
        "send('error')",
        "send('ready')",
    ],
)
def test_what_is_not_a_reply_is_a_crash(worker: Worker, code: str) -> None:
    error = failure(worker, f"{code}; {HANG}")
    assert error.kind == "crash"
    assert "sent what is not a reply" in str(error)
    assert not worker.alive
    assert gone(worker.process.pid)


def test_half_a_reply_is_none(worker: Worker) -> None:
    assert "status 3" in str(failure(worker, 'raw(b\'{"kind": "result"\'); os._exit(3)'))


@pytest.mark.parametrize("meanwhile", ["", "raw(b'{\"kind\"');", "send('progress');"])
def test_a_worker_that_hangs_is_ended(start: Start, meanwhile: str) -> None:
    worker = start(start=f"print('the last words', flush=True); {READY}")
    worker.wait_ready(20)
    error = failure(worker, f"{meanwhile} {HANG}".strip(), timeout=0.1)
    assert (error.kind, error.stage) == ("timeout", "run")
    assert "did not finish within 0.1 s" in str(error)
    assert "the last words" in error.log_tail
    assert not worker.alive
    assert gone(worker.process.pid)


def test_one_that_never_ceases_to_make_progress_is_ended_too(worker: Worker) -> None:
    assert failure(worker, "while True: send('progress')", timeout=0.1).kind == "timeout"


def test_a_worker_that_is_ended_elsewhere_fails_what_waits_for_it(worker: Worker) -> None:
    ending = threading.Timer(0.1, worker.process.end)
    ending.start()
    assert failure(worker, HANG, timeout=60).kind in ("crash", "out_of_memory")
    ending.join()
    assert not worker.alive


@pytest.mark.parametrize(
    ("start_code", "kind", "words"),
    [
        ("os._exit(3)", "crash", "ended with status 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "crash", "killed (signal 9) by another process"),
        ("send('error', kind='exception', message='no such model'); os._exit(1)", "exception", "no such model"),
        ("send('result')", "crash", "not a reply"),
        (HANG, "timeout", "did not finish within 0.1 s"),
    ],
)
def test_a_worker_that_does_not_start_is_a_failure(start: Start, start_code: str, kind: str, words: str) -> None:
    worker = start(start=f"print('the last words', flush=True); {start_code}")
    with pytest.raises(WorkerError) as raised:
        worker.wait_ready(0.1 if kind == "timeout" else 20)
    assert (raised.value.kind, raised.value.stage) == (kind, "start")
    assert words in str(raised.value)
    assert "the last words" in raised.value.log_tail or kind == "timeout"
    assert not worker.alive
    assert gone(worker.process.pid)


def test_the_cause_in_the_log_is_named_when_an_engine_does_not_start(start: Start) -> None:
    log = "(EngineCore) ValueError: no kernel for this\\nRuntimeError: Engine core initialization failed. See above."
    worker = start(start=f"print({log!r}.encode().decode('unicode_escape'), flush=True); os._exit(1)")
    with pytest.raises(WorkerError, match=r"status 1; its log names the cause: ValueError: no kernel for this$"):
        worker.wait_ready(20)


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path, store: Store) -> None:
    with pytest.raises(WorkerError) as raised:
        Worker(
            Job(backend="stub", specification={}),
            environment=Environment(python="/no/such/python"),
            store=store,
            log=tmp_path / "log",
            label="a worker",
        ).wait_ready(20)
    assert raised.value.kind == "crash"
    assert "/no/such/python" in raised.value.log_tail


def test_neither_words_nor_log_hold_credentials(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    words = "secret-token, Bearer secret-word, " + "hf_" + "Secret12" * 4
    error = failure(worker, f"print({words!r}, flush=True); send('error', kind='exception', message={words!r})")
    for text in (str(error), error.log_tail):
        assert "secret" not in text.lower()
        assert text.count("[token removed]") == 3


def test_a_small_log_is_cleaned_in_little_memory(worker: Worker) -> None:
    worker.ask("run", 20, code="print('a few words', flush=True); send('result')")
    tracemalloc.start()
    try:
        worker.close()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1 << 20


def test_a_log_is_shown_from_its_end(worker: Worker) -> None:
    error = failure(worker, "print('the start'); print('x' * 100_000); print('the end', flush=True); os._exit(1)")
    assert error.log_tail.endswith("the end\n")
    assert len(error.log_tail) < 10_000


# ------------------------------------------------------------------------------------------------ the worker's own main


@pytest.mark.models
def test_the_workers_own_main_speaks_the_same_protocol(start: Start) -> None:
    seen: list[dict[str, Any]] = []
    worker = start(ECHO, "echo", seen.append, checkpoint="x")
    assert worker.wait_ready(60) == {"checkpoint": "x"}
    assert seen == [{"opening": True}]
    assert worker.ask("echo", 20, text="é\n", number=1.5) == {"text": "é\n", "number": 1.5}
    for command, kind, words in (
        ("fail", "exception", "ValueError: a bad | value"),
        ("exhaust", "out_of_memory", "MemoryError: no room"),
        ("exhaust_gpu", "out_of_memory", "OutOfMemoryError: CUDA out of memory. Tried to allocate 1.15 GiB (seen as"),
        ("wrap", "exception", r"ValueError: a bad | value (seen as RuntimeError: engine failed)"),
        ("half", "exception", "FileNotFoundError: /srv/m?"),
        ("secret", "exception", "echo has no command 'secret'"),
        ("open", "exception", "echo has no command 'open'"),
    ):
        with pytest.raises(WorkerError) as raised:
            worker.ask(command, 20)
        assert (raised.value.kind, raised.value.stage) == (kind, command)
        assert words in str(raised.value)
    assert "Traceback" in worker.process.log_tail()
    assert worker.ask("echo", 20) == {}
    worker.close()
    assert worker.process.exit_code() == 0
    assert "echoing" in worker.process.log_text()


@pytest.mark.parametrize(
    ("backend", "specification", "words"),
    [
        ("echo", {"broken": True}, "RuntimeError: it cannot be opened"),
        ("no_such_backend", {}, "No module named 'harness.worker.no_such_backend'"),
    ],
)
def test_a_backend_that_cannot_be_opened_says_why(
    start: Start, backend: str, specification: dict[str, Any], words: str
) -> None:
    with pytest.raises(WorkerError, match=f"a worker: start: .*{words}") as raised:
        start(ECHO, backend, **specification).wait_ready(60)
    assert raised.value.kind == "exception"


# ------------------------------------------------------------------------------------------------------------- servers

SERVER = """\
import errno, http.server, json, os, signal, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, data, length=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
    def do_GET(self):
        self.answer(200, b"")
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print("asked for", self.path, flush=True)
        exec(body["code"])
    def log_message(self, *_):
        pass
exec(sys.argv[2])
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def serve(tmp_path: Path, store: Store) -> Iterator[Callable[[str], Server]]:
    """``serve(code)`` starts a server that runs ``code`` first; it ends with the test."""
    servers: list[Server] = []
    numbers = itertools.count()

    def serve(code: str = "") -> Server:
        port = free_port()
        process = Process(
            [sys.executable, "-IS", "-c", SERVER, str(port), code],
            environ=dict(os.environ),
            log=tmp_path / f"server-{next(numbers)}.log",
        )
        server = Server(process, port=port, label="a server")
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.close()


def refused(server: Server, code: str, timeout: float = 20) -> WorkerError:
    """Return the error that asking for ``code`` raises."""
    with pytest.raises(WorkerError) as raised:
        server.post("/v1/completions", {"code": code}, timeout)
    return raised.value


def test_a_server_is_asked_once_it_is_ready(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server = serve()
    assert not server.ready
    server.wait_ready(20)
    server.wait_ready(20)
    assert server.ready
    assert server.alive
    code = "self.answer(200, json.dumps({'path': self.path}).encode())"
    assert server.post("/v1/completions", {"code": code}, 20) == {"path": "/v1/completions"}
    assert server.post("/reset", {"code": "self.answer(200, b'')"}, 20) == {}
    server.close()
    assert not server.alive
    assert gone(server.process.pid)


def test_a_refusal_is_an_error_with_the_servers_words_and_it_lives_on(serve: Callable[..., Server]) -> None:
    server = serve()
    server.wait_ready(20)
    for status in (400, 500):
        error = refused(server, f"self.answer({status}, b'the model has no room, Bearer secret-word')")
        assert (error.kind, error.stage) == ("http", "/v1/completions")
        assert f"answered {status}: the model has no room, Bearer [token removed]" in str(error)
        assert "asked for /v1/completions" in error.log_tail
    for answer in ("b'not JSON'", "b'[1, 2]'", "b'\\xff'"):
        error = refused(server, f"self.answer(200, {answer})")
        assert error.kind == "http"
        assert "not a JSON object" in str(error)
    assert server.post("/", {"code": "self.answer(200, b'{}')"}, 20) == {}


@pytest.mark.parametrize("before", ["", "self.answer(200, b'half', length=100);", "self.wfile.write(b'HT');"])
@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "crash", "killed (signal 9) by another process"),
        ("os._exit(3)", "crash", "ended with status 3"),
    ],
)
def test_a_server_that_dies_while_it_is_asked_is_a_failure_of_its_kind(
    serve: Callable[..., Server], before: str, code: str, kind: str, words: str
) -> None:
    server = serve()
    server.wait_ready(20)
    error = refused(server, f"{before}{code}")
    assert (error.kind, words in str(error)) == (kind, True), str(error)
    assert "asked for" in error.log_tail
    with pytest.raises(WorkerError) as raised:
        server.check_alive("serving")
    assert (raised.value.kind, raised.value.stage) == (kind, "serving")


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("sys.exit('no such model')", "crash", "ended with status 1"),
        ("raise MemoryError('no room')", "out_of_memory", "its log names the cause: MemoryError: no room"),
        ("raise ValueError('no such tensor')", "exception", "its log names the cause: ValueError: no such tensor"),
        ("print('ValueError: x', flush=True); os.kill(os.getpid(), signal.SIGKILL)", "crash", "killed (signal 9)"),
        ("raise RuntimeError('Engine core initialization failed')", "crash", "ended with status 1"),
        ("raise OSError(errno.EADDRINUSE, 'Address already in use')", "crash", "Address already in use"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "crash", "killed (signal 9) by another process"),
        ("time.sleep(600)", "timeout", "was not ready within 0.1 s"),
    ],
)
def test_a_server_that_does_not_start_is_a_failure(
    serve: Callable[..., Server], code: str, kind: str, words: str
) -> None:
    server = serve(code)
    with pytest.raises(WorkerError) as raised:
        server.wait_ready(0.1 if kind == "timeout" else 20)
    assert (raised.value.kind, raised.value.stage) == (kind, "start")
    assert words in str(raised.value)
    assert ("no such model" in raised.value.log_tail) == ("no such model" in code)
    server.close()
    assert gone(server.process.pid)


# --------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (139, "crash", "signal 11"),
        (1, "crash", "status 1"),
        (0, "crash", "status 0"),
    ],
)
def test_an_exit_has_a_kind_and_words(code: int, kind: str, words: str) -> None:
    assert describe_exit(code)[0] == kind
    assert words in describe_exit(code)[1]


@pytest.mark.parametrize(
    ("before", "after", "kind", "words"),
    [
        ("oom_kill 3", "oom_kill 4", "out_of_memory", "signal 9), by the kernel for want of memory"),
        ("oom_kill 3", "oom_kill 3", "crash", "signal 9) by another process"),
        ("pgfault 1", "pgfault 2", "out_of_memory", "signal 9), most likely by the kernel"),
        (None, "oom_kill 3", "out_of_memory", "signal 9), most likely by the kernel"),
    ],
)
def test_the_kernel_is_asked_whether_it_killed_for_want_of_memory(
    start: Start, vmstat: Path, before: str | None, after: str, kind: str, words: str
) -> None:
    vmstat.unlink()
    if before:
        vmstat.write_text(f"nr_free_pages 7\n{before}\npgfault 2\n")
    worker = start(start=READY)
    worker.wait_ready(20)
    vmstat.write_text(f"nr_free_pages 7\n{after}\npgfault 2\n")
    error = failure(worker, "os.kill(os.getpid(), signal.SIGKILL)")
    assert (error.kind, words in str(error)) == (kind, True), str(error)


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("", ""),
        ("all is well\nno Error here", ""),
        ("Traceback:\n  File x\nValueError: no kernel\n", "ValueError: no kernel"),
        (
            "(EngineCore pid=7) torch.OutOfMemoryError: CUDA out of memory.",
            "torch.OutOfMemoryError: CUDA out of memory.",
        ),
        ("RuntimeError: Engine core initialization failed. See root cause\nKeyError: 'x'", "KeyError: 'x'"),
        ("ValueError: first\nRuntimeError: second", "ValueError: first"),
    ],
)
def test_the_root_cause_is_the_first_error_that_wraps_no_other(log: str, cause: str) -> None:
    assert root_cause(log) == cause


class Told:
    """In place of a fork server: keeps the end of a command's status pipe, which the test writes to."""

    def send(self, job: dict[str, Any], fds: list[int]) -> None:
        self.status = os.dup(fds[1])


def test_a_forked_command_can_be_asked_for_from_several_threads_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    forked = Forked(told, "a.module", [], log=tmp_path / "log", fds={}, environ={})  # type: ignore[arg-type]
    # To every thread the pipe seems readable; one alone then gets what there is.
    monkeypatch.setattr(process.select, "select", lambda read, *_: (read, [], []))
    assert forked.exit_code() is None
    asking = threading.Barrier(5)
    codes: list[int | None] = []

    def ask() -> None:
        asking.wait(30)
        while (code := forked.exit_code()) is None:
            assert forked.pid in (0, 42)
        codes.append(code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    asking.wait(30)
    for line in (b'{"pid": 42, "forked_at": 0.0, ', b'"import_seconds": 1.5}\n', b'{"exit": 7}\n'):
        os.write(told.status, line)
    os.close(told.status)
    for thread in threads:
        thread.join(30)
    assert codes == [7] * 4
    assert (forked.pid, forked.age(2.0), forked.exit_code()) == (42, 3.5, 7)
    forked.end()


def test_a_free_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        assert server.fileno() >= 0
