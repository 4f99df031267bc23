"""The suites as users run them, in a process of their own, while everything goes wrong around them.

One story over one cache: a session is killed (``killed``), resumed and finished (``finished``), and what it left is
then resumed again under a full disk, a torn record and a limit that cannot hold, none of which starts a worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from harness.machine.lock import machine_lock
from harness.records.run import read
from harness.records.schema import Failure, Header, Judgement, Measurement

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

TOKEN = "hf_secretsecret123"
TIMEOUT = 420
SELECTED = "peak_memory or generate or checkpoint"
# What a whole session of SELECTED measures, in order.
SIZES = ["checkpoint_size", "weight_size", "quantized_layers", "quantized_parameters", "quantized_bytes"]
SIZES += ["size_deviation", "size_deviation"]  # of the weights, and of all the files
WHOLE = [(recipe, metric) for recipe in ("bf16", "int8wo") for metric in (*SIZES, "peak_memory", "generate_throughput")]
LONG_GENERATE = "generate = { max_new_tokens = 64, warmup = 1, rounds = 5000 }"
# One call that no worker gets through before somebody looks for it.
LONG_CALL = "generate = { max_new_tokens = 3900, warmup = 1, rounds = 3 }"
# Imported by every Python process of a session before anything else: it counts the workers from outside.
# A forked one is the fork server's grandchild: the child between them watches over it.
SITECUSTOMIZE = """
import os, sys
def count():
    with open(os.environ["HARNESS_TEST_WORKERS"], "a") as file:
        file.write(f"{os.getpid()}\\n")
def forked():
    global generation
    generation += 1
    if generation == 2:
        count()
generation = 0
if "harness.worker" in sys.orig_argv:
    count()
elif "harness.worker.forkserver" in sys.orig_argv:
    os.register_at_fork(after_in_child=forked)
"""


@dataclass
class Session:
    """One pytest run of the suites on the tiny model, its results folder, and every process that it started."""

    repository: Path
    folder: Path
    model: Path
    cache: Path
    matrix: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        """What the session has said until now."""
        return (self.folder / f"output-{self.mark}").read_text(encoding="utf-8")

    @property
    def records(self) -> Path:
        """The record file of the only run."""
        (found,) = self.folder.glob("results/runs/*/records.jsonl")
        return found

    @property
    def workers(self) -> list[int]:
        """The process ids of all workers ever started."""
        counted = self.folder / f"workers-{self.mark}"
        return [int(word) for word in counted.read_text().split()] if counted.exists() else []

    def start(self, selected: str, *arguments: str, file_limit: int | None = None) -> None:
        site = self.folder / "site"
        site.mkdir(parents=True, exist_ok=True)
        (site / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "suites",
            "-m",
            "cpu",
            "-p",
            "no:cacheprovider",
            "-p",
            "tests.steady",
        ]
        command += ["-k", selected]
        command += ["--model", str(self.model), "--recipe", "int8wo", "--matrix", str(self.matrix)]
        command += ["--results", str(self.folder / "results"), "--cache", str(self.cache), "--wide", *arguments]
        environ = os.environ | {
            "HF_TOKEN": TOKEN,
            "PYTHONPATH": str(site),
            "HARNESS_TEST_MARK": self.mark,
            "HARNESS_TEST_WORKERS": str(self.folder / f"workers-{self.mark}"),
        }
        environ.pop("PYTEST_ADDOPTS", None)

        def limit() -> None:
            if file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        with (self.folder / f"output-{self.mark}").open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=self.repository,
                env=environ,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=limit,
            )

    def finish(self, timeout: float = TIMEOUT, within: float = 15) -> tuple[int, str]:
        """Wait for the end and return exit status and output; nothing of the session may outlive it, in seconds."""
        assert self.process
        status = self.process.wait(timeout)
        assert_gone(self.mark, within)
        assert TOKEN not in self.output
        return status, self.output

    def run(self, selected: str, *arguments: str, file_limit: int | None = None) -> tuple[int, str]:
        self.start(selected, *arguments, file_limit=file_limit)
        return self.finish()

    def wait_until_generating(self) -> int:
        """Wait until peak memory is recorded, so that the long generate runs, and return its worker's process id."""
        assert self.process
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            found = list(self.folder.glob("results/runs/*/records.jsonl"))
            if found and any(metric == "peak_memory" for _, metric in measured(found[0])):
                time.sleep(0.5)
                # The process whose peak memory was measured has ended.
                return self._alive()[-1]
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError(f"no peak memory was recorded: {self.output}")

    def wait_until_computing(self) -> int:
        """Wait until the sizes are recorded and a worker has computed for more than loading takes; return its id."""
        assert self.process
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                busy = [pid for pid in self._alive() if psutil.Process(pid).cpu_times().user > 1.5]
                if busy and measured(self.records)[-1:] == [("bf16", SIZES[-1])]:
                    return busy[-1]
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError(f"nothing is computed: {self.output}")

    def _alive(self) -> list[int]:
        return [pid for pid in self.workers if Path(f"/proc/{pid}").exists()]


