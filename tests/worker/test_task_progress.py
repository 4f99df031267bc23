"""What is told of a task while it runs: documents done and the time left, from the bars that count requests."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from harness.worker.task_progress import Told


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_become_documents_and_time_left() -> None:
    said: list[dict[str, Any]] = []
    clock = Clock()
    told = Told(said.append, clock)
    told.begin(documents=10, requests=40)
    for done in (0, 4, 20, 40):
        clock.now = float(done)
        told.bar(done, 40)
    assert [(one["done"], one["of"], one["left"]) for one in said] == [(1, 10, 36.0), (5, 10, 20.0), (10, 10, 0.0)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 20))
def test_several_bars_count_as_one_and_never_fall_back(bars: list[int], documents: int) -> None:
    """A text that is scored in windows has a bar a batch."""
    said: list[dict[str, Any]] = []
    clock = Clock()
    told = Told(said.append, clock)
    told.begin(documents, sum(bars))
    for total in bars:
        for done in range(total + 1):
            clock.now += 2
            told.bar(done, total)
    shares = [one["done"] for one in said]
    assert shares == sorted(shares)
    assert said[-1]["done"] == documents
    assert all(one["left"] >= 0 for one in said)
