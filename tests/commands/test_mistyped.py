"""A mistyped command, option or side of ``python -m harness`` is told of with what was meant, before any waiting."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness import __main__
from harness.commands import bisect, calibrate, choose, gate, own_flow
from harness.runtime import environment_pair
from tests.reference import MAIN_JOB


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return what a command that ends with status 2 says on standard error, on one line."""
    try:
        status = __main__.main(list(words))
    except SystemExit as ended:
        status = int(str(ended.code))
    assert status == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["tabel", "last"], "did you mean table?"),
        (["publsh", "x"], "did you mean publish?"),
        (["export", "last", "--format", "pytorch-v2"], "did you mean pytorch-v3"),
        (["table", "last", "--layuot", "main"], "did you mean --layout?"),
        (
            ["publish", "a:b", "--repo", "me/x", "--run", "last"],
            "arguments: --run last; did you mean --runs",
        ),
        (["table", "last", "--layout", "mian"], "did you mean main?"),
        (["trend", "--metric", "latncy"], "--metric 'latncy' is no metric; did you mean latency"),
        (["bisect", "torchao", "0.17.0..0.18.0", "-m", "cpu", "--metric", "latncy"], "did you mean latency"),
        (["gate", "a==1", "a==2", "-m", "cup"], "did you mean cpu"),
        (["gate", "a==1", "a==2", "-m", "cpu", "--set", "latncy.rounds=3"], "did you mean latency"),
        (["gate", "a==1", "a==2", "-m", "cpu", "--recipee", "int8wo"], "did you mean --recipe?"),
        (["gate", "a==1", "a==2", "-m", "cpu", "--on", ""], "--on is given, and empty"),
        (["gate", "a==1", "a==2", "-m", "cpu", "--share="], "--share is given, and empty"),
        ([], "COMMAND"),
    ],
)
def test_what_was_meant(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert meant in told(capsys, *words)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["torchao=0.17.0", "torchao==0.18.0"], "did you mean torchao==0.17.0?"),
        (["torchao==0.17.0", "torchao==0.18.0", "--recipe", "int8w"], "did you mean int8wo"),
        (["torchao==0.17.0", "torchao==0.18.0", "--model", "SmolLM2-135M-Instrct"], "did you mean SmolLM2-135M"),
        (["torchao==0.17.0", "torchao==0.18.0", "-k", "latncy"], "'latncy' in its name; did you mean latency"),
        (["torchao==0.17.0", "torchao==0.18.0", "-k", "int8wo and bf16"], "nothing to gate"),
        (["torchao==0.17.0", "torchao==0.18.0", "-k", "# title"], "-k '# title': unexpected character"),
        (["torchao==0.17.0", "torchao==0.18.0", "--task", "helaswag"], "did you mean hellaswag"),
        (["torchao==0.17.0", "torchao==0.18.0", "--workload", "chatt"], "did you mean chat"),
        (["torchao==0.17.0", "torchao==0.18.0", "--server", "vlm"], "did you mean vllm"),
        (["torchao==0.17.0", "torchao==0.18.0", "--margin", "latncy=0.1"], "latency"),
        (["no.whl", "torchao==0.18.0"], "there is no such wheel"),
        (["torchao==0.17.0", "torchao==0.18.0", "--resume", "20261101-0"], "no run '20261101-0'"),
    ],
)
def test_a_gate_refuses_names_before_it_waits_for_another_session(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gate, "only_session", lambda *_: pytest.fail("waited for another session"))
    monkeypatch.setattr(sys, "argv", ["harness"])
    assert meant in told(capsys, "gate", *words, "-m", "cpu", "--results", str(tmp_path), "--cache", str(tmp_path))


@pytest.mark.parametrize(
    "command",
    [["bisect", "torchao", "0.17.0..0.18.0", "--metric", "latency"], ["calibrate"]],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--recipe", "int8w"], "did you mean int8wo"),
        (["--model", "SmolLM2-135M-Instrct"], "did you mean SmolLM2-135M"),
        (["-k", "int8w0"], "'int8w0' in its name; did you mean int8wo"),
        (["--task", "helaswag"], "did you mean hellaswag"),
        (["--workload", "chatt"], "did you mean chat"),
        (["--server", "vlm"], "did you mean vllm"),
        (["--margin", "latncy=0.1"], "latency"),
    ],
)
def test_so_do_all_that_are_made_of_gates_before_they_ask_for_a_release(
    command: list[str], words: list[str], meant: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    for module in (bisect, calibrate):
        monkeypatch.setattr(module, "only_session", lambda *_: pytest.fail("waited for another session"))
    monkeypatch.setattr(environment_pair, "releases", lambda *_: pytest.fail("asked for releases"))
    monkeypatch.setattr(sys, "argv", ["harness"])
    assert meant in told(capsys, *command, *words, "-m", "cpu", "--results", str(tmp_path), "--cache", str(tmp_path))


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["SmolLM2-135M-Instrct"], "did you mean SmolLM2-135M"),
        (["SmolLM2-135M-Instruct", "--recipe", "int8w"], "did you mean int8wo"),
        (["SmolLM2-135M-Instruct", "--task", "helaswag"], "did you mean hellaswag"),
        (["SmolLM2-135M-Instruct", "--limit", "ten"], "--limit: invalid int value"),
        (["SmolLM2-135M-Instruct", "-m", "cup"], "did you mean cpu"),
    ],
)
def test_a_choice_refuses_names_before_its_first_session(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(choose, "_session", lambda _: pytest.fail("began a session"))
    assert meant in told(capsys, "choose", *words, "--results", str(tmp_path))


def test_a_run_of_the_tutorial_s_rows_names_the_recipes_that_it_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(own_flow, "only_session", lambda *_: pytest.fail("waited for another session"))
    words = ["--recipe", "int8w", "-m", "cpu", "--cache", str(tmp_path)]
    assert "did you mean int8wo" in told(capsys, "tutorial", str(MAIN_JOB), *words)
