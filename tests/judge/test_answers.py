"""A small loss of accuracy is called from the margins of answers, and of equal models none is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.base.errors import TooFewSamples
from harness.judge import answers
from harness.judge.rules import Margins
from harness.judge.series import Series
from harness.judge.verdict import Verdict, judge
from harness.records.place import Parameters, Place
from tests.simulation.draws import answered

MARGINS = st.lists(st.floats(-50, 50), min_size=2, max_size=60)


def judged(old: list[float], new: list[float], metric: str = "answer_margin") -> Verdict:
    place = Place(model="m", recipe="r", metric=metric, parameters=Parameters({"task": "piqa"}))
    return judge(Series(place, {"old": old, "new": new}), Margins())


@given(MARGINS)
@example([0.0, 5e-324])
def test_answers_that_are_the_same_pass(margins: list[float]) -> None:
    found = judged(margins, margins)
    assert (found.verdict, found.reason) == ("pass", "identical")


@given(MARGINS, st.floats(1e-3, 1e3))
def test_the_share_of_answers_does_not_hang_on_the_unit(margins: list[float], unit: float) -> None:
    """Nats or bits: a shift of so many of either turns as many answers."""
    old, new = np.asarray(margins), np.asarray(margins) - 0.1
    here = answers.changed(list(old), list(new))
    there = answers.changed(list(old * unit), list(new * unit))
    assert there.estimate == pytest.approx(here.estimate, rel=1e-6, abs=1e-12)


def test_a_density_is_that_of_the_margins_at_zero() -> None:
    drawn = np.random.default_rng(0).normal(1.0, 2.0, 20_000)
    due = math.exp(-0.125) / (2 * math.sqrt(2 * math.pi))
    assert answers.density(list(drawn)) == pytest.approx(due, rel=0.05)
    assert answers.density([3.0, 3.0, 3.0]) == 0.0


def test_a_shift_tells_how_many_answers_it_turns() -> None:
    old, new = answered(np.random.default_rng(1), 200_000, loss=0.01)
    turned = np.mean(new > 0) - np.mean(old > 0)
    assert turned == pytest.approx(-0.01, abs=0.0015)
    assert answers.changed(list(old), list(new)).estimate == pytest.approx(turned, abs=0.0015)


def test_a_loss_that_accuracy_does_not_see_is_called() -> None:
    old, new = answered(np.random.default_rng(2), 10_000, loss=0.003)
    found = judged(list(old), list(new))
    assert (found.verdict, found.reason, found.primary) == ("regressed", "less-sure", True)
    assert found.p is not None
    assert found.p < 1e-6
    assert "% of answers" in found.detail
    right = [[float(it > 0) for it in side] for side in (old, new)]
    assert judged(*right, metric="accuracy").verdict == "pass", "its margin of 2 % passes this loss"


def test_one_document_says_nothing() -> None:
    with pytest.raises(TooFewSamples):
        answers.changed([1.0], [2.0])
    assert judged([1.0], [0.5]).reason == "too-few-blocks"
