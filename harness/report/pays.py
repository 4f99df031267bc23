"""Which recipes are faster than the baseline on the device at hand, and why the others are not, by what a run saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.base.errors import WrongKernels
from harness.records.published import Documented
from harness.records.schema import Line, Measurement, Outcome, RecipeIdentity
from harness.report import claims
from harness.report.layout import Layout
from harness.report.lines import TableLine, labels
from harness.report.tables import collect

_SPEED = ("latency", "request_throughput", "generate_throughput", "decode_throughput", "prefill_throughput")
_Place = tuple[str, str, str]
"""Model, hardware and recipe, by their names."""


@dataclass(frozen=True)
class _Recipe:
    """What the lines of speed say of a recipe: in which it is surely faster or slower, and how many times at most."""

    name: str
    faster: tuple[str, ...]
    slower: tuple[str, ...]
    asked: int
    most: float

    def words(self, why: Sequence[str]) -> str:
        """Return how it compares, and why it is not faster where that is known."""
        if self.faster:
            told = f"faster in {_few(self.faster)}" + (f", slower in {_few(self.slower)}" if self.slower else "")
        elif self.slower:
            told = f"slower in {_few(self.slower)}"
        else:
            told = "neither surely faster nor slower"
        return f"  {self.name}: {'; '.join([told, *(why if not self.faster else ())])}"


def lines(run: Iterable[Line], documented: Documented) -> list[str]:
    """Return for each model and device which recipes are faster than the baseline, and below it a line a recipe.

    Nothing is said where no recipe's speed was measured beside the baseline's. A reason is what the run saw itself:
    that a recipe's own kernels ran and which share of the time they took, or that others ran, and why that is known.
    """
    seen = list(run)
    why = _reasons(seen)
    found: list[str] = []
    for subject in collect(it for it in seen if isinstance(it, Measurement)):
        layout = Layout(subject, documented)
        recipes = [it for it in (_of(layout, recipe) for recipe in subject.recipes if not recipe.baseline) if it.asked]
        if not recipes or subject.baseline is None:
            continue
        faster = [f"{it.name} (up to {it.most:.2f}x)" for it in recipes if it.faster]
        of = f"{subject.model.name} on {subject.hardware} ({subject.device})"
        none = f"none of {len(recipes)} recipes" if len(recipes) > 1 else f"not {recipes[0].name}"
        found.append(f"{of}: faster than {subject.baseline.name}: {', '.join(faster) or none}")
        found += [it.words(why.get((subject.model.name, subject.hardware, it.name), ())) for it in recipes]
    return found


def _of(layout: Layout, recipe: RecipeIdentity) -> _Recipe:
    asked = [it for it in layout.lines("performance") if it.row.metric in _SPEED and not it.row.statistic]
    told = [
        (claim, _told(layout, label, line, recipe))
        for label, line in zip(labels(asked), asked, strict=True)
        if (claim := layout.claim(line, recipe)).ratio is not None and line.record(recipe) is not None
    ]
    clear = [(claim.ratio or 0.0, words) for claim, words in told if claim.clear]
    faster = tuple(words for ratio, words in clear if ratio > 1)
    slower = tuple(words for ratio, words in clear if ratio < 1)
    return _Recipe(recipe.name, faster, slower, len(told), max((ratio for ratio, _ in clear), default=0.0))


def _told(layout: Layout, label: str, line: TableLine, recipe: RecipeIdentity) -> str:
    return f"{label}: {claims.words(layout.claim(line, recipe), line)}"


def _few(words: Sequence[str]) -> str:
    """Return the first and the last of several, and how many there are besides."""
    if len(words) <= 2:
        return ", ".join(words)
    return f"{words[0]}, {words[-1]} and {len(words) - 2} more"


def _reasons(run: Sequence[Line]) -> Mapping[_Place, list[str]]:
    """Return what was seen of each recipe's kernels, each engine's once."""
    found: dict[_Place, dict[str, None]] = {}
    shares: dict[_Place, dict[str, str]] = {}
    for it in run:
        if not isinstance(it, (Measurement, Outcome)) or it.cell is None or it.cell.recipe.baseline:
            continue
        place = it.cell.model.name, it.cell.hardware, it.cell.recipe.name
        reasons = found.setdefault(place, {})
        if isinstance(it, Outcome):
            if WrongKernels.LONGEST in it.reason and it.known:
                reasons[it.known] = None
        elif it.metric == "quantized_kernel_share" and not it.discarded and it.statistics.get("calls"):
            shares.setdefault(place, {})[it.cell.server] = f"{it.value:.0%} of the time through {it.cell.server}"
    for place, told in shares.items():
        found[place][f"its own kernels took {' and '.join(told.values())}, other operators the rest"] = None
    return {place: list(told) for place, told in found.items()}
