"""What a metric is: its unit and definition, the stage that gives it, how it is judged and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

from harness.base.numbers import decimal

Direction = Literal["lower", "higher", "none"]

Stage = Literal["quantize", "transformers", "engine", "server", "export"]

STAGES: tuple[Stage, ...] = get_args(Stage)
"""The stages of the suites, in the order in which a cell goes through them."""

Kind = Literal["blocks", "size", "ratio", "difference", "documents", "answers", "likelihood"]

Section = Literal["memory", "performance", "detail", "quality"]

Samples = Literal["rounds", "requests", "inputs"]
"""What a metric's samples are of: rounds of the same work, requests of such rounds, or different inputs."""


@dataclass(frozen=True)
class Rule:
    """How a gate judges a metric, and a session that is held against a baseline.

    ``margin`` is a share for blocks, sizes and ratios, and in the metric's unit for differences. ``absolute`` is the
    change of a size, in its unit, that is always allowed. ``of_old`` adds a share of the old value to the margin of a
    difference. Primary metrics decide the exit status; the others are told. An ``alarm`` is told too, and no gate waits
    for it, but one that is certain to be worse decides.

    The margins are chosen: a tenth of the effects that quantization is used for. Blocks: per cent of speed that a user
    would notice and that a quiet machine can tell; sizes: above the repeatability of peak memory (1 MB); quality: well
    inside the standard errors that the suites' tables show.
    """

    kind: Kind
    margin: float
    primary: bool
    absolute: float = 0.0
    of_old: float = 0.0
    alarm: bool = False


class Words(Enum):
    """How a value is held against the baseline's: the words for better and worse, where it is told as a ratio."""

    PERCENT = ("reduction", "increase")
    SPEED = ("speedup", "slowdown")
    SIZE = ("larger", "smaller")
    UNNAMED = ("better", "worse")
    DIFFERENCE = "as a signed difference"
    ALONE = "not at all: it is relative to the baseline by definition, or nothing is better or worse"


@dataclass(frozen=True)
class Row:
    """How a metric, or one of its further statistics, is shown in a table."""

    section: Section
    label: str
    words: Words = Words.SPEED
    suffix: str = ""
    number: Callable[[float], str] = decimal
    shown: tuple[str, ...] | None = ()  # parameters named after the label; None: all of them
    lead: tuple[str, ...] = ()  # parameters whose values stand before the label
    of_recipe: tuple[str, ...] = ()  # parameters that the recipe decides, so that they set no row apart
    statistic: str = ""  # a key of the record's statistics; empty for its value
    metric: str = ""  # whose it is, where the rows of all metrics are together

    def after(self, parameters: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the parameters that stand after the label."""
        return tuple(parameters) if self.shown is None else self.shown

    def named(self, parameters: Iterable[str]) -> set[str]:
        """Return the names of all parameters that the label tells."""
        return {*self.lead, *self.after(parameters)}


@dataclass(frozen=True)
class Metric:
    """One quantity of a record.

    ``unit`` is that of the record's value and samples. ``direction`` says which way is better. ``stage`` is the one
    that usually gives it; harness.records.metrics.stage_of says which one gave a record. ``definition`` says how it is
    measured and ``version`` rises whenever that changes, so that values of different definitions are never compared.
    ``parameters`` are those that its records may have, which a threshold may then ask for. A gate judges it if it has
    a ``rule``; ``rows`` show it. The spread of ``samples`` that are rounds or requests is what the machine adds.
    """

    name: str
    unit: str
    direction: Direction
    stage: Stage
    definition: str
    version: int = 1
    parameters: tuple[str, ...] = ()
    rule: Rule | None = None
    rows: tuple[Row, ...] = ()
    samples: Samples = "inputs"

    @property
    def timed(self) -> bool:
        """Whether other work on the machine changes it."""
        return self.samples != "inputs" and self.unit != "GB"
