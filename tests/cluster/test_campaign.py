"""What a campaign makes of nodes that die, hang, come late or are not what they say: nothing is lost in silence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cluster.campaign import ATTEMPTS, Campaign, Ended, Event, Lost
from harness.cluster.units import Unit

Act = Callable[[Unit, int, Sequence[str]], tuple[list[Event], str]]


class Played:
    """An engine whose devices do what ``act`` says: the events of an attempt, and why it is over."""

    def __init__(self, act: Act, devices: Mapping[str, int]) -> None:
        self.act = act
        self.there = dict(devices)
        self.submitted: list[tuple[str, int, str, tuple[str, ...]]] = []
        self.waiting: list[tuple[Unit, int, Sequence[str]]] = []
        self.now = 0.0
        self.most = 100
        self.late = False
        self.each_poll: Callable[[], None] = lambda: None

    def devices(self) -> Mapping[str, int]:
        return self.there

    def room(self, hardware: str) -> int:
        return min(self.most, self.there.get(hardware, 0))

    def keep_to(self, hardware: str) -> str:
        return "k"

    def submit(self, unit: Unit, attempt: int, payload: Mapping[str, Any], kind: str, avoid: Sequence[str]) -> None:
        self.submitted.append((unit.name, attempt, kind, tuple(avoid)))
        self.waiting.append((unit, attempt, payload["tests"]))

    def poll(self, seconds: float) -> tuple[list[tuple[str, int, Event]], list[Ended]]:
        self.now += seconds
        self.each_poll()
        if not self.waiting:
            return [], []
        unit, attempt, tests = self.waiting.pop(0)
        events, problem = self.act(unit, attempt, tests)
        return [(unit.name, attempt, event) for event in events], [Ended(unit.name, attempt, problem, f"n{attempt}")]

    def rest(self) -> list[tuple[str, int, Event]]:
        return [("b", 1, {"kind": "done", "test": "b0"})] if self.late else []

    def close(self) -> None:
        pass


class Watched:
    """A campaign over played devices, and what it told."""

    def __init__(self, units: Sequence[Unit], act: Act, devices: Mapping[str, int]) -> None:
        self.engine = Played(act, devices)
        self.events: list[tuple[str, Event]] = []
        self.missing: dict[str, tuple[list[str], str]] = {}
        self.said: list[str] = []
        self.campaign = Campaign(
            units,
            self.engine,
            lambda unit, left: {"tests": list(left)},
            lambda unit, event: self.events.append((unit.name, event)),
            lambda unit, left, why: self.missing.__setitem__(unit.name, (list(left), why)),
            self.said.append,
            clock=lambda: self.engine.now,
            patience=30,
        )

    @property
    def done(self) -> list[str]:
        return [event["test"] for _, event in self.events if event["kind"] == "done"]


def unit(name: str, tests: int = 2, after: str = "", hardware: str = "h100") -> Unit:
    return Unit(name, hardware, tuple(f"{name}{number}" for number in range(tests)), after=after)


def begun(kind: str = "k") -> Event:
    return {"kind": "begin", "node": "n", "device_kind": kind}


def well(unit: Unit, attempt: int, tests: Sequence[str]) -> tuple[list[Event], str]:
    return [begun(), *({"kind": "done", "test": test} for test in tests)], ""


def test_every_test_ends_once() -> None:
    watched = Watched([unit("a"), unit("b", after="a")], well, {"h100": 1})
    watched.campaign.run()
    assert watched.done == ["a0", "a1", "b0", "b1"]
    assert watched.missing == {"a": ([], ""), "b": ([], "")}
    assert watched.engine.submitted == [("a", 1, "", ()), ("b", 1, "k", ())]


def test_what_a_dead_node_left_is_run_elsewhere_and_what_it_ended_is_not() -> None:
    def act(unit: Unit, attempt: int, tests: Sequence[str]) -> tuple[list[Event], str]:
        if attempt == 1:
            return [begun(), {"kind": "done", "test": tests[0]}, {"kind": "report", "test": tests[1]}], "its node died"
        assert list(tests) == ["a1"]
        return well(unit, attempt, tests)

    watched = Watched([unit("a")], act, {"h100": 2})
    watched.campaign.run()
    assert watched.done == ["a0", "a1"]
    assert watched.engine.submitted[1] == ("a", 2, "k", ("n1",))
    assert watched.said == ["a: its node died; it is run again, 1 of 2 tests are left"]


def test_a_unit_that_kills_every_node_is_given_up_and_named() -> None:
    watched = Watched([unit("a"), unit("b")], lambda *_: ([begun()], "its node died"), {"h100": 1})
    watched.campaign.run()
    assert watched.missing["a"] == (["a0", "a1"], f"its node died; attempt {ATTEMPTS} of {ATTEMPTS}")
    assert len(watched.engine.submitted) == 2 * ATTEMPTS


def test_a_node_that_ends_two_sessions_with_no_test_done_is_kept_from_the_others() -> None:
    class TwoNodes(Played):
        """``mislabelled`` is first wherever it may be."""

        def poll(self, seconds: float) -> tuple[list[tuple[str, int, Event]], list[Ended]]:
            if not self.waiting:
                return super().poll(seconds)
            name, number = self.waiting[0][0].name, self.waiting[0][1]
            avoided = next(avoid for unit, attempt, _, avoid in self.submitted if (unit, attempt) == (name, number))
            self.act = refuse if "mislabelled" not in avoided else well
            events, (end,) = super().poll(seconds)
            node = "mislabelled" if "mislabelled" not in avoided else "right"
            return events, [replace(end, node=node)]

    def refuse(*_: Any) -> tuple[list[Event], str]:
        return [], "its device is an NVIDIA L4"

    watched = Watched([unit(name) for name in "abcdefgh"], refuse, {"h100": 1})
    watched.campaign.ahead = False
    watched.campaign.engine = watched.engine = TwoNodes(refuse, {"h100": 1})
    watched.campaign.run()
    assert sorted(watched.done) == sorted(f"{name}{number}" for name in "abcdefgh" for number in range(2))
    assert len(watched.engine.submitted) == 8 + 2, "each unit tried the node for itself"
    assert [words for words in watched.said if "sessions in a row" in words] == [
        "node mislabelled ended 2 sessions in a row with no test done (its device is an NVIDIA L4): what is left is "
        "run elsewhere where it can be"
    ]


def test_units_that_fail_everywhere_keep_no_node_from_the_others() -> None:
    def act(unit: Unit, attempt: int, tests: Sequence[str]) -> tuple[list[Event], str]:
        return ([], "its session crashed") if unit.name in "abc" else well(unit, attempt, tests)

    watched = Watched([unit(name) for name in "abcdef"], act, {"h100": 1})
    watched.campaign.ahead = False
    watched.campaign.run()
    assert sorted(watched.done) == sorted(f"{name}{number}" for name in "def" for number in range(2))
    # At first it looks as if the node were to blame.
    assert [avoid for name, _, _, avoid in watched.engine.submitted if name in "def"][1:] == [()] * 2


def test_a_session_that_ends_well_without_its_tests_has_not_run_them() -> None:
    watched = Watched([unit("a")], lambda *_: ([begun()], ""), {"h100": 1})
    watched.campaign.run()
    assert watched.missing["a"][1].startswith("its session ended without them")


def test_hardware_that_never_comes_is_missing_and_what_comes_late_is_used() -> None:
    watched = Watched([unit("a"), unit("late", hardware="l4"), unit("b", hardware="mi300")], well, {"h100": 1})

    def come() -> None:
        if watched.engine.now >= 10:
            watched.engine.there["l4"] = 1

    watched.engine.each_poll = come
    watched.campaign.run()
    assert watched.missing["late"] == ([], "")
    assert watched.missing["b"] == (["b0", "b1"], "no node offers 1 of mi300: the cluster has 0")
    assert 30 <= watched.engine.now < 40


def test_what_takes_two_gpus_is_missing_where_each_node_has_one() -> None:
    watched = Watched([replace(unit("a"), gpus=2), unit("b")], well, {"h100": 4})
    watched.engine.most = 1
    real = watched.engine.submit

    def submit(unit: Unit, *rest: Any) -> None:
        # Nobody places it: Ray waits for a node that has two.
        if unit.devices == 1:
            real(unit, *rest)

    watched.engine.submit = submit  # type: ignore[method-assign]
    watched.campaign.run()
    assert watched.missing["b"] == ([], "")
    told = "no node offers 2 of h100: the cluster has 4, at most 1 on one node"
    assert watched.missing["a"] == (["a0", "a1"], told)


def test_a_cluster_that_is_gone_leaves_what_was_not_measured_by_name() -> None:
    def act(unit: Unit, attempt: int, tests: Sequence[str]) -> tuple[list[Event], str]:
        if unit.name == "b":
            raise Lost("its head has not answered")
        return well(unit, attempt, tests)

    first = replace(unit("a"), seconds=500.0)
    watched = Watched([first, unit("b"), unit("c", after="b")], act, {"h100": 1})
    watched.campaign.run()
    assert watched.done == ["a0", "a1"]
    assert {name: left for name, (left, _) in watched.missing.items() if left} == {"b": ["b0", "b1"], "c": ["c0", "c1"]}
    assert "its head has not answered" in watched.missing["c"][1]


def test_a_node_that_was_given_up_still_tells_what_it_measured_and_no_more() -> None:
    watched = Watched([unit("a", 1)], well, {"h100": 1})
    old = watched.engine.poll

    def poll(seconds: float) -> tuple[list[tuple[str, int, Event]], list[Ended]]:
        events, ended = old(seconds)
        stale: list[Event] = [{"kind": kind, "test": "a0"} for kind in ("line", "report", "done")]
        return [*(("a", 0, event) for event in stale), *events], ended

    watched.engine.poll = poll  # type: ignore[method-assign]
    watched.campaign.run()
    assert [event["kind"] for _, event in watched.events] == ["line", "begin", "done"]


@given(data=st.data(), count=st.integers(1, 8), devices=st.integers(1, 4))
def test_whatever_dies_every_test_ends_once_or_is_named(data: st.DataObject, count: int, devices: int) -> None:
    units: list[Unit] = []
    for number in range(count):
        after = data.draw(st.sampled_from(["", *(it.name for it in units)]))
        units.append(unit(f"u{number}-", data.draw(st.integers(1, 3)), after))

    def act(unit: Unit, attempt: int, tests: Sequence[str]) -> tuple[list[Event], str]:
        ended = data.draw(st.integers(0, len(tests)))
        problem = data.draw(st.sampled_from(["", "died"]))
        return [begun(), *({"kind": "done", "test": test} for test in tests[:ended])], problem

    watched = Watched(units, act, {"h100": devices})
    watched.campaign.run()
    missing = [test for left, _ in watched.missing.values() for test in left]
    every = [test for one in units for test in one.tests]
    assert sorted([*watched.done, *missing]) == sorted(every)
    assert set(watched.missing) == {one.name for one in units}
    assert all(why for left, why in watched.missing.values() if left)


def test_a_session_that_is_stopped_starts_nothing_more() -> None:
    watched = Watched([unit("a"), unit("b")], well, {"h100": 1})
    watched.campaign.stopped = lambda: "a0" in watched.done
    watched.campaign.run()
    assert set(watched.done) < {"a0", "a1", "b0", "b1"}


def test_what_is_off_its_node_is_taken_when_a_session_is_stopped_or_interrupted() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    for stop in (True, False):
        watched = Watched([unit("a"), unit("b")], well, {"h100": 2})
        watched.engine.late = True
        watched.campaign.stopped = lambda seen=watched, stop=stop: stop and "a0" in seen.done
        if stop:
            watched.campaign.run()
        else:
            watched.engine.each_poll = interrupt
            with pytest.raises(KeyboardInterrupt):
                watched.campaign.run()
        assert watched.done.count("b0") == 1
