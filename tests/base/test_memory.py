"""Want of memory is told in words: a limit that is too low for numpy and Arrow, and what ran out meanwhile."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from harness import __main__
from harness.base import secrets
from harness.base.memory import TooLittleMemory, check_limits, wanting
from harness.commands import bisect, calibrate, workplace
from harness.commands import gate as gates
from harness.gate.blocks import of_the_machine
from harness.matrix.measurements import TimeLimits
from harness.measure.workers import Workers
from harness.runtime import environment_pair
from harness.runtime.environment import Environment
from harness.runtime.store import Store
from harness.worker import __main__ as worker


def _small() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (500 << 20, 500 << 20))


@pytest.mark.programs
@pytest.mark.parametrize("words", [["harness", "table", "last"], ["pytest", "suites", "--collect-only"]])
def test_a_limit_in_which_libraries_hang_is_refused_by_name(words: list[str], repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=repository, preexec_fn=_small, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    told = " ".join((done.stdout + done.stderr).split())
    assert done.returncode in (2, 4), told
    assert "this process may have 500 MB of address space (ulimit -v)" in told
    assert "Traceback" not in told


def test_no_worker_is_started_where_the_imports_of_torch_would_hang(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limits = TimeLimits(prepare=1, start=1, measure=1, evaluate=1)
    workers = Workers(Store(tmp_path / "cache"), tmp_path, Environment(), limits=limits)
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (1300 << 20, 1300 << 20))
    check_limits()
    with pytest.raises(TooLittleMemory, match="may have 1300 MB of address space") as caught:
        workers.once("compatibility", {}, "write_logits", None)
    # It says nothing of the version that was to be tried.
    assert of_the_machine(caught.value)
    assert not list(tmp_path.glob("*.log"))
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    check_limits(worker=True)


def test_what_imports_torch_is_not_tried_where_it_would_hang_and_passes_for_no_broken_release(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment, store = Environment(), Store(tmp_path / "cache")
    environment.packages()
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (1300 << 20, 1300 << 20))
    with pytest.raises(TooLittleMemory, match="may have 1300 MB"):
        environment_pair._check_import(store, environment, "torchao", "torchao==0", lambda: 1e9)
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (506 << 20, 506 << 20))
    with pytest.raises(TooLittleMemory, match="may have 506 MB"):
        environment_pair.resolve("torchao==0", environment)
    with pytest.raises(TooLittleMemory, match="may have 506 MB"):
        Environment(python=str(tmp_path / "python")).packages()


def test_a_process_that_cannot_be_started_for_want_of_memory_is_no_broken_interpreter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(TooLittleMemory, match="Cannot allocate memory"):
        Environment(python=str(tmp_path / "python")).packages()


@pytest.mark.parametrize("which", ["gate", "bisect", "calibrate"])
def test_a_command_of_gates_that_is_short_of_memory_says_how_to_go_on(
    which: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["gate", "a==1", "a==2"] if which == "gate" else [which]
    words += ["a", "1..3", "--metric", "latency"] if which == "bisect" else []
    monkeypatch.setattr(environment_pair, "releases", lambda *_: ["1", "2", "3"])
    monkeypatch.setattr(environment_pair, "make", lambda *_, **__: None)

    def short(place: workplace.Workplace, *_: object, **__: object) -> None:
        kept = place.results / "gates" / "20261130-000000" / "gate.json"
        kept.parent.mkdir(parents=True)
        kept.write_text("{}")
        raise TooLittleMemory("this process may have 506 MB of address space: raise it")

    monkeypatch.setattr(workplace.Workplace, "gate", short)
    for module in (gates, bisect, calibrate):
        monkeypatch.setattr(module, "machine_lock", lambda: tmp_path / "machine.lock")
    place = ["-m", "cpu", "--recipe", "int8wo", "--results", str(tmp_path), "--cache", str(tmp_path / "cache")]
    assert __main__.main([*words, *place, "--model", "SmolLM2-135M-Instruct"]) == 2
    told = capsys.readouterr().err
    assert told.splitlines()[-1] == "error: this process may have 506 MB of address space: raise it"
    due = {"gate": "--resume 20261130-000000", "bisect": "goes on with --resume", "calibrate": "with --resume goes on"}
    assert due[which] in told
    assert "kept" in told


@pytest.mark.parametrize(
    ("error", "due"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (ImportError("libarrow.so.2600: failed to map segment from shared object"), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("planted"), False),
        (OSError(errno.ENOSPC, "No space left on device", "x"), False),
    ],
)
def test_what_says_that_there_was_no_memory(error: Exception, due: bool) -> None:
    assert wanting(error) is due
    outer = ValueError("seen as this")
    outer.__context__ = error
    assert wanting(outer) is due


def test_a_command_that_runs_out_of_memory_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from harness.commands import table

    def short(_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(table, "run", short)
    assert __main__.main(["table", "last", "--runs", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: out of memory")
    assert "Traceback" not in told


def test_what_cannot_even_be_told_for_want_of_memory_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(*_: object) -> str:
        raise MemoryError

    # Its patterns are compiled when they are first used.
    monkeypatch.setattr(secrets, "_remembered", refuse)
    monkeypatch.setattr(secrets, "_by_form", refuse)
    assert __main__.main(["table", "none", "--runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: out of memory: this command got no more of it")


def test_what_torch_says_of_a_cpu_without_memory_is_out_of_memory() -> None:
    words = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: 12 bytes"
    assert worker._describe(RuntimeError(words))["kind"] == "out_of_memory"
    assert worker._describe(RuntimeError("planted"))["kind"] == "exception"


def test_what_python_itself_does_not_tell_of_is_want_of_memory_where_there_is_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = SystemError("error return without exception set")
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert not wanting(error)
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (2 << 30, 2 << 30))
    assert wanting(error)
    assert not wanting(SystemError("another"))
