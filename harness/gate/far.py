"""A gate over a cluster: each cell's units on one device with both their sides, all verdicts together here.

A node runs the gate as on one machine, over some of its units (harness.gate.part). Its records come here as they are
measured, with gate.json of its part after each step; a part whose node dies goes on from there on another one.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.reading import json_value
from harness.cluster import units as cluster
from harness.cluster.campaign import PATIENCE, Campaign, Clocks, Engine, Event, Lost
from harness.gate import identity, merged
from harness.gate.gate import GateResult, keep
from harness.gate.pace import Known
from harness.gate.part import VARIABLE, Part
from harness.gate.plan import Unit
from harness.gate.schedule import Budget
from harness.judge import gatefile
from harness.judge.family import settled
from harness.judge.gatefile import GateFile, Options
from harness.judge.ledger import Ledger
from harness.judge.series import DEVICE
from harness.matrix.hardware import Hardware
from harness.records.metrics import SIZES
from harness.records.place import Place
from harness.records.run import Run
from harness.records.schema import Failure, Line, Measurement

_MORE_BLOCKS = 2
"""A block and its mirror image: what a unit is given more whose verdicts the whole gate leaves open."""
_RESERVE = 5.0
_LEAST_SHARE = 1.0


@dataclass
class Group:
    """Units that go to one device together, as one unit of the cluster, and what has come of them."""

    name: str
    units: list[Unit]
    file: GateFile | None = None
    lines: list[Line] = field(default_factory=list)
    least: dict[str, int] = field(default_factory=dict)
    started: bool = False
    missing: dict[str, str] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)

    @property
    def gpus(self) -> int:
        return max(unit.cell.gpus for unit in self.units)

    def of_cell(self, model: str, recipe: str) -> bool:
        return any((unit.cell.model.name, unit.cell.recipe.name) == (model, recipe) for unit in self.units)

    def done(self, unit: Unit) -> int:
        """Return how many blocks of a unit count."""
        state = self.file.units.get(unit.id) if self.file else None
        return state.done if state else 0


def groups(wanted: Sequence[Unit], devices: int) -> list[Group]:
    """Return the units of each cell together, which share its checkpoints; each alone where more devices are there."""
    cells: dict[Place, list[Unit]] = {}
    for unit in wanted:
        cells.setdefault(unit.cell.base, []).append(unit)
    if len(cells) < devices:
        return [Group(unit.id, [unit]) for unit in wanted]
    return [Group(replace(them[0].cell, server="").id, them) for them in cells.values()]


@dataclass
class Far:
    """One gate over the devices of an engine. ``words`` follow those of its options on a node's command line.

    ``here`` says that nodes are this machine, ``root`` is the folder that they get a copy of otherwise, and ``beside``
    are files that they find among their results. ``program`` is what runs a part: the words after ``python -m``.
    """

    options: Options
    wanted: Sequence[Unit]
    hardware: Hardware
    engine: Engine
    run: Run
    budget: Budget
    progress: Callable[[str], None]
    words: Sequence[str] = ()
    here: bool = False
    root: Path = field(default_factory=Path.cwd)
    beside: Mapping[str, str] = field(default_factory=dict)
    known: Callable[[str], Known] = lambda _: Known()
    patience: float = PATIENCE
    program: Sequence[str] = ("harness", "gate")
    there: Callable[[Options], Options] = lambda options: options
    """Returns the options as nodes are given them: with paths as they find them."""
    created: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    groups: list[Group] = field(default_factory=list)
    alike: dict[str, Any] = field(default_factory=dict)
    _ledger: Ledger | None = None
    _kind: str = ""

    def resume(self, stored: GateFile) -> None:
        """Take over what an earlier session of this gate has done, on whatever machines."""
        if stored.options is None or not stored.matrix:
            raise HarnessError(f"{self.run.folder}: this gate was begun by an older version of the harness")
        matrix = {"matrix": identity.matrix_of(self.wanted)}
        changed = self.options.changed(stored.options) + identity.differing({"matrix": stored.matrix}, matrix)
        if changed:
            raise HarnessError(f"{self.run.folder}: this gate was started otherwise: {'; '.join(changed)}")
        self.created = stored.created
        self.budget = replace(self.budget, spent_before=stored.seconds)
        self._plan()
        if stored.environments:
            self.alike = merged.alike(stored)
        for group in self.groups:
            group.file = merged.part_of(stored, group.units)
        for line in self.run.lines():
            self._sort_in(line)

    def __call__(self) -> GateResult:
        """Measure until every verdict of the whole is precise enough or the budget is spent.

        Raises Lost where the cluster is gone before anything was begun.
        """
        self._kind = self.engine.keep_to(self.hardware.name)
        with self.run.path.open(encoding="utf-8") as file:
            self._begins = file.readline()
        self._clocks = Clocks(self.progress)
        if not self.groups:
            self._plan()
        finished = False
        try:
            pending = self.groups
            while pending:
                before = {group.name: sum(map(group.done, group.units)) for group in pending}
                self._wave(pending)
                came = [it for it in pending if sum(map(it.done, it.units)) > before[it.name]]
                pending = self._unsettled(came)
            finished = True
        except Lost as error:
            # Between two waves: what was measured is judged, and what it leaves open stays so.
            self.progress(f"the cluster is gone: {error}; go on with --resume {self.run.name}")
        finally:
            result = self.write(finished=finished)
        left_out = {name: unit.problem for it in self.groups if it.file for name, unit in it.file.units.items()
                    if unit.closed and unit.problem and not unit.reason}  # fmt: skip
        if len(left_out) == len(self.wanted):
            raise HarnessError(f"nothing to gate: {'; '.join(dict.fromkeys(left_out.values()))}")
        return result

    def _plan(self) -> None:
        self.groups = groups(self.wanted, self.engine.devices().get(self.hardware.name, 0))

    # -------------------------------------------------------------------------------------------------- to the nodes

    def _wave(self, pending: Sequence[Group]) -> None:
        self._by_name = {group.name: group for group in pending}
        for group in pending:
            group.started = False
        found = [
            cluster.Unit(
                it.name,
                self.hardware.name,
                tuple(unit.id for unit in it.units),
                float(len(it.units)),
                it.gpus if self.hardware.is_gpu else 0,
            )
            for it in pending
        ]
        count = self.engine.devices().get(self.hardware.name, 0)
        self.progress(f"gate: {sum(len(it.tests) for it in found)} units in {len(found)} parts on {count} devices")
        Campaign(
            found,
            self.engine,
            self._payload,
            self._take,
            self._over,
            self.progress,
            patience=min(self.patience, max(1.0, self.budget.left)),
            ahead=False,
        ).run()

    def _payload(self, unit: cluster.Unit, left: Sequence[str]) -> Mapping[str, Any]:
        group = self._by_name[unit.name]
        share = self._share(unit.devices)
        group.started = True
        spent = group.file.seconds if group.file else 0.0
        given = self.there(replace(self.options, budget=round(spent + share, 1)))
        files = {}
        if group.file:
            unfinished = {"finished": False, "exit_status": gatefile.EXIT["inconclusive"], "options": given}
            stored = group.file.model_copy(update=unfinished)
            lines = [next(it for it in self.run.lines() if it.kind == "header"), *group.lines]
            files = {"gate.json": stored.text()}
            files["records.jsonl"] = "".join(f"{line.model_dump_json()}\n" for line in lines)
            for line in lines:
                if name := getattr(line, "attachment", ""):
                    files[name] = (self.run.folder / name).read_text(encoding="utf-8")
        part = Part(unit.tests, group.least, self.alike)
        asked = given.words()
        return {
            "program": [*self.program, *asked[2:4]],
            "tests": list(left),
            "words": [*asked[4:], "--wide", *self.words],
            "kept": "gates",
            "folder": str(self.root),
            "here": self.here,
            "run": str(self.run.path.resolve()),
            "begins": self._begins,
            "files": files,
            "beside": dict(self.beside),
            "variables": {VARIABLE: part.text()},
        }

    def _share(self, devices: int) -> float:
        """Return the seconds of the budget for the next part: an equal share of what all devices have left."""
        waiting = sum(not group.started for group in self._by_name.values()) or 1
        at_once = max(1, self.engine.devices().get(self.hardware.name, 0) // devices)
        left = self.budget.left - min(_RESERVE, self.budget.seconds / 20)
        return max(_LEAST_SHARE, left / math.ceil(waiting / at_once))

    def _unsettled(self, came: Sequence[Group]) -> list[Group]:
        """Return the parts whose verdicts the whole leaves open, with how many blocks more they shall measure."""
        judged = self.ledger.controlled()
        found = []
        for group in came:
            group.least = {}
            for unit in group.units:
                state = group.file.units.get(unit.id) if group.file else None
                if state is None or state.closed or unit.id in group.missing or not state.done:
                    continue
                timed = [it for it in judged if unit.holds(it.place) and it.metric in unit.timed]
                if all(map(settled, timed)) or state.done >= (self.options.blocks or math.inf):
                    continue
                group.least[unit.id] = min(state.done + _MORE_BLOCKS, self.options.blocks or 10**9)
            expected = sum(_MORE_BLOCKS * group.file.units[name].seconds for name in group.least) if group.file else 0.0
            if group.least and self.budget.allows(expected):
                found.append(group)
        return found

    # ------------------------------------------------------------------------------------------------ from the nodes

    def _take(self, unit: cluster.Unit, event: Event) -> None:
        group = self._by_name[unit.name]
        kind = event["kind"]
        if kind == "begin":
            if event.get("device_kind", "") != self._kind:
                raise HarnessError(f"{unit.name} was sent to another kind of device than the rest: {event['node']}")
            group.devices.append(event["node"])
            self._clocks.began(unit.name, event)
            group.missing = {}
            self.progress(f"{unit.name} begins on node {event['node'][:12]}")
        elif kind == "line":
            self._record(group, event)
        elif kind == "gate":
            self._came_to(group, gatefile.parse(json_value(event["text"]), f"gate.json of {unit.name}"))
        elif kind == "said":
            self.progress(f"{unit.name}: {event['words']}")
        elif kind == "end":
            self.run.keep_logs(unit.name, event["logs"])

    def _came_to(self, group: Group, file: GateFile) -> None:
        if not self.alike:
            self.alike = merged.alike(file)
        if differs := identity.differing(self.alike, merged.alike(file)):
            # Begun before it was known what the others have.
            group.missing = dict.fromkeys(
                (unit.id for unit in group.units), f"its node's environments differ: {'; '.join(differs)}"
            )
            return
        group.file = file
        self.write()

    def _record(self, group: Group, event: Event) -> None:
        line = self.run.adopt(event["line"], event["attachment"], lambda at: self._clocks.dated(group.name, at))
        if isinstance(line, Measurement):
            device = f"{group.devices[-1][:12]} {line.state_before.get('gpu', '')}".strip() if group.devices else ""
            line = line.model_copy(update={"flags": {**line.flags, DEVICE: device}})
        if group.missing:
            # Of environments that no other device has.
            return
        self.run.append(line)
        self._sort_in(line, group)

    def _sort_in(self, line: Line, group: Group | None = None) -> None:
        if not isinstance(line, (Measurement, Failure)) or line.cell is None:
            return
        of = (line.cell.model.name, line.cell.recipe.name)
        for one in [group] if group else [it for it in self.groups if it.of_cell(*of)]:
            one.lines.append(line)
        self.ledger.add(line)

    def _over(self, unit: cluster.Unit, left: Sequence[str], why: str) -> None:
        group = self._by_name[unit.name]
        if left and not group.missing:
            group.missing = dict.fromkeys(left, why)
        for name, reason in group.missing.items():
            self.progress(f"missing: {name}: {reason}")
        self.write()

    # --------------------------------------------------------------------------------------------------- the whole

    @property
    def ledger(self) -> Ledger:
        """All figures together; how much blocks of this kind of device depend on one another is known by its name."""
        if self._ledger is None:
            metrics: Iterable[str] = frozenset().union(*(unit.metrics for unit in self.wanted)) | SIZES
            device = next((it.file.device for it in self.groups if it.file), "")
            self._ledger = Ledger(
                self.options.tolerances,
                frozenset(metrics),
                interleaved=self.hardware.sides_at_once,
                kept=self.known(device).kept,
            )
        return self._ledger

    def write(self, *, finished: bool = False) -> GateResult:
        """Write gate.json as things stand: the parts', and what has come of no part."""
        missing = {
            unit.id: (unit, group.missing[unit.id])
            for group in self.groups
            for unit in group.units
            if unit.id in group.missing
        }
        gate = merged.whole(
            [group.file for group in self.groups if group.file],
            self.ledger.controlled(),
            missing,
            moved=[it.name for it in self.groups if len(set(_devices(it.lines))) > 1],
            begun={
                "finished": finished,
                "old": self.options.old,
                "new": self.options.new,
                "package": self.options.old.partition("==")[0],
                "hardware": self.hardware.name,
                "created": self.created,
                "budget_seconds": self.options.budget,
                "seconds": round(self.budget.spent, 1),
                "seed": self.options.seed,
                "matrix": identity.matrix_of(self.wanted),
                "options": self.options,
            },
        )
        return keep(self.run.folder, gate)


def _devices(lines: Iterable[Line]) -> list[str]:
    return [str(it.flags[DEVICE]) for it in lines if isinstance(it, Measurement) and it.flags.get(DEVICE)]
