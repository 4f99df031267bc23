"""Looks at blocks: the moderated t and its prior, the level of each look, and when a gate may stop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import special

from harness.base.errors import TooFewSamples
from harness.judge import looks
from harness.judge.looks import Dependence, Look, Prior

LOGS = st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=30)
VARIANCE = st.floats(1e-8, 1.0)


def look(logs: list[float], prior: Prior | None = None) -> Look:
    return Look.at(np.array(logs), prior)


@given(st.integers(2, 10_000), st.integers(2, 10_000))
def test_later_looks_ask_for_more(one: int, other: int) -> None:
    first, second = sorted((one, other))
    assert 0 < looks.level(second) <= looks.level(first) <= looks.LEVEL
    assert looks.confidence(second) >= looks.confidence(first)


@given(LOGS, st.floats(0.5, 0.999), st.floats(0.001, 0.3), st.sampled_from(["lower", "higher", "none"]))
def test_the_p_value_is_below_the_level_where_the_interval_lies_beyond(
    logs: list[float], confidence: float, bound: float, direction: str
) -> None:
    found = look(logs)
    inside, level = found.interval(confidence), (1 - confidence) / 2
    p = found.p(bound, direction)
    worse = {"lower": inside.low > bound, "higher": inside.high < -bound}
    worse["none"] = worse["lower"] or worse["higher"]
    # Of a metric with two worse sides either of them may be it: the level is shared between them.
    level *= 2 if direction == "none" else 1
    assume(abs(p - level) > 1e-9)
    assert worse[direction] == (p < level)


@given(LOGS, st.floats(0.5, 0.999))
def test_a_look_is_found_again_in_its_interval(logs: list[float], confidence: float) -> None:
    found = look(logs)
    again = Look.of(found.interval(confidence))
    assert (again.mean, again.freedom, again.blocks) == (found.mean, found.freedom, found.blocks)
    assert again.error == pytest.approx(found.error, abs=1e-12)


@given(LOGS, VARIANCE, st.floats(0.1, 1e4))
def test_a_prior_draws_the_noise_towards_its_own_and_adds_its_freedom(
    logs: list[float], variance: float, freedom: float
) -> None:
    alone, together = look(logs), look(logs, Prior(variance, freedom))
    assume(alone.error)
    assert together.mean == alone.mean
    assert together.freedom == pytest.approx(alone.freedom + freedom)
    low, high = sorted((alone.error, math.sqrt(variance / len(logs))))
    assert low * (1 - 1e-9) <= together.error <= high * (1 + 1e-9)


@pytest.mark.parametrize("freedom", [2.0, 6.0, 30.0])
def test_a_prior_is_found_again_in_what_it_gave(freedom: float) -> None:
    """Variances drawn as Smyth's model has them: scaled inverse chi-square, and chi-square about each."""
    rng = np.random.default_rng(0)
    true = 0.04**2 * freedom / rng.chisquare(freedom, 4000)
    found = Prior.of((true * rng.chisquare(7, 4000) / 7).tolist(), [7] * 4000)
    assert found is not None
    assert math.sqrt(found.variance) == pytest.approx(0.04, rel=0.05)
    assert found.freedom == pytest.approx(freedom, rel=0.2)


def test_metrics_that_are_as_noisy_as_each_other_share_all_they_know() -> None:
    found = Prior.of([0.04**2] * 10, [5] * 10)
    assert found is not None
    assert found.freedom > 1000
    assert found.variance == pytest.approx(0.04**2 * math.exp(math.log(2.5) - float(special.digamma(2.5))), rel=0.01), (
        "what the mean of logarithms is too small by is put right"
    )


@pytest.mark.parametrize("variances", [[], [1e-4], [1e-4, 2e-4], [0.0] * 10, [0.0] * 10 + [1e-4] * 2])
def test_few_metrics_and_those_without_noise_are_no_prior(variances: list[float]) -> None:
    assert Prior.of(variances, [5] * len(variances)) is None


@given(st.lists(VARIANCE, min_size=3, max_size=30), st.floats(1e-3, 1e3))
def test_a_prior_has_no_unit(variances: list[float], unit: float) -> None:
    one, other = (
        Prior.of(variances, [4] * len(variances)),
        Prior.of([unit * it for it in variances], [4] * len(variances)),
    )
    assert one is not None
    assert other is not None
    assert other.freedom == pytest.approx(one.freedom, rel=1e-3)
    assert other.variance == pytest.approx(unit * one.variance, rel=1e-3)


def test_a_gate_stops_at_six_blocks_of_one_metric_and_at_four_beside_others() -> None:
    assert next(blocks for blocks in range(1, 9) if looks.enough(blocks, blocks - 1)) == 6
    assert next(blocks for blocks in range(1, 9) if looks.enough(blocks, blocks + 20)) == 4


def test_one_block_is_no_look() -> None:
    with pytest.raises(TooFewSamples):
        look([0.1])


def keeping(share: float, series: int, blocks: int, seed: int = 0) -> list[np.ndarray]:
    """Blocks that each keep a share of the one before them, as noisy as each other."""
    rng = np.random.default_rng(seed)
    found = rng.normal(0, 0.04, (series, blocks))
    for at in range(1, blocks):
        found[:, at] = share * found[:, at - 1] + math.sqrt(1 - share**2) * found[:, at]
    return list(found)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8])
def test_dependence_is_found_again(share: float) -> None:
    found = Dependence.of(keeping(share, 400, 30))
    assert found is not None
    assert found.kept == pytest.approx(share, abs=0.06)


def test_what_chance_may_give_is_no_dependence() -> None:
    called = [looks.dependence(keeping(0.0, 20, 8, seed)) > 0 for seed in range(200)]
    assert sum(called) <= 14, "one in forty, and luck"
    assert looks.dependence([]) == looks.dependence([np.array([0.1, 0.2, 0.1])]) == 0.0
    assert looks.dependence(keeping(0.0, 20, 8), known=0.3) == 0.3, "what is known of the machine stays"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_intervals_that_allow_for_dependence_hold_the_truth(share: float) -> None:
    found = [Look.at(one, kept=share).interval(0.95) for one in keeping(share, 1000, 20)]
    plain = [Look.at(one).interval(0.95) for one in keeping(share, 1000, 20)]
    held, before = (sum(it.low <= 0 <= it.high for it in some) / len(some) for some in (found, plain))
    assert held >= 0.92
    assert before < 0.91


@given(LOGS, st.floats(0.01, 0.9))
def test_dependent_blocks_never_tell_more(logs: list[float], kept: float) -> None:
    alone, dependent = look(logs), Look.at(np.array(logs), kept=kept)
    assert dependent.mean == alone.mean
    assert dependent.error >= alone.error * (1 - 1e-9)
    assert dependent.freedom <= alone.freedom
