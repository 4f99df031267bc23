"""The simulation itself: what it draws is what it says, it says the same again, and the gate's own code decides."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.judge import looks
from harness.judge.looks import Dependence
from tests.simulation import draws, gates, tables
from tests.simulation.gates import FAMILY


def whole(seed: int, effects: list[float] | None = None, **more: int) -> gates.Ended:
    rng = np.random.default_rng(seed)
    return gates.gate(draws.even, rng, 0.05, effects or [0.0] * sum(FAMILY), FAMILY, **more)


def test_an_unchanged_gate_passes_once_each_unit_is_settled_and_says_the_same_again() -> None:
    found = whole(1)
    assert found.status == 0
    assert (len(found.verdicts), len(found.blocks)) == (25, 15)
    assert min(found.blocks) >= looks.MINIMUM_BLOCKS
    assert all(it.blocks == found.blocks[int(it.place.recipe[1:])] for it in found.verdicts)
    assert whole(1) == found


def test_a_planted_fault_is_found_and_a_budget_ends_a_gate() -> None:
    worse = whole(2, [math.log(1.2), *[0.0] * 24])
    assert worse.status == 1
    assert [it.verdict for it in worse.verdicts].count("regressed") == 1
    short = whole(2, total=45)
    assert sum(short.blocks) == 45
    assert short.status == 3


@pytest.mark.parametrize("draw", [draws.even, draws.dependent(0.5), draws.recorded])
def test_noise_is_as_large_and_as_dependent_as_it_says(draw: draws.Draw) -> None:
    found = draw(np.random.default_rng(0), 200, 50)
    kept = Dependence.of(found)
    assert kept is not None
    assert kept.kept == pytest.approx(0.5 if draw not in (draws.even, draws.recorded) else 0.0, abs=0.05)
    if draw is not draws.recorded:
        assert found.std() == pytest.approx(draws.PROCESS * math.sqrt(2), rel=0.05)


def test_a_table_tells_what_it_counted() -> None:
    found = tables.tasks(tables.Times(metrics=10, gates=1))
    assert len(found.rows) == 2
    assert all("%" in cell for row in found.rows for cell in row[1:])
