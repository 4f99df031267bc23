"""What a user mistypes is refused in a dry run as in a run, with what was meant, and without a list of tests."""

from __future__ import annotations

import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import __main__
from harness.base import shipped
from harness.commands import gate

MATRIX = Path(__file__).parents[2] / "suites" / "matrix.toml"
SUITE = """
import pytest

@pytest.mark.stage("engine")
def test_latency(cell, batch_size): pass

@pytest.mark.stage("quantize")
def test_checkpoint(cell): pass
"""
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run pytest as in a project of one's own, with a copy of the shipped matrix and two tests."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (pytester.mkdir("suites") / "matrix.toml").write_bytes(MATRIX.read_bytes())
    (pytester.path / "suites" / "test_suite.py").write_text(SUITE, encoding="utf-8")
    return lambda *words: pytester.runpytest_inprocess("-p", "harness.plugin.plugin", "--strict-markers", *words)


def refused(result: pytest.RunResult) -> str:
    """Return what a dry run says that was refused, on one line; it lists no test."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    told = result.outlines + result.errlines
    assert not any("::" in line for line in told), told
    assert not any("Traceback" in line for line in told)
    return " ".join(" ".join(told).split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-m", "cup"], "-m cup: hardware has other names; did you mean cpu?"),
        (["-m", "cpu and"], "Wrong expression passed to '-m': cpu and"),
        (["-m", "cpu", "-k", "latency and"], "Wrong expression passed to '-k': latency and"),
        (["-m", "cpu", "--model", "SmolLM2-135M-Instrct"], "did you mean SmolLM2-135M-Instruct"),
        (["-m", "cpu", "--recipe", "int8w"], "did you mean int8wo"),
        (["-m", "cpu", "--recipee", "int8wo"], "did you mean: --recipe"),
        (["-m", "cpu", "--recip=int8wo"], "did you mean: --recipe"),
        (["-m", "cpu", "--device", "qmeu"], "--device 'qmeu' is not one of: host"),
        (["-m", "cpu", "--against", "cpuu"], "--against: there is no baseline"),
        (["-m", "cpu", "--resume=20200101-000000"], "--resume 20200101-000000: no run"),
        (["-m", "cpu", "--swap", "torchao=0.17.0"], "did you mean torchao==0.17.0?"),
        (["-m", "cpu", "--python", "/no/such"], "--python /no/such: /no/such is not an interpreter"),
        (["-m", "cpu", "--environment", "vlm=/x"], "--environment vlm=/x: give SERVER=PATH"),
    ],
)
def test_a_dry_run_refuses_what_a_run_would_and_lists_nothing(run: Run, words: list[str], told: str) -> None:
    assert told in refused(run("suites", *words, "--collect-only", "-q"))


@pytest.mark.parametrize("how", [["--collect-only", "-q"], []])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-k", "latncy"], "-k 'latncy': no test has 'latncy' in its name; did you mean latency"),
        # Half of it selects something.
        (["-k", "checkpoint or (latency and int8w0)"], "no test has 'int8w0' in its name; did you mean int8wo"),
        (["--task", "helaswag"], "--task 'helaswag' is no task of lm-evaluation-harness; did you mean hellaswag"),
        (["--task", "no/such|thing"], "is no task of lm-evaluation-harness; lm-eval ls tasks lists them"),
        (["--workload", "chatt"], "--workload 'chatt' is no workload of matrix.toml; did you mean chat"),
        (["--server", "vlm"], "--server 'vlm' is no server; did you mean vllm?"),
        (["--set", "latncy.input_len=3"], "'latncy' is nothing that can be set; did you mean latency"),
        (["--require", "perplexty max=3"], "did you mean perplexity"),
    ],
)
def test_a_run_refuses_it_as_a_dry_run_does(run: Run, words: list[str], told: str, how: list[str]) -> None:
    assert told in refused(run("suites", "-m", "cpu", *words, *how))


def test_what_is_to_be_left_out_may_be_of_no_test(run: Run) -> None:
    result = run("suites", "-m", "cpu", "-k", "latency and not phi-5", "--collect-only", "-q")
    assert result.ret == pytest.ExitCode.OK


def test_tasks_that_are_there_pass(run: Run) -> None:
    words = ("--task", "hellaswag", "--task", "mmlu", "--collect-only", "-q")
    assert run("suites", "-m", "cpu", *words).ret == pytest.ExitCode.OK


def test_why_nothing_is_selected_and_what_there_is(run: Run) -> None:
    result = run("suites", "-m", "cpu", "-k", "latency and checkpoint")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    words = "nothing is selected by -m 'cpu' and -k 'latency and checkpoint', of"
    assert any(words in line for line in result.outlines)
    assert "what there is to select: pytest suites -m 'cpu' --co -q" in result.outlines


def test_a_mistake_in_every_table_is_told_of_a_few_times(run: Run, tmp_path: Path) -> None:
    text = MATRIX.read_text(encoding="utf-8").replace("\norigin =", "\norigni =")
    (tmp_path / "matrix.toml").write_text(text, encoding="utf-8")
    told = refused(run("suites", "-m", "cpu", "--wide", f"--matrix={tmp_path}/matrix.toml", "--co", "-q"))
    assert told.count("this key does not exist here; did you mean origin") == 4
    assert told.count("(known: ") == 1
    assert "more mistakes" in told


def test_an_empty_matrix_says_what_to_write_into_it(run: Run, tmp_path: Path) -> None:
    for name, text, wrong in (
        ("empty.toml", "# nothing yet\n", "there is nothing in it"),
        ("half.toml", "schema = 1\n", "cells: this key is required, and missing"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        told = refused(run("suites", "-m", "cpu", "--wide", f"--matrix={tmp_path}/{name}", "--co", "-q"))
        assert wrong in told
        assert 'extends = "shipped"' in told


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The interpreter of an environment in which the harness was installed without the extra of its hardware."""
    venv.create(tmp_path / "bare env", with_pip=False)
    return tmp_path / "bare env" / "bin" / "python"


