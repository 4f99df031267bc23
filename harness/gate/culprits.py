"""Which of several packages made a metric worse: swapped one at a time, and by delta debugging where some go together.

Source: Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, IEEE TSE 28, 2002: ddmin, whose third
outcome, unresolved, is here a mixture that cannot be made or judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.judge.verdict import Ruling

Answer = Callable[[frozenset[str]], Ruling]
"""How a gate ends whose new side has these packages new, and all others old."""

_AT_A_TIME = 4
"""Packages of which each is swapped by itself at once, rather than half of them."""


@dataclass(frozen=True)
class Culprits:
    """What a search over packages came to.

    ``sets`` are the packages that make it worse, each set by itself and none of it without the others; ``unsure`` the
    mixtures that were needed to say more and could not be judged.
    """

    sets: tuple[tuple[str, ...], ...]
    unsure: tuple[frozenset[str], ...] = ()


def search(packages: Sequence[str], answer: Answer) -> Culprits:
    """Return the smallest sets of ``packages`` that make it worse, by ``answer``; all together they do.

    Each mixture is asked once. Where a part of the packages is left that makes it worse without those that were found,
    it has a culprit of its own.
    """
    known: dict[frozenset[str], Ruling] = {frozenset(packages): "regressed"}

    def worse(chosen: Sequence[str]) -> bool:
        them = frozenset(chosen)
        if them not in known:
            known[them] = answer(them)
        return known[them] == "regressed"

    found: list[tuple[str, ...]] = []
    left = list(packages)
    while left and (not found or worse(left)):
        one = _smallest(left, worse)
        found.append(tuple(one))
        left = [name for name in left if name not in one]
    # A mixture says how small a set may be: one within a set that could not be judged leaves it open.
    unsure = [
        them
        for them, said in known.items()
        if said in ("error", "inconclusive") and (any(them < set(one) for one in found) or them == set(left))
    ]
    return Culprits(tuple(found), tuple(unsure))


def _smallest(packages: Sequence[str], worse: Callable[[Sequence[str]], bool]) -> list[str]:
    """Return a set that makes it worse and no part of which does, as far as parts can be judged (ddmin)."""
    left = list(packages)
    pieces = len(left) if len(left) <= _AT_A_TIME else 2
    while len(left) > 1:
        size = -(-len(left) // pieces)
        parts = [left[at : at + size] for at in range(0, len(left), size)]
        if part := next((one for one in parts if worse(one)), None):
            left, pieces = part, len(part) if len(part) <= _AT_A_TIME else 2
            continue
        rests = [[name for name in left if name not in one] for one in parts] if len(parts) > 2 else []
        if rest := next((one for one in rests if worse(one)), None):
            left, pieces = rest, max(len(parts) - 1, 2)
            continue
        if pieces >= len(left):
            break
        pieces = min(2 * pieces, len(left))
    return left
