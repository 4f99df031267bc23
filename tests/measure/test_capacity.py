"""The search for a capacity, and what makes a run void, on queues whose answer is known."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.matrix.workload import limit_of
from harness.measure.capacity import (
    Capacity,
    Holds,
    Limit,
    Observed,
    Point,
    Search,
    correlation_time,
    good,
    grew,
    limits_of,
    share_within,
)
from harness.measure.load_run import Run
from harness.measure.loads import Loads

SERVICE = 0.05  # seconds


def queue(rate: float, count: int, drawn: random.Random, servers: int = 1) -> Observed:
    """Return Poisson arrivals at a rate on servers of exponential service times."""
    free, clock = [0.0] * servers, 0.0
    arrivals, ends = [], []
    for _ in range(count):
        clock += drawn.expovariate(rate)
        first = min(range(servers), key=free.__getitem__)
        free[first] = max(clock, free[first]) + drawn.expovariate(1 / SERVICE)
        arrivals.append(clock)
        ends.append(free[first])
    times = [1000 * (end - start) for start, end in zip(arrivals, ends, strict=True)]
    return Observed(rate, {"ttft": times}, grew(arrivals, ends))


def searched(seed: int, limit: Limit, count: int = 600) -> Capacity:
    drawn = random.Random(seed)
    top = 1 / SERVICE
    known = [queue(share * top, count, drawn) for share in (0.25, 0.5, 0.75, 0.95)]
    return Search(lambda rate: queue(rate, count, drawn), top, 0.05, 12, known)([limit])


def test_the_capacity_of_a_queue_is_found_within_its_interval() -> None:
    """The time in an M/M/1 queue is exponential with rate mu - lambda, so its quantiles are known."""
    limit = Limit("ttft", 0.9, 400.0)
    true = 1 / SERVICE - math.log(10) / 0.4
    found = [searched(seed, limit) for seed in range(20)]
    middle = sorted(it.rate for it in found)[10]
    assert middle == pytest.approx(true, rel=0.1)
    assert sum(it.low <= true <= it.high for it in found) >= 17, "the interval is at 95 %"
    assert all(it.low <= it.rate <= it.high for it in found)
    assert max(it.runs for it in found) <= 4 + 12


def test_a_limit_that_no_rate_holds_has_no_capacity() -> None:
    found = searched(1, Limit("ttft", 0.9, 1.0), 60)
    assert (found.rate, found.low) == (0.0, 0.0)
    assert "no rate holds the limits" in found.problem


@pytest.mark.parametrize("lasting", [20.0, 5.0])
def test_what_requests_do_not_keep_one_at_a_time_is_not_looked_for_at_ever_lower_rates(
    lasting: float,
) -> None:
    """A rate of a hundredth takes a hundred times as long to measure."""
    rates: list[float] = []

    def run(rate: float) -> Observed:
        rates.append(rate)
        return Observed(rate, {"ttft": [50.0] * 50})

    def alone() -> Observed:
        return Observed(math.inf, {"ttft": [lasting] * 50})

    found = Search(run, 10.0, 0.05, 12, [run(9.0)], alone)([Limit("ttft", 0.9, 10.0)])
    if lasting > 10:
        assert rates == [9.0]
        assert found.problem == "no rate holds the limits, nor do requests that are sent one at a time"
    else:
        assert len(rates) > 5, "requests that never meet keep it, so some rate may"
    assert (found.rate, found.low) == (0.0, 0.0)


def test_a_limit_that_every_rate_holds_is_told_of() -> None:
    def calm(rate: float) -> Observed:
        return Observed(rate, {"ttft": [1.0] * 50})

    found = Search(calm, 10.0, 0.05, 12)([Limit("ttft", 0.9, 100.0)])
    assert found.rate >= 40
    assert "every rate up to" in found.problem


def test_what_was_measured_for_one_set_of_limits_serves_the_next() -> None:
    drawn, asked = random.Random(3), []

    def run(rate: float) -> Observed:
        asked.append(rate)
        return queue(rate, 300, drawn)

    search = Search(run, 1 / SERVICE, 0.05, 12)
    strict, loose = search([Limit("ttft", 0.9, 300.0)]), len(asked)
    again = search([Limit("ttft", 0.9, 300.0)])
    assert (again, len(asked)) == (strict, loose)


def test_a_run_that_ends_early_is_told_of() -> None:
    drawn = random.Random(1)
    found = Search(lambda rate: queue(rate, 50, drawn), 20.0, 0.001, 2)([Limit("ttft", 0.9, 300.0)])
    assert "ended after 2 runs" in found.problem


@given(st.floats(10, 1000), st.floats(1.1, 5))
def test_a_looser_limit_has_no_smaller_capacity(most: float, factor: float) -> None:
    def curve(rate: float) -> Observed:
        return Observed(rate, {"ttft": [1000 / max(1e-9, 20 - rate) if rate < 20 else 1e6] * 400})

    strict, loose = (
        Search(curve, 20.0, 0.01, 40)([Limit("ttft", 0.99, limit)]).rate for limit in (most, most * factor)
    )
    assert loose >= strict * (1 - 0.011)


@pytest.mark.parametrize(("count", "expected"), [(298, Holds.UNCLEAR), (299, Holds.YES)])
def test_a_99th_percentile_takes_299_requests_without_one_beyond(count: int, expected: Holds) -> None:
    times = [float(index % 7) for index in range(count)]
    random.Random(0).shuffle(times)
    point = Point(1.0, (Observed(1.0, {"ttft": times}, False),))
    if correlation_time(times) == 1.0:
        assert point.holds([Limit("ttft", 0.99, 10.0)]) is expected


def test_the_bounds_of_a_share_are_those_of_clopper_and_pearson() -> None:
    low, high = share_within(0.1, 20)
    assert (low, high) == pytest.approx((0.018065, 0.282619), rel=1e-4)
    assert share_within(0.0, 299)[1] == pytest.approx(1 - 0.05 ** (1 / 299))


def test_requests_that_wait_for_each_other_say_less() -> None:
    drawn = random.Random(5)
    alone = [drawn.gauss(0, 1) for _ in range(2000)]
    following = [0.0]
    for value in alone:
        following.append(0.9 * following[-1] + value)
    assert correlation_time(alone) < 2
    # Of an autoregression of 0.9: (1 + 0.9) / (1 - 0.9).
    assert correlation_time(following) == pytest.approx(19, rel=0.5)


def test_a_queue_that_grows_is_seen_and_one_that_does_not_is_not() -> None:
    drawn = random.Random(2)
    assert queue(2 / SERVICE, 300, drawn).grew
    assert sum(queue(0.5 / SERVICE, 300, drawn).grew for _ in range(40)) <= 1


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    times = {"ttft": [1.0, 9.0, 1.0], "tpot": [1.0, 1.0, 9.0]}
    limits = limits_of({"ttft_p99_ms": 5.0, "tpot_mean_ms": 5.0}, limit_of)
    assert good(times, limits) == [True, False, False]


# ---------------------------------------------------------------------------------------------------------- voids


def told(**changed: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "arrivals": [0.1 * index for index in range(1, 11)],
        "sent": [0.1 * index for index in range(1, 11)],
        "ttft": [10.0] * 10,
        "e2e": [20.0] * 10,
        "tpot": [5.0] * 10,
        "itl": [5.0] * 20,
        "tokens": [3] * 10,
        "asked_tokens": [3] * 10,
        "errors": [],
        "to_the_end": True,
        "duration": 1.02,
        "client_cpu": 0.2,
        "lag_p99": 1.0,
    }
    return base | changed


def test_a_good_run_is_not_void() -> None:
    run = Run(10.0, told(), due=1.0)
    assert run.void == ""
    assert run.tokens == pytest.approx(30 / 1.02)


def test_what_is_kept_of_a_run_has_each_request_and_not_each_token() -> None:
    kept = Run(10.0, told(ttft=[1.23456] * 10), due=1.0).kept
    assert kept["ttft"] == [1.235] * 10
    assert (kept["rate"], kept["void"], kept["tokens"]) == (10.0, "", [3] * 10)
    assert "itl" not in kept


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"errors": ["Service Unavailable"] * 2}, r"refused or dropped 2 of 12 requests; the first: Service"),
        ({"tokens": [3] * 8 + [1, 2]}, "2 of 10 answers have fewer tokens than asked for"),
        ({"client_cpu": 0.97}, "the client was the bottleneck: its one thread was busy for 97% of the time"),
        ({"arrivals": [0.2 * index for index in range(1, 11)]}, r"bottleneck: 5 of 10 requests a second were sent"),
        (
            {"lag_p99": 21.0},
            "bottleneck: its own timers were 21 ms late where the first token took 10 ms",
        ),
        ({"ttft": [], "tokens": []}, "no request was answered"),
    ],
)
def test_what_says_nothing_is_void_with_its_reason(changed: dict[str, Any], words: str) -> None:
    import re

    assert re.search(words, Run(10.0, told(**changed), due=1.0).void)


def test_an_answer_that_may_end_by_itself_is_not_short() -> None:
    assert Run(10.0, told(tokens=[1] * 10, to_the_end=False), due=1.0).void == ""


# ------------------------------------------------------------------------------------------------------ saturation


def full(requests: int, most: float = 50.0, tail: float = 4.0, **changed: Any) -> Run:
    """A run at once on a server that completes ``most`` requests a second, the last of them alone for ``tail`` s."""
    many = {"ttft": [10.0] * requests, "tokens": [3] * requests, "asked_tokens": [3] * requests}
    return Run(None, told(arrivals=[0.0] * requests, **many, duration=requests / most + tail, **changed))


def saturated(
    monkeypatch: pytest.MonkeyPatch, most: int, requests: int | None = None, **changed: Any
) -> tuple[Loads, list[int]]:
    loads = Loads(cast(Any, None))
    sent: list[int] = []

    def run(cell: Any, workload: Any, at: str, rate: float | None, asked: int | None = None) -> Run:
        sent.append(asked or 100)
        return full(sent[-1], **(changed if len(sent) > 2 else {}))

    monkeypatch.setattr(loads, "_run", run)
    wanted = SimpleNamespace(saturating_requests=most)
    cell = SimpleNamespace(measurements=SimpleNamespace(load=wanted))
    last = loads._saturate(cast(Any, cell), cast(Any, SimpleNamespace(requests=requests)))
    assert len(last.told["tokens"]) <= most
    return loads, sent


def test_a_server_is_full_when_twice_the_requests_bring_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, sent = saturated(monkeypatch, 100_000)
    # 100 requests at once say 16.7 a second of a server that completes 50.
    assert sent == [100, 200, 400, 800, 1600, 3200]
    assert loads._levelled
    assert loads._completes == pytest.approx(50)


def test_saturation_is_looked_for_no_further_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, sent = saturated(monkeypatch, 300)
    assert sent == [100, 200]
    assert not loads._levelled
    assert loads._completes == pytest.approx(50)
    # A workload that says how many requests it has is sent as it is.
    assert saturated(monkeypatch, 100_000, requests=100)[1] == [100]


def test_more_than_the_client_can_send_says_nothing_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, sent = saturated(monkeypatch, 100_000, client_cpu=0.99)
    assert sent == [100, 200, 400]
    assert loads._completes == pytest.approx(50)
    assert not loads._levelled
