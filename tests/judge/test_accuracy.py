"""The statistics of quality: laws of the paired rules, other implementations' figures, documents that do not pair."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import SampleError, TooFewSamples
from harness.judge import accuracy, stats

ANSWER = st.sampled_from([0.0, 1.0])
ANSWERS = st.lists(st.tuples(ANSWER, ANSWER), min_size=1, max_size=60)
SCORES = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=15)


@given(ANSWERS)
def test_flips_add_up(pairs: list[tuple[float, float]]) -> None:
    old, new = [a for a, _ in pairs], [b for _, b in pairs]
    found = accuracy.flips(old, new)
    assert found.won - found.lost == sum(new) - sum(old)
    assert found.share == pytest.approx(np.mean([a != b for a, b in pairs]))


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_knows_no_direction_and_is_the_sign_test(lost: int, won: int) -> None:
    assert accuracy.mcnemar_exact(lost, won) == accuracy.mcnemar_exact(won, lost)
    tail = float(scipy.stats.binom.cdf(min(lost, won), lost + won, 0.5))
    assert accuracy.mcnemar_exact(lost, won) == pytest.approx(min(1.0, 2 * tail))


def test_tangos_interval_closes_on_its_estimate_where_hardly_any_confidence_is_asked_for() -> None:
    for confidence in (0.0, 1e-12, 1e-9, 1e-3):
        found = accuracy.tango_interval(10, 3, 200, confidence)
        assert found.low <= found.estimate <= found.high
        assert found.high - found.low < 1e-4


def test_mcnemar_of_an_accuracy_that_hides_its_flips() -> None:
    assert accuracy.mcnemar_exact(28, 29) == 1.0
    # statsmodels 0.15.0: mcnemar([[101, 121], [59, 33]], exact=True), the counts of a classical textbook example.
    assert accuracy.mcnemar_exact(121, 59) == pytest.approx(4.434e-06, rel=1e-3)


@given(ANSWERS)
def test_a_score_interval_is_never_empty_or_outside(pairs: list[tuple[float, float]]) -> None:
    old, new = [a for a, _ in pairs], [b for _, b in pairs]
    found, swapped = accuracy.noninferiority(old, new), accuracy.noninferiority(new, old)
    assert -1 <= found.low <= found.estimate <= found.high <= 1
    assert found.low < found.high
    assert (found.low, found.high) == pytest.approx((-swapped.high, -swapped.low), abs=1e-6)


@pytest.mark.parametrize(
    ("lost", "won", "documents", "low", "high"), [(25, 28, 618, -0.0148, 0.0247), (41, 48, 549, -0.0157, 0.0414)]
)
def test_the_score_interval_is_that_of_r(lost: int, won: int, documents: int, low: float, high: float) -> None:
    """PropCIs::scoreci.mp(lost, won, documents, 0.90), an independent implementation of Tango's interval."""
    found = accuracy.tango_interval(lost, won, documents, 0.90)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


def test_no_flip_in_few_documents_proves_little() -> None:
    few = accuracy.noninferiority([1, 0] * 20, [1, 0] * 20)
    many = accuracy.noninferiority([1, 0] * 2000, [1, 0] * 2000)
    assert stats.decide_difference(few, 0.01, "higher").verdict == "inconclusive"
    assert stats.decide_difference(many, 0.01, "higher").verdict == "pass"


def test_coverage_of_the_score_interval_where_flips_are_rare() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for lost, won, _ in rng.multinomial(200, [0.03, 0.01, 0.96], 1000):
        found = accuracy.tango_interval(int(lost), int(won), 200)
        hits += found.low <= -0.02 <= found.high
    assert stats.proportion(hits, 1000, 0.999).high >= 0.95


@given(SCORES, st.floats(-3, 3))
def test_a_paired_difference_moves_with_the_new_side(pairs: list[tuple[float, float]], shift: float) -> None:
    old, new = [a for a, _ in pairs], [b for _, b in pairs]
    found, moved = accuracy.paired_difference(old, new), accuracy.paired_difference(old, [b + shift for b in new])
    assert moved.estimate == pytest.approx(found.estimate + shift, abs=1e-9)
    assert moved.high - moved.low == pytest.approx(found.high - found.low, abs=1e-6)


def test_perplexities_compare_as_a_ratio() -> None:
    rng = np.random.default_rng(0)
    old = rng.normal(2.3, 0.5, 16)
    new = old + 0.1 + rng.normal(0, 0.01, 16)
    found = accuracy.perplexity_ratio(old.tolist(), new.tolist())
    assert found.low < math.exp(0.1) < found.high
    assert found.high / found.low < 1.02
    assert stats.decide(found, 0.05, "lower").verdict == "regressed"


def test_one_task_is_its_own_mean() -> None:
    task = accuracy.tango_interval(12, 4, 200)
    combined = accuracy.combine_tasks([task])
    assert (combined.low, combined.estimate, combined.high) == pytest.approx((task.low, task.estimate, task.high))


