"""Ctrl-C, SIGTERM and SIGHUP: the first ends a session in order, a later one at once, and neither with a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import __main__ as command_line
from harness.base.interruption import Interrupted, Interruption

ENDING = """
import sys, time
from harness.base.interruption import Interruption
with Interruption(lambda: "the last words") as interruption:
    try:
        print("working", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print(f"ending: {interruption.by}", flush=True)
        time.sleep(float(sys.argv[1]))
        print("ended", flush=True)
"""
# A test of the suites' shape: it holds a session open as long as a measurement would.
SUITE = """
import time
import pytest
@pytest.mark.stage("transformers")
def test_long(cell, harness_session):
    print("a test's own words")
    open("working", "w").close()
    time.sleep(60)
"""
SLOW_END = """
import time
import pytest
@pytest.fixture(scope="session", autouse=True)
def slow():
    yield
    open("ending", "w").close()
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What is interrupted here goes on, with the next test: a command that was interrupted would end."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def start(*words: str, folder: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


WITHIN = """
import sys, time
from harness.base.interruption import Interruption, status
try:
    with Interruption():
        exec("print('working', flush=True); time.sleep(60)")
except KeyboardInterrupt as interruption:
    sys.exit(status(str(interruption)))
"""


def test_what_is_interrupted_within_exec_ends_with_its_status(tmp_path: Path) -> None:
    """As imports run it, which make dataclasses."""
    (tmp_path / "within.py").write_text(WITHIN)
    with start("-m", "within", folder=tmp_path) as process:
        assert line(process) == "working"
        process.send_signal(signal.SIGHUP)
        assert process.wait(10) == 128 + signal.SIGHUP


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_ends_the_work_in_order(number: signal.Signals) -> None:
    with start("-c", ENDING, "0") as process:
        assert line(process) == "working"
        process.send_signal(number)
        assert [line(process), line(process)] == [f"ending: {number.name}", "ended"]
        assert process.wait(10) == 0


@pytest.mark.programs
def test_a_second_one_at_once_is_the_same_and_a_later_one_ends_it() -> None:
    with start("-c", ENDING, "60") as process:
        assert line(process) == "working"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        by = line(process).removeprefix("ending: SIG")
        assert by in ("INT", "TERM")
        time.sleep(1.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + {"INT": signal.SIGINT, "TERM": signal.SIGTERM}[by]
        assert process.stdout is not None
        assert process.stdout.read().split("\n") == ["", "the last words", ""]


def test_what_ends_by_itself_is_not_stopped_in_the_middle() -> None:
    with Interruption() as interruption:
        interruption.ending()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.by == "SIGTERM"


def test_signals_are_as_they_were_afterwards_and_an_ignored_one_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        kept = signal.getsignal(signal.SIGTERM)
        with Interruption():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not kept
        assert signal.getsignal(signal.SIGTERM) is kept
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_changes_nothing() -> None:
    kept = signal.getsignal(signal.SIGTERM)
    found = []

    def look() -> None:
        with Interruption():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [kept]


# What each needs to be taken for a command; it is interrupted before it looks at it.
WORDS = {
    **{name: ["run"] for name in ("table", "cost", "why", "baseline", "compatibility", "neighbours")},
    "tutorial": ["run", "-m", "cpu"], "choose": ["model"], "gate": ["a", "b", "-m", "cpu"], "calibrate": ["-m", "cpu"],
    "bisect": ["a", "1..2", "--metric", "latency", "-m", "cpu"], "fairness": ["model", "-m", "cpu"],
    "report": ["run", "-o", "page.html"], "site": ["out"], "export": ["run", "--format", "csv"], "init": ["out"],
    "bundle": ["out", "--python", "3.12", "--extra", "x"], "publish": ["x", "--repo", "o/n"],
}  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_every_command_that_is_interrupted_says_so_and_ends_with_128_and_the_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, number: signal.Signals
) -> None:
    def run(_: object) -> int:
        os.kill(os.getpid(), number)
        time.sleep(5)
        return 0

    monkeypatch.setattr(f"harness.commands.{name}.run", run)
    before = {it: signal.getsignal(it) for it in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    assert command_line.main([name, *WORDS.get(name, [])]) == 128 + number
    for it, handler in before.items():
        signal.signal(it, handler)
    assert capsys.readouterr().err == "interrupted; what stood there stays, whole; the same command begins anew\n"


def test_what_is_kept_is_told_and_no_credential_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> int:
        raise Interrupted(KeyboardInterrupt("SIGTERM"), "go on with: x \x1b[2J --password=abcd1234efgh")

    monkeypatch.setattr("harness.commands.doctor.run", run)
    assert command_line.main(["doctor"]) == 143
    assert capsys.readouterr().err == "interrupted; go on with: x \ufffd[2J --password=[token removed]\n"


@pytest.mark.programs
@pytest.mark.parametrize("after", [0.05, 0.15, 0.4])
def test_ctrl_c_while_it_is_loaded_is_no_traceback_of_ours(after: float) -> None:
    """Before Python has come to the command there is nothing that could be said."""
    with start("-m", "harness", "doctor") as process:
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode in (0, 1, 128 + signal.SIGINT, -signal.SIGINT), output
    assert "harness/" not in output.partition("Traceback")[2]


@pytest.fixture
def suite(pytester: pytest.Pytester, repository: Path) -> list[str]:
    """The words of a session that works for a minute, and ends slowly if it is told to."""
    pytester.makepyfile(test_long=SUITE)
    pytester.makeconftest('pytest_plugins = ["harness.plugin.plugin"]')
    words = ["-m", "pytest", "-p", "no:cacheprovider", "test_long.py", "--recipe", "bf16", "--matrix"]
    words += [str(repository / "suites" / "matrix.toml"), "--results", "results", "--cache", "cache", "-m", "cpu"]
    return words


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    if not path.exists():
        pytest.fail(process.communicate()[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.programs
def test_a_session_ends_with_its_summary_and_how_to_go_on(
    pytester: pytest.Pytester, suite: list[str], number: signal.Signals
) -> None:
    with start(*suite, folder=pytester.path) as process:
        wait_for(pytester.path / "working", process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    (run,) = (pytester.path / "results" / "runs").iterdir()
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert f"records: results/runs/{run.name}/records.jsonl" in output
    assert f"interrupted by {number.name}" in output
    assert "go on with: python -m pytest -p no:cacheprovider test_long.py" in output
    assert f" --resume {run.name}\n" in output
    assert "Traceback" not in output


@pytest.mark.programs
def test_interrupted_twice_it_ends_at_once_without_a_traceback(pytester: pytest.Pytester, suite: list[str]) -> None:
    pytester.makeconftest('pytest_plugins = ["harness.plugin.plugin"]' + SLOW_END)
    with start(*suite, folder=pytester.path) as process:
        wait_for(pytester.path / "working", process)
        process.send_signal(signal.SIGINT)
        wait_for(pytester.path / "ending", process)
        time.sleep(1.2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    (run,) = (pytester.path / "results" / "runs").iterdir()
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in output
    assert "INTERNALERROR" not in output
    assert "what was measured is kept\ngo on with: python -m pytest" in output
    assert output.rstrip().endswith(f"--resume {run.name}")