@pytest.mark.programs
def test_an_environment_without_the_extra_is_told_of_once_and_with_what_mends_it(run: Run, bare: Path) -> None:
    result = run("suites", "-m", "cpu", "--wide", f"--python={bare}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    told = " ".join(" ".join(result.outlines + result.errlines).split())
    assert f"torch, torchao, transformers: not installed in {bare}, and every worker needs them" in told
    assert "tox run -e cpu" in told
    assert "Traceback" not in told
    assert len(result.outlines + result.errlines) < 20


@pytest.mark.programs
def test_a_gate_of_an_environment_without_the_extra_is_refused_before_it_installs(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "only_session", lambda *_: pytest.fail("waited for another session"))
    places = ["--python", str(bare), "--results", str(tmp_path), "--cache", str(tmp_path)]
    assert __main__.main(["gate", "torchao==0.17.0", "torchao==0.18.0", "-m", "cpu", *places]) == 2
    told = capsys.readouterr().err
    assert f"torch: not installed in {bare}, and both sides need it: pip install" in told


def test_what_to_install_is_told_as_it_is_typed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "pip install -e '.[cpu]', or tox run -e cpu"
    assert shipped.installing(told) == told, "this is a checkout"
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "site-packages" / "harness")
    monkeypatch.chdir(tmp_path)
    assert shipped.installing(told) == "pip install 'torchao-harness[cpu]'"
    (tmp_path / "tox.ini").write_text("[testenv:cpu]", encoding="utf-8")
    assert shipped.installing(told) == "pip install 'torchao-harness[cpu]', or tox run -e cpu"
    assert shipped.installing(told.replace("cpu", "mobile")) == "pip install 'torchao-harness[mobile]'"
