"""Whether figures of a shared engine may stand for those of an engine and a server of their own; what is kept."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from harness.base.text import file_name
from harness.judge.intervals import log_ratios, mean_interval
from harness.records import model_file
from harness.records.schema import Scalar
from harness.records.stored import factor

MARGIN = 0.01
"""By how much, as a share, a figure of a shared engine may differ."""

State = Literal["alike", "differs", "open"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Block(_Frozen):
    """The rounds of one figure in one block, in turns: of an engine or server of its own, and of the shared one."""

    apart: list[FiniteFloat]
    shared: list[FiniteFloat]


class Comparison(_Frozen):
    """One figure, shared against apart; the unit of replication is the block, whose processes are its own."""

    metric: str
    parameters: dict[str, Scalar]
    blocks: list[Block] = Field(min_length=2)
    ratio: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat

    @classmethod
    def of(cls, metric: str, parameters: dict[str, Scalar], blocks: Sequence[Block]) -> Comparison:
        """Return the ratio shared / apart with Student's 95 % interval over the blocks.

        Raises TooFewSamples for fewer than two blocks, SampleError for a sample that is not above zero.
        """
        logs = [statistics.fmean(log_ratios(it.apart, it.shared).tolist()) for it in blocks]
        found = mean_interval(logs, rule="a shared engine's ratio").transformed(factor)
        told = {"ratio": found.estimate, "low": found.low, "high": found.high}
        return cls(metric=metric, parameters=parameters, blocks=list(blocks), **told)

    @property
    def state(self) -> State:
        """Whether it is surely within MARGIN, surely not, or neither."""
        least, most = 1 - MARGIN, 1 + MARGIN
        if self.high < least or self.low > most:
            return "differs"
        return "alike" if least <= self.low and self.high <= most else "open"


class Study(_Frozen):
    """The file results/fairness/HARDWARE-MODEL-RECIPE.json: what was found on one device."""

    schema_version: Literal[1] = 1
    model: str
    recipe: str
    hardware: str
    server: str
    device: str
    packages: dict[str, str]
    settings: list[str]
    created: float
    figures: list[Comparison]

    @property
    def fair(self) -> bool:
        """Whether every figure is surely within MARGIN."""
        return all(it.state == "alike" for it in self.figures)

    def write(self, results: Path) -> Path:
        """Write the study below a folder of results; the one before it of the same is replaced."""
        path = results / "fairness" / f"{file_name(f'{self.hardware}-{self.model}-{self.recipe}')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        return model_file.write(path, self)
