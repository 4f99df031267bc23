"""A cluster in virtual time: devices that take as long as units say, die and come back; what the planner makes of it.

    python -m tests.cluster.virtual --cells 10000 --devices 100 --faults 100 --plot docs/results/fleet.svg

Everything of the planner is real but the clock and the devices. Prints the makespan against what no schedule can beat,
the planner's own processor time and memory, and how many tests were lost.
"""

from __future__ import annotations

import argparse
import heapq
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from harness.cluster.campaign import LATER, Campaign, Ended, Event
from harness.cluster.units import Unit, bound
from harness.report.svg import Drawing, Scale
from tests.cluster.__main__ import cells

START_SECONDS = 5.0
"""What a session takes before its first test, and one that judges records that it finds."""
_DETECTED_SECONDS = 10.0
_BACK_SECONDS = 120.0


@dataclass
class Virtual:
    """Devices of one hardware in virtual time. ``faults`` are the seconds at which the node of a random device dies."""

    count: int
    seconds: Mapping[str, float]
    faults: Sequence[float] = ()
    seed: int = 1
    now: float = 0.0
    hit: int = 0
    busy: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free = list(range(self.count))
        self._waiting: list[tuple[Unit, int, Mapping[str, Any]]] = []
        self._running: dict[int, tuple[Unit, int, Mapping[str, Any]]] = {}
        self._draw = random.Random(self.seed)
        # (when, order, what, device, unit's name, attempt)
        self._coming: list[tuple[float, int, str, int, str, int]] = []
        self._order = 0
        for at in self.faults:
            self._push(at, "dies", -1, "", 0)

    def devices(self) -> Mapping[str, int]:
        return {"sim": self.count}

    def room(self, hardware: str) -> int:
        return self.count

    def keep_to(self, hardware: str) -> str:
        return "k"

    def submit(self, unit: Unit, attempt: int, payload: Mapping[str, Any], kind: str, avoid: Sequence[str]) -> None:
        self._waiting.append((unit, attempt, payload))

    def rest(self) -> list[tuple[str, int, Event]]:
        return []

    def close(self) -> None:
        pass

    def poll(self, seconds: float) -> tuple[list[tuple[str, int, Event]], list[Ended]]:
        events: list[tuple[str, int, Event]] = []
        while self._free and self._waiting:
            unit, attempt, payload = self._waiting.pop(0)
            device = self._free.pop()
            self._running[device] = (unit, attempt, payload)
            took = START_SECONDS
            if not payload["judged"]:
                took += self.seconds[unit.name] * len(payload["tests"]) / len(unit.tests)
            self._push(self.now + took, "ends", device, unit.name, attempt)
            begin = {"kind": "begin", "node": str(device), "device_kind": "k"}
            events.append((unit.name, attempt, begin))
        if events:
            return events, []
        if not self._coming:
            self.now += seconds
            return [], []
        self.now, _, what, device, name, attempt = heapq.heappop(self._coming)
        self.busy.append((self.now, len(self._running)))
        if what == "dies":
            return [], self._dies()
        if what == "back":
            self._free.append(device)
            return [], []
        if what == "noticed":
            return [], [Ended(name, attempt, "its node died", str(device))]
        unit, current, payload = self._running.get(device, (None, 0, {}))
        if unit is None or (unit.name, current) != (name, attempt):
            return [], []  # its node has died meanwhile
        del self._running[device]
        self._free.append(device)
        kind = "later" if LATER in payload.get("variables", {}) else "done"
        return [(name, attempt, {"kind": kind, "test": test}) for test in payload["tests"]], [Ended(name, attempt)]

    def _dies(self) -> list[Ended]:
        if self._running:
            device = self._draw.choice(sorted(self._running))
            unit, attempt, _ = self._running.pop(device)
            self.hit += 1
            self._push(self.now + _DETECTED_SECONDS, "noticed", device, unit.name, attempt)
            self._push(self.now + _BACK_SECONDS, "back", device, "", 0)
        return []

    def _push(self, at: float, what: str, device: int, name: str, attempt: int) -> None:
        self._order += 1
        heapq.heappush(self._coming, (at, self._order, what, device, name, attempt))


