"""The judge: a limit's own value holds, what cannot be compared does not, and a failure shows all that was held."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import ThresholdFailure
from harness.judge.limits import Judge, compare, holds
from harness.matrix.plan import Cell, Matrix
from harness.matrix.schema import COMPARISONS, Threshold
from harness.measure.recorder import Recorder
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Cell as CellIdentity
from harness.records.schema import Device, Judgement, Measurement, ModelIdentity

FINITE = st.floats(-1e6, 1e6)
POSITIVE = st.floats(1e-3, 1e6)
COMPARISON = st.sampled_from(COMPARISONS)


# ---------------------------------------------------------------------------------------------------------------- laws


@given(COMPARISON, FINITE)
def test_the_limit_itself_is_within(comparison: str, limit: float) -> None:
    assert holds(comparison, limit, limit)


@given(COMPARISON, FINITE, FINITE)
def test_one_side_of_a_limit_holds_and_the_other_does_not(comparison: str, measured: float, limit: float) -> None:
    within = measured <= limit if comparison.startswith("max") else measured >= limit
    assert holds(comparison, measured, limit) == within
    assert holds(comparison, -measured, -limit) != within or measured == limit


@given(COMPARISON, FINITE)
def test_what_is_not_a_number_never_holds(comparison: str, limit: float) -> None:
    assert not holds(comparison, math.nan, limit)
    assert not holds(comparison, limit, math.nan)


@given(POSITIVE, POSITIVE, POSITIVE)
def test_against_a_baseline_it_is_the_ratio_or_the_difference(value: float, baseline: float, limit: float) -> None:
    for side in ("max", "min"):
        assert compare(side, value, baseline) == compare(side, value, None) == value
        assert compare(f"{side}_ratio", value, baseline) * baseline == pytest.approx(value)
        assert compare(f"{side}_difference", value, baseline) + baseline == pytest.approx(value)
        assert compare(f"{side}_ratio", baseline, baseline) == 1
        assert compare(f"{side}_difference", baseline, baseline) == 0


@given(FINITE, POSITIVE)
def test_a_baseline_of_zero_is_never_within_an_upper_ratio(value: float, limit: float) -> None:
    assert not holds("max_ratio", compare("max_ratio", value, 0.0), limit)


@pytest.mark.parametrize("comparison", COMPARISONS[2:])
def test_a_comparison_with_no_baseline_is_a_mistake(comparison: str) -> None:
    with pytest.raises(ValueError, match=f"{comparison} needs a baseline"):
        compare(comparison, 1.0, None)


# ----------------------------------------------------------------------------------------------------------- verdicts


class Bench:
    """A judge over given thresholds, the matrix's Phi-4 cells and measurements of them."""

    def __init__(self, matrix: Matrix, folder: Path) -> None:
        cells = matrix.cells(models=["Phi-4-mini-instruct"])
        self.cells = {cell.recipe.name: cell for cell in cells if cell.hardware.name == "h100"}
        self.run = Run(folder)
        self.flow = SimpleNamespace(checkpoints=SimpleNamespace(alone=lambda cell: ""))
        self.recorder = Recorder(self.flow, self.run)  # type: ignore[arg-type]
        self.matrix = matrix

    def judge(self, *thresholds: dict[str, Any]) -> Judge:
        parsed = [Threshold(origin="chosen: for this test", **threshold) for threshold in thresholds]
        return Judge(replace(self.matrix, thresholds=parsed), self.recorder, self.run, Documented.load())

    def measured(
        self,
        recipe: str,
        value: float,
        metric: str = "peak_memory",
        weights: Literal["pretrained", "random"] = "pretrained",
        **parameters: Any,
    ) -> Measurement:
        measurement = Measurement(
            metric=metric,
            unit="GB" if metric == "peak_memory" else "s",
            direction="lower",
            definition=1,
            parameters=parameters,
            value=value,
            cell=CellIdentity(
                model=ModelIdentity(name="Phi-4-mini-instruct", source="hub:x", revision="1", weights=weights),
                recipe=self.cells[recipe].recipe.identity,
                hardware="h100",
                server="",
            ),
            packages={},
            device=Device(name="NVIDIA H100"),
        )
        self.recorder.measurements.append(measurement)
        return measurement

    def judgements(self) -> list[Judgement]:
        if not self.run.path.exists():
            return []
        return [line for line in self.run.lines() if isinstance(line, Judgement)]


@pytest.fixture
def bench(suites_matrix: Matrix, tmp_path: Path) -> Bench:
    return Bench(suites_matrix, tmp_path)


@pytest.fixture
def quantized(bench: Bench) -> Cell:
    return bench.cells["float8dq"]


