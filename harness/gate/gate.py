"""May we move from the old version to the new one? Both sides measured in blocks, and one verdict a metric."""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError, RecordError, Unsuitable
from harness.base.files import json_finite, write_text
from harness.gate.bench import Bench, SharedRun
from harness.gate.blocks import BlockRunner, of_the_machine
from harness.gate.compatibility import Compatibility
from harness.gate.plan import Options, Unit, units
from harness.gate.schedule import Budget, block_order
from harness.judge.rules import MEASURING, RULES, Margins
from harness.judge.series import SIDES, Series, Side, series
from harness.judge.stats import MINIMUM_BLOCKS
from harness.judge.verdict import Verdict, combined, control, event, family_of, judge, settled
from harness.machine import probe
from harness.matrix.plan import Matrix
from harness.measure.flow import Flow
from harness.records.metrics import SIZES, TASKS, TEXT_QUALITY
from harness.runtime.environment import Environment
from harness.runtime.pair import Pair
from harness.runtime.store import Store

SCHEMA = 1
EXIT = {"pass": 0, "regressed": 1, "error": 2, "inconclusive": 3}
# The worst of several verdicts decides; what could not be judged outweighs what is not certain yet.
_WORST = ("regressed", "error", "inconclusive", "pass")


@dataclass(frozen=True)
class Outcome:
    """A finished gate: its folder, its verdicts, and gate.json as it was written."""

    folder: Path
    verdicts: list[Verdict]
    data: dict[str, Any]

    @property
    def exit_status(self) -> int:
        return int(self.data["exit_status"])


def exit_status(verdicts: Iterable[Verdict]) -> int:
    """Return 0 pass, 1 regressed, 2 could not be judged, 3 inconclusive: the worst of the primary verdicts.

    A gate without a single primary verdict has judged nothing: 2.
    """
    found = {verdict.verdict for verdict in verdicts if verdict.primary}
    return EXIT[next(worst for worst in _WORST if worst in found)] if found else EXIT["error"]


