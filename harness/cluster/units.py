"""What is sent to a node as one: the tests of a cell through a server, in the order that ends the whole soonest."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """Tests that one session on one device runs. ``name`` is unique.

    ``tests`` are pytest's node ids in order, ``seconds`` what they are expected to take, ``gpus`` how many devices they
    need at once; ``after`` names the unit whose records this one's limits need: its baseline's.
    """

    name: str
    hardware: str
    tests: tuple[str, ...]
    seconds: float = 60.0
    gpus: int = 0
    after: str = ""

    @property
    def devices(self) -> int:
        """How many devices of the hardware it takes: a processor is one."""
        return max(1, self.gpus)


def urgency(units: Iterable[Unit]) -> dict[str, float]:
    """Return for each unit the seconds from its start to the end of the longest that waits for it.

    Longest first is Graham's rule (LPT, 1969): on m devices the whole takes at most 4/3 - 1/(3m) of the best possible.
    """
    units = list(units)
    behind: dict[str, float] = {}
    for unit in units:
        if unit.after:
            behind[unit.after] = max(behind.get(unit.after, 0.0), unit.seconds)
    return {unit.name: unit.seconds + behind.get(unit.name, 0.0) for unit in units}


class Ready:
    """The units that may start now, the most urgent first; others come when what they wait for has ended."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self._urgency = urgency(units)
        self._order = itertools.count()
        self._heaps: dict[str, list[tuple[float, int, Unit]]] = {}
        self._waiting: dict[str, list[Unit]] = {}
        names = {unit.name for unit in units}
        for unit in units:
            if unit.after in names:
                self._waiting.setdefault(unit.after, []).append(unit)
            else:
                self.add(unit)

    def add(self, unit: Unit) -> None:
        """Let a unit start, also once more."""
        heap = self._heaps.setdefault(unit.hardware, [])
        heapq.heappush(heap, (-self._urgency[unit.name], next(self._order), unit))

    def take(self, hardware: str) -> Unit | None:
        """Return the most urgent unit of a hardware, which is no longer ready; None where there is none."""
        heap = self._heaps.get(hardware)
        return heapq.heappop(heap)[2] if heap else None

    def early(self, hardware: str, begun: Container[str]) -> Unit | None:
        """Return the most urgent unit of a hardware that waits for one that has begun, which then waits no longer.

        It measures beside what it waits for, and is judged once that has ended. None where there is none.
        """
        found = [it for name, them in self._waiting.items() if name in begun for it in them if it.hardware == hardware]
        if not found:
            return None
        first = max(found, key=lambda unit: self._urgency[unit.name])
        self._waiting[first.after].remove(first)
        return first

    def wait(self, unit: Unit) -> None:
        """Let a unit wait for the end of what it comes after."""
        self._waiting.setdefault(unit.after, []).append(unit)

    def ended(self, name: str) -> None:
        """Let start what waited for a unit, however that ended."""
        for unit in self._waiting.pop(name, ()):
            self.add(unit)

    def hardware(self) -> list[str]:
        """Return the hardware that some unit is ready for."""
        return [name for name, heap in self._heaps.items() if heap]


def bound(units: Sequence[Unit], devices: Mapping[str, int]) -> float:
    """Return seconds that no schedule can beat: all work shared evenly, or the longest unit with its baseline."""
    seconds = urgency(units)
    alone = {unit.name: unit for unit in units}
    longest = max(
        (seconds[unit.name] for unit in units if unit.after not in alone),
        default=0.0,
    )
    shared = (
        sum(unit.seconds * unit.devices for unit in units if unit.hardware == name) / count
        for name, count in devices.items()
        if count
    )
    return max(longest, max(shared, default=0.0))
