"""Runs units on an engine: what is lost is sent elsewhere, a bounded number of times, and what never came is named."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.cluster.units import Ready, Unit

ATTEMPTS = 3
"""How often a unit is started before it is given up."""
PATIENCE = 120.0
"""Seconds for which hardware that no node has any more is waited for: a node may come late, or come back."""

LATER = "HARNESS_BASELINE_LATER"
"""Set for a session that measures beside its baseline: what needs that is judged by a later one, by its records."""

Event = dict[str, Any]
"""What a node's session says, one JSON object a line; ``kind`` says what it is."""


IN_VAIN = 2
"""Units in a row of which a node does no test, after which it is given no more while others can."""

CLOCK_OFF = 30.0
"""Seconds that a node's clock may be off before its lines are dated by this machine's; a mailbox keeps none so long."""


class Clocks:
    """How far nodes' clocks are off, by what each said of its own when a unit began there."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.time) -> None:
        self._say = say
        self._clock = clock
        self._off: dict[str, float] = {}
        self._told: set[str] = set()

    def began(self, unit: str, event: Event) -> None:
        """Take in a session's event of kind ``begin``."""
        off = event.get("clock", now := self._clock()) - now
        self._off[unit] = off if abs(off) > CLOCK_OFF else 0.0
        if self._off[unit] and event["node"] not in self._told:
            self._told.add(event["node"])
            ahead = "fast" if off > 0 else "slow"
            self._say(
                f"the clock of node {event['node'][:12]} is {abs(off):.0f} s {ahead}: its records are dated by mine"
            )

    def dated(self, unit: str, at: float) -> float:
        """Return by this machine's clock when a line of a unit was written."""
        return at - self._off.get(unit, 0.0)


@dataclass(frozen=True)
class Ended:
    """An attempt that is over: ``problem`` says why it gave no result, ``node`` where it ran, if that is known."""

    unit: str
    attempt: int
    problem: str = ""
    node: str = ""


class Lost(Exception):
    """The cluster itself is gone; the message says how that was noticed."""


class Engine(Protocol):
    """Places units on devices, carries what they say, and notices what died."""

    def devices(self) -> Mapping[str, int]:
        """Return how many devices of each hardware its live nodes have. Raises Lost."""

    def room(self, hardware: str) -> int:
        """Return how many devices of a hardware the live node with most of them has. Raises Lost."""

    def keep_to(self, hardware: str) -> str:
        """Have all units of a hardware run on devices of one kind, the most numerous; returns it. Raises Lost."""

    def submit(self, unit: Unit, attempt: int, payload: Mapping[str, Any], kind: str, avoid: Sequence[str]) -> None:
        """Start an attempt as soon as a device is free; of that ``kind`` if given, on no node of ``avoid``."""

    def poll(self, seconds: float) -> tuple[list[tuple[str, int, Event]], list[Ended]]:
        """Return what came within that time, as (unit, attempt, event), and which attempts are over. Raises Lost."""

    def rest(self) -> list[tuple[str, int, Event]]:
        """Return what came and was not returned yet, as :meth:`poll` does; nothing is started. Raises Lost."""

    def close(self) -> None:
        """End what still runs, and let the cluster go."""


