"""The commands gate, bisect and calibrate as they are typed, over gates that measure nothing."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import __main__
from harness.base.errors import BrokenEnvironment, HarnessError
from harness.commands import bisect as bisect_command
from harness.commands import calibrate, workplace
from harness.commands import gate as gate_command
from harness.commands.workplace import Environments, Workplace
from harness.gate import margins
from harness.gate.gate import GateResult
from harness.gate.noise import summarise
from harness.gate.plan import units
from harness.judge import accuracy, gatefile
from harness.judge.calibration import Calibration
from harness.judge.gatefile import GateFile, Options, UnitState, Works, exit_status
from harness.judge.rules import LOAD, LOGITS, OLD_CHECKPOINT, QUANTIZE, SERVE, Margins
from harness.judge.series import SIDES, Series
from harness.judge.verdict import Verdict, event, judge
from harness.machine import probe
from harness.matrix.plan import Matrix
from harness.records.place import Place
from harness.records.schema import Device
from harness.runtime import environment_pair
from harness.runtime.environment import Environment
from harness.runtime.environment_pair import Pair
from harness.runtime.installed import Distribution, Lock
from harness.runtime.mixtures import Mixtures
from harness.runtime.store import Store

MODEL = "SmolLM2-135M-Instruct"
DEVICE = probe.host().name
NOISE = (1.0, 1.01, 0.99, 1.005, 0.995, 1.008, 0.992, 1.0)


def place(metric: str, server: str = "transformers", **parameters: Any) -> Place:
    return Place(model=MODEL, recipe="int8wo", hardware="cpu", server=server).at(metric, parameters)


UNIT = Place(model=MODEL, recipe="int8wo", hardware="cpu", server="transformers", stage="transformers")


def speed(factor: float = 1.0) -> Verdict:
    values = {"old": [10 * noise for noise in NOISE], "new": [10 * factor * noise for noise in NOISE[::-1]]}
    return judge(Series(place("generate_throughput", max_new_tokens=16), values, True), Margins())


def noisy() -> Verdict:
    values = {"old": [10 * noise**20 for noise in NOISE], "new": [9.6 * noise**20 for noise in NOISE[::-1]]}
    found = judge(Series(place("generate_throughput", max_new_tokens=16), values, True), Margins())
    assert found.verdict == "inconclusive"
    return found


@dataclass
class Gates:
    """Every gate that a command runs: ``answer`` gives its verdicts, or raises."""

    folder: Path
    answer: Callable[[Options], list[Verdict]] = lambda _: [speed()]
    asked: list[Options] = field(default_factory=list)
    resumed: list[str | None] = field(default_factory=list)
    compatibility: list[Works] = field(default_factory=list)
    device: str = DEVICE
    calibrated: list[bool] = field(default_factory=list)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)

    def gate(
        self,
        work: Workplace,
        options: Options,
        environments: Environments,
        resume: str | None = None,
        *,
        calibrated: bool = True,
    ) -> GateResult:
        self.asked.append(options)
        self.resumed.append(resume)
        self.calibrated.append(calibrated)
        verdicts = self.answer(options)
        folder = work.results / "gates" / str(len(list((work.results / "gates").glob("*"))))
        folder.mkdir(parents=True)
        gate = GateFile(
            finished=True,
            package="tiny",
            old=options.old,
            new=options.new,
            hardware="cpu",
            device=self.device,
            created="2026-01-01T00:00:00+00:00",
            budget_seconds=options.budget,
            seconds=100.0,
            measuring_seconds=90.0,
            verdicts=verdicts,
            compatibility=self.compatibility,
            exit_status=exit_status(verdicts),
            options=options,
            environments=self.environments,
            units={"one": UnitState(UNIT, done=8, seconds=60.0, measuring=80.0)},
        )
        (folder / "gate.json").write_text(gate.text(), encoding="utf-8")
        return GateResult(folder, verdicts, gatefile.load(folder))


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gates(tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> Gates:
    found = Gates(tmp_path)
    store = Store(tmp_path / "cache")
    cpu = suites_matrix.hardware["cpu"]
    work = Workplace(store, tmp_path / "results", suites_matrix, cpu, Environment(), lambda _: None)
    monkeypatch.setattr(workplace, "opened", lambda _: work)
    for module in (gate_command, bisect_command, calibrate):
        # Nothing is measured here, so nobody who measures is waited for.
        monkeypatch.setattr(module, "machine_lock", lambda: tmp_path / "machine.lock")
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


def test_an_accepted_regression_fails_neither_this_gate_nor_the_next(
    gates: Gates, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = gates.folder / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    gates.answer = lambda _: [speed(0.7)]
    given = ("gate", "tiny==1", "tiny==2")
    status, output, _ = command(*given)
    assert status == 1
    (accept,) = re.findall(r"accept it: (.*--accept +\S+)", output.replace("\\\n", ""))
    results = str(gates.folder / "results")
    assert shlex.split(accept) == [
        *("python", "-m", "harness", *given, "-m", "cpu", "--budget", "1800s", "--results", results),
        *("--resume", "last", "--accept", "generate_throughput:REASON"),
    ]
    status, output, _ = command(*given, "--accept", "generate_throughput:its fix is under way")
    assert status == 0
    assert "accepted: its fix is under way" in output
    path = gates.folder / "results" / "accepted.json"
    assert f"accepted,forgatestocome:{path}" in "".join(output.split())
    assert command(*given)[0] == 0
    gates.answer = lambda _: [speed(0.5)]
    status, output, _ = command(*given)
    assert status == 1
    assert "is worse than was accepted" in " ".join(output.split())
    text = summary.read_text(encoding="utf-8")
    assert text.count("**regressed: ") == 2
    assert text.count("**accepted: ") == 2
    stored = sorted((gates.folder / "results" / "gates").glob("*/gate.json"))
    assert [gatefile.load(it).exit_status for it in stored] == [1, 0, 0, 1]
    reports = [it.with_name("report.md").read_text(encoding="utf-8") for it in stored]
    assert ["its fix is under way" in it for it in reports] == [False, True, True, True]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--accept", "latency"), "say why"),
        (("--accept", "speed:x"), "judged by no gate"),
        (("--blocks", "0"), "1 or more"),
    ],
)
def test_what_cannot_be_accepted_is_refused_before_anything_is_measured(
    gates: Gates, command: Command, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    try:
        status, _, errors = command("gate", "tiny==1", "tiny==2", *words)
    except SystemExit as error:
        status, errors = int(str(error.code)), capsys.readouterr().err
    assert status == 2
    assert said in errors
    assert gates.asked == []


def test_an_acceptance_of_what_has_not_regressed_is_said_and_not_kept(gates: Gates, command: Command) -> None:
    status, output, _ = command("gate", "tiny==1", "tiny==2", "--accept", "latency:why not")
    assert status == 0
    assert "--accept latency: nothing to accept, it has not regressed in this gate" in output
    assert not (gates.folder / "results" / "accepted.json").exists()


def test_an_interrupted_gate_tells_what_it_has_judged(gates: Gates, command: Command) -> None:
    """The gate of before, which came to its end, is not told of again."""
    old = gates.folder / "results" / "gates" / "before"
    gates.answer = lambda _: [speed(1.0)]
    assert command("gate", "a==1", "a==2")[0] == 0
    (gates.folder / "results" / "gates" / "0").rename(old)
    os.utime(old / "gate.json", (1, 1))

    def interrupted(options: Options) -> list[Verdict]:
        verdicts = [speed(0.7)]
        folder = gates.folder / "results" / "gates" / "unfinished"
        folder.mkdir()
        text = (old / "gate.json").read_text(encoding="utf-8")
        data = json.loads(text) | {"verdicts": json.loads(gate_text(verdicts))["verdicts"], "finished": False}
        (folder / "gate.json").write_text(json.dumps(data | {"exit_status": 1}), encoding="utf-8")
        raise KeyboardInterrupt

    gates.answer = interrupted
    status, output, errors = command("gate", "a==1", "a==2")
    assert status == 130
    assert "regressed" in output
    assert "not finished" in output
    assert "go on with: python -m harness gate a==1 a==2 -m cpu --budget 1800s" in errors
    assert errors.endswith(" --resume unfinished\n")
    (gates.folder / "results" / "gates" / "unfinished" / "gate.json").write_text("{", encoding="utf-8")
    gates.answer = raises
    assert command("gate", "a==1", "a==2") == (130, "", errors)


def gate_text(verdicts: list[Verdict]) -> str:
    told = {"package": "a", "old": "a", "new": "b", "hardware": "cpu", "created": "", "seconds": 1.0}
    return GateFile.model_validate(told | {"verdicts": verdicts, "exit_status": 1}).text()


def raises(_: Options) -> list[Verdict]:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ZeroDivisionError("planted"), 2, "ZeroDivisionError: planted"),
        (ValueError("math domain error"), 2, "Traceback (most recent call last)"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (HarnessError("planted"), 2, "error: planted"),
    ],
)
def test_only_a_regression_ends_with_1(
    gates: Gates,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    words: str,
) -> None:
    def fails(_: object) -> Workplace:
        raise error

    monkeypatch.setattr(workplace, "opened", fails)
    assert __main__.main(["gate", "a==1", "a==2", "-m", "cpu"]) == status
    assert words in capsys.readouterr().err


def test_an_installation_that_lacks_something_has_not_regressed(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "scipy.py").write_text("raise ImportError('planted: scipy is not here')\n")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(repository)])}
    command = [sys.executable, "-m", "harness", "gate", "a==1", "a==2", "-m", "cpu"]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "planted: scipy is not here" in done.stderr


# ----------------------------------------------------------------------------------------------------------- bisection


@pytest.fixture
def releases(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The releases that pip finds, each of which can be installed."""
    found = ["1.0", "1.1", "1.2", "1.3", "1.4"]
    monkeypatch.setattr(environment_pair, "releases", lambda package, base: found)
    monkeypatch.setattr(environment_pair, "make", lambda store, old, new, base: Pair("tiny", base, base, ()))
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

    monkeypatch.setattr(environment_pair, "make", broken)
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
        ("request_throughput", ("-k", "not server"), "nothing to gate"),
    ],
)
def test_what_would_measure_nothing_is_refused_first(
    gates: Gates, command: Command, releases: list[str], metric: str, more: tuple[str, ...], words: str
) -> None:
    status, _, errors = bisect(command, metric, *more)
    assert (status, gates.asked) == (2, [])
    assert words in errors


