"""Neighbours on one host: which records are alone and beside, what is said of each figure, and what is kept."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.__main__ import main
from harness.base.errors import RecordError
from harness.judge import neighbours
from harness.judge.neighbours import MARGIN, checks
from harness.records.run import Run
from harness.records.schema import Measurement
from tests.laws import examples
from tests.report.test_tables import LATENCY, measured

SERVING = {"num_prompts": 100, "dataset": "ShareGPT"}


def record(metric: str, values: list[float], others: int, **more: object) -> Measurement:
    found = measured(
        metric,
        sum(values) / len(values),
        parameters=LATENCY if metric == "latency" else SERVING,
        hardware="h200",
        device="NVIDIA H200",
    )
    state = {"other_gpus_in_use": others}
    return found.model_copy(update={"samples": values, "state_before": state, "state_after": state, **more})


def test_figures_are_held_against_their_own_with_a_neighbour() -> None:
    records = [
        record("latency", [1.0, 1.001, 0.999], 0),
        record("latency", [1.002, 1.0, 1.001], 1),
        record("request_throughput", [60.0, 60.1, 59.9], 0),
        record("request_throughput", [50.0, 50.1, 49.9], 2),
        record("output_throughput", [60.0, 90.0, 30.0], 0),
        record("output_throughput", [50.0, 90.0, 40.0], 1),
        record("prefill_time", [1.0, 1.0], 0),
    ]
    (check,) = checks(records, ["one", "two"])
    states = {pair.metric: pair.state for pair in check.pairs}
    assert states == {"latency": "undisturbed", "request_throughput": "disturbed", "output_throughput": "open"}
    assert [pair.metric for pair in check.disturbs("server")] == ["request_throughput"]
    assert check.disturbs("engine") == []


@pytest.mark.parametrize(
    "more",
    [
        {"discarded": "throttled"},
        {"state_before": {}, "state_after": {}},
        {"state_before": {"other_gpus_in_use": "not available: No"}},
        {"from_cache": True},
    ],
)
def test_what_does_not_tell_is_no_side(more: dict[str, object]) -> None:
    assert checks([record("latency", [1.0, 1.1], 0), record("latency", [1.0, 1.1], 1, **more)], []) == []


def test_several_processes_of_a_side_are_its_spread() -> None:
    def side(others: int, *values: float) -> list[Measurement]:
        return [record("latency", [value, value], others) for value in values]

    (check,) = checks([*side(0, 1.0, 1.02, 0.98), *side(1, 1.2, 1.22, 1.18)], [])
    (pair,) = check.pairs
    assert (pair.processes, pair.state) == (3, "disturbed")
    assert pair.low is not None
    assert pair.high is not None
    assert pair.low < pair.ratio < pair.high


@examples(100)
@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=5), st.floats(0.8, 1.25))
def test_the_interval_holds_the_ratio_and_states_follow_it(values: list[float], factor: float) -> None:
    alone = [record("latency", [value], 0) for value in values]
    beside = [record("latency", [factor * value], 1) for value in values]
    (check,) = checks([*alone, *beside], [])
    (pair,) = check.pairs
    assert pair.ratio == pytest.approx(factor)
    assert pair.low is not None
    assert pair.high is not None
    assert pair.low <= pair.ratio * (1 + 1e-9)
    assert pair.high >= pair.ratio * (1 - 1e-9)
    assert (pair.state == "disturbed") == (pair.low > 1 + MARGIN)
    assert math.isfinite(pair.high)


def test_a_check_is_kept_for_its_device_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for others, values in ((0, [60.0, 60.1, 59.9]), (1, [50.0, 50.1, 49.9])):
        Run(tmp_path / "runs" / f"with-{others}").append(record("request_throughput", values, others))
    command = ["neighbours", "with-0", "with-1", "--results", str(tmp_path)]
    assert main(command) == 1
    told = capsys.readouterr().out
    assert "disturbed" in told
    assert "0.833" in told
    found = neighbours.load(tmp_path, "h200", "NVIDIA H200")
    assert found is not None
    assert found.runs == ["with-0", "with-1"]
    assert neighbours.load(tmp_path, "h200", "NVIDIA H200 NVL") is None
    assert neighbours.load(tmp_path, "h100", "NVIDIA H100") is None
    neighbours.place_of(tmp_path, "h200").write_text("{")
    with pytest.raises(RecordError, match=r"h200\.json: no check of neighbours"):
        neighbours.load(tmp_path, "h200", "NVIDIA H200")
    assert main(["neighbours", "with-0", "--results", str(tmp_path)]) == 3
