"""Every command, as it is typed and with its help: no line wider than 100 columns, in a pipe either."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from harness import __main__
from harness.base.terminal import width
from tests.reference import MAIN_JOB

REFERENCE = Path("results/reference")
CPU = REFERENCE / MAIN_JOB.name
H100 = REFERENCE / "h100-20261125-013623-gpu1"
MODEL = "SmolLM2-135M-Instruct"
TYPED = [
    ["table", CPU, H100, "--layout", "all"],
    ["table", CPU, "--layout", "main"],
    ["table", "no-such-run-of-a-rather-long-name-" * 5],
    ["cost", H100],
    ["why", H100],
    ["cost", CPU, "no-such-run"],
    ["baseline", CPU, CPU, "no-such-run"],
    ["trend", CPU, H100],
    ["reference", REFERENCE, "--check"],
    ["report", CPU, "-o", "OUT/page.html"],
    ["init", "OUT/project"],
    [
        "publish",
        "SmolLM2-135M-Instruct:int8wo",
        "--repo",
        "me/x",
        "--records",
        CPU,
        "--dry-run",
        "OUT/card",
        "--card-only",
    ],
    ["publish", "SmolLM2-135M-Instruct:nothing-of-that-name", "--repo", "me/x", "--records", CPU],
    ["gate", "torchao==0.17.0", "torchao==0.18.0", "-m", "no-such-hardware"],
    ["gate", "torchao==0.17.0", "torchao==0.18.0", "-m", "cpu", "--recipe", "nothing", "--explain", "no-such-metric"],
    ["bisect", "torchao", "0.15.0..0.18.0", "-m", "cpu", "--metric", "no-such-metric"],
    ["calibrate", "-m", "cpu", "--gates", "0"],
    ["export", CPU, "--format", "junit"],
    ["bundle", "OUT/bundle", "--python", "3.11", "--extra", "no-such-extra"],
    ["doctor"],
]


def typed(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines that a command prints as the process of its own that it usually is."""
    monkeypatch.setattr(sys, "argv", ["harness", *words])
    with contextlib.suppress(SystemExit):  # argparse's, after the help
        __main__.main()
    told = capsys.readouterr()
    return [line for text in told for line in text.splitlines()]


@pytest.fixture
def place(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(repository)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.mark.parametrize("words", TYPED, ids=lambda words: "-".join(map(str, words))[:40])
@pytest.mark.programs
def test_no_line_is_wider(
    words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = typed([str(word).replace("OUT", str(place)) for word in words], monkeypatch, capsys)
    assert max(map(width, lines), default=0) <= 100
    assert not [line for line in lines if "Traceback" in line]


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_no_line_of_the_help_is_wider(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    lines = typed([name, "--help"], monkeypatch, capsys)
    assert 60 < max(map(width, lines)) <= 100
    assert "--wide" in "\n".join(lines)


def test_wide_is_as_wide_as_it_is(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert max(map(width, typed(["table", str(CPU), "--wide"], monkeypatch, capsys))) > 150


def test_data_for_other_programs_is_not_folded(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = typed(["table", str(CPU), "--format", "csv"], monkeypatch, capsys)
    assert len({line.count(",") > 5 for line in lines}) == 1
    assert max(map(len, lines)) > 150


@pytest.mark.programs
def test_a_process_whose_output_is_a_pipe(place: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "harness", "table", str(CPU), "--layout", "all"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert max(map(width, done.stdout.splitlines())) == 100