def test_sizes_and_tasks_can_be_searched_for(gates: Gates, command: Command, releases: list[str]) -> None:
    sizes = Series(place("checkpoint_size", ""), {"old": [1e6], "new": [2e6]})
    gates.answer = lambda options: [judge(sizes, Margins())]
    assert bisect(command, "checkpoint_size")[0] == 1
    assert bisect(command, "accuracy", "--task", "piqa")[0] == 2, "no gate here had a verdict on it"


def stopped(stage: str) -> Verdict:
    about = Series(place(f"works: {stage}"))
    return event(about, "regressed", "stopped-working", f"planted: {stage}")


@pytest.mark.parametrize(
    ("metric", "stage", "status"),
    [
        ("generate_throughput", QUANTIZE, 1),
        ("generate_throughput", LOAD, 1),
        ("generate_throughput", OLD_CHECKPOINT, 0),
        ("generate_throughput", SERVE, 0),
        ("request_throughput", SERVE, 1),
        ("checkpoint_size", QUANTIZE, 1),
        ("checkpoint_size", LOAD, 0),
        ("checkpoint_size", OLD_CHECKPOINT, 0),
        ("old_checkpoint", OLD_CHECKPOINT, 1),
    ],
)
def test_only_what_a_metric_needs_counts_as_its_regression(
    gates: Gates, command: Command, releases: list[str], metric: str, stage: str, status: int
) -> None:
    size = judge(Series(place("checkpoint_size", ""), {"old": [1e6], "new": [1e6]}), Margins())
    served = replace(speed(), place=place("request_throughput", "vllm"), unit="req/s")
    gates.answer = lambda _: [speed(), served, size, stopped(stage)]
    assert bisect(command, metric)[0] == status


