"""Which recipe runs on which device through which engine, and how: from the records of runs, a row for each recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.base.errors import WrongKernels
from harness.base.text import one_line
from harness.records.schema import Cell, Line, Measurement, Outcome
from harness.records.speed_metrics import SPEED
from harness.report.rendering import Table

OWN, FALLBACK, TIMED, NUMBERS, REFUSED, NONE = "own kernels", "fallback", "timed", "numbers", "no", "-"
NOTES = (
    f"{OWN}: a profile has a call of the recipe's own kernels for each quantized layer and step",
    f"{FALLBACK}: a profile has others in their place, which stand below",
    f"{TIMED}: speed was measured, and no profile says which kernels ran",
    f"{NUMBERS}: what it predicts was measured, and not its speed",
    f"{REFUSED}: it was asked for and does not run there; the reason is below. {NONE}: no run has asked for it",
)
# As harness.measure.kernels writes it; how long they took is the run's own, on whatever machine.
_RAN = re.compile(r"(?:, )?(.+?) \((\d+ calls), [\d.]+ ms\)")
_SPEED = frozenset(metric.name for metric in SPEED if metric.unit in ("s", "ms", "tok/s", "req/s"))


@dataclass
class _Seen:
    """What runs show of a recipe at one place."""

    own: bool = False
    profiled: bool = False
    timed: bool = False
    numbers: bool = False
    reasons: dict[str, None] = field(default_factory=dict)
    instead: tuple[str, str] = ("", "")

    @property
    def word(self) -> str:
        if self.own:
            return OWN
        if self.profiled:
            return FALLBACK
        if self.timed:
            return TIMED
        return NUMBERS if self.numbers else REFUSED if self.reasons else NONE


def support(runs: Iterable[Sequence[Line]]) -> list[Table]:
    """Return what each recipe was seen to do at each place, a hardware and an engine, and why it does not elsewhere.

    ``checkpoint`` says whether torchao can save what the recipe makes: otherwise it is quantized as it is loaded.
    """
    seen: dict[str, dict[tuple[str, str], _Seen]] = {}
    saved: dict[str, str] = {}
    for lines in runs:
        for line in lines:
            if not isinstance(line, (Measurement, Outcome)) or line.cell is None or line.cell.recipe.baseline:
                continue
            cell = line.cell
            if isinstance(line, Measurement) and not line.discarded and not cell.server:
                _note_size(saved, cell, line.metric)
            if not cell.server:
                continue
            here = seen.setdefault(cell.recipe.name, {}).setdefault((cell.hardware, cell.server), _Seen())
            if isinstance(line, Measurement):
                _note(here, line)
            elif WrongKernels.LONGEST in line.reason:
                here.instead = (_longest(line.reason), line.known)
            elif line.outcome in ("skipped", "failed"):
                here.reasons[one_line(line.reason)] = None
    places = sorted({place for found in seen.values() for place in found})
    rows = [
        (name, saved.get(name, NONE), *(found[place].word if place in found else NONE for place in places))
        for name, found in sorted(seen.items())
    ]
    refused = [
        (name, " ".join(place), next(iter(here.reasons)))
        for name, found in sorted(seen.items())
        for place, here in sorted(found.items())
        if here.word == REFUSED
    ]
    header = ("recipe", "checkpoint", *(" ".join(place) for place in places))
    fallen = [
        (name, " ".join(place), *here.instead)
        for name, found in sorted(seen.items())
        for place, here in sorted(found.items())
        if here.word == FALLBACK and here.instead != ("", "")
    ]
    tables = [Table("", "", header, tuple(rows), notes=NOTES)]
    if fallen:
        tables.append(Table("Which fallback", "", ("recipe", "where", "what ran longest", "known"), tuple(fallen)))
    return [*tables, Table("Why not", "", ("recipe", "where", "why"), tuple(refused))] if refused else tables


def _longest(reason: str) -> str:
    """Return the first three kernels, with their calls, of those that a test names which misses the recipe's own."""
    ran = _RAN.findall(one_line(reason.partition(WrongKernels.LONGEST)[2]))[:3]
    return ", ".join(f"{name} ({calls})" for name, calls in ran)


def _note_size(saved: dict[str, str], cell: Cell, metric: str) -> None:
    if metric == "checkpoint_size":
        saved[cell.recipe.name] = "saved"
    elif metric == "weight_size":
        saved.setdefault(cell.recipe.name, "quantized at load")


def _note(here: _Seen, line: Measurement) -> None:
    if line.discarded:
        return
    if line.metric == "quantized_kernel_share":
        due = line.statistics.get("calls_due", 0.0)
        here.own |= bool(due and line.statistics.get("calls", 0.0) >= due)
    here.profiled |= line.metric == "kernel_time"
    here.timed |= line.metric in _SPEED
    here.numbers = True
