"""The spread of rounds: what a figure may be by them, when a limit cannot be told, and when nothing can."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import scipy
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.judge import spread
from harness.judge.limits import compare, holds
from harness.matrix.schema import COMPARISONS
from harness.records.schema import Cell, Device, Measurement, ModelIdentity, RecipeIdentity

ROUNDS = st.lists(st.floats(1e-3, 1e4), min_size=2, max_size=9)
FACTOR = st.floats(1e-3, 1e3)


def measured(samples: list[float], metric: str = "latency", value: float | None = None) -> Measurement:
    return Measurement(
        metric=metric,
        unit="s",
        direction="lower",
        definition=1,
        value=statistics.fmean(samples) if value is None else value,
        samples=samples,
        cell=Cell(
            model=ModelIdentity(name="m", source="random:m", revision="1", weights="random"),
            recipe=RecipeIdentity(name="r", hash="h", config={}),
            hardware="cpu",
            server="vllm",
        ),
        packages={},
        device=Device(name="d"),
    )


@given(ROUNDS, ROUNDS)
def test_what_was_measured_is_within_what_it_may_be(new: list[float], old: list[float]) -> None:
    mine, other = measured(new), measured(old)
    for comparison in COMPARISONS:
        within = spread.of_comparison(comparison, mine, other)
        assert within is not None
        assert within[0] <= compare(comparison, mine.value, other.value) <= within[1]
        assert all(math.isfinite(end) for end in within)


@given(ROUNDS, ROUNDS, FACTOR)
def test_a_change_of_unit_changes_nothing(new: list[float], old: list[float], factor: float) -> None:
    before = spread.of_ratio(measured(new), measured(old))
    after = spread.of_ratio(*(measured([factor * it for it in side]) for side in (new, old)))
    assert before is not None
    assert after is not None
    assert after == pytest.approx(before, rel=1e-5)
    assert spread.too_wide(measured(new)) == spread.too_wide(measured([factor * it for it in new])) or (
        statistics.stdev(map(math.log, new)) == pytest.approx(spread.MOST_SPREAD)
    )


@given(ROUNDS, ROUNDS)
def test_the_other_way_round_it_is_the_inverse(new: list[float], old: list[float]) -> None:
    one, other = spread.of_ratio(measured(new), measured(old)), spread.of_ratio(measured(old), measured(new))
    assert one is not None
    assert other is not None
    assert (1 / other[1], 1 / other[0]) == pytest.approx(one, rel=1e-6)


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=9), st.lists(st.floats(0.5, 2.0), min_size=2, max_size=9))
def test_the_interval_is_welchs(new: list[float], old: list[float]) -> None:
    assume(min(statistics.stdev(map(math.log, side)) for side in (new, old)) > 1e-3)
    wanted = scipy.stats.ttest_ind(np.log(new), np.log(old), equal_var=False).confidence_interval(spread.CONFIDENCE)
    within = spread.of_ratio(
        *(measured(side, value=math.exp(statistics.fmean(map(math.log, side)))) for side in (new, old))
    )
    assert within is not None
    assert [math.log(end) for end in within] == pytest.approx([wanted.low, wanted.high], rel=1e-6, abs=1e-9)


@given(ROUNDS, ROUNDS, st.sampled_from(COMPARISONS), st.floats(-1e4, 1e4))
def test_a_limit_is_undecided_on_one_side_of_the_interval_at_most(
    new: list[float], old: list[float], comparison: str, limit: float
) -> None:
    """Where it is not, both ends are on the side that the figure is on."""
    mine, other = measured(new), measured(old)
    within = spread.of_comparison(comparison, mine, other)
    assert within is not None
    value = compare(comparison, mine.value, other.value)
    ends = {holds(comparison, end, limit) for end in within}
    if not spread.undecided(within, limit):
        assert holds(comparison, value, limit) in ends
        assert len(ends) == 1 or limit in within
    else:
        assert len(ends) == 2


@given(st.floats(1e-3, 1e4), st.integers(2, 9), st.sampled_from(COMPARISONS), st.floats(1e-3, 1e4))
def test_rounds_without_spread_settle_everything(value: float, count: int, comparison: str, limit: float) -> None:
    quiet = measured([value] * count, value=value)
    within = spread.of_comparison(comparison, quiet, quiet)
    assert not spread.undecided(within, limit)
    assert spread.deviation(quiet) == pytest.approx(0, abs=1e-9 * value)
    assert not spread.too_wide(quiet)


@pytest.mark.parametrize("samples", [[], [1.0]])
def test_of_one_round_nothing_is_known(samples: list[float]) -> None:
    one, many = measured(samples, value=1.0), measured([1.0, 1.1])
    assert (spread.deviation(one), spread.of_value(one), spread.of_ratio(one, one)) == (None, None, None)
    assert spread.of_ratio(one, many) is not None, "the baseline's spread is known"
    assert not spread.too_wide(one)


@pytest.mark.parametrize("metric", ["accuracy", "perplexity", "kl_divergence", "not_known_here"])
def test_documents_are_no_rounds(metric: str) -> None:
    assert spread.deviation(measured([0.0, 1.0, 1.0, 0.0], metric)) is None


def test_requests_differ_by_what_is_asked_of_them() -> None:
    samples = [1.0, 2.0, 4.0, 8.0]
    assert spread.too_wide(measured(samples))
    assert not spread.too_wide(measured(samples, "ttft"))
    assert spread.deviation(measured(samples, "ttft")) == pytest.approx(statistics.stdev(samples))


def test_many_requests_of_two_rounds_are_no_surer_than_the_rounds() -> None:
    """A thousand requests of rounds that were 10 and 20 % apart."""
    samples = [1.0, 1.1] * 500
    apart = {"rounds": 2.0, "rounds_log_sd": 0.1}
    sure, unsure = measured(samples, "ttft"), measured(samples, "ttft").model_copy(update={"statistics": apart})
    baseline = measured([1.3, 1.4] * 500, "ttft")
    assert not spread.undecided(spread.of_ratio(sure, baseline), 1.0)
    assert spread.undecided(spread.of_ratio(unsure, baseline), 1.0)
    assert not spread.too_wide(unsure)
    assert spread.too_wide(unsure.model_copy(update={"statistics": apart | {"rounds_log_sd": 0.3}}))


def test_a_figure_of_nothing_has_no_ratio() -> None:
    none = measured([0.0, 0.0], value=0.0)
    assert spread.of_value(none) is None
    assert spread.of_ratio(measured([1.0, 2.0]), none) is None
    assert spread.too_wide(none), "rounds of which none is above zero say nothing"
    assert spread.of_ratio(measured([0.0, 2.0], "itl"), measured([1.0, 2.0], "itl")) is not None


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Three rounds a side of equal and of unequal noise; it may hold it more often, and not noticeably less."""
    generator = np.random.default_rng(0)
    for noise in ((0.05, 0.05), (0.02, 0.3)):
        held = 0
        for _ in range(2000):
            new, old = (np.exp(generator.normal(0, sd, 3)).tolist() for sd in noise)
            within = spread.of_ratio(measured(new), measured(old))
            assert within is not None
            held += within[0] <= 1 <= within[1]
        assert held / 2000 > 0.935


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=400), st.lists(st.floats(0.1, 10), min_size=2, max_size=400))
def test_a_quantile_of_few_requests_is_open_to_one_side(new: list[float], old: list[float]) -> None:
    low, high = spread.of_quantiles(measured(new, "ttft"), measured(old, "ttft"), "p99") or (math.nan, math.nan)
    assert low <= high
    if min(len(new), len(old)) < 100:
        assert (low, high) == (0, math.inf)


def searched(value: float, low: float, high: float) -> Measurement:
    found = measured([], "capacity", value)
    return found.model_copy(update={"statistics": {"interval_low": low, "interval_high": high}})


def test_a_figure_that_was_found_with_an_interval_is_judged_by_it() -> None:
    mine, other = searched(12.0, 10.0, 14.4), searched(10.0, 9.0, 11.0)
    assert spread.of_comparison("min", mine, None) == (10.0, 14.4)
    assert spread.undecided(spread.of_comparison("min", mine, None), 11.0)
    within = spread.of_comparison("min_ratio", mine, other)
    assert within is not None
    # The logarithms' arms of both sides together: 0.18 and 0.1.
    assert within == pytest.approx((1.2 * math.exp(-0.208), 1.2 * math.exp(0.208)), rel=0.01)
    assert not spread.undecided(within, 0.9)


def test_a_figure_outside_of_its_interval_has_none() -> None:
    assert spread.interval(searched(0.0, 0.0, 5.0)) is None
    assert spread.told(searched(0.0, 0.0, 5.0)) == (0.0, 5.0)
    assert spread.told(searched(6.0, 0.0, 5.0)) is None
    assert spread.interval(measured([1.0, 1.1])) is None