def reads(same: bool) -> Verdict:
    about = Series(place(LOGITS))
    if same:
        return event(about, "pass", "checkpoint-reads-same", "")
    return event(about, "regressed", "checkpoint-differs", "")


@pytest.mark.parametrize("bad", [stopped(OLD_CHECKPOINT), reads(False)])
def test_the_first_release_that_reads_an_old_checkpoint_otherwise_is_named(
    gates: Gates, command: Command, releases: list[str], bad: Verdict
) -> None:
    gates.answer = lambda options: [speed(0.5), bad if options.new >= "tiny==1.2" else reads(True)]
    status, output, _ = bisect(command, "old_checkpoint", "-k", MODEL.partition("-")[0])
    assert (status, output.splitlines()[-1]) == (1, "first bad release: 1.2 (last good: 1.1)")
    assert "generate_throughput" not in output, "its own verdict is no part of the question"
    assert {it.keyword for it in gates.asked} == {"(SmolLM2) and (peak_memory or compile_time)"}


def test_an_old_checkpoint_that_works_through_an_engine_passes_without_a_verdict(
    gates: Gates, command: Command, releases: list[str]
) -> None:
    works = Works(place("", "vllm").cell, OLD_CHECKPOINT)
    gates.answer = lambda _: []
    gates.compatibility = [replace(works, old="works", new="works")]
    status, output, _ = bisect(command, "old_checkpoint")
    assert (status, "1.4: old_checkpoint: pass" in output) == (0, True)
    gates.compatibility = [works]
    status, output, _ = bisect(command, "old_checkpoint")
    assert (status, "1.4: old_checkpoint: no verdict" in output) == (2, True)
    assert not any(gates.calibrated), "no margin of a metric on the way keeps the search from its end"


