"""What this machine can tell: each metric's noise when old is held against old, and how often that raised an alarm."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.base.errors import HarnessError
from harness.base.reading import json_file
from harness.judge.migrations import CALIBRATION_SCHEMA, migrate_calibration
from harness.judge.series import label_of
from harness.records import model_file
from harness.records.place import Placed
from harness.records.stored import LARGEST, disagreement, misplaced

_Amount = Annotated[float, Field(ge=0, le=LARGEST)]
_Figure = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class _Told(Placed):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def metric(self) -> str:
        return self.place.metric

    @property
    def label(self) -> str:
        """What tells it apart from others of one metric of its cell."""
        return label_of(self.place)


class Noise(_Told):
    """One metric of one cell."""

    sd: float = Field(
        ge=0, le=LARGEST, description="Root mean square of a block's log ratio, all gates together: from no change."
    )
    blocks: int = Field(ge=1, description="Blocks behind it, all gates together.")
    block_seconds: float = Field(
        ge=0, le=LARGEST, description="Median seconds that a block of the cell takes, all its metrics together."
    )
    between: float | None = Field(
        None, ge=0, le=LARGEST, description="Standard deviation of a log ratio from process to process alone."
    )
    within: float | None = Field(
        None, ge=0, le=LARGEST, description="The same from round to round of one pair of processes."
    )
    rounds: int | None = Field(None, ge=1, description="Rounds that a process gave.")
    best_rounds: int | None = Field(None, ge=1, description="Rounds a process that tell most in the same time.")


class Steady(_Told):
    """One metric of one cell that is not timed: a size, or the quality of what is predicted."""

    unit: str
    pairs: int = Field(ge=0, description="Blocks, windows or documents that a verdict rests on.")
    value: float = Field(
        ge=-LARGEST, le=LARGEST, description="The old side's: a size's median, otherwise the mean over the samples."
    )
    differs: float = Field(
        ge=0, le=LARGEST, description="How far the same is from itself at most, measured again: in the metric's unit."
    )
    smallest: float = Field(
        ge=0, le=LARGEST, description="Smallest worsening that its rule calls a regression: in the metric's unit."
    )


class Calibration(BaseModel):
    """The result of gates of old against old on one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: int = CALIBRATION_SCHEMA
    hardware: str
    device: str
    created: str
    gates: int = Field(ge=1, description="Gates of old against old.")
    judged: int = Field(ge=0, description="Primary verdicts of those gates.")
    alarms: int = Field(ge=0, description="Gates that ended as regressed.")
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
            found = cls.model_validate(migrate_calibration(json_file(path, once=True)))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ValidationError) as error:
            raise HarnessError(f"{path}: cannot be read ({error}); calibrate anew") from error
        if problem := found.problem:
            raise HarnessError(f"{path}: {problem}; calibrate anew")
        return found if found.device == device else None

    @property
    def problem(self) -> str:
        """In which point it disagrees with the metric table or with itself, or an empty text."""
        if self.alarms > self.gates or self.verdicts_regressed + self.verdicts_inconclusive > self.judged:
            return f"{self.alarms} alarms of {self.gates} gates, {self.judged} verdicts: more than there were"
        for it in (*self.noise, *self.steady):
            unit = it.unit if isinstance(it, Steady) else None
            if problem := disagreement(it.metric, unit=unit) or misplaced(it.place):
                return f"{it.place}: {problem}"
        return ""

    def write(self, results: Path) -> Path:
        path = self.path(results, self.hardware)
        return model_file.write(path, self)


def blocks_within(budget: float, cells: Iterable[float]) -> int:
    """Return how many blocks each of the cells gets that share ``budget`` seconds, by the seconds that theirs take.

    All of it goes into blocks, and all cells are measured to its end: what quantizing and quality take is not taken
    off, nor is what a cell leaves to the others that is settled early.
    """
    a_pass = math.fsum(cells)
    return int(budget / a_pass) if a_pass else 0
