"""The schedule: both orders as often, sides that take turns and never wait for one that has gone, and the budget."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import HarnessError
from harness.gate import schedule
from harness.gate.schedule import FEWEST_ROUNDS, Budget, Turns, block_order, parse_budget
from harness.judge.series import SIDES, Side, other

TIMEOUT = 20


@given(st.integers(), st.text(max_size=8), st.integers(0, 60))
def test_both_orders_occur_equally_often(seed: int, cell: str, blocks: int) -> None:
    orders = [block_order(seed, cell, index) for index in range(blocks)]
    old_first = sum(order == ("old", "new") for order in orders)
    assert abs(2 * old_first - blocks) <= 1
    assert all(set(order) == set(SIDES) for order in orders)
    assert orders == [block_order(seed, cell, index) for index in range(blocks)], "the seed decides"


def test_the_order_is_drawn() -> None:
    first = [block_order(0, "cell", 2 * index)[0] for index in range(200)]
    assert 60 < first.count("old") < 140
    assert first != [block_order(1, "cell", 2 * index)[0] for index in range(200)]


def rounds(order: tuple[Side, Side], calls: dict[Side, int], fails: Side | None = None) -> list[Side]:
    """Return who was measured when, where each side makes so many calls; ``fails`` raises in its second."""
    turns, log, busy = Turns(order), [], threading.Lock()

    def work(side: Side) -> None:
        def once() -> None:
            assert busy.acquire(blocking=False), "two sides were measured at once"
            try:
                log.append(side)
                if side == fails and log.count(side) == 2:
                    raise HarnessError("planted")
            finally:
                busy.release()

        try:
            turns.timer(side)(once, calls[side], 0)
        finally:
            turns.leave(side)

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work, side) for side in SIDES]
        for future in futures:
            error = future.exception(timeout=TIMEOUT)
            assert error is None or isinstance(error, HarnessError), error
    return log


@given(st.sampled_from([SIDES, ("new", "old")]), st.integers(1, 12))
def test_rounds_are_taken_in_turns_and_mirrored(order: tuple[Side, Side], count: int) -> None:
    log = rounds(order, dict.fromkeys(SIDES, count))
    a, b = order
    assert log == ([a, b, b, a] * count)[: 2 * count]


@given(st.sampled_from([SIDES, ("new", "old")]), st.integers(0, 6), st.integers(0, 6))
def test_nobody_waits_for_a_side_that_is_done(order: tuple[Side, Side], old: int, new: int) -> None:
    log = rounds(order, {"old": old, "new": new})
    assert (log.count("old"), log.count("new")) == (old, new)


@given(st.sampled_from(SIDES))
def test_nobody_waits_for_a_side_that_failed(side: Side) -> None:
    log = rounds(SIDES, dict.fromkeys(SIDES, 5), fails=side)
    assert log.count(side) == 2
    assert log.count(other(side)) == 5


@given(st.sampled_from([SIDES, ("new", "old")]), st.integers(1, 9), st.floats(0.5, 9), st.integers(0, 2))
def test_long_rounds_are_fewer_and_as_many_on_both_sides(
    order: tuple[Side, Side], wanted: int, seconds: float, warmup: int
) -> None:
    """A round of the old side takes one second and one of the new side two; the slower one decides."""
    clock, calls, told = [0.0], dict.fromkeys(SIDES, 0), dict.fromkeys(SIDES, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule.time, "monotonic", lambda: clock[0])
        turns = Turns(order, seconds)

        def work(side: Side) -> None:
            def once() -> None:
                calls[side] += 1
                clock[0] += 1.0 + (side == "new")

            told[side] = turns.timer(side)(once, wanted, warmup)
            turns.leave(side)

        threads = [threading.Thread(target=work, args=(side,)) for side in SIDES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert calls == told == dict.fromkeys(SIDES, warmup + min(wanted, max(FEWEST_ROUNDS, int(seconds / 2))))


def test_an_interrupted_block_ends_at_once() -> None:
    turns = Turns(SIDES)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(turns.meet, "old")
        time.sleep(0.05)
        assert not waiting.done()
        turns.cancel()
        with pytest.raises(HarnessError, match="interrupted"):
            waiting.result(timeout=TIMEOUT)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("45", 45), (" 2 m ", 120)])
def test_a_budget_is_a_time(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "-5m", "30 minutes", "m", "1e3", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(HarnessError, match="is not a time such as"):
        parse_budget(text)


def test_a_budget_counts_what_was_spent_before() -> None:
    budget = Budget(100, spent_before=60)
    assert 60 <= budget.spent < 61
    assert budget.allows(30)
    assert not budget.allows(45)
