"""What a run must say of its noise: limits and tests that cannot be told, figures that say nothing, a busy machine."""

from __future__ import annotations

from collections.abc import Iterable

from harness.base.text import one_line
from harness.judge import spread
from harness.judge.limits import TOO_NOISY, last
from harness.records.place import Place
from harness.records.schema import Judgement, Line, Measurement, Outcome, describe
from harness.report.claims import disturbances as disturbances_of
from harness.report.lines import number_of


def lines(found: Iterable[Line]) -> list[str]:
    """Return a line for each limit, each test without a figure and each figure of which it is too noisy to say.

    A figure is told of once: by its limits, or, where it has none, for itself.
    """
    found = list(found)
    judged = [it for it in last(found) if it.noisy]
    told = {_of(it) for it in judged}
    mute = [it for it in wide(found) if _of(it) not in told]
    return [*map(limit, judged), *tests(found), *map(figure, mute)]


def tests(found: Iterable[Line]) -> list[str]:
    """Say which tests ended without a figure, since the machine was too noisy to measure it, and why."""
    ended = {it.test: it for it in found if isinstance(it, Outcome)}
    # A limit is told of by its judgement.
    mute = [it for it in ended.values() if it.outcome == "noisy" and TOO_NOISY not in it.reason]
    return [one_line(f"{it.test}: {it.reason}") for it in mute]


def standing(found: Iterable[Line]) -> list[Measurement]:
    """Return the last record of each figure that was not discarded."""
    kept = {_of(it): it for it in found if isinstance(it, Measurement) and not it.discarded}
    return list(kept.values())


def wide(found: Iterable[Line]) -> list[Measurement]:
    """Return the figures whose rounds are so far apart that they say nothing, whatever they are held against."""
    return [it for it in standing(found) if spread.too_wide(it)]


def limit(it: Judgement) -> str:
    """Say of which limit it is too noisy to say whether it holds."""
    within = f"by its rounds {it.low:.4g} to {it.high:.4g}, " if it.low is not None and it.high is not None else ""
    return f"{_name(it)}: {it.comparison} {it.measured:.4g}, {within}limit {it.limit:g}: {TOO_NOISY}"


def figure(it: Measurement) -> str:
    """Say of a figure whose rounds are too far apart how far that is."""
    low, high = (number_of(it, value) for value in (min(it.samples), max(it.samples)))
    return f"{_name(it)}: {number_of(it, it.value)}, its rounds from {low} to {high}: {TOO_NOISY}"


def disturbances(found: Iterable[Line]) -> list[str]:
    """Say what the machine did besides while figures were measured, each kind once, with how many figures it was."""
    kept = standing(found)
    of: dict[str, list[str]] = {}
    for it in kept:
        for words in filter(None, it.disturbed.split("; ")):
            of.setdefault(words.partition(":")[0], []).append(words)
    return [
        f"{len(words)} of {len(kept)} figures were measured on a machine that was not quiet: "
        f"{'; '.join(disturbances_of(words))}"
        for words in of.values()
    ]


def _of(it: Measurement | Judgement) -> Place:
    return Place.of(it).without("definition")


def _name(it: Measurement | Judgement) -> str:
    cell = "/".join(filter(None, (it.cell.model.name, it.cell.recipe.name, it.cell.server)))
    return one_line(f"{describe(it)} of {cell} on {it.cell.on}")