def test_a_baseline_has_no_old_checkpoint_to_search_for(gates: Gates, command: Command, releases: list[str]) -> None:
    status, _, errors = command("bisect", "tiny", "1.0..1.4", "--metric", "old_checkpoint", "--recipe", "bf16")
    assert (status, gates.asked) == (2, [])
    assert "none of these cells has a quantized checkpoint" in errors


def test_an_interrupted_bisection_keeps_its_gates_and_says_so(
    gates: Gates, command: Command, releases: list[str]
) -> None:
    def answer(options: Options) -> list[Verdict]:
        if len(gates.asked) == 2:
            raise KeyboardInterrupt
        return [speed(0.7)]

    gates.answer = answer
    status, output, errors = bisect(command)
    assert status == 130
    assert f"1.4: generate_throughput of {MODEL}-int8wo-transformers: regressed" in output
    assert "the gates that were measured are kept in" in errors
    assert len(list((gates.folder / "results" / "gates").glob("*/gate.json"))) == 1


def test_a_bisection_that_was_interrupted_goes_on_and_asks_nothing_twice(
    gates: Gates, command: Command, releases: list[str]
) -> None:
    def answer(options: Options) -> list[Verdict]:
        if len(gates.asked) == 3:
            raise KeyboardInterrupt
        return [speed(0.7 if options.new >= "tiny==1.3" else 1.0)]

    gates.answer = answer
    status, _, errors = bisect(command)
    assert status == 130
    (search,) = (gates.folder / "results" / "bisects").glob("*.json")
    assert f"the same command goes on with --resume {search.stem}" in errors
    before = [it.new for it in gates.asked]
    status, output, _ = bisect(command, "generate_throughput", "--resume", "last")
    assert (status, output.splitlines()[-1]) == (1, "first bad release: 1.3 (last good: 1.2)")
    after = [it.new for it in gates.asked][len(before) :]
    assert after == [before[-1]], "only what had not been answered is asked"
    assert "1.4: generate_throughput" in output, "what was answered is told again"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (None, "no search 'last'"),
        ("{", "damaged"),
        ('{"schema": 9, "asked": {}, "gates": {}}', "of schema 9"),
        ('{"schema": 1, "asked": {"metric": "latency"}, "gates": {}}', 'metric: "latency" then'),
        ('{"schema": 1, "asked": {}, "gates": {"1.4": 3}}', "damaged"),
    ],
)
def test_a_search_that_cannot_be_gone_on_with_is_refused_by_name(
    gates: Gates, command: Command, releases: list[str], damage: str | None, words: str
) -> None:
    if damage is not None:
        folder = gates.folder / "results" / "bisects"
        folder.mkdir(parents=True)
        (folder / "20260101-000000.json").write_text(damage)
    status, _, errors = bisect(command, "generate_throughput", "--resume", "last")
    assert status == 2
    assert words in errors
    assert gates.asked == []


def test_a_gate_of_a_search_that_cannot_be_read_is_run_again(
    gates: Gates, command: Command, releases: list[str]
) -> None:
    gates.answer = lambda options: [speed(0.7 if options.new >= "tiny==1.3" else 1.0)]
    bisect(command)
    count = len(gates.asked)
    first = next((gates.folder / "results" / "gates").glob("0/gate.json"))
    first.write_text("{")
    status, output, _ = bisect(command, "generate_throughput", "--resume", "last")
    assert (status, output.splitlines()[-1]) == (1, "first bad release: 1.3 (last good: 1.2)")
    assert [it.new for it in gates.asked][count:] == ["tiny==1.4"]
    assert gates.resumed[count:] == [None]