@dataclass
class Campaign:
    """Units on an engine. ``payload`` makes what a node needs to run the tests of a unit that are left.

    ``take`` is given each event of a unit, once; ``over`` is told of a unit that is done, with the tests that never
    ended and why.
    """

    units: Sequence[Unit]
    engine: Engine
    payload: Callable[[Unit, Sequence[str]], Mapping[str, Any]]
    take: Callable[[Unit, Event], None]
    over: Callable[[Unit, Sequence[str], str], None]
    say: Callable[[str], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    stopped: Callable[[], bool] = lambda: False
    patience: float = PATIENCE
    ahead: bool = True
    """Whether a few more units are handed over than there are devices, so that one that ends need not be waited for."""
    _attempts: dict[str, int] = field(default_factory=dict)
    _left: dict[str, dict[str, None]] = field(default_factory=dict)
    _kinds: dict[str, str] = field(default_factory=dict)
    _avoid: dict[str, list[str]] = field(default_factory=dict)
    _in_vain: dict[str, set[str]] = field(default_factory=dict)
    """Units whose sessions a node ended without a test done, since it last did one."""
    _suspect: set[str] = field(default_factory=set)
    """Units with which more than one node did so: the fault is theirs."""
    _useful: set[tuple[str, int]] = field(default_factory=set)
    _running: dict[str, Unit] = field(default_factory=dict)
    _busy: Counter[str] = field(default_factory=Counter)
    """How many devices of each hardware those take."""
    _since: dict[tuple[str, int], float] = field(default_factory=dict)
    _later: dict[str, set[str]] = field(default_factory=dict)
    _spared: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """Return once every unit is over; what a lost cluster leaves is told of as missing."""
        self._ready = Ready(self.units)
        self._by_name = {unit.name: unit for unit in self.units}
        self._left = {unit.name: dict.fromkeys(unit.tests) for unit in self.units}
        self._open = dict(self._by_name)
        self._needs = Counter((unit.hardware, unit.devices) for unit in self.units)
        try:
            while self._open and not self.stopped():
                self._submit()
                events, ended = self.engine.poll(1.0)
                for name, attempt, event in events:
                    self._event(name, attempt, event)
                for end in ended:
                    self._end(end)
            self._take_rest()
        except KeyboardInterrupt:
            self._take_rest()
            raise
        except Lost as error:
            self._give_up(list(self._open.values()), f"the cluster is gone: {error}")

    def _take_rest(self) -> None:
        """Take what is off its node already, where this ends before its units do: nobody sends it twice."""
        if self._open:
            with contextlib.suppress(Lost):
                for name, attempt, event in self.engine.rest():
                    self._event(name, attempt, event)

    # -------------------------------------------------------------------------------------------------- placing

    def _submit(self) -> None:
        devices = self.engine.devices()
        for hardware in dict.fromkeys(hardware for hardware, _ in self._needs):
            count = devices.get(hardware, 0)
            # What needs several devices of one node may have to wait for them.
            more = max(2, count // 4) if self.ahead else 0
            while count and self._busy[hardware] < count + more:
                unit = self._ready.take(hardware)
                if unit is None:
                    break
                self._start(unit)
            # What waits for a baseline measures beside it rather than that a device stands idle.
            while self._busy[hardware] < count and (unit := self._ready.early(hardware, self._begun(hardware))):
                self._start(unit)
        self._look_for_absent(devices)

    def _begun(self, hardware: str) -> set[str]:
        """Return the units of a hardware that a device has begun with, so that it is known of which kind it is."""
        return {name for name, unit in self._running.items() if unit.hardware == hardware and name in self._kinds}

    def _start(self, unit: Unit) -> None:
        attempt = self._attempts[unit.name] = self._attempts.get(unit.name, 0) + 1
        self._running[unit.name] = unit
        self._busy[unit.hardware] += unit.devices
        kind = self._kinds.get(unit.after, "") if unit.after else self._kinds.get(unit.name, "")
        left = list(self._left[unit.name])
        payload = self.payload(unit, left)
        if unit.after in self._open:
            payload = {**payload, "variables": {**payload.get("variables", {}), LATER: "1"}}
        shunned = [node for node, units in self._in_vain.items() if len(units - self._suspect) >= IN_VAIN]
        avoid = dict.fromkeys([*self._avoid.get(unit.name, ()), *shunned])
        self.engine.submit(unit, attempt, payload, kind, tuple(avoid))

    def _look_for_absent(self, devices: Mapping[str, int]) -> None:
        """Give up what needs more of a hardware than the cluster has had for some time."""
        room = {name: self.engine.room(name) if devices.get(name) else 0 for name, _ in self._needs}
        lacking = {(name, count) for name, count in self._needs if room[name] < count}
        for need in self._since.keys() - lacking:
            del self._since[need]
        now = self.clock()
        late = {need for need in lacking if now - self._since.setdefault(need, now) >= self.patience}
        for unit in [it for it in self._open.values() if (it.hardware, it.devices) in late] if late else ():
            has, most = devices.get(unit.hardware, 0), room[unit.hardware]
            least = f", at most {most} on one node" if most < has else ""
            what = f"no node offers {unit.devices} of {unit.hardware}: the cluster has {has}{least}"
            self._give_up([unit], what)

    # --------------------------------------------------------------------------------------------------- events

    def _event(self, name: str, attempt: int, event: Event) -> None:
        unit = self._by_name.get(name)
        if unit is None:
            return
        current = attempt == self._attempts.get(name) and name in self._open
        if event["kind"] == "begin" and current:
            self._kinds[name] = event.get("device_kind", "")
        if event["kind"] == "done" and current:
            self._left[name].pop(event["test"], None)
            self._useful.add((name, attempt))
        if event["kind"] == "later" and current:
            self._later.setdefault(name, set()).add(event["test"])
        # A record is a measurement, also from a node that was given up; a report counts once.
        if current or event["kind"] == "line":
            self.take(unit, event)

    def _end(self, end: Ended) -> None:
        if end.unit not in self._open or end.attempt != self._attempts.get(end.unit):
            return
        unit = self._open[end.unit]
        self._runs_no_more(unit)
        left = list(self._left[unit.name])
        self._judge_node(end)
        if not left:
            self._over(unit, [], "")
            return
        later = self._later.pop(unit.name, set())
        if not end.problem and later.issuperset(left):
            # Measured, and to be judged: by a session that finds all its records.
            self._spared[unit.name] = self._spared.get(unit.name, 0) + 1
            (self._ready.wait if unit.after in self._open else self._ready.add)(unit)
            return
        problem = end.problem or "its session ended without them"
        if end.node:
            self._avoid.setdefault(unit.name, []).append(end.node)
        attempt = end.attempt - self._spared.get(unit.name, 0)
        if attempt >= ATTEMPTS:
            self._over(unit, left, f"{problem}; attempt {attempt} of {ATTEMPTS}")
            return
        self.say(f"{unit.name}: {problem}; it is run again, {len(left)} of {len(unit.tests)} tests are left")
        self._ready.add(unit)

    def _judge_node(self, end: Ended) -> None:
        """Have units that are left kept from a node which ends one session after the other without a test done."""
        if not end.node:
            return
        if not end.problem or (end.unit, end.attempt) in self._useful:
            self._in_vain.pop(end.node, None)
            return
        if any(end.unit in units for node, units in self._in_vain.items() if node != end.node):
            self._suspect.add(end.unit)
        found = self._in_vain.setdefault(end.node, set())
        known = len(found - self._suspect) >= IN_VAIN
        found.add(end.unit)
        if len(found - self._suspect) >= IN_VAIN and not known:
            self.say(
                f"node {end.node[:12]} ended {IN_VAIN} sessions in a row with no test done ({end.problem}): what is "
                "left is run elsewhere where it can be"
            )

    def _runs_no_more(self, unit: Unit) -> None:
        if self._running.pop(unit.name, None):
            self._busy[unit.hardware] -= unit.devices

    def _over(self, unit: Unit, left: Sequence[str], why: str) -> None:
        if self._open.pop(unit.name, None):
            self._needs[unit.hardware, unit.devices] -= 1
            self._needs += Counter()
        self._runs_no_more(unit)
        self.over(unit, left, why)
        self._ready.ended(unit.name)

    def _give_up(self, units: Sequence[Unit], why: str) -> None:
        for unit in units:
            self._over(unit, list(self._left[unit.name]), why)
