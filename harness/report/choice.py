"""Which recipe for a model and a device: size, quality and speed of all of them, and which ones another one beats."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.records.schema import Measurement
from harness.report.figure import Figure, figure_of
from harness.report.layout import Subject
from harness.report.lines import column_of, recipe_key
from harness.report.rendering import Table
from harness.report.svg import number

PLAIN_BITS = 16
"""Bits of a weight of the baseline, which is in bfloat16."""
_ALIKE = 1.01
"""Checkpoints whose sizes differ by less than this factor are of one size."""
_TASK = "task "


@dataclass(frozen=True)
class Choice:
    """One recipe: its figures by name, and the recipe that beats it, if one does."""

    recipe: str
    baseline: bool
    figures: Mapping[str, Figure]
    beaten_by: str = ""
    windows: int = 0
    """Windows of text that its quality was taken over."""

    @property
    def bytes(self) -> float | None:
        """The size of its checkpoint; of one that is quantized as it is loaded that of its weights."""
        found = self.figures.get("checkpoint_size") or self.figures.get("weight_size")
        return found.value if found else None


_SHOWN = {
    "checkpoint_size": ("checkpoint (MB)", 1e6),
    "peak_memory": ("peak memory (GB)", 1.0),
    "perplexity": ("perplexity", 1.0),
    "kl_divergence": ("KL to the baseline (nats)", 1.0),
    "generate_throughput": ("generate (tok/s)", 1.0),
}


@dataclass(frozen=True)
class Choices:
    """All recipes of a model on a device, the smallest first, and why others are not among them."""

    heading: str
    choices: Sequence[Choice]
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def standing(self) -> list[str]:
        """The recipes that none beats."""
        return [it.recipe for it in self.choices if not it.beaten_by]

    def table(self) -> Table:
        """Return a row a recipe: bits a weight, size, memory, quality, speed, and whether another one beats it."""
        shown = {name: it for name, it in _SHOWN.items() if any(name in one.figures for one in self.choices)}
        tasks = dict.fromkeys(name for one in self.choices for name in one.figures if name.startswith(_TASK))
        shown |= {name: (f"{name.removeprefix(_TASK)}, from the baseline's", 1.0) for name in tasks}
        plain = next(
            (it.figures["weight_size"].value for it in self.choices if it.baseline and "weight_size" in it.figures), 0
        )
        rows = []
        for it in self.choices:
            weights = it.figures.get("weight_size")
            bits = f"{PLAIN_BITS * weights.value / plain:.1f}" if weights and plain else "-"
            cells = [_told(it.figures.get(name), by) for name, (_, by) in shown.items()]
            rows.append((it.recipe, bits, *cells, f"{it.beaten_by} beats it" if it.beaten_by else "stands"))
        notes = [
            f"bits a weight: of all weights together; the baseline has {PLAIN_BITS} each. ± is the standard error",
            "A recipe is beaten by one that is no larger (by 1 %), is surely nearer to the baseline's predictions (the "
            "95% intervals of KL are apart) and is not surely slower, where both were timed",
            *(["tasks: the mean of each document's difference, with its standard error"] if tasks else []),
            *self._little(),
            *(f"{name}: {why}" for name, why in self.absent.items()),
        ]
        header = ("recipe", "bits a weight", *(words for words, _ in shown.values()), "verdict")
        return Table("", self.heading, header, tuple(rows), tuple(notes))

    def _little(self) -> list[str]:
        """Say of which recipes the quality was taken over less text than of others."""
        most = max((it.windows for it in self.choices), default=0)
        less = [it for it in self.choices if 0 < it.windows < most]
        names = ", ".join(it.recipe for it in less)
        return (
            [f"{names}: quality over {less[0].windows} windows of text alone, by which they were beaten"]
            if less
            else []
        )


def choices(subject: Subject, absent: Mapping[str, str] | None = None) -> Choices:
    """Return what was measured of each recipe of a model on a device through Transformers."""
    found = []
    for recipe in subject.recipes:
        mine = [it for it in subject.measurements if recipe_key(column_of(it.cell)) == recipe_key(recipe)]
        # Of a figure over more and over less text that over more.
        mine = sorted((it for it in mine if it.cell.server in ("", "transformers")), key=_windows)
        figures = {it.metric: figure_of(it) for it in mine}
        kept = {name: it for name, it in figures.items() if name in _SHOWN or name == "weight_size"}
        kept |= {} if recipe.baseline else _tasks(mine, subject.measurements)
        found.append(Choice(recipe.name, recipe.baseline, kept, windows=max(map(_windows, mine), default=0)))
    found.sort(key=lambda it: (it.bytes or 0.0, it.recipe))
    nearest = sorted(found, key=lambda it: it.figures.get("kl_divergence", Figure(0.0)).value)
    beaten = [replace(it, beaten_by=next((one.recipe for one in nearest if beats(one, it)), "")) for it in found]
    return Choices(subject.heading, beaten, dict(absent or {}))


def beats(one: Choice, other: Choice) -> bool:
    """Return whether nobody would take ``other``: ``one`` is no larger, surely nearer to the baseline, and not slower.

    Quality is the KL divergence from the baseline, whose own is 0. What was not measured beats nothing.
    """
    if one.recipe == other.recipe or other.baseline or one.bytes is None or other.bytes is None:
        return False
    ours, theirs = one.figures.get("kl_divergence"), other.figures.get("kl_divergence")
    if one.baseline:
        ours = Figure(0.0)
    if ours is None or theirs is None or one.bytes > _ALIKE * other.bytes or ours.interval[1] >= theirs.interval[0]:
        return False
    mine, its = (it.figures.get("generate_throughput") for it in (one, other))
    return mine is None or its is None or mine.interval[1] >= its.interval[0]


def _windows(record: Measurement) -> int:
    return int(record.parameters.get("windows", 0))


def _tasks(mine: Sequence[Measurement], all_: Sequence[Measurement]) -> dict[str, Figure]:
    """Return by task how far a recipe's accuracy is from the baseline's over the same documents, document by document.

    Of a task's metrics it is the normalized one, if it has it.
    """
    plain = {
        tuple(sorted(it.parameters.items())): it.samples
        for it in all_
        if it.metric == "accuracy" and it.cell.recipe.baseline
    }
    found: dict[str, Figure] = {}
    for it in sorted(mine, key=lambda it: "norm" in str(it.parameters.get("task_metric"))):
        theirs = plain.get(tuple(sorted(it.parameters.items()))) if it.metric == "accuracy" else None
        if theirs and len(theirs) == len(it.samples):
            apart = [ours - other for ours, other in zip(it.samples, theirs, strict=True)]
            error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else 0.0
            found[f"{_TASK}{it.parameters['task']}"] = Figure(statistics.fmean(apart), error, len(apart))
    return found


def _told(figure: Figure | None, by: float) -> str:
    if figure is None:
        return "-"
    return number(figure.value / by) + (f" ± {figure.error / by:.2g}" if figure.error else "")