def test_what_was_inconclusive_is_measured_on(gates: Gates, command: Command, releases: list[str]) -> None:
    gates.answer = lambda options: [noisy()]
    assert bisect(command)[0] == 3
    gates.answer = lambda options: [speed(1.0)]
    assert bisect(command, "generate_throughput", "--resume", "last", "--budget", "2h")[0] == 0
    assert gates.resumed == [None, "0"]


@pytest.fixture
def packages(releases: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Lock]:
    """Two environments that differ in tiny, front, which needs its own release of tiny, and side."""

    def lock(version: str) -> Lock:
        needs = {"front": (f"tiny=={version}",)}
        return {
            name: Distribution(name, version, f"{name}=={version}", "", needs.get(name, ()))
            for name in ("front", "same", "side", "tiny")
        }

    found = {"old": lock("1.0"), "new": lock("1.4")}
    found["new"] = {**found["new"], "same": found["old"]["same"]}
    of = lambda store, resolved, told, base, package: Pair(package, base, base, ())  # noqa: E731
    monkeypatch.setattr(
        environment_pair, "make", lambda *_: Pair("tiny side", Environment(), Environment(), (), {}, found)
    )
    monkeypatch.setattr(environment_pair, "of", of)
    monkeypatch.setattr(Mixtures, "release", lambda self, name, release: of(None, None, None, self.base, name))
    return found


SIDES_OF = ("--old", "tiny==1.0", "side==1.0", "--new", "tiny==1.4 side==1.4")


def which(command: Command, *more: str) -> tuple[int, str, str]:
    return command("bisect", "--metric", "generate_throughput", "--recipe", "int8wo", *more, *SIDES_OF)


def test_the_package_that_did_it_is_named_and_then_its_first_bad_release(
    gates: Gates, command: Command, packages: dict[str, Lock]
) -> None:
    def answer(options: Options) -> list[Verdict]:
        version = next(it for it in options.new.split() if it.startswith("side==")) if "side" in options.new else ""
        return [speed(0.7 if version >= "side==1.2" else 1.0)]

    gates.answer = answer
    status, output, _ = which(command)
    told = output.splitlines()
    assert told[-1] == "first bad release of side: 1.2 (last good: 1.1)"
    assert "made worse by 1 of 3 packages: side 1.0 -> 1.4" in told
    assert "tiny 1.0 -> 1.4: not without the others: front 1.0 asks for tiny==1.0" in output
    assert status == 1
    assert gates.asked[0].old == "tiny==1.0 side==1.0 front==1.0"
    assert gates.asked[0].new == "tiny==1.4 side==1.4 front==1.4", "all of them together first"
    assert gates.asked[1].new == "tiny==1.0 side==1.4 front==1.0"


def test_packages_that_need_each_other_are_named_together(
    gates: Gates, command: Command, packages: dict[str, Lock]
) -> None:
    gates.answer = lambda options: [speed(0.7 if "tiny==1.4" in options.new else 1.0)]
    status, output, _ = which(command)
    (line,) = [line for line in output.splitlines() if line.startswith("made worse by")]
    assert line == "made worse by 2 of 3 packages: tiny 1.0 -> 1.4 with front 1.0 -> 1.4"
    assert status == 1
    assert len(gates.asked) == 3, "neither of them is measured without the other"


def test_a_mixture_that_could_not_be_judged_is_told_and_leaves_it_open(
    gates: Gates, command: Command, packages: dict[str, Lock]
) -> None:
    def answer(options: Options) -> list[Verdict]:
        if "side==1.4" in options.new and "tiny==1.0" in options.new:
            raise BrokenEnvironment("planted: no wheel of side")
        return [speed(0.7 if "tiny==1.4 side==1.4" in options.new else 1.0)]

    gates.answer = answer
    status, output, _ = which(command)
    assert "could not be judged by themselves: side" in output
    assert status == 3


def test_packages_without_a_regression_have_nothing_to_search_for(
    gates: Gates, command: Command, packages: dict[str, Lock]
) -> None:
    status, output, _ = which(command)
    assert (status, len(gates.asked)) == (0, 1)
    assert "generate_throughput is not worse on the new side" in output


def test_one_package_alone_is_searched_by_its_releases(
    gates: Gates, command: Command, packages: dict[str, Lock], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment_pair, "make", lambda *_: Pair("tiny", Environment(), Environment(), ()))
    status, _, errors = which(command)
    assert status == 2
    assert "search its releases, as in bisect tiny FIRST..LAST" in errors


