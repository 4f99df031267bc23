"""How long what a gate does is expected to take: by earlier gates, by the calibration, by what this one has done."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harness.base.errors import HarnessError
from harness.base.text import duration
from harness.gate.plan import Unit
from harness.judge import gatefile, looks
from harness.judge.calibration import Calibration
from harness.judge.family import over_blocks
from harness.judge.gatefile import GateFile
from harness.judge.looks import MINIMUM_BLOCKS
from harness.judge.series import unit_of
from harness.records.metric import Stage
from harness.records.place import Place

_GATES = 30
_STAGES: tuple[Stage, ...] = ("transformers", "engine", "server")
"""The cheapest first: an engine takes longer to start than a model to load, and a server an engine's time and more."""


@dataclass(frozen=True)
class Known:
    """Seconds that blocks of a unit took before on this device, and what a gate took besides its blocks.

    ``blocks`` are those after the first, ``first`` has with it what is taken once. Units are known by their names.
    """

    blocks: Mapping[Place, float] = field(default_factory=dict)
    first: Mapping[Place, float] = field(default_factory=dict)
    besides: float | None = None
    kept: float = 0.0
    """The share of a block's deviation that the next one keeps, by the stored gates."""
    calibration: Calibration | None = None

    @classmethod
    def of(cls, gates: Iterable[GateFile], calibration: Calibration | None = None) -> Known:
        """Return what the calibration says, and over it what gates say, the last of them first."""
        blocks: dict[Place, float] = {}
        first: dict[Place, float] = {}
        for noise in calibration.noise if calibration else ():
            place = unit_of(noise.place)
            blocks[place] = max(blocks.get(place, 0.0), noise.block_seconds)
        besides = []
        blocks_of: list[np.ndarray] = []
        for gate in gates:
            blocks_of += over_blocks(gate.verdicts).values()
            states = [it for it in gate.units.values() if it.done]
            blocks |= {it.place.named: it.seconds for it in states if it.seconds > 0}
            first |= {it.place.named: it.first for it in states if it.first > 0}
            if gate.finished and states:
                besides.append(max(0.0, gate.seconds - gate.measuring_seconds))
        kept = looks.dependence(blocks_of)
        return cls(blocks, first, statistics.median(besides) if besides else None, kept, calibration)

    @classmethod
    def load(cls, results: Path, hardware: str, device: str, *, strict: bool = False) -> Known:
        """Read the latest gates of a device, and its calibration; one that cannot be read tells nothing.

        Where it is ``strict`` a calibration that cannot be read raises HarnessError.
        """
        found = []
        for path in sorted((results / "gates").glob("*/gate.json"))[-_GATES:]:
            try:
                gate = gatefile.load(path)
            except HarnessError:
                continue
            if (gate.hardware, gate.device) == (hardware, device):
                found.append(gate)
        found.sort(key=lambda gate: gate.created)
        try:
            calibration = Calibration.find(results, hardware, device)
        except HarnessError:
            if strict:
                raise
            calibration = None
        return cls.of(found, calibration)

    def estimate(self, units: Sequence[Unit], budget: float) -> str:
        """Say how long a gate of some units is expected to take, before anything is begun."""
        most = f"at most the budget of {duration(budget)}"
        known = [unit for unit in units if unit.place.named in self.blocks]
        if not known:
            return f"how long it takes is not known, nothing like it was gated here before: {most}"
        blocks = [self.blocks[unit.place.named] for unit in known]
        first = [self.first.get(unit.place.named, self.blocks[unit.place.named]) for unit in known]
        least = sum(first) + (MINIMUM_BLOCKS - 1) * sum(blocks) + (self.besides or 0.0)
        missing = len(units) - len(known)
        beside = f", and what {missing} more take, of which nothing is known" if missing else ""
        told = (
            f"about {duration(least)} for {MINIMUM_BLOCKS} blocks, the fewest, of each of {len(known)} units, by "
            f"earlier gates{beside}; {most}"
        )
        if least > budget:
            told += "; so it will mostly be inconclusive: give more --budget, or choose with -k, --recipe or --server"
        return told


class Pace:
    """What the next step is expected to take: None where nothing like it is known."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._first: dict[tuple[str, str], list[float]] = {}
        self._made: list[float] = []
        self._checked: list[float] = []

    def block(self, unit: Unit) -> float | None:
        """Return the seconds that a unit's next block should take; the first as the longest of its kind so far."""
        if unit.done:
            return unit.seconds
        place = unit.place.named
        if place in self._known.first:
            return self._known.first[place]
        alike = self._first.get((unit.cell.server, unit.stage)) or [it for them in self._first.values() for it in them]
        known = [it for it in (self._known.blocks.get(place), max(alike, default=None)) if it is not None]
        return max(known, default=None)

    def cost(self, unit: Unit) -> tuple[int, float]:
        """Return what a unit's first block costs beside others': by its stage, then by what earlier gates took."""
        return _STAGES.index(unit.stage), self._known.first.get(unit.place.named, float("inf"))

    def making(self) -> float | None:
        """Return the seconds that a cell's checkpoints should take on both sides."""
        return max(self._made, default=None)

    def check(self) -> float | None:
        """Return the seconds that the look at an old checkpoint should take."""
        return max(self._checked, default=None)

    def took(self, unit: Unit, seconds: float) -> None:
        """Take in how long a unit's first block took."""
        unit.first = seconds
        self._first.setdefault((unit.cell.server, unit.stage), []).append(seconds)

    def made(self, seconds: float) -> None:
        """Take in how long the checkpoints of a cell took."""
        self._made.append(seconds)

    def checked(self, seconds: float) -> None:
        """Take in how long the look at an old checkpoint took."""
        self._checked.append(seconds)
