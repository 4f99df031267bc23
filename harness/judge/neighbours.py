"""Whether GPUs of one host disturb each other: the same figures alone and with a neighbour, and what is kept of it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from harness.base.errors import RecordError
from harness.base.reading import json_file
from harness.base.text import one_line
from harness.judge import spread
from harness.records import model_file
from harness.records.metrics import METRICS
from harness.records.place import Place
from harness.records.schema import Measurement, Scalar
from harness.records.stored import disagreement, factor, implausible

MARGIN = 0.03
"""By how much, as a share, a figure with a neighbour may be worse: two processes of one cell differ by that anyway."""
CONFIDENCE = 0.95

State = Literal["disturbed", "undisturbed", "open"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pair(_Frozen):
    """One figure alone and with a neighbour; ``low`` and ``high`` are what the ratio beside / alone may be."""

    what: str = Field(description="The figure in words, as tables have it.")
    metric: str
    stage: str
    parameters: dict[str, Scalar]
    alone: FiniteFloat
    beside: FiniteFloat
    unit: str
    direction: Literal["lower", "higher"]
    ratio: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    processes: int = Field(ge=1, description="Processes of the side that has fewer; of one its rounds are the spread.")

    @property
    def problem(self) -> str:
        """In which point it disagrees with the metric table or with itself, or an empty text."""
        within = () if self.low is None or self.high is None else (self.low, self.high)
        figures = (self.alone, self.beside, self.ratio, *within)
        if told := disagreement(self.metric, unit=self.unit, direction=self.direction) or implausible(figures):
            return told
        if min(figures) <= 0 or (self.low is None) != (self.high is None):
            return "figures, their ratio and its bounds are above zero, and there are two bounds or none"
        if not math.isclose(self.ratio, self.beside / self.alone, rel_tol=1e-6) or list(within) != sorted(within):
            return f"its ratio {self.ratio:g} ({within}) is not of {self.beside:g} and {self.alone:g}"
        return ""

    @property
    def state(self) -> State:
        """Whether it is surely worse by more than MARGIN, surely not, or neither."""
        if self.low is None or self.high is None:
            return "open"
        # As how many times as long, whatever the metric.
        least, most = (self.low, self.high) if self.direction == "lower" else (1 / self.high, 1 / self.low)
        if least > 1 + MARGIN:
            return "disturbed"
        return "undisturbed" if most <= 1 + MARGIN else "open"


class Check(_Frozen):
    """The file results/neighbours/HARDWARE.json: what was found on one kind of device."""

    schema_version: Literal[1] = 1
    hardware: str
    device: str
    created: float
    runs: list[str]
    pairs: list[Pair]

    def disturbs(self, stage: str) -> list[Pair]:
        """Return the figures of a stage that a neighbour makes surely worse."""
        return [it for it in self.pairs if it.stage == stage and it.state == "disturbed"]

    def write(self, results: Path) -> Path:
        """Write the check below a folder of results; the one before it on that hardware is replaced."""
        path = place_of(results, self.hardware)
        path.parent.mkdir(parents=True, exist_ok=True)
        return model_file.write(path, self)


def place_of(results: Path, hardware: str) -> Path:
    return results / "neighbours" / f"{hardware}.json"


def load(results: Path, hardware: str, device: str) -> Check | None:
    """Return the stored check of a device, or None where there is none of it. Raises RecordError for a damaged one."""
    path = place_of(results, hardware)
    if not path.is_file():
        return None
    try:
        found = Check.model_validate(json_file(path, once=True))
        if problem := next((f"{it.what}: {it.problem}" for it in found.pairs if it.problem), ""):
            raise ValueError(problem)
    except (OSError, ValueError, ValidationError) as error:
        raise RecordError(
            f"{path}: no check of neighbours ({one_line(str(error))}); make it anew: python -m harness neighbours"
        ) from error
    return found if found.device == device else None


def checks(records: Iterable[Measurement], runs: Sequence[str]) -> list[Check]:
    """Return a check for each device of which some figure was measured both ways.

    A record tells by its states, before and after, whether another GPU of the host was in use.
    """
    found: dict[tuple[str, str], dict[Place, tuple[list[Measurement], list[Measurement]]]] = {}
    for it in records:
        metric = METRICS.get(it.metric)
        if not it.own or metric is None or not metric.timed or it.direction == "none" or it.from_cache:
            continue
        others = [state.get("other_gpus_in_use") for state in (it.state_before, it.state_after)]
        if it.value > 0 and all(isinstance(count, int) for count in others):
            sides = found.setdefault((it.cell.hardware, it.device.name), {}).setdefault(Place.of(it), ([], []))
            sides[any(others)].append(it)
    made = []
    for (hardware, device), places in found.items():
        pairs = [_pair(place, *sides) for place, sides in places.items() if all(sides)]
        if pairs:
            made.append(Check(hardware=hardware, device=device, created=time.time(), runs=list(runs), pairs=pairs))
    return made


def _pair(place: Place, alone: Sequence[Measurement], beside: Sequence[Measurement]) -> Pair:
    middle = [math.exp(statistics.fmean(math.log(it.value) for it in side)) for side in (alone, beside)]
    fewer = min(len(alone), len(beside))
    within = _between(alone, beside) if fewer > 1 else spread.of_ratio(beside[-1], alone[-1], CONFIDENCE)
    low, high = within if within and within[0] > 0 and math.isfinite(within[1]) else (None, None)
    first = alone[0]
    return Pair(
        what=str(place),
        metric=place.metric,
        stage=place.stage,
        parameters=dict(place.parameters),
        alone=middle[0],
        beside=middle[1],
        unit=first.unit,
        direction="lower" if first.direction == "lower" else "higher",
        ratio=middle[1] / middle[0],
        low=low,
        high=high,
        processes=fewer,
    )


def _between(alone: Sequence[Measurement], beside: Sequence[Measurement]) -> tuple[float, float]:
    """Return Welch's interval of the ratio of geometric means, each process one value."""
    from scipy.stats import t

    sides = [[math.log(it.value) for it in side] for side in (beside, alone)]
    parts = [(statistics.variance(side) / len(side), len(side) - 1) for side in sides]
    center = statistics.fmean(sides[0]) - statistics.fmean(sides[1])
    total = sum(part for part, _ in parts)
    if total == 0:
        return math.exp(center), math.exp(center)
    freedom = total**2 / sum(part**2 / count for part, count in parts if part)
    arm = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(total)
    return factor(center - arm), factor(center + arm)
