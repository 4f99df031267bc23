"""What the tutorial's commands took and gave, run beside a run: the file by_hand.json in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, ValidationError

from harness.base.errors import RecordError
from harness.base.reading import json_file
from harness.base.text import one_line
from harness.records import model_file
from harness.records.schema import Scalar
from harness.records.stored import implausible

FILE = "by_hand.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ran(_Frozen):
    """One command, in a process of its own: what it took from its start to its end; a server's until it answered."""

    metric: Literal["peak_memory", "latency", "server", "request_throughput"]
    model: str
    recipe: str
    parameters: dict[str, Scalar] = {}
    command: str
    seconds: PositiveFloat
    value: FiniteFloat | None = Field(None, description="The figure that it told, in the metric's unit.")


class ByHand(_Frozen):
    """All commands of one run's rows."""

    schema_version: Literal[1] = 1
    device: str
    created: float
    ran: list[Ran] = Field(min_length=1)

    @property
    def seconds(self) -> float:
        """What all of it took, one after another."""
        return sum(it.seconds for it in self.ran)

    def write(self, run: Path) -> Path:
        """Write it into a run's folder."""
        path = run / FILE
        return model_file.write(path, self)


def load(run: Path) -> ByHand | None:
    """Return what lies in a run's folder, or None. Raises RecordError for a damaged file."""
    path = run / FILE
    if not path.is_file():
        return None
    try:
        found = ByHand.model_validate(json_file(path, once=True))
        if problem := implausible(it for one in found.ran for it in (one.seconds, one.value or 0.0)):
            raise ValueError(problem)
        return found
    except (OSError, ValueError, ValidationError) as error:
        raise RecordError(
            f"{path}: not what the tutorial's commands took ({one_line(str(error))}); run them again"
        ) from error