@dataclass(frozen=True)
class Outcome:
    """What a campaign came to: virtual seconds, the planner's real ones, and tests."""

    makespan: float
    least: float
    planner: float
    grown: float
    done: int
    twice: int
    missing: int
    faults: int
    busy: Sequence[tuple[float, int]]


def simulate(count: int, devices: int, faults: int = 0, mean: float = 600.0, seed: int = 1) -> Outcome:
    """Run so many cells on so many devices, while so many nodes die at random moments."""
    units = [
        Unit(it.name, it.hardware, it.tests, it.seconds + START_SECONDS, it.gpus, it.after)
        for it in cells(count, mean, seed)
    ]
    least = bound(units, {"sim": devices})
    draw = random.Random(seed + 1)
    deaths = sorted(draw.uniform(0, 0.9 * least) for _ in range(faults))
    engine = Virtual(devices, {it.name: it.seconds - START_SECONDS for it in units}, deaths, seed)
    ended: dict[str, int] = {}
    measured: set[str] = set()
    missing = 0

    def take(unit: Unit, event: Event) -> None:
        if event["kind"] == "later":
            measured.add(unit.name)
        if event["kind"] == "done":
            ended[event["test"]] = ended.get(event["test"], 0) + 1

    def over(unit: Unit, left: Sequence[str], why: str) -> None:
        nonlocal missing
        missing += len(left)

    def payload(unit: Unit, left: Sequence[str]) -> Mapping[str, Any]:
        # A session that finds all its records judges them, and measures nothing.
        return {"tests": list(left), "judged": unit.name in measured}

    campaign = Campaign(units, engine, payload, take, over, clock=lambda: engine.now)
    process = psutil.Process()
    before, spent = process.memory_info().rss, time.process_time()
    campaign.run()
    spent = time.process_time() - spent
    grown = (process.memory_info().rss - before) / 1e6
    twice = sum(times - 1 for times in ended.values())
    return Outcome(engine.now, least, spent, grown, len(ended), twice, missing, engine.hit, engine.busy)


def plot(found: Outcome, devices: int) -> str:
    """Draw how many devices were busy over the campaign, and the time that no schedule can beat."""
    width, height, left, bottom = 640, 300, 52.0, 256.0
    drawing = Drawing(width, height, "Devices that were busy over a simulated campaign, and the bound")
    hours = [at / 3600 for at, _ in found.busy]
    across = Scale.over([0.0, max(*hours, found.least / 3600)], left, width - 12)
    up = Scale.over([0.0, float(devices)], bottom, 20)
    drawing.bottom_axis(across, 20, bottom, "hours of virtual time")
    drawing.left_axis(up, left, width - 12)
    step = max(1, len(hours) // 600)
    spots = list(zip(hours, (count for _, count in found.busy), strict=True))[::step]
    points = " ".join(f"{across(hour):.1f},{up(count):.1f}" for hour, count in spots)
    drawing.add("polyline", kind="front", points=points)
    drawing.line(across(found.least / 3600), 20, across(found.least / 3600), bottom, "leader")
    drawing.text(left + 6, 14, "busy devices; upright: no schedule ends before", kind="quiet")
    style = "text{font:11px sans-serif;fill:#555}.grid{stroke:#ddd}.front{fill:none;stroke:#06c}.leader{stroke:#c30}"
    whole = drawing.markup().replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return whole.replace(">", f"><style>{style}</style>", 1) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--faults", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    found = simulate(given.cells, given.devices, given.faults)
    print(f"{given.cells} cells on {given.devices} devices, {found.faults} nodes died: {found.done} tests ended, "
          f"{found.twice} twice, {found.missing} missing")  # fmt: skip
    print(f"makespan {found.makespan / 3600:.2f} h, at least {found.least / 3600:.2f} h: "
          f"{found.makespan / found.least:.3f} times the bound")  # fmt: skip
    print(f"planner: {found.planner:.1f} s of processor time, {found.planner / found.makespan:.3%} of a core over the "
          f"campaign; memory grew by {found.grown:.0f} MB")  # fmt: skip
    if given.plot:
        given.plot.write_text(plot(found, given.devices), encoding="utf-8")


if __name__ == "__main__":
    main()
