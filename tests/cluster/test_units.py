"""Units: which of them comes first, and that no schedule of theirs takes longer than the rule's bound."""

from __future__ import annotations

import heapq
import json
import os
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base import memory
from harness.cluster import node, share
from harness.cluster.offer import Device, Offer, kind, label, resource
from harness.cluster.share import Share, cores
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


def topology(folder: Path, cores: int, sockets: int) -> Path:
    """Write a host's topology as Linux numbers it: first one thread of each core of every socket, then the others."""
    physical = cores // 2
    for core in range(cores):
        here = folder / "cpu" / f"cpu{core}"
        socket = core % physical // (physical // sockets)
        (here / "topology").mkdir(parents=True)
        (here / f"node{socket}").mkdir()
        (here / "topology" / "physical_package_id").write_text(f"{socket}\n")
        (here / "topology" / "core_id").write_text(f"{core % physical}\n")
    return folder


def test_gpus_side_by_side_share_no_core_and_have_memory_of_their_own_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = topology(tmp_path, 32, 2)
    monkeypatch.setattr(share.os, "sched_getaffinity", lambda _: set(range(32)))
    shares = [Share.of([gpu], 4, folder) for gpu in range(4)]
    # Both threads of a core, and no core of another socket.
    assert [it.cores for it in shares] == [
        (0, 1, 2, 3, 16, 17, 18, 19),
        (4, 5, 6, 7, 20, 21, 22, 23),
        (8, 9, 10, 11, 24, 25, 26, 27),
        (12, 13, 14, 15, 28, 29, 30, 31),
    ]
    assert [it.nodes for it in shares] == [(0,), (0,), (1,), (1,)]
    total = psutil.virtual_memory().total
    assert sum(it.memory for it in shares) <= total < sum(it.memory for it in shares) + 4
    both = Share.of([0, 2], 4, folder)
    assert both.cores == tuple(sorted(shares[0].cores + shares[2].cores))
    assert both.memory == total * 2 // 4
    assert Share.of([0, 1, 2, 3], 4, folder) == Share.of([], 0, folder) == Share(tuple(range(32)))


def test_who_takes_more_memory_than_its_share_is_named_only_where_the_hosts_is_scarce() -> None:
    scarce, plenty = {"total": 100, "available": 9}, {"total": 100, "available": 10}
    mine = os.getpid()
    assert Share((0,), 1).exceeded(mine, lambda: scarce).startswith("out of memory: it held ")
    assert not Share((0,), 1).exceeded(mine, lambda: plenty)
    assert not Share((0,), 10**15).exceeded(mine, lambda: scarce)
    assert not Share((0,)).exceeded(mine, lambda: scarce)


def test_a_session_that_takes_its_neighbours_memory_is_ended_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_waits.py").write_text("import time\ndef test_waits():\n    time.sleep(60)\n")
    monkeypatch.setattr(node, "_QUIET_SECONDS", 0.1)
    monkeypatch.setattr(Share, "exceeded", lambda share, process: "out of memory: more than its share")
    said: list[dict[str, str]] = []
    payload = {"tests": ["test_waits.py"], "words": ["-p", "no:cacheprovider"], "folder": str(tmp_path), "here": True}
    status = node.session({**payload, "files": {}}, lambda lines: said.extend(map(json.loads, lines)))
    assert status not in node.WHOLE
    assert node.last_words(said[-1]) == "out of memory: more than its share"


def test_work_at_once_fits_into_a_sessions_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.SHARE, "1000")
    assert (memory.within_share(5000), memory.within_share(10)) == (1000, 10)
    monkeypatch.delenv(memory.SHARE)
    assert memory.within_share(5000) == 5000
