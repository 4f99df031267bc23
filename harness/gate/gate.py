"""May we move from the old version to the new one? Both sides measured in blocks, and one verdict a metric."""

from __future__ import annotations

import datetime
import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError, OutOfTime, RecordError, Unsuitable
from harness.base.files import write_text
from harness.base.memory import TooLittleMemory
from harness.base.reading import json_value
from harness.base.text import duration
from harness.gate import identity
from harness.gate.bench import Bench
from harness.gate.blocks import BlockRunner, of_the_machine
from harness.gate.compatibility import Compatibility, verdict_of
from harness.gate.needs import Needs
from harness.gate.pace import Known, Pace
from harness.gate.part import Part
from harness.gate.plan import Unit
from harness.gate.profiles import Profiles
from harness.gate.schedule import Budget, block_order
from harness.judge import gatefile
from harness.judge.gatefile import GateFile, Options
from harness.judge.ledger import Ledger
from harness.judge.rules import MEASURING, OLD_CHECKPOINT
from harness.judge.series import SIDES, Series, Side
from harness.judge.verdict import Verdict, event
from harness.machine import probe
from harness.matrix.plan import Matrix
from harness.measure.flow import Flow
from harness.records.metrics import SIZES
from harness.records.place import Place
from harness.records.run import Run
from harness.records.schema import Line
from harness.runtime.environment import Environment
from harness.runtime.environment_pair import Pair
from harness.runtime.store import Store

_LASTING = 300.0
"""Seconds after which what workers are forked from is started anew, so that its luck is not in all blocks."""


@dataclass(frozen=True)
class GateResult:
    """What a gate came to: its folder, its verdicts, and gate.json as it was written there."""

    folder: Path
    verdicts: list[Verdict]
    file: GateFile

    @property
    def exit_status(self) -> int:
        return self.file.exit_status


def keep(folder: Path, gate: GateFile, wrote: Callable[[str], None] = lambda _: None) -> GateResult:
    """Write gate.json into a gate's folder, tell ``wrote`` its text, and return it as it is read from there.

    Raises RecordError where it cannot be written.
    """
    path, text = folder / "gate.json", gate.text()
    try:
        write_text(path, text)
    except OSError as error:
        raise RecordError(f"{path}: cannot be written ({error.strerror}); free some space and --resume") from error
    wrote(text)
    return GateResult(folder, list(gate.verdicts), gatefile.parse(json_value(text, once=True), str(path)))


