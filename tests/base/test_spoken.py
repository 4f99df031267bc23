"""What long work says of itself: how far it is not too often, all else at once, and a heartbeat in a long silence."""

from __future__ import annotations

import io
import time

import pytest

from harness.base.spoken import Spoken


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_how_far_the_same_work_is_at_most_every_ten_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    said = Spoken(stream, clock)
    for now, message in ((0, "block: 1"), (5, "block: 2"), (6, "other: 1"), (12, "block: 3")):
        clock.now = now
        said(message)
    assert stream.getvalue().splitlines() == [
        "       0 s  block: 1",
        "       6 s  other: 1",
        "      12 s  block: 3",
    ]


def test_whatever_else_happens_to_the_same_is_told_at_once(clock: Clock) -> None:
    stream = io.StringIO()
    said = Spoken(stream, clock, wide=True)
    told = [
        "SmolLM2-int8wo: block 1 of 3 (2.5 s spent)",
        "SmolLM2-int8wo: its node died; it is run again, 1 of 1 tests are left",
        "left out: SmolLM2-int8wo: no kernels",
        "left out: SmolLM2-int4wo: no kernels",
        "left out: SmolLM2-8da4w: no kernels",
    ]
    for message in (*told, "SmolLM2-int8wo: block 2 of 3 (93 s spent)"):
        said(message)
    assert [line.partition(" s  ")[2] for line in stream.getvalue().splitlines()] == told


def test_a_heartbeat_says_what_is_done_how_long_and_what_is_left(clock: Clock) -> None:
    stream = io.StringIO()
    said = Spoken(stream, clock)
    said.budget = 180.0
    said("block 1 of a cell")
    for now in (10.0, 29.0, 31.0, 40.0, 62.0):
        clock.now = now
        said.waiting()
    assert stream.getvalue().splitlines()[1:] == [
        "      31 s  block 1 of a cell: 31 s so far, 2 min of the budget left",
        "      62 s  block 1 of a cell: 62 s so far, 2 min of the budget left",
    ]


def test_a_budget_does_not_count_what_was_waited_for_before(clock: Clock) -> None:
    stream = io.StringIO()
    said = Spoken(stream, clock)
    said("waiting: for another")
    clock.now = 500.0
    said.allow(300.0)
    said("block 1 of a cell")
    clock.now = 540.0
    said.waiting()
    assert stream.getvalue().splitlines()[-1] == "     540 s  block 1 of a cell: 40 s so far, 4 min of the budget left"


@pytest.mark.programs
def test_the_heart_beats_while_work_lasts_and_no_longer(clock: Clock) -> None:
    stream = io.StringIO()
    said = Spoken(stream, clock)
    said("long work")
    clock.now = 31.0
    with said.working():
        deadline = time.monotonic() + 5
        while "so far" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "long work: 31 s so far" in stream.getvalue()
    before = stream.getvalue()
    clock.now = 100.0
    time.sleep(1.2)
    assert stream.getvalue() == before


def test_long_lines_go_on_below(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    stream = io.StringIO()
    Spoken(stream, clock)("word " * 40)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 100
