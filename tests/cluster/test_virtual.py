"""Many cells on many devices in virtual time: how near to the best possible, and what node faults lose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cluster.virtual import plot, simulate
from tests.laws import examples


@pytest.mark.parametrize("faults", [0, 100])
def test_ten_thousand_cells_are_within_a_tenth_of_the_bound_and_nothing_is_lost(faults: int) -> None:
    found = simulate(10_000, 100, faults)
    assert found.faults == faults
    assert (found.done, found.twice, found.missing) == (20_000, 0, 0)
    assert found.least <= found.makespan < 1.1 * found.least
    # Under 5 % of a core for ten devices, over the whole campaign.
    assert found.planner < 0.05 * 10 * found.makespan
    assert "polyline" in plot(found, 100)


@examples(25)
@given(st.integers(1, 200), st.integers(1, 12), st.integers(0, 20), st.integers(0, 1000))
def test_whatever_dies_no_test_ends_twice_and_each_ends_or_is_named(
    count: int, devices: int, faults: int, seed: int
) -> None:
    found = simulate(count, devices, faults, seed=seed)
    assert found.twice == 0
    assert found.done + found.missing == 2 * count
    if not faults:
        assert found.missing == 0
