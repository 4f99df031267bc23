"""The commands gate, bisect and calibrate as they are typed, over gates that measure nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import __main__, gate_command, gate_report
from harness.artifacts import Store
from harness.environment import Environment
from harness.gate import Outcome, exit_status
from harness.gate_command import Workplace
from harness.matrix import Matrix
from harness.pair import Pair
from harness.selection import Options
from harness.verdict import Margins, Series, Verdict, judge

MODEL = "SmolLM2-135M-Instruct"
NOISE = (1.0, 1.01, 0.99, 1.005, 0.995, 1.008, 0.992, 1.0)


def speed(factor: float = 1.0) -> Verdict:
    values = {"old": [10 * noise for noise in NOISE], "new": [10 * factor * noise for noise in NOISE[::-1]]}
    return judge(Series(MODEL, "int8wo", "transformers", "generate_throughput", "", None, values, True), Margins())


@dataclass
class Gates:
    """Every gate that a command runs: ``answer`` gives its verdicts, or raises."""

    folder: Path
    answer: Callable[[Options], list[Verdict]] = lambda _: [speed()]
    asked: list[Options] = field(default_factory=list)

    def gate(self, place: Workplace, options: Options, resume: str | None = None, pair: Pair | None = None) -> Outcome:
        self.asked.append(options)
        verdicts = self.answer(options)
        folder = place.results / "gates" / str(len(list((place.results / "gates").glob("*"))))
        folder.mkdir(parents=True)
        data: dict[str, Any] = {
            "schema": 1,
            "old": options.old,
            "new": options.new,
            "hardware": "cpu",
            "created": "2026-01-01T00:00:00+00:00",
            "budget_seconds": options.budget,
            "seconds": 100.0,
            "measuring_seconds": 90.0,
            "differences": [],
            "verdicts": [vars(verdict) for verdict in verdicts],
            "compatibility": [],
            "kernels": [],
            "exit_status": exit_status(verdicts),
            "units": {f"{MODEL}-int8wo-cpu-transformers": {"done": 8, "seconds": 10.0, "measuring": 80.0, "lost": 0}},
        }
        data = json.loads(json.dumps(gate_report.finite(data)))
        (folder / "gate.json").write_text(json.dumps(data), encoding="utf-8")
        return Outcome(folder, verdicts, data)


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gates(tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> Gates:
    found = Gates(tmp_path)
    store = Store(tmp_path / "cache")
    place = Workplace(store, tmp_path / "results", suites_matrix, Environment(), lambda _: None)
    monkeypatch.setattr(gate_command, "workplace", lambda _: place)
    monkeypatch.setattr(Workplace, "gate", lambda *given, **more: found.gate(*given, **more))
    return found


@pytest.fixture
def command(gates: Gates, capsys: pytest.CaptureFixture[str]) -> Command:
    """``command("gate", ...)`` returns exit status, output and errors."""

    def run(*words: str) -> tuple[int, str, str]:
        status = __main__.main([*words, "-m", "cpu", "--results", str(gates.folder / "results")])
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


def test_a_metric_without_a_verdict_is_said_at_the_end_and_everything_is_written(
    gates: Gates, command: Command
) -> None:
    gates.answer = lambda _: [speed(0.7)]
    files = [gates.folder / name for name in ("junit.xml", "copy.json")]
    words = ("--explain", "latency", "--junit", str(files[0]), "--json", str(files[1]))
    status, output, _ = command("gate", "a==1", "a==2", *words)
    assert status == 1
    assert "latency: this gate has no verdict on it" in output
    assert all(file.stat().st_size for file in files)