class Gate:
    """One gate from its environments to its verdicts; every step leaves gate.json behind, so it can be resumed."""

    def __init__(
        self,
        options: Options,
        *,
        store: Store,
        matrix: Matrix,
        run: SharedRun,
        pair: Pair,
        base: Environment,
        progress: Callable[[str], None],
        absent: Collection[str] = (),
    ) -> None:
        self.options = options
        self.run = run
        self.matrix = matrix
        self.pair = pair
        self.progress = progress
        self.margins = Margins(options.margins)
        data = Path(options.data) if options.data else None
        common: dict[str, Any] = {"data": data, "limit": options.limit, "progress": progress}
        self.bench = Bench(
            pair=pair,
            store=store,
            run=run,
            matrix=matrix,
            base=Flow(store, run, matrix, environment=base, **common),
            **common,
        )
        self.runner = BlockRunner(self.bench)
        self.compatibility = Compatibility(self.bench)
        self.hardware = matrix.hardware[options.hardware]
        self.units = units(matrix, options, absent)
        self.created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.budget = Budget(options.budget)

    def resume(self, stored: dict[str, Any]) -> None:
        """Take over what an earlier session of this gate has done."""
        if changed := self.options.changed(stored["options"]) + self._changed(stored):
            raise HarnessError(f"{self.run.folder}: this gate was started otherwise: {'; '.join(changed)}")
        self.created = stored["created"]
        self.budget = Budget(self.options.budget, spent_before=float(stored["seconds"]))
        self.compatibility.restore(stored)
        for unit in self.units:
            kept = stored["units"].get(unit.id, {})
            unit.measuring, unit.lost = float(kept.get("measuring", 0.0)), int(kept.get("lost", 0))
            unit.seconds = float(kept.get("seconds", 0.0))
            # A block that was cut off is measured again under its own number, and its later records count.
            unit.done = int(kept.get("done", 0))
            # What the machine was in the way of is tried again; what is closed otherwise stays so.
            if kept.get("closed") and kept.get("reason") != "machine-trouble":
                unit.close(kept["reason"], kept["problem"])

    def _made_of(self) -> dict[str, Any]:
        """Return what a gate's samples depend on beside its options, as gate.json holds it."""
        cells = {unit.id: unit.cell for unit in self.units}
        found: dict[str, Any] = {
            "environments": {side: self.pair.side(side).packages() for side in SIDES},
            "contents": dict(self.pair.contents),
            "interpreter": self.bench.base.environment.interpreter(),
            "matrix": {
                "cells": dict.fromkeys(cells, "measured"),
                "models": {cell.model.name: cell.model.model_dump(mode="json") for cell in cells.values()},
                "recipes": {cell.recipe.name: cell.recipe.model_dump(mode="json") for cell in cells.values()},
                "measurements": next(iter(cells.values())).measurements.model_dump(mode="json"),
            },
        }
        return found

    def _changed(self, stored: dict[str, Any]) -> list[str]:
        """Return what is not as it was when the gate was begun: packages, contents, interpreter, matrix."""
        now = self._made_of()
        if "matrix" not in stored:
            return ["it was begun by an older version of the harness"]
        before, after = (_flat({name: data[name] for name in now}) for data in (stored, now))
        names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        shown = [f"{name}: {before.get(name, 'none')} then, {after.get(name, 'none')} now" for name in names[:8]]
        return shown + ([f"and {len(names) - 8} more"] if len(names) > 8 else [])

    def __call__(self) -> Outcome:
        """Measure until every verdict is precise enough or the budget is spent."""
        self.write()
        try:
            self._survey()
            self._rounds()
        finally:
            outcome = self.write()
            self.bench.close()
        return outcome

    def _survey(self) -> None:
        """Quantize everywhere, run each recipe's first block, and carry old checkpoints over.

        Raises HarnessError if the models suit none of what was asked for.
        """
        cells: dict[tuple[str, str], list[Unit]] = {}
        for unit in self.units:
            cells.setdefault((unit.cell.model.name, unit.cell.recipe.name), []).append(unit)
        for through in cells.values():
            if pending := [unit for unit in through if not unit.closed]:
                errors = self.compatibility.checkpoints([unit.cell for unit in pending])
                for unit in pending:
                    try:
                        self._try(unit, errors)
                    except HarnessError as error:
                        if not of_the_machine(error):
                            raise
                        unit.close("machine-trouble", str(error))
                    self.write()
        left_out = [unit.problem for unit in self.units if unit.problem and not unit.reason]
        if len(left_out) == len(self.units):
            raise HarnessError(f"nothing to gate: {'; '.join(dict.fromkeys(left_out))}")

    def _try(self, unit: Unit, errors: Mapping[Side, HarnessError | None]) -> None:
        """Run a unit's first block, or what can be run of it after ``errors`` of quantization."""
        for error in errors.values():
            if isinstance(error, Unsuitable):
                self.progress(f"left out {unit.id}: {error}")
                unit.close(problem=str(error))
                return
            if error and of_the_machine(error):
                raise error
        if self.bench.base.at_load(unit.cell) or not any(errors.values()):
            if not unit.runs:
                return
            if not unit.done:
                self._block(unit)
            if not unit.reason:
                self.compatibility.old_checkpoint(unit)
            return
        for side in SIDES:
            if not errors[side]:
                self.compatibility.alone(unit, side)
        if not errors["old"]:
            self.compatibility.old_checkpoint(unit)
        unit.close()

    def _rounds(self) -> None:
        """Measure block after block of every unit that is not settled, the units in a new random order each time.

        Those through every server and stage take part in every round, so that none uses up the budget of another.
        """
        draw = random.Random(f"{self.options.seed}/cells")
        too_long: set[str] = set()

        def pending_units() -> list[Unit]:
            # Whether a unit is settled depends on the family, so that one which was may not be any more.
            judged = self._controlled()
            left = (unit for unit in self.units if not unit.closed and unit.id not in too_long)
            return [unit for unit in left if not self._settled(unit, judged)]

        while pending := pending_units():
            for unit in draw.sample(pending, len(pending)):
                if not self.budget.allows(unit.seconds):
                    too_long.add(unit.id)
                    continue
                self._block(unit)
                self.write()

    def _block(self, unit: Unit) -> bool:
        """Measure one block; returns whether the unit can go on."""
        unit.once, unit.tasks = self._missing(unit, self._judged()), self._missing_tasks(unit)
        first = not unit.done
        order = block_order(self.options.seed, unit.id, unit.done)
        self.progress(f"block {unit.done + 1} of {unit.id}, {order[0]} first ({self.budget.spent:.0f} s spent)")
        errors = self.runner(unit, order)
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

    def _missing(self, unit: Unit, judged: Iterable[Verdict]) -> frozenset[str]:
        """Return what one block is enough for and no block has yet; memory that grew is measured once more."""
        found = [verdict for verdict in judged if unit.holds(verdict)]
        have = {verdict.metric for verdict in found}
        wanted = {metric for metric in unit.metrics if RULES[metric].kind != "blocks"} - have - SIZES
        wanted |= {
            verdict.metric
            for verdict in found
            if verdict.metric == "peak_memory" and verdict.verdict != "pass" and verdict.blocks < 2
        }
        if self._random(unit):
            wanted -= TEXT_QUALITY
        wanted = wanted - TASKS | (unit.metrics & TASKS if self._missing_tasks(unit) else frozenset())
        if unit.cell.recipe.baseline or self.bench.base.alone(unit.cell):
            wanted -= TEXT_QUALITY - {"perplexity"}
        if unit.stage == "engine" and unit.cell.kernels and not unit.done:
            wanted |= {"quantized_kernel_share"}
        return frozenset(wanted)

    def _missing_tasks(self, unit: Unit) -> tuple[str, ...]:
        """Return the tasks that no block has evaluated on both sides, whichever metrics they give."""
        if not unit.metrics & TASKS or self._random(unit):
            return ()
        have = {one.task for one in self._series() if one.values["old"] and unit.holds(one)}
        return tuple(task for task in dict.fromkeys(self.options.tasks) if task not in have)

    def _random(self, unit: Unit) -> bool:
        """Return whether the cell's weights are random, which have no quality."""
        return self.bench.base.plain(unit.cell.model, unit.cell.hardware).model.weights == "random"

    def _settled(self, unit: Unit, judged: list[Verdict]) -> bool:
        if self._missing(unit, judged):
            return False
        family = len(family_of(judged))
        timed = [verdict for verdict in judged if unit.holds(verdict) and verdict.metric in unit.timed]
        if not timed:
            # What is zero everywhere, as compile time where nothing is compiled, gives no verdict.
            return not unit.timed or unit.done >= MINIMUM_BLOCKS
        return all(settled(verdict, family) for verdict in timed)

    def _series(self) -> list[Series]:
        return series(self.run.lines(), self.hardware.sides_at_once)

    def _combined(self) -> list[Verdict]:
        """Return the verdict on several tasks' accuracies together, for every cell with several tasks."""
        if not any("accuracy" in unit.metrics for unit in self.units):
            return []
        return [judge(one, self.margins) for one in combined(self._series())]

    def _controlled(self) -> list[Verdict]:
        """Return the verdicts on what was measured, their family held against its false discovery rate."""
        return control(self._judged() + self._combined())

    def _judged(self) -> list[Verdict]:
        wanted = frozenset().union(*(unit.metrics for unit in self.units)) | SIZES
        return [
            judge(one, self.margins)
            for one in self._series()
            if one.metric in wanted
            and one.values["old"]
            # Where nothing is compiled, every compile time is zero.
            and (one.metric != "compile_time" or any(one.old + one.new))
        ]

    def verdicts(self) -> list[Verdict]:
        """Return every verdict, the worst first."""
        events = [verdict for row in self.compatibility.rows.values() if (verdict := row.verdict())]
        events += [event(_about(unit), "error", unit.reason, unit.problem) for unit in self.units if unit.reason]
        found = self._controlled() + self.compatibility.verdicts + events
        return sorted(found, key=lambda verdict: verdict.severity)

    def write(self) -> Outcome:
        """Write gate.json as things stand."""
        verdicts = self.verdicts()
        self.compatibility.kernels(self.run, self.run.lines())
        matrix, changes = self.compatibility.as_json()
        data: dict[str, Any] = {
            "schema": SCHEMA,
            "package": self.pair.package,
            "old": self.pair.old.name,
            "new": self.pair.new.name,
            "hardware": self.options.hardware,
            "device": probe.device(self.hardware).name,
            "created": self.created,
            "budget_seconds": self.options.budget,
            "seconds": round(self.budget.spent, 1),
            "measuring_seconds": round(sum(unit.measuring for unit in self.units), 1),
            "seed": self.options.seed,
            **self._made_of(),
            "differences": list(self.pair.differences),
            "verdicts": [asdict(verdict) for verdict in verdicts],
            "compatibility": matrix,
            "kernels": changes,
            "exit_status": exit_status(verdicts),
            "options": asdict(self.options),
            "units": {
                unit.id: {
                    "done": unit.done,
                    "seconds": round(unit.seconds, 2),
                    "measuring": round(unit.measuring, 2),
                    "lost": unit.lost,
                    "closed": unit.closed,
                    "reason": unit.reason,
                    "problem": unit.problem,
                }
                for unit in self.units
            },
        }
        data = json_finite(data)
        path = self.run.folder / "gate.json"
        try:
            write_text(path, json.dumps(data, indent=1) + "\n")
        except OSError as error:
            raise RecordError(f"{path}: cannot be written ({error.strerror}); free some space and --resume") from error
        return Outcome(self.run.folder, verdicts, data)


def _flat(data: Any, name: str = "") -> dict[str, Any]:
    """Return nested JSON as one level of dotted names."""
    if not isinstance(data, dict):
        return {name: data}
    return {
        inner: value for key, part in data.items() for inner, value in _flat(part, f"{name}.{key}".strip(".")).items()
    }


def _about(unit: Unit) -> Series:
    cell = unit.cell
    # The label tells the two units of a cell apart; of an only one there is nothing to tell.
    return Series(cell.model.name, cell.recipe.name, cell.server, MEASURING, "server" if unit.stage == "server" else "")


def stored(folder: Path) -> dict[str, Any]:
    """Return the gate.json of a folder."""
    path = folder / "gate.json"
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise HarnessError(f"{path}: schema {data['schema']} is not {SCHEMA}, which this harness reads")
        return data
    except (OSError, ValueError, KeyError) as error:
        raise HarnessError(f"{path}: cannot be read ({error}); start the gate anew") from error
