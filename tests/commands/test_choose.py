"""``choose``: which recipes are asked for, what is dropped before it is timed, and what is said of the rest."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.__main__ import main
from harness.base import shipped
from harness.base.errors import MatrixError
from harness.commands import choose
from harness.matrix.load import load
from harness.records.run import Run
from harness.records.schema import Failure, Line
from tests.report.test_choice import BASE, figures


def test_all_recipes_that_run_there_are_candidates_and_others_say_why() -> None:
    matrix = load(shipped.matrix())
    found, absent = choose.candidates(matrix, "cpu", None)
    assert found[0] == "bf16"
    assert {"int8wo", "8da4w", "float8wo"} <= set(found)
    assert set(found) | set(absent) == set(matrix.recipes)
    assert "GPU" in absent["float8dq"]
    assert choose.candidates(matrix, "cpu", ["int8wo"]) == (["bf16", "int8wo"], {})
    with pytest.raises(MatrixError, match="did you mean int8wo"):
        choose.candidates(matrix, "cpu", ["int8w"])


@pytest.fixture
def sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Sessions that write records in place of measuring: int4 is better than nf4 in all that is told first."""
    asked: list[list[str]] = []
    runs: list[Run] = []
    failure = Failure(cell=BASE[0].cell.model_copy(update={"recipe": figures("nf4wo", 4, None)[0].cell.recipe}),
                      stage="quantize", failure="refused", message="it would leave\n120 layers plain")  # fmt: skip
    what: dict[str, list[Any]] = {
        "nf4wo": [failure],
        "bf16": BASE,
        "int8wo": figures("int8wo", 8, 0.01),
        "8da4w": figures("8da4w", 8.5, 0.9),
    }

    def session(words: list[str], _: object) -> int:
        asked.append(words)
        if not runs:
            runs.append(Run.create(tmp_path / "results" / "runs"))
        lines: list[Line] = [it for name in what if name in words for it in what[name]]
        for line in lines:
            runs[0].append(line)
        return 0

    monkeypatch.setattr(choose, "_session", session)
    return asked


def test_what_is_beaten_before_it_is_timed_is_not_timed(
    sessions: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["choose", "SmolLM2-135M-Instruct", "--recipe", "int8wo", "--recipe", "8da4w", "--recipe", "nf4wo"]
    assert main([*words, "--results", str(tmp_path / "results"), "--cache", "here"]) == 0
    first, then = sessions
    assert first[first.index("-k") + 1] == "checkpoint or text_quality"
    assert "8da4w" in first
    assert not {"8da4w", "nf4wo"} & set(then), "beaten, and without a result"
    assert then[then.index("--resume") + 1] == next((tmp_path / "results" / "runs").iterdir()).name
    assert [it[it.index("--cache") + 1] for it in sessions] == ["here", "here"]
    out = capsys.readouterr().out
    assert "8da4w: int8wo is no larger" in out
    assert "nf4wo: it would leave 120 layers plain" in " ".join(out.split())
    assert "worth having: int8wo, bf16" in out
    folder = next((tmp_path / "results" / "runs").iterdir())
    assert "int8wo beats it" in (folder / "choices.md").read_text(encoding="utf-8")
    page = (folder / "choices.html").read_text(encoding="utf-8")
    assert "<svg" in page
    answer = page.index('<section id="answer"><h2>Worth having: int8wo, bf16</h2>')
    assert answer < page.index("int8wo beats it</td>") < page.index('<section class="subject"')


def test_many_are_held_against_each_other_over_little_text_first(
    sessions: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And those that stand are asked the task."""
    names = ["int8wo", "8da4w", "nf4wo", "float8wo", "int8dq"]
    words = ["choose", "SmolLM2-135M-Instruct", *(word for name in names for word in ("--recipe", name))]
    words += ["--task", "piqa", "--limit", "40"]
    assert main([*words, "--results", str(tmp_path / "results")]) == 0
    little, whole, then = sessions
    assert little[little.index("--text-windows") + 1] == "4"
    assert "--text-windows" not in whole
    assert not {"8da4w", "nf4wo"} & {*whole, *then}
    assert "--task" not in whole
    assert then[then.index("--task") + 1 : then.index("--task") + 4] == ["piqa", "--limit", "40"]
    assert then[then.index("-k") + 1] == "peak_memory or generate or test_task"
    assert capsys.readouterr().out.count("8da4w: int8wo is no larger") == 1


def test_a_session_that_could_not_begin_chooses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choose, "_session", lambda words, goes_on: 4)
    assert main(["choose", "me/mine", "--results", str(tmp_path)]) == 2
    assert "ended with status 4" in capsys.readouterr().err


SESSION = """#!/bin/sh
trap 'echo the session ended in order; exit 2' TERM INT
mkdir -p {runs}/20261130-010203 && touch {runs}/20261130-010203/records.jsonl
echo working
while :; do sleep 0.05; done
"""


def _over(script: str, place: Path) -> list[str]:
    """Return the command of a choice that has a script in place of a session."""
    session, results = place / "session", place / "results"
    session.write_text(script.format(runs=results / "runs"))
    session.chmod(0o755)
    code = f"import sys; from harness.__main__ import main; sys.executable = {str(session)!r}; sys.exit(main())"
    words = ["choose", "--wide", "SmolLM2-135M-Instruct", "--recipe", "int8wo", "--results", str(results)]
    return [sys.executable, "-c", code, *words]


@pytest.mark.programs
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_lets_the_session_end_in_order_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = _over(SESSION, tmp_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(number)
        told, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "the session ended in order" in told
    due = "go on with: python -m harness choose SmolLM2-135M-Instruct -m cpu --recipe int8wo"
    assert f"{due} --results {tmp_path}/results --resume 20261130-010203" in " ".join(told.split())
    assert "Traceback" not in told


SLOW = f"""#!{sys.executable}
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: print("ending", flush=True))
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.programs
def test_a_second_interruption_ends_the_session_with_it(tmp_path: Path) -> None:
    command = _over(SLOW, tmp_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        session = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "ending\n"
        # What comes sooner is the same interruption.
        time.sleep(1.2)
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert not session.is_running() or session.status() == psutil.STATUS_ZOMBIE
    assert "ended at once, as asked a second time" in told
    assert "go on with: python -m harness choose SmolLM2-135M-Instruct -m cpu --recipe int8wo" in " ".join(told.split())