def measured(records: Path) -> list[tuple[str, str]]:
    """Return recipe and metric of every measurement; workers' starts are noted besides, whenever there is one."""
    lines = [line for line in read(records)[0] if isinstance(line, Measurement) and line.metric != "engine_start"]
    return [(line.cell.recipe.name, line.metric) for line in lines]


def marked(mark: str) -> dict[int, str]:
    """Return the command lines of all living processes that carry the mark in their environment, by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"HARNESS_TEST_MARK={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return found


def assert_gone(mark: str, within: float) -> None:
    deadline = time.monotonic() + within
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"left behind: {left}"


# --------------------------------------------------------------------------------------------------- the story


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact cache that only these tests use, since one of them damages it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def matrix(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``matrix(generate, more)`` writes the suites' matrix with another generate for the CPU, and more at its end.

    Peak memory is that of few tokens.
    """
    original = (repository / "suites" / "matrix.toml").read_text(encoding="utf-8")
    original, found = re.subn(r"(?<=\[measurements\.cpu\]\nmemory = \{ max_new_tokens = )\d+", "8", original)
    assert found == 1
    usual = next(line for line in original.splitlines() if line.startswith("generate = "))
    assert original.count(usual) == 1

    def write(generate: str = usual, more: str = "") -> Path:
        path = tmp_path_factory.mktemp("matrix") / "matrix.toml"
        path.write_text(original.replace(usual, generate) + more, encoding="utf-8")
        return path

    return write


NewSession = Callable[..., Session]


@pytest.fixture(scope="module")
def new_session(
    repository: Path, tiny_model: Any, cache: Path, matrix: Callable[..., Path], tmp_path_factory: Any
) -> NewSession:
    """``new_session(generate=..., more=...)`` returns a session with a results folder of its own, not yet started."""

    def make(generate: str | None = None, more: str = "", folder: Path | None = None) -> Session:
        written = matrix(generate, more) if generate else matrix(more=more)
        return Session(repository, folder or tmp_path_factory.mktemp("session"), tiny_model.folder, cache, written)

    return make


@dataclass(frozen=True)
class Killed:
    """A session that was killed while it generated: its folder, its records then, and its other processes."""

    folder: Path
    records: str
    workers: int
    processes: int
    told_token: list[str]


@pytest.fixture(scope="module")
def killed(new_session: NewSession) -> Killed:
    session = new_session(LONG_CALL)
    session.start(SELECTED)
    assert session.process
    session.wait_until_generating()
    others = {pid: line for pid, line in marked(session.mark).items() if pid != session.process.pid}
    told = [line for pid, line in others.items() if TOKEN in Path(f"/proc/{pid}/environ").read_text()]
    session.process.kill()
    session.finish(within=5)
    records = session.records.read_text(encoding="utf-8")
    return Killed(session.folder, records, len(session.workers), len(others), told)


@dataclass(frozen=True)
class Finished:
    """The killed session after it was resumed."""

    folder: Path
    records: Path
    output: str
    status: int
    workers: int


@pytest.fixture(scope="module")
def finished(killed: Killed, new_session: NewSession) -> Finished:
    session = new_session(folder=killed.folder)
    status, output = session.run(SELECTED, "--resume")
    return Finished(session.folder, session.records, output, status, len(session.workers))


@pytest.fixture
def again(finished: Finished, new_session: NewSession, tmp_path: Path) -> NewSession:
    """``again(more=...)`` returns a session over a copy of the finished one's results, to be resumed once more."""

    def make(more: str = "") -> Session:
        shutil.copytree(finished.folder / "results", tmp_path / "results")
        return new_session(more=more, folder=tmp_path)

    return make


