"""What a budget promises of a gate: by the noise, margins and number of its metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.gate.promise import Expected, Promise
from tests.laws import examples
from tests.simulation import draws, gates

NOISE = 0.03 * math.sqrt(2)


def promise(metrics: int, sd: float = NOISE, margin: float = 0.05, seconds: float = 10.0) -> Promise:
    return Promise.of([Expected(seconds, [(sd, margin)])] * metrics)


def test_the_more_metrics_the_longer_until_all_have_passed() -> None:
    one, many = promise(1), promise(25)
    assert one.kept(80) > 0.5
    assert many.kept(25 * 50) < 0.2, "five blocks each are mostly too few for all of 25"
    assert one.seconds(0.9) * 5 < many.seconds(0.9) < one.seconds(0.9) * 25, "time is shared: few of them take long"


@examples(20, quick=5)
@given(st.floats(0.005, 0.08), st.floats(0.02, 0.2), st.integers(1, 6))
def test_what_is_promised_is_kept(sd: float, margin: float, metrics: int) -> None:
    found = promise(metrics, sd, margin)
    for share in (0.1, 0.5, 0.9):
        if math.isfinite(found.seconds(share)):
            assert found.kept(found.seconds(share)) >= share
    assert found.seconds(0.1) >= 20 * metrics, "of one block nothing can be said"
    assert found.taken == promise(metrics, sd, margin).taken, "the same is said of the same"


def test_gates_of_the_gates_own_code_take_what_is_promised() -> None:
    units = [2] * 4 + [1] * 4
    expected = [Expected(1.0, [(NOISE, 0.05)] * metrics) for metrics in units]
    taken = [
        sum(gates.gate(draws.even, np.random.default_rng(seed), 0.05, [0.0] * sum(units), units=units).blocks)
        for seed in range(20)
    ]
    found = Promise.of(expected)
    assert np.median(taken) == pytest.approx(found.seconds(0.5), rel=0.08)
    assert sum(it <= found.seconds(0.9) for it in taken) >= 15


@pytest.mark.parametrize(("sd", "finite"), [(0.04, True), (5.0, False)])
def test_noise_beyond_all_margins_is_never_held(sd: float, finite: bool) -> None:
    assert math.isfinite(promise(2, sd).seconds(0.9)) == finite