@pytest.mark.parametrize(
    ("words", "sides"),
    [
        (["a==1", "a==2"], ("a==1", "a==2")),
        (["--old", "a==1", "b==1", "--new", "a==2", "b==1"], ("a==1 b==1", "a==2 b==1")),
        (["a==1 b==1", "a==2 b==2"], ("a==1 b==1", "a==2 b==2")),
        (["--old", "before.lock", "--new", "after.lock"], ("before.lock", "after.lock")),
    ],
)
def test_sides_are_named_by_their_places_or_by_options(
    gates: Gates, command: Command, words: list[str], sides: tuple[str, str]
) -> None:
    assert command("gate", *words)[0] == 0
    assert (gates.asked[0].old, gates.asked[0].new) == sides


@pytest.mark.parametrize(
    "words", [["a==1"], ["--old", "a==1"], ["a==1", "--new", "a==2"], ["a==1", "a==2", "--new", "a"]]
)
def test_one_side_alone_is_refused(gates: Gates, command: Command, words: list[str]) -> None:
    status, _, errors = command("gate", *words)
    assert (status, gates.asked) == (2, [])
    assert "--old" in errors


def test_where_several_packages_differ_a_finding_asks_which_of_them_it_was(gates: Gates, command: Command) -> None:
    gates.answer = lambda _: [speed(0.7)]
    gates.environments = {"old": {"a": "1", "b": "1"}, "new": {"a": "2", "b": "2"}}
    _, output, _ = command("gate", "--old", "a==1", "b==1", "--new", "a==2", "b==2")
    told = " ".join(output.replace("\\\n", "").split())
    assert "bisect --old 'a==1 b==1' --new 'a==2 b==2' -m cpu --metric generate_throughput --recipe int8wo" in told
    assert "since: a==2 b==2; a==1 b==1 was better" in told


# --------------------------------------------------------------------------------------------------------- calibration


def same(seed: int, between: float = 0.02, within: float = 0.005) -> list[Verdict]:
    """Return a gate's verdicts on this environment against itself: eight blocks of five rounds, memory and quality."""
    rng = np.random.default_rng(seed)
    rounds: dict[str, list[list[float]]] = {"old": [], "new": []}
    for _ in range(8):
        for side in SIDES:
            process = 10 * math.exp(rng.normal(0, between / math.sqrt(2)))
            rounds[side].append([process * math.exp(rng.normal(0, within / math.sqrt(2))) for _ in range(5)])
    values = {side: [statistics.median(block) for block in blocks] for side, blocks in rounds.items()}
    windows, answers = [5.0 + 0.01 * index for index in range(16)], [1.0] * 300 + [0.0] * 100
    found = [
        Series(place("generate_throughput", max_new_tokens=16), values, True, rounds),
        Series(place("peak_memory"), {"old": [1.0], "new": [1.001 + 0.001 * (seed % 2)]}),
        Series(place("perplexity"), {"old": windows, "new": windows}),
        Series(place("kl_divergence"), {"old": [0.01] * 16, "new": [0.01] * 16}),
        Series(place("accuracy", task="piqa"), {"old": answers, "new": answers}),
    ]
    return [judge(one, Margins()) for one in found]


def calibration(gates: Gates) -> Calibration:
    found = Calibration.find(gates.folder / "results", "cpu", DEVICE)
    assert found
    return found


def test_a_calibration_tells_the_smallest_effect_of_every_metric_and_the_best_number_of_rounds(
    gates: Gates, command: Command
) -> None:
    gates.answer = lambda options: same(options.seed)
    status, output, _ = command("calibrate", "--gates", "12")
    assert status == 0
    assert [it.seed for it in gates.asked] == list(range(12))
    (noise,) = calibration(gates).noise
    assert (noise.between, noise.within) == (pytest.approx(0.02, rel=0.2), pytest.approx(0.005, rel=0.2))
    # A block of 60 s has 5 rounds a side of 1.6 s each; processes differ four times as much as rounds do.
    assert noise.rounds == 5
    assert noise.best_rounds in (1, 2)
    steady = {it.metric: it for it in calibration(gates).steady}
    assert steady["peak_memory"].differs == pytest.approx(0.002)
    assert steady["peak_memory"].smallest == pytest.approx(0.022), "the margin of 2 % and the spread on top"
    assert steady["perplexity"].smallest == pytest.approx(0.01 * steady["perplexity"].value), "it is what it is"
    assert steady["perplexity"].differs == steady["accuracy"].differs == 0
    fewest = round(steady["accuracy"].smallest * 400)
    assert accuracy.tango_interval(fewest, 0, 400).high < -0.02 <= accuracy.tango_interval(fewest - 1, 0, 400).high
    for words in (
        "What is not timed",
        f"{noise.best_rounds} (5)",
        "400 documents",
        "16 windows",
        "false alarms: 0 of 12",
    ):
        assert words in output
    assert not list((gates.folder / "results" / "calibration").glob("*unfinished*"))


