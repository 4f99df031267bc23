"""Want of memory is told in words: a limit that is too low for numpy and Arrow, and what ran out meanwhile."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from harness import __main__
from harness.base.memory import TooLittleMemory, check_limits, wanting
from harness.gate.blocks import of_the_machine
from harness.matrix.measurements import TimeLimits
from harness.measure.workers import Workers
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


def test_what_torch_says_of_a_cpu_without_memory_is_out_of_memory() -> None:
    words = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: 12 bytes"
    assert worker._describe(RuntimeError(words))["kind"] == "out_of_memory"
    assert worker._describe(RuntimeError("planted"))["kind"] == "exception"
