"""Failures that a later session overcame are gone from tables and pages; those that stand are told once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.matrix.plan import Matrix
from harness.records import columns
from harness.records.failures import counted
from harness.records.run import Run
from harness.records.schema import Device, Failure, Header, Judgement, Line, Measurement, Outcome
from tests.records.test_columns import written
from tests.report.test_tables import measured

TEST = "test_engine.py::test_latency[model-int8wo-cpu-vllm-8]"
OTHER = "test_engine.py::test_engine[model-int8wo-cpu-vllm]"
START = Header(run="run", command=[], packages={}, device=Device(name="d"), time=1)


def row(time: float, metric: str = "latency", server: str = "vllm", **more: Any) -> Measurement:
    return measured(metric, 1.0, "int8wo", hardware="cpu", server=server, time=time).model_copy(update=more)


CELL = row(1).cell


def failed(time: float, stage: str = "measure", message: str = "latency: it hangs", **more: Any) -> Failure:
    given: dict[str, Any] = {"cell": CELL, "failure": "timeout", **more}
    return Failure(time=time, stage=stage, message=message, **given)


def ended(time: float, outcome: str, test: str = TEST) -> Outcome:
    return Outcome(time=time, test=test, cell=CELL, outcome=outcome, seconds=1.0)  # type: ignore[arg-type]


def judged(time: float, passed: bool) -> Judgement:
    limits: dict[str, Any] = {"metric": "latency", "measured": 2, "limit": 1, "comparison": "max", "origin": "me"}
    return Judgement(time=time, cell=CELL, passed=passed, **limits)


def header(time: float) -> Header:
    return START.model_copy(update={"time": time})


def standing(tmp_path: Path, *runs: list[Line]) -> list[Failure]:
    opened = [written(tmp_path, lines, f"run-{number}") for number, lines in enumerate(runs)]
    return columns.load(opened, cache=tmp_path / "cache").failures()


BEFORE = [START, failed(2), ended(3, "error")]


@pytest.mark.parametrize(
    ("later", "stands"),
    [
        ([], True),
        ([header(4), ended(5, "passed")], False),
        ([header(4), row(5), judged(6, False), ended(7, "failed")], False),  # measured, and beyond its limit
        ([header(4), judged(6, False), ended(7, "skipped")], False),  # a limit that is known not to hold
        ([header(4), ended(5, "failed")], True),  # of something else, before it was measured
        ([header(4), ended(5, "skipped")], True),
        ([header(4), ended(5, "passed", OTHER)], True),
        ([header(4), row(5), judged(6, True), ended(7, "passed", OTHER)], True),
    ],
)
def test_a_failure_stands_until_its_own_test_has_measured(tmp_path: Path, later: list[Line], stands: bool) -> None:
    assert standing(tmp_path, [*BEFORE, *later]) == ([BEFORE[1]] if stands else [])


def test_what_another_run_measured_later_counts_where_both_are_shown(tmp_path: Path) -> None:
    later: list[Line] = [header(4), ended(5, "passed")]
    assert standing(tmp_path, BEFORE, later) == []
    assert standing(tmp_path / "alone", BEFORE) == [BEFORE[1]]
    earlier: list[Line] = [header(0), ended(0.5, "passed")]
    assert standing(tmp_path / "earlier", BEFORE, earlier) == [BEFORE[1]], "it passed before it failed"


ENGINE = failed(2, "start", "engine model-int8wo-cpu-vllm: start: ended with status 1", worker="engine")


@pytest.mark.parametrize(
    ("failure", "later", "stands"),
    [
        (failed(2, "quantize", "quantize x: out of memory"), [header(3), row(4)], False),
        (failed(2, "quantize", "quantize x: out of memory"), [row(4)], True),  # the session that failed goes on
        (failed(2, "quantize", "quantize x: out of memory"), [header(3), row(4, discarded="hot")], True),
        (failed(2, "quantize", "quantize x: out of memory"), [header(3), row(4, server="transformers")], True),
        (ENGINE, [header(3), row(4, "engine_start", parameters={"kind": "engine"})], False),
        (ENGINE, [header(3), row(4, "engine_start", parameters={"kind": "server"})], True),
        (ENGINE, [header(3), row(4)], True),
        (failed(2), [header(3), row(4)], True),  # another batch size may have been measured
    ],
)
def test_without_a_test_only_what_the_whole_cell_needs_is_overcome(
    tmp_path: Path, failure: Failure, later: list[Line], stands: bool
) -> None:
    assert standing(tmp_path, [START, failure, *later]) == ([failure] if stands else [])


def test_identical_failures_are_one_with_a_count() -> None:
    again = failed(3, repeated=True)
    other = failed(4, message="another")
    assert counted([failed(2), again, other, failed(5)]) == [(failed(2), 3), (other, 1)]


def test_the_tables_and_the_page_show_what_stands_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overcome = [failed(2, message="was overcome"), ended(3, "error")]
    stays = [
        line for time in (4.0, 6.0) for line in (failed(time, message="it stays"), ended(time + 1, "error", OTHER))
    ]
    run = written(
        tmp_path, [START, *overcome, *stays, ended(7, "error", OTHER), row(8), header(9), ended(10, "passed")]
    )
    assert main(["table", str(run.folder), "--wide"]) == 0
    table = capsys.readouterr().out
    assert "was overcome" not in table
    (line,) = [line for line in table.splitlines() if "it stays" in line]
    assert [part.strip() for part in line.split("|")][2:5] == ["measure", "timeout", "2"]
    assert main(["report", str(run.folder), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "was overcome" not in page
    assert page.count("it stays") == 1
    assert "measure (timeout, 2 times)" in page


def test_the_committed_runs_failed_only_where_the_matrix_says_so(repository: Path, suites_matrix: Matrix) -> None:
    folders = sorted((repository / "results" / "reference").glob("*-20*"))
    assert folders
    for failure in columns.load([Run(folder) for folder in folders]).failures():
        cell = failure.cell
        assert cell is not None
        hardware = suites_matrix.hardware[cell.hardware]
        assert suites_matrix.recipes[cell.recipe.name].refusal(hardware, cell.server), failure.message