@st.composite
def tasks(draw: st.DrawFn) -> stats.Interval:
    low, estimate, high = sorted(draw(st.lists(st.floats(-1, 1), min_size=3, max_size=3)))
    return stats.Interval(estimate, low, high, 0.95, "Tango score", draw(st.integers(1, 10_000)))


TASKS = st.lists(tasks(), min_size=1, max_size=8)


@given(TASKS, st.randoms(use_true_random=False))
def test_the_mean_of_tasks_is_a_plain_mean_in_any_order_with_arms_that_add_as_errors_do(
    given_tasks: list[stats.Interval], random: Random
) -> None:
    found = accuracy.combine_tasks(given_tasks)
    count = len(given_tasks)
    assert found.estimate == pytest.approx(statistics.fmean(task.estimate for task in given_tasks), abs=1e-12)
    below = math.sqrt(sum((task.estimate - task.low) ** 2 for task in given_tasks)) / count
    above = math.sqrt(sum((task.high - task.estimate) ** 2 for task in given_tasks)) / count
    assert found.estimate - found.low == pytest.approx(below, abs=1e-9)
    assert found.high - found.estimate == pytest.approx(above, abs=1e-9)
    assert found.n == sum(task.n for task in given_tasks)
    again = accuracy.combine_tasks(random.sample(given_tasks, count))
    assert (again.low, again.estimate, again.high) == pytest.approx((found.low, found.estimate, found.high), abs=1e-12)


@given(TASKS)
def test_the_interval_of_a_mean_of_tasks_lies_within_the_mean_of_their_intervals(
    given_tasks: list[stats.Interval],
) -> None:
    found = accuracy.combine_tasks(given_tasks)
    assert found.low >= statistics.fmean(task.low for task in given_tasks) - 1e-9
    assert found.high <= statistics.fmean(task.high for task in given_tasks) + 1e-9
    assert found.low - 1e-12 <= found.estimate <= found.high + 1e-12


@given(TASKS, st.floats(-0.5, 0.5))
def test_a_mean_of_tasks_moves_with_them_and_turns_with_the_sides(
    given_tasks: list[stats.Interval], shift: float
) -> None:
    found = accuracy.combine_tasks(given_tasks)
    moved = accuracy.combine_tasks([task.transformed(lambda part: part + shift) for task in given_tasks])
    expected = (found.low + shift, found.estimate + shift, found.high + shift)
    assert (moved.low, moved.estimate, moved.high) == pytest.approx(expected, abs=1e-9)
    turned = accuracy.combine_tasks(
        [replace(task, estimate=-task.estimate, low=-task.high, high=-task.low) for task in given_tasks]
    )
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-12)


@given(tasks(), st.integers(1, 9))
def test_a_task_that_is_counted_several_times_has_arms_smaller_by_the_root(task: stats.Interval, count: int) -> None:
    found = accuracy.combine_tasks([task] * count)
    assert found.estimate == pytest.approx(task.estimate, abs=1e-12)
    assert found.high - found.estimate == pytest.approx((task.high - task.estimate) / math.sqrt(count), abs=1e-9)


def test_the_mean_of_tasks_counts_each_once_and_covers_the_truth() -> None:
    large, small = accuracy.tango_interval(0, 0, 10_000), accuracy.tango_interval(20, 0, 100)
    assert accuracy.combine_tasks([large, small]).estimate == pytest.approx(-0.1)
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        counts = [
            rng.multinomial(n, [lost, won, 1 - lost - won]) for n, lost, won in ((200, 0.05, 0.02), (400, 0.1, 0.1))
        ]
        tasks = [
            accuracy.tango_interval(int(count[0]), int(count[1]), n)
            for count, n in zip(counts, (200, 400), strict=True)
        ]
        found = accuracy.combine_tasks(tasks)
        hits += found.low <= -0.015 <= found.high
    rate = stats.proportion(hits, 1000, 0.999)
    assert rate.low <= 0.95 <= rate.high


def test_documents_that_do_not_pair_are_refused() -> None:
    with pytest.raises(SampleError, match="got 2 old and 3 new; evaluate the same documents"):
        accuracy.noninferiority([1, 0], [1, 0, 1])
    with pytest.raises(SampleError, match="new document sample 1 is nan"):
        accuracy.paired_difference([1.0, 2.0], [1.0, math.nan])
    with pytest.raises(TooFewSamples, match="needs at least 2 samples and got 1"):
        accuracy.paired_difference([1.0], [2.0])
    with pytest.raises(TooFewSamples, match="needs at least 1 samples and got 0"):
        accuracy.noninferiority([], [])
    with pytest.raises(TooFewSamples):
        accuracy.combine_tasks([])
    with pytest.raises(SampleError, match="are not parts of 10 documents"):
        accuracy.tango_interval(6, 6, 10)
    with pytest.raises(SampleError, match="not negative"):
        accuracy.mcnemar_exact(-1, 2)
    with pytest.raises(SampleError, match="different confidence"):
        accuracy.combine_tasks([accuracy.tango_interval(1, 1, 10), accuracy.tango_interval(1, 1, 10, 0.9)])