def test_rounds_pay_where_processes_are_dear_and_alike(gates: Gates) -> None:
    gates.answer = lambda options: same(options.seed, between=0.002, within=0.02)
    assert __main__.main(["calibrate", "-m", "cpu", "--gates", "12", "--results", str(gates.folder / "results")]) == 0
    (noise,) = calibration(gates).noise
    assert noise.best_rounds is not None
    assert noise.best_rounds > 10


def test_an_interrupted_calibration_is_summarised_and_can_be_gone_on_with(
    gates: Gates, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(options: Options) -> list[Verdict]:
        if options.seed == 2:
            raise KeyboardInterrupt
        return same(options.seed)

    gates.answer = answer
    status, output, errors = command("calibrate", "--gates", "4")
    assert status == 130
    assert "interrupted; 2 of 4 gates are kept: the same command with --resume goes on" in errors
    assert "false alarms: 0 of 2 gates" in output
    assert Calibration.find(gates.folder / "results", "cpu", DEVICE) is None, "half a calibration replaces none"
    gates.answer = lambda options: same(options.seed)
    status, _, errors = command("calibrate", "--gates", "4", "--budget", "5m", "--resume", "--seed", "9")
    assert (status, len(gates.asked)) == (2, 3)
    assert "started otherwise: seed: 0 then, 9 now" in errors
    with monkeypatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "63")
        assert "63 now" in command("calibrate", "--gates", "4", "--resume")[2]
    with monkeypatch.context() as patch:
        patch.setattr(probe, "device", lambda _: Device(name="another processor"))
        assert "another processor now" in command("calibrate", "--gates", "4", "--resume")[2]
    status, output, _ = command("calibrate", "--gates", "4", "--resume")
    assert status == 0
    assert [it.seed for it in gates.asked] == [0, 1, 2, 2, 3]
    assert calibration(gates).gates == 4
    assert "no unfinished calibration" in command("calibrate", "--resume")[2]


def test_a_calibration_for_other_threads_is_not_held_against_a_gate(
    tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    verdicts = [verdict for seed in range(2) for verdict in same(seed, between=0.2)]
    given: dict[str, Any] = {"package": "tiny", "old": "a", "new": "b", "hardware": "cpu", "created": "", "seconds": 9}
    units_of = {"one": UnitState(UNIT, seconds=10.0)}
    gate = GateFile(**given, device=DEVICE, verdicts=verdicts, exit_status=0, units=units_of)
    summarise([gate], "cpu", 100.0).write(tmp_path)
    told: list[str] = []
    options = Options("a", "b", "cpu", recipes=("int8wo",), servers=("transformers",), budget=100)
    made = Calibration.find(tmp_path, "cpu", DEVICE)
    assert made
    with pytest.raises(HarnessError, match="cannot hold these margins"):
        margins.hold(made, options, units(suites_matrix, options), told.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    margins.hold(made, options, units(suites_matrix, options), told.append)
    assert "calibrated for 1 threads a worker and this gate runs 2" in told[-1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    quiet = made.model_copy(update={"noise": []})
    margins.check(quiet, Margins(), units(suites_matrix, options), 100)
    told.clear()
    strict = replace(options, margins=("token_flips=0.02", "0.9"))
    margins.hold(made, strict, units(suites_matrix, strict), told.append)
    (line,) = told
    assert "--margin: taken as given, since the calibration of this machine says nothing of token_flips of" in line
    unsteady = [it.model_copy(update={"differs": 0.5}) for it in quiet.steady]
    loud = quiet.model_copy(update={"steady": unsteady})
    with pytest.raises(HarnessError, match=r"peak_memory of int8wo: .*the same measured twice differs by"):
        margins.check(loud, Margins(), units(suites_matrix, options), 100)
