"""How long it will take: within 20 % of what a session took that is like an earlier one, and honest of any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.plugin.estimate import Estimate, cell_of
from harness.records.run import Run
from harness.records.schema import Header, Outcome
from tests.plugin.test_progress import session

GPUS = ("h100", "h200")
Committed = dict[str, tuple[str, dict[str, Outcome]]]


@pytest.fixture(scope="module")
def committed(repository: Path) -> Committed:
    """The device of each committed run of a GPU, and the longest outcome of each test that measured something."""
    found = {}
    for file in sorted((repository / "results" / "reference").glob("*/records.jsonl")):
        if file.parent.name.startswith(GPUS):
            lines = list(Run(file.parent).lines())
            (device,) = {it.device.name for it in lines if isinstance(it, Header)}
            ended = [it for it in lines if isinstance(it, Outcome) and it.outcome in ("passed", "noisy", "xfailed")]
            found[file.parent.name] = device, {it.test: it for it in sorted(ended, key=lambda it: it.seconds)}
    return found


def told_by_the_others(name: str, committed: Committed, repository: Path, folder: Path) -> Estimate:
    device, tests = committed[name]
    for other, (of, _) in committed.items():
        if other != name and of == device:
            (folder / other).symlink_to(repository / "results" / "reference" / other)
    # What one reads of a run is there for the others.
    estimate = Estimate.load(folder, device, folder.parent / "cache")
    places = {}
    for test, it in tests.items():
        if it.cell:
            file, of = test.split("::")[0], it.cell
            places[test] = cell_of(file, of.model.name, of.recipe.name, of.hardware, of.server)
    estimate.place(places)
    return estimate


ALIKE = {
    "h100-20261128-114605",
    "h200-20261129-112423",
    "h200-20261129-220551",
    "h200-20261130-053338",
    "h200-20261130-053805",
}
"""Committed runs whose recipes and servers were measured on their hardware before."""


def test_committed_runs_told_by_the_others_are_within_a_fifth_or_within_what_is_said(
    committed: Committed, repository: Path, tmp_path: Path
) -> None:
    off = {}
    for name, (_, tests) in committed.items():
        (folder := tmp_path / name).mkdir()
        estimate = told_by_the_others(name, committed, repository, folder)
        told = [test for test in tests if estimate.left([test])[1] == 0]
        if not told:
            # Of load alone, which no other run has.
            continue
        real = sum(tests[test].seconds for test in told)
        seconds, unknown = estimate.left(told)
        low, high = estimate.between(told)
        assert unknown == 0
        assert low <= real <= high, (name, real, low, high)
        off[name] = seconds / real
    assert off.keys() >= ALIKE
    assert {name: ratio for name, ratio in off.items() if name in ALIKE and not 0.8 <= ratio <= 1.2} == {}


def test_what_was_measured_already_as_a_run_went_on_is_not_what_it_takes(tmp_path: Path) -> None:
    session(tmp_path, "1", ["latency", "kernels"], "bf16", 90.0, 1)
    with (tmp_path / "1" / "records.jsonl").open("a", encoding="utf-8") as file:
        for test in ("latency", "kernels"):
            again = Outcome(test=f"e.py::{test}[bf16]", outcome="passed", seconds=0.001, time=50.0)
            file.write(again.model_dump_json() + "\n")
    found = Estimate.load(tmp_path, "here", tmp_path / "cache")
    assert found.left(["e.py::latency[bf16]", "e.py::kernels[bf16]"]) == (110.0, 0)


def test_a_test_that_never_ran_takes_as_long_as_what_is_most_like_it_and_its_start(tmp_path: Path) -> None:
    session(tmp_path, "1", ["latency", "kernels"], "bf16", 90.0, 1)
    found = Estimate.load(tmp_path, "here", tmp_path / "cache")
    assert found.left(["e.py::latency[new]"]) == (10.0, 0)
    found.place({"e.py::latency[new]": cell_of("e.py", "m", "new", "h200", "vllm")})
    assert found.left(["e.py::latency[new]"]) == (100.0, 0)
    assert found.between(["e.py::latency[new]"]) == (50.0, 200.0)
    assert found.left(["e.py::another[new]"]) == (0, 1)
    by_size = Estimate({"t.py::serve[m-bf16-1]": 2.0, "t.py::serve[m-bf16-1000]": 60.0, "t.py::serve[m-int8wo-1]": 4.0})
    assert by_size.of("t.py::serve[m-float8dq-1000]") == 60.0


def test_what_is_kept_of_a_compilation_is_not_expected_again(tmp_path: Path) -> None:
    session(tmp_path, "1", ["latency"], "bf16", 90.0, 1)
    file = tmp_path / "1" / "records.jsonl"
    text = file.read_text(encoding="utf-8").replace('"engine start","seconds":90.0', '"compile","seconds":90.0')
    assert text != file.read_text(encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    assert Estimate.load(tmp_path, "here", tmp_path / "cache").left(["e.py::latency[bf16]"]) == (100.0, 0)
    warm = Estimate.load(tmp_path, "here", tmp_path / "cache", kept=["m-bf16-h200-vllm"])
    assert warm.left(["e.py::latency[bf16]"]) == (10.0, 0)
