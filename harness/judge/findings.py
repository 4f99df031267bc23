"""Verdicts that have one cause are one finding: all recipes of one kernel, of one stage, one batch size."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from harness.base.text import one_line
from harness.judge.gatefile import Difference
from harness.judge.meaning import topic
from harness.judge.rules import LAYERS
from harness.judge.verdict import Ruling, Verdict
from harness.records.place import Place

Outcome = Literal["accepted"] | Ruling

KERNELS = "kernels"
"""What a difference of a gate is called that is one of the kernels that ran."""

_SEVERITY: dict[str, int] = {"regressed": 0, "error": 1, "inconclusive": 2, "accepted": 3, "pass": 4}
_TESTED = ("stopped-working", "stopped-saving", "fails-both", "later-block-failed", "machine-trouble")


@dataclass(frozen=True)
class Cause:
    """What several verdicts have in common: ``kind`` and ``key`` tell causes apart, ``words`` names this one.

    A cause that explains, as an error, lost layers or another kernel, is taken before those that only describe.
    """

    kind: Literal["error", "layers", "kernels", "figure", "size", "stage", "recipe", "alone"]
    key: Hashable
    words: str = field(compare=False)

    @property
    def explains(self) -> bool:
        return self.kind in ("error", "layers", "kernels")


# Of causes that explain as many verdicts, the one that says most.
_ORDER = ("error", "layers", "kernels", "figure", "size", "stage", "recipe", "alone")


@dataclass(frozen=True)
class Finding:
    """Verdicts of one outcome and one cause, the worst first."""

    cause: Cause
    members: tuple[Verdict, ...]

    @property
    def outcome(self) -> Outcome:
        return outcome(self.members[0])

    @property
    def worst(self) -> Verdict:
        return self.members[0]

    @property
    def primary(self) -> bool:
        return self.members[0].primary


def outcome(verdict: Verdict) -> Outcome:
    """Return what counts of a verdict: a regression that was accepted is one no more."""
    return "accepted" if verdict.accepted else verdict.verdict


def findings(verdicts: Iterable[Verdict], differences: Sequence[Difference] = ()) -> list[Finding]:
    """Return the verdicts that are no pass as findings, the worst first; each is in exactly one.

    All members of a finding have its cause, its outcome, its reason of acceptance, and are primary or not together.
    ``differences`` are what changed of cells: kernels above all.
    """
    apart: dict[Hashable, list[Verdict]] = {}
    for it in verdicts:
        if outcome(it) != "pass":
            apart.setdefault((outcome(it), it.accepted, it.primary), []).append(it)
    found: list[Finding] = []
    for together in apart.values():
        causes = _Causes(together, differences)
        left = list(together)
        for wanted in (lambda cause: cause.explains, lambda cause: True):
            left = _taken(left, causes, wanted, found)
        found += [Finding(Cause("alone", it.place, it.name), (it,)) for it in left]
    return sorted(found, key=_order)


def _order(it: Finding) -> tuple[object, ...]:
    return _SEVERITY[it.outcome], not it.primary, -len(it.members), not it.cause.explains, it.worst.severity


def _taken(
    left: list[Verdict], causes: _Causes, wanted: Callable[[Cause], bool], found: list[Finding]
) -> list[Verdict]:
    """Move verdicts into findings, the cause of most of them first; returns those that share no cause with another."""
    while True:
        having: dict[Cause, list[Verdict]] = {}
        for it in left:
            for cause in filter(wanted, causes.of(it)):
                having.setdefault(cause, []).append(it)
        several = {cause: them for cause, them in having.items() if len(them) > 1}
        if not several:
            return left
        cause = min(several, key=lambda it: (-len(several[it]), _ORDER.index(it.kind), it.words))
        members = sorted(several[cause], key=lambda it: it.severity)
        found.append(Finding(cause, tuple(members)))
        taken = {id(it) for it in members}
        left = [it for it in left if id(it) not in taken]


class _Causes:
    """What may be the cause of a verdict, of all that were given."""

    def __init__(self, verdicts: Sequence[Verdict], differences: Sequence[Difference]) -> None:
        self._lost = {_checkpoint(it.place) for it in verdicts if it.metric == LAYERS and it.verdict == "regressed"}
        self._kernels = {_checkpoint(it.place): (it.old, it.new) for it in differences if it.what == KERNELS}

    def of(self, it: Verdict) -> Iterator[Cause]:
        """Yield the causes that a verdict may have."""
        place = it.place
        if it.reason in _TESTED and (said := _error(it)):
            what = it.metric.removeprefix("works: ")
            yield Cause("error", (it.metric, said), f"{what}: the same error: {said}")
        if _checkpoint(place) in self._lost:
            yield Cause("layers", _checkpoint(place), f"layers of {place.recipe} that are no longer quantized")
        kernels = self._kernels.get(_checkpoint(place))
        if kernels and place.stage in ("engine", "server") and topic(it.metric) == "speed":
            old, new = kernels
            yield Cause("kernels", kernels, f"other kernels: {old} before, {new} now")
        through = f" through {place.server}" if place.server else ""
        yield Cause("figure", (it.metric, place.parameters, place.server), f"{it.what}{through}")
        for name in ("batch_size", "num_prompts"):
            if name in place.parameters:
                yield Cause("size", (name, place.parameters[name]), f"{name}={place.parameters[name]}")
        about = topic(it.metric)
        if place.stage:
            at = f"{place.server} {place.stage}" if place.server not in ("", place.stage) else place.stage
            yield Cause("stage", (place.server, place.stage, about), f"{_WORDS[about]} at the stage {at}")
        if place.recipe:
            yield Cause("recipe", (place.model, place.recipe, about), f"{_WORDS[about]} of {place.recipe}")


_LISTED = re.compile(r"(?:[^\s,]+, ){2,}[^\s,]*")
_WORDS = {"speed": "speed", "memory": "memory", "quality": "quality", "works": "what works"}


def _checkpoint(place: Place) -> Place:
    return place.named.cell.without("server")


def _error(it: Verdict) -> str:
    """Return an error without what it was of: cell, side and numbers, so that one that recurs is told."""
    text = one_line(it.detail.strip().splitlines()[0] if it.detail.strip() else "")
    for name in sorted(filter(None, (it.place.model, it.place.recipe, it.place.server)), key=len, reverse=True):
        text = text.replace(name, "*")
    text = re.sub(r"\d+", "N", text)
    # What is listed comes in another order each time, of a set, or is cut off.
    text = _LISTED.sub("...", text)
    # The last part is the exception's own; before it stands where it was raised.
    parts = [part for part in text.split(": ") if part]
    return ": ".join(parts[-2:])[:160]