def test_a_killed_session_leaves_its_records_and_no_process(killed: Killed) -> None:
    """That no process is left is seen by :meth:`Session.finish`, as for every other session here."""
    lines = [json.loads(line) for line in killed.records.splitlines()]
    metrics = [line["metric"] for line in lines if line["kind"] == "measurement"]
    assert "peak_memory" in metrics
    assert "generate_throughput" not in metrics
    assert killed.workers == 5, "one to look at the folder's weights, one to quantize, two of memory, one to generate"


def test_resuming_measures_what_is_missing_and_nothing_else(killed: Killed, finished: Finished) -> None:
    assert finished.status == 0, finished.output
    assert finished.records.read_text(encoding="utf-8").startswith(killed.records), "what was recorded stays as it was"
    assert measured(finished.records) == WHOLE
    assert finished.workers == 3, "bf16 to generate, int8wo's memory, int8wo to generate"


def test_a_finished_session_has_records_tables_and_a_summary(finished: Finished) -> None:
    lines, problems = read(finished.records)
    assert not problems
    assert [type(line) for line in lines].count(Header) == 2, "one when it was started, one when it was resumed"
    measurements = [line for line in lines if isinstance(line, Measurement)]
    generated = measurements[-1]
    assert (len(generated.warmup), len(generated.samples), generated.unit) == (1, 3, "tok/s")
    assert generated.packages["torchao"]
    assert generated.device.name
    judgements = [line for line in lines if isinstance(line, Judgement)]
    assert judgements
    assert all(line.passed for line in judgements)
    tables = list((finished.records.parent / "tables").iterdir())
    assert {path.suffix for path in tables} >= {".md", ".rst", ".csv"}
    assert all("int8wo" in path.read_text(encoding="utf-8") for path in tables if path.suffix == ".md")
    for words in ("where the time went", "Peak Memory", "limits held: ", str(finished.records)):
        assert words.lower() in finished.output.lower()


def test_the_hub_token_is_nowhere(killed: Killed, finished: Finished, cache: Path) -> None:
    """In no output either: :meth:`Session.finish` looks for every session here."""
    assert killed.processes >= 2, "a warden and its worker"
    assert not killed.told_token, "no worker is told"
    files = [path for root in (finished.folder, cache) for path in root.rglob("*") if path.is_file()]
    assert any(path.name == "records.jsonl" for path in files)
    assert any(path.suffix == ".log" for path in files)
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_resuming_a_finished_session_measures_nothing(again: NewSession, finished: Finished) -> None:
    session = again()
    status, output = session.run(SELECTED, "--resume")
    assert status == 0, output
    assert session.workers == []
    assert measured(session.records) == WHOLE


def test_a_limit_that_does_not_hold_is_shown_with_what_was_measured_and_published(again: NewSession) -> None:
    session = again(
        '[[thresholds]]\nmetric = "generate_throughput"\nrecipes = ["int8wo"]\nmin_ratio = 1000.0\norigin = "a test"\n'
        "every_model = true\n"
    )
    status, output = session.run(SELECTED, "--resume")
    assert status == 1
    assert session.workers == [], "a limit is held against what was measured before"
    records = {
        (line.cell.recipe.name, line.metric): line for line in read(session.records)[0] if isinstance(line, Measurement)
    }
    value, baseline = (records[recipe, "generate_throughput"].value for recipe in ("int8wo", "bf16"))
    told = " ".join(output.split())
    for words in (
        re.escape(f"measured {value:.6g} tok/s (baseline {baseline:.6g} tok/s)"),
        rf"min_ratio {value / baseline:.4g} \(by its rounds [\d.]+ to [\d.]+\), limit 1000, published nothing",
        "the limit's origin: a test",
    ):
        assert len(re.findall(words, told)) >= 2, "in the test's own report and among the limits that do not hold"
    assert "1 failed" in output


def test_a_torn_record_is_named_and_the_others_are_used(again: NewSession) -> None:
    session = again()
    whole = session.records.read_bytes()
    assert whole.endswith(b"\n")
    session.records.write_bytes(whole + whole.splitlines()[-1][:100])
    number = whole.count(b"\n") + 1
    status, output = session.run(SELECTED, "--resume")
    assert status == 0, output
    assert session.workers == []
    assert "records that could not be read" in output
    assert f"{session.records}, line {number}: left out" in output
    assert measured(session.records) == WHOLE
    lines, problems = read(session.records)
    assert len(problems) == 1, "what is written after the torn line is whole"
    assert [type(line) for line in lines].count(Header) == 3


