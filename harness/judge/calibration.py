"""What this machine can tell: each metric's noise when old is held against old, and how often that raised an alarm."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.base.errors import HarnessError
from harness.base.files import write_text
from harness.gate.plan import Unit
from harness.judge import stats
from harness.judge.rules import RULES, Margins
from harness.judge.series import stage_of

SCHEMA = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Noise(_Frozen):
    """One metric of one cell."""

    model: str
    recipe: str
    server: str
    metric: str
    label: str
    sd: float = Field(description="Root mean square of a block's log ratio, all gates together: from no change.")
    blocks: int = Field(description="Blocks behind it, all gates together.")
    block_seconds: float = Field(description="Median seconds that a block of the cell takes, all its metrics together.")
    between: float | None = Field(None, description="Standard deviation of a log ratio from process to process alone.")
    within: float | None = Field(None, description="The same from round to round of one pair of processes.")
    rounds: int | None = Field(None, description="Rounds that a process gave.")
    best_rounds: int | None = Field(None, description="Rounds a process that tell most in the same time.")


class Steady(_Frozen):
    """One metric of one cell that is not timed: a size, or the quality of what is predicted."""

    model: str
    recipe: str
    server: str
    metric: str
    label: str
    unit: str
    pairs: int = Field(description="Blocks, windows or documents that a verdict rests on.")
    value: float = Field(description="The old side's: a size's median, otherwise the mean over the samples.")
    differs: float = Field(description="How far the same is from itself at most, measured again: in the metric's unit.")
    smallest: float = Field(description="Smallest worsening that its rule calls a regression: in the metric's unit.")


class Calibration(_Frozen):
    """The result of gates of old against old on one machine."""

    schema_version: int = SCHEMA
    hardware: str
    device: str
    created: str
    gates: int = Field(description="Gates of old against old.")
    judged: int = Field(description="Primary verdicts of those gates.")
    alarms: int = Field(description="Gates that ended as regressed.")
    verdicts_regressed: int
    verdicts_inconclusive: int
    budget_seconds: float
    threads: str = Field(description="Threads that a worker computes with.")
    noise: list[Noise]
    steady: list[Steady] = []

    @classmethod
    def path(cls, results: Path, on: str) -> Path:
        return results / "calibration" / f"{on}.json"

    @classmethod
    def find(cls, results: Path, on: str, device: str) -> Calibration | None:
        """Return the calibration of a hardware's very device, or None if there is none."""
        path = cls.path(results, on)
        if not path.is_file():
            return None
        try:
            found = cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, ValidationError) as error:
            raise HarnessError(f"{path}: cannot be read ({error}); calibrate anew") from error
        return found if found.device == device else None

    def write(self, results: Path) -> Path:
        path = self.path(results, self.hardware)
        write_text(path, self.model_dump_json(indent=1) + "\n")
        return path

    def of(self, unit: Unit, metric: str) -> list[Noise]:
        """Return what is known of a metric of a cell; of a cell never calibrated, that metric's worst."""
        through = [
            it
            for it in self.noise
            if (it.metric, it.server) == (metric, unit.cell.server) and stage_of(metric, it.label) == unit.stage
        ]
        here = [it for it in through if it.model == unit.cell.model.name and it.recipe == unit.cell.recipe.name]
        return here or sorted(through, key=lambda it: -it.sd)[:1]

    def check(self, margins: Margins, units: Sequence[Unit], budget: float) -> None:
        """Refuse margins that this machine cannot hold within ``budget`` seconds.

        Raises HarnessError that names each metric with the smallest effect that can be detected, and each size and
        quality of text that differs from itself by more than its margin.
        """
        timed = [unit for unit in units if unit.timed]
        cells = [max((it.block_seconds for it in self._all(unit)), default=0.0) for unit in timed]
        blocks = max(2, blocks_within(budget, cells))
        problems = []
        for metric in sorted({metric for unit in timed for metric in unit.metrics}):
            if not (RULES[metric].primary and RULES[metric].kind == "blocks"):
                continue
            for unit in timed:
                found = self.of(unit, metric) if metric in unit.metrics else []
                smallest = max((stats.smallest_effect(it.sd, blocks) for it in found), default=0.0)
                if smallest > margins.of(metric):
                    problems.append(
                        f"{metric} of {unit.id}: margin {margins.of(metric):.1%}, detectable {smallest:.1%}"
                    )
        given = _given(margins)
        for it in self.steady:
            # How many documents flip says little of their mean. What is advisory fails no gate, unless it is asked for.
            if RULES[it.metric].kind == "documents" or not (RULES[it.metric].primary or it.metric in given):
                continue
            allowed = _allowed(it, margins)
            if it.differs > allowed and any(_of(it, unit) for unit in units):
                unit_name = "" if it.unit == "1" else f" {it.unit}"
                problems.append(
                    f"{it.metric} of {it.recipe}: margin {allowed:.4g}{unit_name}, and the same measured twice "
                    f"differs by {it.differs:.4g}{unit_name}"
                )
        if problems:
            raise HarnessError(
                f"this machine cannot hold these margins within {budget:.0f} s ({blocks} blocks a cell), by its "
                f"calibration of {self.created}:\n  " + "\n  ".join(problems) + "\nRaise --margin or --budget, take "
                "fewer cells, or calibrate again on a quieter machine."
            )

    def unknown(self, margins: Margins, units: Sequence[Unit]) -> list[str]:
        """Return each metric that was given a margin of its own, with the cells of which it is not calibrated."""
        found = []
        for metric in sorted(_given(margins)):
            cells = [unit.id for unit in units if metric in unit.metrics and not self._knows(unit, metric)]
            if cells:
                found.append(f"{metric} of {', '.join(cells)}")
        return found

    def _knows(self, unit: Unit, metric: str) -> bool:
        if RULES[metric].kind == "blocks":
            return bool(self.of(unit, metric))
        return any(it.metric == metric and _of(it, unit) for it in self.steady)

    def _all(self, unit: Unit) -> Iterable[Noise]:
        return (it for metric in unit.metrics for it in self.of(unit, metric))


def blocks_within(budget: float, cells: Iterable[float]) -> int:
    """Return how many blocks each of the cells gets that share ``budget`` seconds, by the seconds that theirs take.

    All of it goes into blocks, and all cells are measured to its end: what quantizing and quality take is not taken
    off, nor is what a cell leaves to the others that is settled early.
    """
    a_pass = math.fsum(cells)
    return int(budget / a_pass) if a_pass else 0


def _given(margins: Margins) -> set[str]:
    """Return the metrics that were given a margin by their name."""
    return {name for text in margins.given if (name := text.rpartition("=")[0])}


def _allowed(it: Steady, margins: Margins) -> float:
    """Return what a margin allows in the metric's own unit."""
    rule, margin = RULES[it.metric], margins.of(it.metric)
    if rule.kind == "difference":
        return margin + rule.of_old * abs(it.value)
    return max(rule.absolute, margin * it.value)


def _of(it: Steady, unit: Unit) -> bool:
    cell = unit.cell
    return it.metric in unit.metrics and (it.model, it.recipe) == (cell.model.name, cell.recipe.name)
