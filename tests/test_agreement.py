"""How far a server is from Transformers: never below zero, nothing for the same, never above the whole divergence."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.agreement import divergence, hold

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=4, max_size=12)


def distribution(weights: list[float]) -> dict[int, float]:
    total = math.fsum(weights)
    return {token: math.log(weight / total) for token, weight in enumerate(weights)}


def likeliest(whole: dict[int, float], count: int) -> dict[int, float]:
    return dict(sorted(whole.items(), key=lambda item: -item[1])[:count])


@given(WEIGHTS, st.integers(1, 12))
def test_the_same_predictions_do_not_differ(weights: list[float], count: int) -> None:
    told = likeliest(distribution(weights), count)
    assert divergence(told, told) == pytest.approx(0, abs=1e-12)


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=4, max_size=12), st.integers(1, 12))
def test_what_is_told_of_the_likeliest_is_a_lower_bound(pairs: list[tuple[float, float]], count: int) -> None:
    ours, theirs = (distribution([pair[side] for pair in pairs]) for side in (0, 1))
    whole = sum(math.exp(ours[token]) * (ours[token] - theirs[token]) for token in ours)
    assert -1e-12 <= divergence(likeliest(ours, count), likeliest(theirs, count)) <= whole + 1e-4


def test_predictions_that_share_no_likely_token_are_far_apart() -> None:
    ours, theirs = {1: math.log(0.9)}, {1: math.log(0.01), 2: math.log(0.98)}
    assert divergence(ours, theirs) == pytest.approx(0.9 * math.log(90) + 0.1 * math.log(0.1 / 0.99))


def test_windows_are_held_one_by_one() -> None:
    even, first = {1: math.log(0.5), 2: math.log(0.4)}, {1: math.log(0.4), 2: math.log(0.5)}
    found = hold([[even, even], [even]], [[even, first], [even]])
    assert found.top1 == [0.5, 1.0]
    assert found.kl[0] > found.kl[1] == 0


def test_a_position_that_is_not_answered_is_an_error() -> None:
    with pytest.raises(ValueError, match="did not answer for every position"):
        hold([[{1: 0.0}, {1: 0.0}]], [[{1: 0.0}]])
