"""Progress: what is said, when, and how long is left, by real earlier runs; and pytest's own output stays whole."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.plugin.estimate import Estimate
from harness.plugin.progress import Progress, duration
from harness.records.schema import Cell, Device, Header, Line, ModelIdentity, Outcome, RecipeIdentity, Timing
from tests.records.test_columns import written


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def outcome(test: str, seconds: float, ended: str = "passed", time: float = 1.0) -> Outcome:
    return Outcome(test=test, outcome=ended, seconds=seconds, time=time)  # type: ignore[arg-type]


def earlier(folder: Path, name: str, device: str, *outcomes: Outcome) -> None:
    header = Header(run=name, command=[], packages={}, device=Device(name=device))
    written(folder, [header, *outcomes], name)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (99, "99 s"), (100, "2 min"), (720, "12 min"), (7500, "2 h 05 min")]
)
def test_a_duration_is_told_as_people_do(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_test_takes_as_long_as_it_last_took_on_this_device(tmp_path: Path) -> None:
    earlier(tmp_path, "1", "here", outcome("a.py::t[1]", 10.0, time=1), outcome("a.py::t[2]", 30.0, time=1))
    earlier(tmp_path, "2", "here", outcome("a.py::t[1]", 20.0, time=2), outcome("a.py::f[1]", 5.0, "failed"))
    earlier(tmp_path, "3", "elsewhere", outcome("a.py::t[1]", 999.0, time=3))
    found = Estimate.load(tmp_path, "here", tmp_path / "cache")
    assert found.of("a.py::t[1]") == 20.0
    assert found.of("a.py::t[new]") == 25.0  # the median of its function
    assert found.of("a.py::f[1]") is None
    assert found.left(["a.py::t[1]", "a.py::t[2]", "a.py::f[1]"]) == (50.0, 1)


def cell(recipe: str) -> Cell:
    model = ModelIdentity(name="m", source="folder", revision="1", weights="pretrained")
    identity = RecipeIdentity(name=recipe, hash=recipe, config={}, baseline=recipe == "bf16")
    return Cell(model=model, recipe=identity, hardware="h200", server="vllm")


def session(folder: Path, name: str, order: list[str], recipe: str, start: float, when: float) -> None:
    """Write a run whose first test waits for an engine: what each measures takes 10 s."""
    lines: list[Line] = [Header(run=name, command=[], packages={}, device=Device(name="here"))]
    for number, test in enumerate(order):
        waited = 0.0 if number else start
        of, at = cell(recipe), when + number
        lines += [Timing(stage="engine start", seconds=waited, cell=of, time=at)] if waited else []
        lines += [Timing(stage="measure", seconds=10.0, cell=of, time=at)]
        lines += [Outcome(test=f"e.py::{test}[{recipe}]", outcome="passed", seconds=waited + 10, cell=of, time=at)]
    written(folder, lines, name)


def test_what_is_started_for_a_cell_is_expected_once_whichever_of_its_tests_comes_first(tmp_path: Path) -> None:
    session(tmp_path, "1", ["agreement", "latency", "kernels"], "bf16", 90.0, 1)
    session(tmp_path, "2", ["latency", "agreement"], "int8wo", 200.0, 10)
    session(tmp_path, "3", ["latency"], "int8wo", 150.0, 20)
    found = Estimate.load(tmp_path, "here", tmp_path / "cache")
    assert found.left(["e.py::latency[bf16]"]) == (100.0, 0), "the test that was first then is not asked for"
    assert found.left(["e.py::latency[bf16]", "e.py::agreement[bf16]", "e.py::kernels[bf16]"]) == (120.0, 0)
    assert found.left(["e.py::agreement[int8wo]", "e.py::latency[int8wo]"]) == (170.0, 0), (
        "as long as a start last took"
    )
    assert found.left(["e.py::latency[bf16]", "e.py::latency[int8wo]"]) == (260.0, 0)
    found.begin("e.py::latency[bf16]")
    assert found.left(["e.py::agreement[bf16]", "e.py::latency[int8wo]"]) == (170.0, 0)
    said: list[str] = []
    clock = Clock()
    progress = Progress(said.append, clock)
    progress.plan(["e.py::latency[bf16]", "e.py::kernels[bf16]"], Estimate.load(tmp_path, "here", tmp_path / "cache"))
    progress.begin("e.py::latency[bf16]")
    clock.now = 30.0
    progress("starting engine")
    assert said == ["starting engine [test 1 of 2, about 80 s left]"]


def test_threads_write_one_after_another() -> None:
    """As exports do that run beside each other; pytest's capturing cannot be lifted twice at once."""
    writing, most = 0, 0

    def write(_: str) -> None:
        nonlocal writing, most
        writing += 1
        most = max(most, writing)
        time.sleep(0.05)
        writing -= 1

    with ThreadPoolExecutor(max_workers=4) as pool:
        pool.map(Progress(write), [f"program {number}: torch.export: 1 of 5" for number in range(4)])
    assert most == 1


def test_each_line_says_how_far_it_is_and_what_is_left() -> None:
    said: list[str] = []
    clock = Clock()
    progress = Progress(said.append, clock)
    progress("before the plan")
    progress.plan(["a[1]", "a[2]", "b"], Estimate({"a[1]": 60.0, "a[2]": 120.0}))
    progress.begin("a[1]")
    clock.now = 20.0
    progress("serving: 1 of 4")
    clock.now = 25.0
    progress("serving: 2 of 4")  # of the same kind, too soon
    assert said == ["before the plan", "serving: 1 of 4 [test 1 of 3, about 3 min left and 1 of unknown time]"]
    progress.end("a[1]", 30.0, passed=True)
    progress.begin("a[2]")
    clock.now = 40.0
    progress("starting engine")
    assert said[-1] == "starting engine [test 2 of 3, about 2 min left and 1 of unknown time]"


def test_long_silence_is_broken_and_not_too_often() -> None:
    said: list[str] = []
    clock = Clock()
    progress = Progress(said.append, clock)
    progress.plan(["a"], Estimate({"a": 100.0}))
    progress.waiting()
    assert said == []
    progress.begin("a")
    for now in range(0, 95):
        clock.now = float(now)
        progress.waiting()
    assert said == [
        "a: 30 s so far, usually 2 min [test 1 of 1, about 70 s left]",
        "a: 60 s so far, usually 2 min [test 1 of 1, about 40 s left]",
        "a: 90 s so far, usually 2 min [test 1 of 1, about 10 s left]",
    ]


def test_a_test_that_takes_long_beyond_its_usual_time_promises_no_end() -> None:
    said: list[str] = []
    clock = Clock()
    progress = Progress(said.append, clock)
    progress.plan(["a", "b"], Estimate({"a": 20.0, "b": 60.0}))
    progress.begin("a")
    clock.now = 300.0
    progress("serving: 1 of 4")
    assert said == ["serving: 1 of 4 [test 1 of 2, more than 60 s left]"]


def test_without_a_place_to_write_nothing_is_said() -> None:
    progress = Progress(None)
    progress.plan(["a"], Estimate({}))
    progress.begin("a")
    progress("anything")
    progress.waiting()
