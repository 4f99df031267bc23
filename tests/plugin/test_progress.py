"""Progress: what is said, when, and how long is left, by real earlier runs; and pytest's own output stays whole."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.plugin.progress import Estimate, Progress, duration
from harness.records.schema import Device, Header, Outcome
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


def test_without_a_place_to_write_nothing_is_said() -> None:
    progress = Progress(None)
    progress.plan(["a"], Estimate({}))
    progress.begin("a")
    progress("anything")
    progress.waiting()