class Gate:
    """One gate from its environments to its verdicts; every step leaves gate.json behind, so it can be resumed."""

    def __init__(
        self,
        options: Options,
        *,
        store: Store,
        matrix: Matrix,
        run: Run,
        pair: Pair,
        base: Environment,
        progress: Callable[[str], None],
        wanted: list[Unit],
        budget: Budget | None = None,
        known: Known | None = None,
        part: Part | None = None,
    ) -> None:
        """``budget`` may have begun before, with the environments; ``known`` is how long blocks took in other gates.

        ``part`` is set where the units are those of one device of a cluster.
        """
        self.options = options
        self.run = run
        self.pair = pair
        self.progress = progress
        self.units = wanted
        self.hardware = matrix.hardware[options.hardware]
        self.part = part or Part()
        self.budget = budget or Budget(options.budget)
        self.pace = Pace(known or Known())
        self.created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        # What there was no time for: a unit, or an old checkpoint, with why.
        self.unmeasured: dict[str, Verdict] = {}
        self.ledger = Ledger(
            options.tolerances,
            frozenset().union(*(unit.metrics for unit in wanted)) | SIZES,
            interleaved=self.hardware.sides_at_once,
            kept=known.kept if known else 0.0,
        )
        data = Path(options.data) if options.data else None
        common: dict[str, Any] = {"data": data, "limit": options.limit, "progress": progress}
        self.bench = Bench(
            pair=pair,
            store=store,
            run=run,
            matrix=matrix,
            base=Flow.open(store, run, matrix, environment=base, **common),
            until_cut=lambda: self.budget.until_cut,
            **common,
        )
        self.runner = BlockRunner(self.bench, lambda seconds: self.budget.allows(seconds))
        self.compatibility = Compatibility(self.bench)
        self.profiles = Profiles(run, pair.old.name)
        self.needs = Needs(self.bench.base.checkpoints, self.ledger, options.tasks)
        run.written = self._written

    def _written(self, line: Line) -> None:
        self._hear(line)
        self.part.heard(line, self.run)

    def _hear(self, line: Line) -> None:
        self.ledger.add(line)
        self.compatibility.add(line)
        self.profiles.add(line)

    def resume(self, stored: GateFile) -> None:
        """Take over what an earlier session of this gate has done; its records are read here, and never again."""
        if stored.options is None or not stored.matrix:
            raise HarnessError(f"{self.run.folder}: this gate was begun by an older version of the harness")
        if changed := self.options.changed(stored.options) + identity.changed(stored, self.made_of):
            raise HarnessError(f"{self.run.folder}: this gate was started otherwise: {'; '.join(changed)}")
        self.created = stored.created
        # Whoever goes on with a gate that came to its end wants to know what it left open.
        self.needs.undecided = stored.finished is not True
        self.budget = replace(self.budget, spent_before=stored.seconds)
        self.compatibility.restore(stored)
        for line in self.run.lines():
            self._hear(line)
        for unit in self.units:
            if kept := stored.units.get(unit.id):
                unit.go_on_from(kept)

    @functools.cached_property
    def made_of(self) -> dict[str, Any]:
        """What its samples depend on beside its options."""
        return identity.made_of(self.pair, self.bench.base.workers.environment, self.units)

    def __call__(self) -> GateResult:
        """Measure until every verdict is precise enough or the budget is spent."""
        self.part.check(self.made_of)
        self.write()
        finished = False
        try:
            with self.bench.cut_off.watching():
                self._survey()
                self._rounds()
            finished = True
        finally:
            result = self.write(finished=finished)
            self.bench.close()
        return result

    def _survey(self) -> None:
        """Quantize everywhere, run each recipe's first block, and carry old checkpoints over: what is cheap first.

        Raises HarnessError if the models suit none of what was asked for.
        """
        cells: dict[Place, list[Unit]] = {}
        for unit in self.units:
            if not unit.closed:
                cells.setdefault(unit.place.without("server", "stage"), []).append(unit)
        made: dict[Place, dict[Side, HarnessError | None]] = {}
        for unit in sorted((it for them in cells.values() for it in them), key=self.pace.cost):
            begun = self.budget.spent
            try:
                self._begin(unit, cells[unit.place.without("server", "stage")], made)
            except HarnessError as error:
                if isinstance(error := self.bench.cut_off.instead(error), OutOfTime):
                    self._cut(unit, self.budget.spent - begun)
                elif of_the_machine(error) and not isinstance(error, TooLittleMemory):
                    unit.close("machine-trouble", str(error))
                else:
                    raise error from None
            self.write()
        left_out = [unit.problem for unit in self.units if unit.problem and not unit.reason]
        if len(left_out) == len(self.units) and not self.part.units:
            raise HarnessError(f"nothing to gate: {'; '.join(dict.fromkeys(left_out))}")

    def _begin(self, unit: Unit, through: list[Unit], made: dict[Place, dict[Side, HarnessError | None]]) -> None:
        """Make the checkpoints of a unit's cell, unless they are ``made``, and run its first block."""
        cell = unit.place.without("server", "stage")
        if cell not in made:
            first = self.pace.block(unit) if unit.runs else 0.0
            if not unit.done and not self._time_for([unit], self.pace.making(), first):
                return
            before = self.budget.spent
            made[cell] = self.compatibility.checkpoints([it.cell for it in through])
            self.pace.made(self.budget.spent - before)
        self._try(unit, made[cell])

    def _cut(self, unit: Unit, seconds: float) -> None:
        """Note of what was at work when the budget ended that it was cut off."""
        words = f"cut off after {duration(seconds)}, where the budget of {duration(self.options.budget)} ended"
        self.progress(f"no time for {unit.id}: {words}")
        if not unit.done:
            self.unmeasured[unit.id] = event(_about(unit), "inconclusive", "budget-spent", f"not measured: {words}")

    def _try(self, unit: Unit, errors: Mapping[Side, HarnessError | None]) -> None:
        """Run a unit's first block, or what can be run of it after ``errors`` of quantization."""
        for error in errors.values():
            if isinstance(error, Unsuitable):
                self.progress(f"left out {unit.id}: {error}")
                unit.close(problem=str(error))
                return
            if error and of_the_machine(error):
                raise error
        if self.bench.base.checkpoints.at_load(unit.cell) or not any(errors.values()):
            if not unit.runs:
                return
            if not unit.done:
                if not self._time_for([unit], self.pace.block(unit)):
                    return
                before = self.budget.spent
                self._block(unit)
                if unit.done:
                    self.pace.took(unit, self.budget.spent - before)
            if unit.done and not unit.reason:
                self._old_checkpoint(unit)
            return
        for side in SIDES:
            if not errors[side]:
                self.compatibility.alone(unit, side)
        if not errors["old"]:
            self.compatibility.old_checkpoint(unit)
        unit.close()

    def _time_for(self, units: Sequence[Unit], *expected: float | None) -> bool:
        """Return whether a step is expected to end within the budget; otherwise it is noted of what it was for."""
        if not self.bench.cut_off.happened and self.budget.allows(*expected):
            return True
        needed = sum(it for it in expected if it)
        words = f"not measured: {duration(self.budget.left)} of the budget of {duration(self.options.budget)} were left"
        words += f", and it was expected to take {duration(needed)}" if needed else ""
        for unit in units:
            self.progress(f"no time for {unit.id}: {words}")
            self.unmeasured[unit.id] = event(_about(unit), "inconclusive", "budget-spent", words)
        return False

    def _old_checkpoint(self, unit: Unit) -> None:
        """Look at how the new version takes an old checkpoint, if there is time for it."""
        if self.compatibility.looks_at(unit) and not self.budget.allows(self.pace.check()):
            about = Series(unit.cell.place.at(f"works: {OLD_CHECKPOINT}"))
            self.unmeasured[f"{unit.id} {OLD_CHECKPOINT}"] = event(about, "inconclusive", "budget-spent", "")
            return
        before = self.budget.spent
        self.compatibility.old_checkpoint(unit)
        self.pace.checked(self.budget.spent - before)

    def _rounds(self) -> None:
        """Measure block after block of every unit that is not settled, the units in a new random order each time.

        Those through every server and stage take part in every round, so that none uses up the budget of another.
        """
        draw = random.Random(f"{self.options.seed}/cells")  # noqa: S311 - a reproducible order
        renewed = self.budget.spent
        too_long: set[str] = set()

        def pending_units() -> list[Unit]:
            # Whether a unit is settled depends on the family, so that one which was may not be any more.
            judged = self.ledger.controlled()
            left = (unit for unit in self.units if not unit.closed and unit.done and unit.id not in too_long)
            return [unit for unit in left if self.part.more(unit) or not self.needs.settled(unit, judged)]

        while pending := pending_units():
            for unit in draw.sample(pending, len(pending)):
                if not self.budget.allows(unit.seconds) or unit.done >= (self.options.blocks or math.inf):
                    too_long.add(unit.id)
                    continue
                if self.budget.spent - renewed > _LASTING:
                    self.bench.renew()
                    renewed = self.budget.spent
                self._block(unit)
                self.write()

    def _block(self, unit: Unit) -> bool:
        """Measure one block; returns whether the unit can go on."""
        unit.once, unit.tasks = self.needs.once(unit, self.ledger.judged()), self.needs.tasks(unit)
        first = not unit.done
        order = block_order(self.options.seed, unit.id, unit.done)
        self.progress(f"block {unit.done + 1} of {unit.id}, {order[0]} first ({self.budget.spent:.0f} s spent)")
        seconds, begun = unit.seconds, self.budget.spent
        errors = self.runner(unit, order)
        if any(isinstance(error, OutOfTime) for error in errors.values()):
            # It is measured again under its own number when the gate is resumed.
            unit.done, unit.seconds = unit.done - 1, seconds
            self._cut(unit, self.budget.spent - begun)
            return False
        found = [f"{side} side, block {unit.done}: {error}" for side, error in errors.items() if error]
        if any(map(of_the_machine, errors.values())):
            # Says nothing of the recipe: the block is measured again when the gate is resumed.
            unit.done -= 1
            unit.close("machine-trouble", "; ".join(found))
        elif first:
            self.compatibility.first_block(unit, errors)
            if found:
                unit.close()
        elif found:
            unit.close("later-block-failed", "; ".join(found))
        return not unit.closed

    def verdicts(self) -> list[Verdict]:
        """Return every verdict, the worst first."""
        events = [verdict for row in self.compatibility.rows.values() if (verdict := verdict_of(row))]
        events += [event(_about(unit), "error", unit.reason, unit.problem) for unit in self.units if unit.reason]
        events += self.unmeasured.values()
        found = self.ledger.controlled() + self.compatibility.verdicts + events
        return sorted(found, key=lambda verdict: verdict.severity)

    def write(self, *, finished: bool = False) -> GateResult:
        """Write gate.json as things stand."""
        verdicts = self.verdicts()
        gate = GateFile(
            finished=finished,
            package=self.pair.package,
            old=self.pair.old.name,
            new=self.pair.new.name,
            hardware=self.options.hardware,
            device=probe.device(self.hardware).name,
            created=self.created,
            budget_seconds=self.options.budget,
            seconds=round(self.budget.spent, 1),
            measuring_seconds=round(sum(unit.measuring for unit in self.units), 1),
            seed=self.options.seed,
            **self.made_of,
            differences=list(self.pair.differences),
            verdicts=verdicts,
            compatibility=list(self.compatibility.rows.values()),
            kernels=self.compatibility.changes,
            profiles=self.profiles.changes,
            exit_status=gatefile.exit_status(verdicts, finished=finished),
            options=self.options,
            units={unit.id: unit.state for unit in self.units},
            remarks=_remarks(self.ledger.dependence()),
        )
        return keep(self.run.folder, gate, self.part.wrote)


def _remarks(kept: float) -> list[str]:
    if not kept:
        return []
    return [
        f"blocks depend on one another: each keeps {kept:.0%} of how far the one before it was off, here or in earlier "
        "gates of this machine; intervals are wider by that"
    ]


def _about(unit: Unit) -> Series:
    return Series(replace(unit.place, metric=MEASURING))
