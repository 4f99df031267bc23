"""The commands gate, bisect and calibrate as they are typed, over gates that measure nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import __main__, gate_command, gate_report, pair
from harness.artifacts import Store
from harness.environment import Environment
from harness.errors import BrokenEnvironment
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


# ----------------------------------------------------------------------------------------------------------- bisection


@pytest.fixture
def releases(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The releases that pip finds, each of which can be installed."""
    found = ["1.0", "1.1", "1.2", "1.3", "1.4"]
    monkeypatch.setattr(pair, "releases", lambda package, base: found)
    monkeypatch.setattr(pair, "make", lambda store, old, new, base: Pair("tiny", base, base, ()))
    return found


def bisect(command: Command, metric: str = "generate_throughput", *more: str) -> tuple[int, str, str]:
    return command("bisect", "tiny", "1.0..1.4", "--metric", metric, "--recipe", "int8wo", *more)


def test_the_first_bad_release_is_named(gates: Gates, command: Command, releases: list[str]) -> None:
    gates.answer = lambda options: [speed(0.7 if options.new >= "tiny==1.3" else 1.0)]
    status, output, _ = bisect(command)
    assert (status, output.splitlines()[-1]) == (1, "first bad release: 1.3 (last good: 1.2)")
    assert {(it.old, it.keyword) for it in gates.asked} == {("tiny==1.0", "generate_throughput")}
    assert f"1.3: generate_throughput of {MODEL}-int8wo-transformers: regressed, 0.700" in output


def test_a_release_that_cannot_be_installed_is_passed_over(gates: Gates, command: Command, releases: list[str]) -> None:
    def answer(options: Options) -> list[Verdict]:
        if options.new == "tiny==1.2":
            raise BrokenEnvironment("tiny==1.2 could not be installed; the installer says: no wheel")
        return [speed(0.7 if options.new >= "tiny==1.3" else 1.0)]

    gates.answer = answer
    status, output, _ = bisect(command)
    assert "1.2: passed over: tiny==1.2 could not be installed" in output
    assert output.splitlines()[-1].endswith("1.3 (last good: 1.1); could not be judged in between: 1.2")
    assert status == 3


def test_a_first_release_that_cannot_be_installed_ends_it_before_anything_is_measured(
    gates: Gates, command: Command, releases: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Pair:
        raise BrokenEnvironment("tiny==1.0 cannot be had")

    monkeypatch.setattr(pair, "make", broken)
    status, _, errors = bisect(command)
    assert (status, gates.asked) == (2, [])
    assert "tiny==1.0 cannot be had" in errors


@pytest.mark.parametrize(
    ("metric", "more", "words"),
    [
        ("accuracy", (), "--metric accuracy is measured on tasks: name one or several with --task"),
        ("task_perplexity", (), "--task"),
        ("speed", (), "'speed' is not judged by gates"),
        ("latency", ("--server", "transformers"), "nothing to gate"),
        ("weight_size", ("--server", "vllm"), "nothing to gate"),
    ],
)
def test_what_would_measure_nothing_is_refused_first(
    gates: Gates, command: Command, releases: list[str], metric: str, more: tuple[str, ...], words: str
) -> None:
    status, _, errors = bisect(command, metric, *more)
    assert (status, gates.asked) == (2, [])
    assert words in errors


def test_sizes_and_tasks_can_be_searched_for(gates: Gates, command: Command, releases: list[str]) -> None:
    sizes = Series(MODEL, "int8wo", None, "checkpoint_size", "", None, {"old": [1e6], "new": [2e6]})
    gates.answer = lambda options: [judge(sizes, Margins())]
    assert bisect(command, "checkpoint_size")[0] == 1
    assert bisect(command, "accuracy", "--task", "piqa")[0] == 2, "no gate here had a verdict on it"
