"""Units: which of them comes first, and that no schedule of theirs takes longer than the rule's bound."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cluster.node import cores
from harness.cluster.offer import Device, Offer, kind, label, resource
from harness.cluster.units import Ready, Unit, bound, urgency


def unit(name: str, seconds: float = 1.0, after: str = "", hardware: str = "h100", gpus: int = 1) -> Unit:
    return Unit(name, hardware, (f"{name}::test",), seconds, gpus, after)


def drained(ready: Ready, hardware: str = "h100") -> list[str]:
    found = []
    while one := ready.take(hardware):
        found.append(one.name)
    return found


def test_the_longest_comes_first_and_a_baseline_counts_what_waits_for_it() -> None:
    ready = Ready([unit("short", 1), unit("base", 2), unit("long", 5), unit("recipe", 9, after="base")])
    assert drained(ready) == ["base", "long", "short"]
    ready.ended("base")
    assert drained(ready) == ["recipe"]


def test_a_baseline_that_is_not_asked_for_is_not_waited_for() -> None:
    assert drained(Ready([unit("recipe", 1, after="elsewhere")])) == ["recipe"]


def test_hardware_has_a_queue_of_its_own() -> None:
    ready = Ready([unit("a"), unit("b", hardware="l4")])
    assert (ready.hardware(), drained(ready, "l4"), ready.hardware()) == (["h100", "l4"], ["b"], ["h100"])


TIMES = st.lists(st.floats(min_value=0.1, max_value=100), min_size=1, max_size=40)


@given(times=TIMES, devices=st.integers(min_value=1, max_value=8), data=st.data())
def test_the_order_is_within_grahams_bound(times: list[float], devices: int, data: st.DataObject) -> None:
    """4/3 of what cannot be beaten without baselines to wait for; with them list scheduling's 2 - 1/m."""
    units: list[Unit] = []
    for number, seconds in enumerate(times):
        earlier = [one.name for one in units if not one.after]
        after = data.draw(st.sampled_from(["", *earlier]))
        units.append(unit(str(number), seconds, after))
    ready, free, ends, now, total = Ready(units), devices, [], 0.0, 0.0
    while True:
        while free and (one := ready.take("h100")):
            heapq.heappush(ends, (now + one.seconds, one.name))
            free -= 1
        if not ends:
            break
        now, name = heapq.heappop(ends)
        total = max(total, now)
        ready.ended(name)
        free += 1
    least = bound(units, {"h100": devices})
    assert least <= total * (1 + 1e-9)
    alone = not any(one.after for one in units)
    assert total <= least * (2 - 1 / devices) * (1 + 1e-9)
    if alone and len(units) <= devices:
        assert total == pytest.approx(max(urgency(units).values()))


def test_an_offer_is_told_in_rays_words() -> None:
    offer = Offer((Device("cpu", "EPYC (8 cores)", 1), Device("h200", "NVIDIA H200", 4, gpu=True)))
    assert offer.resources == {resource("cpu"): 1.0, resource("h200"): 4.0}
    assert offer.labels[label("h200")] == kind("NVIDIA H200") != kind("NVIDIA H200 NVL")
    words = offer.command("head:6379")
    assert words[:4] == ["ray", "start", "--address=head:6379", "--num-gpus=4"]
    assert "--include-dashboard=false" in offer.command()


@given(among=st.integers(2, 8), every=st.integers(1, 64))
def test_gpus_side_by_side_share_no_processor(among: int, every: int) -> None:
    shares = [cores(list(range(every)), [gpu], among) for gpu in range(among)]
    if every < among:
        assert all(share == list(range(every)) for share in shares)
        return
    assert len({len(share) for share in shares}) == 1
    assert len({core for share in shares for core in share}) == sum(map(len, shares))
    assert sorted(cores(list(range(every)), [0, 1], among)) == sorted(shares[0] + shares[1])