def test_a_full_disk_is_a_clear_error_and_keeps_whole_records(again: NewSession) -> None:
    session = again()
    before = session.records.read_bytes()
    shutil.rmtree(session.records.parent / "tables")
    (session.records.parent / "tables").write_text("in the way of the tables, as a full disk is")
    header = next(line for line in before.splitlines(keepends=True))
    status, output = session.run(SELECTED, "--resume", file_limit=len(before) + len(header) + 600)
    assert status == 1
    assert f"{session.records}: cannot write a record (File too large)" in output
    assert "go on with --resume" in output
    assert "no tables: " in output
    assert "INTERNALERROR" not in output
    after = session.records.read_bytes()
    assert after.startswith(before)
    assert read(session.records)[1] == []
    (session.records.parent / "tables").unlink()
    status, output = session.run(SELECTED, "--resume")
    assert status == 0, output
    assert session.workers == []


def test_a_second_session_waits_until_the_first_is_done(again: NewSession) -> None:
    session = again()
    with FileLock(machine_lock()):
        machine_lock().with_suffix(".holder").write_text("4711", encoding="utf-8")
        session.start(SELECTED, "--resume")
        assert session.process
        deadline = time.monotonic() + 60
        while "waiting" not in session.output and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "waiting: another session measures on this machine (process 4711)" in session.output
        assert session.process.poll() is None
    status, output = session.finish()
    assert status == 0, output


# ------------------------------------------------------------------------------------------- smaller mishaps


def test_an_interrupted_session_says_so_and_leaves_no_process(new_session: NewSession) -> None:
    session = new_session(LONG_GENERATE)
    session.start("(checkpoint or generate) and bf16")
    session.wait_until_computing()
    assert session.process
    session.process.send_signal(signal.SIGINT)
    status, output = session.finish(timeout=60)
    assert status == pytest.ExitCode.INTERRUPTED
    assert measured(session.records) == [("bf16", metric) for metric in SIZES]
    assert f"records: {session.records}" in output, "it says where to go on from"


def test_a_worker_that_is_killed_is_a_recorded_failure_and_the_session_goes_on(new_session: NewSession) -> None:
    session = new_session(LONG_GENERATE)
    session.start("checkpoint or (generate and bf16)")
    worker = session.wait_until_computing()
    os.kill(worker, signal.SIGKILL)
    status, output = session.finish()
    assert status == 1
    (failure,) = [line for line in read(session.records)[0] if isinstance(line, Failure)]
    assert (failure.cell.recipe.name, failure.stage) == ("bf16", "generate")
    assert failure.failure in ("crash", "out_of_memory"), "the kernel may count its victims or not"
    assert "was killed (signal 9)" in failure.message
    assert failure.message in output
    assert ("int8wo", "weight_size") in measured(session.records)
    assert "1 failed, 2 passed" in output


def test_a_damaged_checkpoint_is_built_again_with_a_word(
    finished: Finished, cache: Path, new_session: NewSession
) -> None:
    (weights,) = cache.glob("checkpoint/*/model.safetensors")
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    session = new_session()
    status, output = session.run("checkpoint and int8wo")
    assert status == 0, output
    assert "the stored artifact is damaged (model.safetensors has other contents than when it was made)" in output
    assert "building it again" in output
    assert len(session.workers) == 1
    start = 8 + int.from_bytes(good[:8], "little")
    assert weights.read_bytes()[start:] == good[start:], "the same tensors; the header's metadata has no fixed order"


def test_weights_that_cannot_be_read_fail_their_tests_and_not_the_session(
    new_session: NewSession, tmp_path: Path
) -> None:
    session = new_session()
    session.model = tmp_path / "damaged"
    session.model.mkdir()
    (session.model / "weights.gguf").write_bytes(b"GGUF, but no more than that")
    status, output = session.run("(checkpoint or peak_memory) and bf16")
    assert status == 1
    assert "2 failed" in output
    assert "INTERNALERROR" not in output
    failures = [line for line in read(session.records)[0] if isinstance(line, Failure)]
    assert [failure.stage for failure in failures] == ["plain_from_gguf", "plain_from_gguf"]
    assert failures[0].message in output
    assert [failure.repeated for failure in failures] == [False, True]
    assert len(session.workers) == 1, "what failed once is not tried again"
