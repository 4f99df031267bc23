"""How far a server is from Transformers: never below zero, nothing for the same, never above the whole divergence."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import HarnessError
from harness.measure.agreement import LIKELIEST, divergence, hold

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


PAIRS = st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=4, max_size=40)


def kl(ours: dict[int, float], theirs: dict[int, float]) -> float:
    return math.fsum(math.exp(ours[token]) * (ours[token] - theirs[token]) for token in ours)


@given(PAIRS, st.integers(1, 30), st.integers(1, 30))
def test_what_is_told_of_the_likeliest_is_a_lower_bound(
    pairs: list[tuple[float, float]], left: int, right: int
) -> None:
    ours, theirs = (distribution([pair[side] for pair in pairs]) for side in (0, 1))
    assert 0 <= divergence(likeliest(ours, left), likeliest(theirs, right)) <= kl(ours, theirs) + 1e-5


@given(PAIRS, st.integers(1, 8), st.sampled_from((3, 8, 30)))
def test_it_is_a_lower_bound_where_the_likeliest_are_few_and_sure(
    pairs: list[tuple[float, float]], count: int, power: int
) -> None:
    ours, theirs = (distribution([pair[side] ** power for pair in pairs]) for side in (0, 1))
    assert 0 <= divergence(likeliest(ours, count), likeliest(theirs, count)) <= kl(ours, theirs) + 1e-5


@given(PAIRS, st.data())
def test_a_side_that_tells_every_token_leaves_no_rest_to_be_infinitely_far(
    pairs: list[tuple[float, float]], data: st.DataObject
) -> None:
    ours, theirs = (distribution([pair[side] for pair in pairs]) for side in (0, 1))
    count = data.draw(st.integers(1, len(pairs)))
    for left, right in ((ours, likeliest(theirs, count)), (likeliest(ours, count), theirs)):
        assert 0 <= divergence(left, right) <= kl(ours, theirs) + 1e-5


@given(PAIRS)
def test_what_is_told_of_every_token_is_the_whole_divergence(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (distribution([pair[side] for pair in pairs]) for side in (0, 1))
    assert divergence(ours, theirs) == pytest.approx(kl(ours, theirs), abs=1e-9)


def sure_of(token: int, others: range) -> dict[int, float]:
    """99 % on one token, and the likeliest of the others at 0.01 % each."""
    return {token: math.log(0.99), **dict.fromkeys(others, math.log(0.0001))}


def test_predictions_that_share_no_likely_token_are_far_apart() -> None:
    # The other side cannot give token 1 more than its own least likely told one has.
    ours, theirs = sure_of(1, range(2, 21)), sure_of(100, range(102, 121))
    assert divergence(ours, theirs) > 0.99 * math.log(0.99 / (20 * 0.0001)) - 1


def test_two_that_are_sure_of_different_tokens_and_share_the_others_are_far_apart() -> None:
    ours, theirs = sure_of(1, range(2, 21)), sure_of(100, range(2, 21))
    exact = 0.99 * math.log(0.99 / 0.0001)
    assert exact - 1 < divergence(ours, theirs) <= exact


def test_a_server_that_is_sure_where_the_reference_is_not_is_far_off() -> None:
    flat = dict.fromkeys(range(20), math.log(0.001))
    assert divergence(flat, sure_of(100, range(20))) > 3


def test_a_token_told_by_one_side_at_the_other_ones_least_hardly_matters() -> None:
    ours = {1: math.log(0.9), 2: math.log(0.05), 3: math.log(0.011)}
    theirs = {1: math.log(0.9), 2: math.log(0.05), 4: math.log(0.011)}
    assert divergence(ours, theirs) == pytest.approx(0, abs=1e-12)


@pytest.mark.programs
def test_of_random_weights_the_bound_tells_next_to_nothing() -> None:
    """As the matrix says beside the limits: not even predictions that have nothing in common are far apart."""
    draw = random.Random(0)

    def predicted() -> dict[int, float]:
        logits = [draw.gauss(0, 1.1) for _ in range(200_064)]
        total = math.log(math.fsum(map(math.exp, logits)))
        told = sorted(range(len(logits)), key=logits.__getitem__)[-LIKELIEST:]
        return {token: logits[token] - total for token in told}

    ours, theirs = predicted(), predicted()
    assert not ours.keys() & theirs.keys()
    assert math.fsum(map(math.exp, ours.values())) < 0.01
    assert 0.0001 < divergence(ours, theirs) < 0.0005


def test_windows_are_held_one_by_one() -> None:
    even, first = {1: math.log(0.5), 2: math.log(0.4)}, {1: math.log(0.4), 2: math.log(0.5)}
    found = hold([[even, even], [even]], [[even, first], [even]])
    assert found.top1 == [0.5, 1.0]
    assert found.kl[0] > found.kl[1] == 0


def test_a_position_that_is_not_answered_is_an_error() -> None:
    with pytest.raises(ValueError, match="did not answer for every position"):
        hold([[{1: 0.0}, {1: 0.0}]], [[{1: 0.0}]])


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_predictions_that_are_no_numbers_are_told_and_whose_they_are(nothing: Any) -> None:
    sound, broken = {1: 0.0}, {1: nothing}
    with pytest.raises(HarnessError, match=r"^the server's predictions are not finite \(NaN\) at 1 of 2 positions"):
        hold([[sound, sound]], [[sound, broken]])
    with pytest.raises(HarnessError, match=r"^Transformers' predictions"):
        hold([[broken]], [[sound]])