def test_a_limit_that_holds_is_recorded(bench: Bench, quantized: Cell) -> None:
    bench.measured("bf16", 8.0)
    bench.judge({"metric": "peak_memory", "max_ratio": 0.75})(quantized, bench.measured("float8dq", 6.0))
    (judgement,) = bench.judgements()
    assert (judgement.passed, judgement.measured, judgement.limit) == (True, 0.75, 0.75)
    assert (judgement.comparison, judgement.origin) == ("max_ratio", "chosen: for this test")
    assert judgement.published == 5.70


def test_a_failure_shows_measured_limit_and_published_side_by_side(bench: Bench, quantized: Cell) -> None:
    bench.measured("bf16", 8.0, max_new_tokens=128)
    judge = bench.judge({"metric": "peak_memory", "max_ratio": 0.7})
    with pytest.raises(ThresholdFailure) as raised:
        judge(quantized, bench.measured("float8dq", 6.0, max_new_tokens=128))
    message = str(raised.value)
    assert message.startswith(f"peak_memory (max_new_tokens=128) of {quantized.id}: measured 6 GB")
    for words in ("baseline 8 GB", "max_ratio 0.75", "limit 0.7", "published 5.7 GB", "origin: chosen: for this test"):
        assert words in message
    assert judge.failures == [message]
    assert [judgement.passed for judgement in bench.judgements()] == [False]


def test_random_weights_are_not_held_to_what_they_cannot_fail(bench: Bench, quantized: Cell) -> None:
    judge = bench.judge({"metric": "served_kl", "max": 0.01, "unit": "nats", "pretrained": True})
    judge(quantized, bench.measured("float8dq", 0.5, "served_kl", weights="random"))
    assert bench.judgements() == []
    with pytest.raises(ThresholdFailure, match=r"limit 0\.01"):
        judge(quantized, bench.measured("float8dq", 0.5, "served_kl"))


def test_a_limit_that_was_chosen_on_other_models_is_shown_and_fails_nothing(bench: Bench, quantized: Cell) -> None:
    bench.measured("bf16", 8.0)
    limit = {"metric": "peak_memory", "max_ratio": 0.7}
    judge = bench.judge({**limit, "chosen_on": ["SmolLM2-135M-Instruct"]})
    judge(quantized, bench.measured("float8dq", 6.0))
    assert (bench.judgements(), judge.failures) == ([], [])
    words = "max_ratio 0.75, beyond the 0.7 of SmolLM2-135M-Instruct (chosen: for this test)"
    assert judge.shown == [f"peak_memory of {quantized.id}: {words}"]
    with pytest.raises(ThresholdFailure, match=r"limit 0\.7"):
        bench.judge({**limit, "chosen_on": [quantized.model.name]})(quantized, bench.measured("float8dq", 6.0))


def test_a_known_failure_of_other_models_takes_no_limits_place(bench: Bench, quantized: Cell) -> None:
    bench.measured("bf16", 8.0)
    limit = {"metric": "peak_memory", "max_ratio": 0.7}
    judge = bench.judge({**limit, "chosen_on": ["SmolLM2-135M-Instruct"], "known_failure": "it is small"}, limit)
    with pytest.raises(ThresholdFailure, match=r"limit 0\.7") as raised:
        judge(quantized, bench.measured("float8dq", 6.0))
    assert raised.value.known == ""


def test_where_nothing_was_published_it_says_so(bench: Bench, quantized: Cell) -> None:
    judge = bench.judge({"metric": "engine_start", "max": 60.0, "unit": "s"})
    with pytest.raises(ThresholdFailure, match="measured 61 s, max 61, limit 60, published nothing"):
        judge(quantized, bench.measured("float8dq", 61.0, "engine_start"))


def test_every_limit_is_held_before_any_failure_is_raised(bench: Bench, quantized: Cell) -> None:
    bench.measured("bf16", 8.0)
    limits = [{"max_ratio": 0.5}, {"max": 7.0, "unit": "GB"}, {"max_difference": -3.0}, {"min": 6.0, "unit": "GB"}]
    judge = bench.judge(*({"metric": "peak_memory", **limit} for limit in limits))
    with pytest.raises(ThresholdFailure) as raised:
        judge(quantized, [bench.measured("float8dq", 6.0), bench.measured("float8dq", 5.0)])
    assert len(str(raised.value).splitlines()) == 4
    passed = [judgement.passed for judgement in bench.judgements()]
    assert passed == [False, True, False, True, False, True, True, False]


@pytest.mark.parametrize("other", [{"batch_size": 8}, {}])
def test_a_limit_against_a_baseline_that_was_not_measured_fails(
    bench: Bench, quantized: Cell, other: dict[str, int]
) -> None:
    bench.measured("bf16", 1.0, "latency", **other)
    judge = bench.judge({"metric": "latency", "max_ratio": 2.0})
    with pytest.raises(ThresholdFailure, match=r"needs the baseline .* select bf16 too, or --resume"):
        judge(quantized, bench.measured("float8dq", 1.0, "latency", batch_size=1))
    assert bench.judgements() == []


