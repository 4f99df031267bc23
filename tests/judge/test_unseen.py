"""What a median does not see: slow rounds, and a tail of slow requests."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judge import unseen
from harness.judge.family import control, settled
from harness.judge.rules import Margins
from harness.judge.series import Series
from harness.judge.verdict import Verdict, judge
from harness.records.place import Place

MARGINS = Margins()
CELL = Place(model="m", recipe="r", server="s")


def blocks(rng: np.random.Generator, count: int, samples: int, slow: float = 0.0, by: float = 1.0) -> list[list[float]]:
    """Samples of blocks whose processes differ by 1 %, each sample by 1 %, a share of them ``by`` times as slow."""
    process = np.exp(rng.normal(0, 0.01, (count, 1)))
    found = process * np.exp(rng.normal(0, 0.01, (count, samples)))
    late = np.argsort(rng.random((count, samples)), axis=1) < round(slow * samples)
    return np.where(late, by * found, found).tolist()


def timed(metric: str, old: list[list[float]], new: list[list[float]], *, requests: bool = False) -> Verdict:
    sides = {"old": old, "new": new}
    values = {side: [float(np.median(block)) for block in some] for side, some in sides.items()}
    samples = {"requests": sides} if requests else {"rounds": sides}
    return judge(Series(CELL.at(metric), values, **samples), MARGINS)  # type: ignore[arg-type]


def test_two_slow_rounds_of_fifteen_are_a_regression_of_what_is_published() -> None:
    rng = np.random.default_rng(0)
    found = timed("latency", blocks(rng, 6, 15), blocks(rng, 6, 15, slow=2 / 15, by=2.0))
    assert (found.verdict, found.reason) == ("regressed", "mean-beyond-margin")
    assert found.ratio == pytest.approx(1.13, abs=0.03)
    assert "the mean is 1.1" in found.detail
    assert re.search(r"; median (0\.99|1\.0)\d", found.detail)
    (together,) = control([found])
    assert (together.verdict, settled(together)) == ("regressed", True)


def test_slow_requests_are_seen_in_the_tail() -> None:
    rng = np.random.default_rng(1)
    found = timed("tpot", blocks(rng, 6, 1000), blocks(rng, 6, 1000, slow=0.02, by=1.5), requests=True)
    assert (found.verdict, found.reason) == ("regressed", "tail-beyond-margin")
    assert "the p99 is 1." in found.detail
    assert not found.rounds, "a gate's file has no room for every request"


def test_slow_rounds_on_both_sides_are_no_regression_of_either() -> None:
    rng = np.random.default_rng(2)
    several = [
        timed("latency", blocks(rng, 8, 15, slow=1 / 15, by=2.0), blocks(rng, 8, 15, slow=1 / 15, by=2.0))
        for _ in range(50)
    ]
    assert {it.verdict for it in several} <= {"pass", "inconclusive"}
    assert sum(it.verdict == "pass" for it in several) > 40


def test_a_mean_that_may_be_beyond_the_margin_is_measured_on() -> None:
    old = [[1.0 + 0.001 * at, 1.01, 0.99, 1.0 + 0.001 * at, 1.02] for at in range(6)]
    slow = (1.0, 1.9, 1.0, 1.0, 1.6, 1.0)
    new = [[0.99, 1.0 + 0.0011 * at, 1.01, 1.0 + 0.001 * at, by] for at, by in enumerate(slow)]
    found = timed("latency", old, new)
    assert (found.verdict, found.reason) == ("inconclusive", "mean-undecided")
    assert not settled(control([found])[0])


@pytest.mark.parametrize(
    ("samples", "direction", "names"),
    [
        (2, "lower", []),
        (5, "lower", ["mean"]),
        (49, "lower", ["mean"]),
        (50, "lower", ["mean", "p90"]),
        (170, "lower", ["mean", "p97"]),
        (5000, "lower", ["mean", "p99"]),
        (50, "higher", ["mean", "p10"]),
    ],
)
def test_the_tail_is_as_far_out_as_the_samples_allow(samples: int, direction: str, names: list[str]) -> None:
    rng = np.random.default_rng(3)
    sides = {"old": blocks(rng, 3, samples), "new": blocks(rng, 3, samples)}
    assert [it.name for it in unseen.of(sides, direction)] == names  # type: ignore[arg-type]


@given(
    st.lists(st.lists(st.floats(allow_nan=True), max_size=6), max_size=4),
    st.lists(st.lists(st.floats(allow_nan=True), max_size=6), max_size=4),
)
def test_samples_that_have_no_mean_ratio_say_nothing(old: list[list[float]], new: list[list[float]]) -> None:
    for it in unseen.of({"old": old, "new": new}, "lower"):
        assert math.isfinite(it.look.mean)
        assert math.isfinite(it.look.error)
