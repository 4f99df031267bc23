"""Rounds end early only where the rest would tell nothing, and what they say is not biased by it."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judge import spread
from harness.judge.rounds import FEWEST, PRECISION, Rule
from harness.matrix.schema import Threshold
from harness.measure.figures import Enough, in_a_row
from harness.measure.recorder import record_of
from harness.measure.rounds import FEWEST_SERVED, check
from harness.records.schema import Cell, Device, Measurement, ModelIdentity, RecipeIdentity

ROUNDS = 8


def record(samples: Sequence[float]) -> Measurement:
    cell = Cell(
        model=ModelIdentity(name="m", source="random:m", revision="1", weights="random"),
        recipe=RecipeIdentity(name="r", hash="h", config={}),
        hardware="h100",
        server="vllm",
    )
    value = statistics.fmean(samples)
    return record_of("latency", value, samples=list(samples), cell=cell, packages={}, device=Device(name="d"))


def limit(ratio: float) -> Threshold:
    return Threshold(metric="latency", max_ratio=ratio, origin="chosen")


def served(rounds: Sequence[float]) -> Measurement:
    """Return a record of a rate, which is the median of its rounds."""
    made = record(rounds)
    return record_of(
        "request_throughput",
        statistics.median(rounds),
        samples=list(rounds),
        cell=made.cell,
        packages={},
        device=made.device,
    )


def taken(rule: Rule, rounds: Sequence[float]) -> list[float]:
    """Return the rounds that are run of those that would be."""
    found: list[float] = []

    def once() -> None:
        check(rule, found)
        found.append(rounds[len(found)])

    assert in_a_row(once, len(rounds), 0) == len(found)
    return found


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=ROUNDS), st.integers(1, ROUNDS))
def test_never_fewer_than_the_least_nor_more_than_are_asked_for(rounds: list[float], most: int) -> None:
    found = taken(Rule(most, record), rounds[:most])
    assert min(len(rounds), most, FEWEST) <= len(found) <= most
    told = Rule(most, record).told(found)
    if len(found) < len(rounds[:most]):
        assert told["rounds_most"] == most
        assert told["half_width"] <= PRECISION
        low, high = spread.of_value(record(found)) or (0.0, math.inf)
        assert (high - low) / 2 <= PRECISION * found[0] * 2, "the interval that tables show is narrower still"


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_a_change_of_unit_changes_nothing(base: float, factor: float) -> None:
    rounds = [base * (1 + 0.002 * it) for it in (0, 1, -1, 2, 0, -2, 1, 0)]
    assert len(taken(Rule(ROUNDS, record), rounds)) == len(taken(Rule(ROUNDS, record), [factor * it for it in rounds]))


def test_equal_rounds_are_enough_after_the_fewest_and_noisy_ones_are_all_taken() -> None:
    assert len(taken(Rule(ROUNDS, record), [1.0] * ROUNDS)) == FEWEST
    assert len(taken(Rule(ROUNDS, record), [1.0, 1.1, 0.9, 1.05, 1.0, 0.95, 1.1, 0.9])) == ROUNDS
    assert len(taken(Rule(FEWEST, record), [1.0] * FEWEST)) == FEWEST
    assert len(taken(Rule(2, record), [1.0] * 2)) == 2
    assert len(taken(Rule(0, record), [1.0] * ROUNDS)) == ROUNDS


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(2.0, FEWEST), (1.0, FEWEST), (1.1001, ROUNDS)],
    ids=["far below", "far above", "at the limit"],
)
def test_a_figure_near_its_limit_takes_all_rounds(ratio: float, expected: int) -> None:
    rounds = [1.1, 1.1002, 1.0998, 1.1, 1.1003, 1.0997, 1.1, 1.1]
    rule = Rule(ROUNDS, record, [(limit(ratio), record([1.0, 1.0001, 0.9999]))])
    assert len(taken(rule, rounds)) == expected


def test_a_limit_whose_baseline_is_not_there_is_not_decided() -> None:
    assert len(taken(Rule(ROUNDS, record, [(limit(2.0), None)]), [1.0] * ROUNDS)) == ROUNDS


BLOCKS = 2000


def errors(draw: Callable[[], list[float]], truth: float) -> tuple[float, int, int]:
    """Return what ending early biases figures by, how many of BLOCKS ended early, and how many of those are far off.

    The bias is against all rounds of the same blocks, as a share.
    """
    found, early, off = [], 0, 0
    for _ in range(BLOCKS):
        every = draw()
        rounds = taken(Rule(ROUNDS, record), every)
        found.append((statistics.fmean(rounds) - statistics.fmean(every)) / truth)
        if len(rounds) < ROUNDS:
            early += 1
            off += abs(statistics.fmean(rounds) / truth - 1) > PRECISION
    return statistics.fmean(found), early, off


@pytest.mark.parametrize("noise", [0.001, 0.01, 0.05])
@pytest.mark.parametrize("skewed", [False, True], ids=["even", "skewed"])
def test_ending_early_biases_nothing(noise: float, skewed: bool) -> None:
    """By less than a tenth of a percent, also where rounds have a long tail to one side.

    Not one block in twenty both ends early and is further off than the precision that ended it.
    """
    source = np.random.default_rng(1)

    def draw() -> list[float]:
        drawn = source.exponential(size=ROUNDS) - 1 if skewed else source.standard_normal(ROUNDS)
        return list(np.exp(noise * drawn))

    bias, early, off = errors(draw, math.exp(-noise) / (1 - noise) if skewed else math.exp(noise**2 / 2))
    assert abs(bias) < 0.001
    assert off <= 0.05 * BLOCKS
    if noise == 0.001:
        assert early > 0.9 * BLOCKS, "quiet rounds do end early"


@pytest.mark.parametrize(("share", "slower"), [(1 / 3, 0.3), (0.1, 0.3), (0.1, 0.1), (0.05, 0.3)])
def test_rounds_of_two_kinds_bias_by_less_than_a_percent(share: float, slower: float) -> None:
    """By luck those that come first are all of one kind, and say nothing of the slow ones that follow."""
    source = random.Random(1)

    def draw() -> list[float]:
        slow = [slower * (source.random() < share) for _ in range(ROUNDS)]
        return [(1 + it) * math.exp(0.001 * source.gauss(0, 1)) for it in slow]

    assert abs(errors(draw, 1 + share * slower)[0]) < 0.01


@pytest.mark.parametrize("noise", [0.001, 0.003, 0.01, 0.05])
@pytest.mark.parametrize("kind", ["even", "skewed", "one in ten slow", "one in three slow"])
def test_three_rounds_of_serving_bias_a_median_by_less_than_a_percent(noise: float, kind: str) -> None:
    """Against all rounds of the same blocks; where they are not told as known they are all taken."""
    source = np.random.default_rng(7)
    share = {"one in ten slow": 0.1, "one in three slow": 1 / 3}.get(kind, 0.0)
    off, early = [], 0
    for _ in range(BLOCKS // 4):
        drawn = source.exponential(size=ROUNDS) - 1 if kind == "skewed" else source.standard_normal(ROUNDS)
        every = list(np.exp(noise * drawn) / (1 + 0.1 * (source.random(ROUNDS) < share)))
        rounds = taken(Rule(ROUNDS, served, fewest=FEWEST_SERVED), every)
        assert len(rounds) >= FEWEST_SERVED
        early += len(rounds) < ROUNDS
        off.append(statistics.median(rounds) / statistics.median(every) - 1)
    assert abs(statistics.fmean(off)) < 0.01
    if noise == 0.001 and not share:
        assert early > 0.9 * BLOCKS // 4


def test_a_timer_ends_without_an_error() -> None:
    calls: list[int] = []

    def once() -> None:
        if len(calls) == 4:
            raise Enough
        calls.append(1)

    assert in_a_row(once, 8, 1) == 4
    assert not issubclass(Enough, Exception), "pytest-benchmark notes those as errors of the benchmark"