def test_a_baseline_of_zero_is_judged_and_recorded(bench: Bench, quantized: Cell) -> None:
    bench.measured("bf16", 0.0)
    judge = bench.judge({"metric": "peak_memory", "max_ratio": 2.0})
    with pytest.raises(ThresholdFailure, match="baseline 0 GB"):
        judge(quantized, bench.measured("float8dq", 6.0))
    (judgement,) = bench.judgements()
    assert not judgement.passed


KNOWN = {"metric": "peak_memory", "max": 5.0, "unit": "GB", "known_failure": "its cache is large"}


def test_a_limit_that_is_known_not_to_hold_is_judged_and_says_why(bench: Bench, quantized: Cell) -> None:
    judge = bench.judge(KNOWN)
    with pytest.raises(ThresholdFailure, match="measured 6 GB, max 6, limit 5") as raised:
        judge(quantized, bench.measured("float8dq", 6.0))
    assert raised.value.known == "its cache is large"
    assert not judge.failures
    assert judge.known == [f"{raised.value}; known: its cache is large"]
    assert [(it.passed, it.known) for it in bench.judgements()] == [(False, "its cache is large")]


def test_a_known_failure_beside_another_excuses_nothing(bench: Bench, quantized: Cell) -> None:
    judge = bench.judge(KNOWN, {"metric": "peak_memory", "max": 5.5, "unit": "GB"})
    with pytest.raises(ThresholdFailure) as raised:
        judge(quantized, bench.measured("float8dq", 6.0))
    assert not raised.value.known
    assert len(judge.failures) == len(judge.known) == 1


def test_a_known_failure_does_not_excuse_a_missing_baseline(bench: Bench, quantized: Cell) -> None:
    judge = bench.judge({"metric": "peak_memory", "max_ratio": 0.5, "known_failure": "its cache is large"})
    with pytest.raises(ThresholdFailure, match="needs the baseline") as raised:
        judge(quantized, bench.measured("float8dq", 6.0))
    assert not raised.value.known
    assert judge.failures
    assert not judge.known


def test_of_a_model_that_came_quantized_limits_against_a_baseline_are_told_as_not_judged(
    bench: Bench, quantized: Cell
) -> None:
    """Its absolute limits are judged as any other's."""
    bench.flow.checkpoints.alone = lambda cell: f"{cell.model.name} came quantized, so there is no baseline"
    judge = bench.judge(
        {"metric": "peak_memory", "max_ratio": 0.5}, {"metric": "peak_memory", "max": 5.0, "unit": "GB"}
    )
    with pytest.raises(ThresholdFailure, match="max 6, limit 5"):
        judge(quantized, bench.measured("float8dq", 6.0))
    assert judge.unjudged == [
        f"peak_memory of {quantized.id}: max_ratio 0.5: Phi-4-mini-instruct came quantized, so there is no baseline"
    ]
    assert [judgement.comparison for judgement in bench.judgements()] == ["max"]


def test_a_general_limit_is_known_not_to_hold_for_one_recipe_alone(bench: Bench, quantized: Cell) -> None:
    """The equal limit for all is not judged beside it; for another recipe it fails as ever."""
    general = {"metric": "peak_memory", "max": 5.0, "unit": "GB"}
    judge = bench.judge(general, KNOWN | {"recipes": ["float8dq"]})
    with pytest.raises(ThresholdFailure) as raised:
        judge(quantized, bench.measured("float8dq", 6.0))
    assert raised.value.known == "its cache is large"
    assert len(bench.judgements()) == 1
    other = bench.judge(general, KNOWN | {"recipes": ["int8wo"]})
    with pytest.raises(ThresholdFailure) as failed:
        other(quantized, bench.measured("float8dq", 6.0))
    assert not failed.value.known


def test_a_known_failure_that_holds_again_is_told_of(bench: Bench, quantized: Cell) -> None:
    judge = bench.judge(KNOWN)
    judge(quantized, bench.measured("float8dq", 4.0))
    assert [(it.passed, it.known) for it in bench.judgements()] == [(True, "")]
    (told,) = judge.known
    assert "the limit max 5 holds now; its known_failure can be taken out of matrix.toml" in told


def test_what_no_limit_applies_to_is_not_judged(bench: Bench, quantized: Cell) -> None:
    judge = bench.judge(
        {"metric": "latency", "max": 0.1, "unit": "s"},
        {"metric": "peak_memory", "recipes": ["int8wo"], "max": 0.1, "unit": "GB"},
    )
    judge(quantized, bench.measured("float8dq", 6.0))
    judge(bench.cells["bf16"], bench.measured("bf16", 6.0))
    assert bench.judgements() == []
    assert not judge.failures
