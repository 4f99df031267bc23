"""How far a server's predictions are from Transformers', told from the likeliest tokens of every position."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LIKELIEST = 20
"""How many tokens are asked for at each position: the most that vLLM returns by default."""

# Log-probabilities that sum to one only within rounding leave this much for the rest at least.
_LEAST_REST = 1e-6

Position = Mapping[int, float]
"""Log-probabilities (nats) of a position's likeliest tokens by token id."""


@dataclass(frozen=True)
class Agreement:
    """One entry a window: mean KL(reference || served) in nats, and the share of equal most likely tokens."""

    kl: list[float]
    top1: list[float]


def hold(reference: Sequence[Sequence[Position]], served: Sequence[Sequence[Position]]) -> Agreement:
    """Hold a server's predictions against the reference's, window by window; raises ValueError if one lacks any."""
    if [len(window) for window in reference] != [len(window) for window in served]:
        raise ValueError("the server did not answer for every position of the text")
    pairs = [list(zip(ours, theirs, strict=True)) for ours, theirs in zip(reference, served, strict=True)]
    return Agreement(
        kl=[statistics.fmean(divergence(ours, theirs) for ours, theirs in window) for window in pairs],
        top1=[statistics.fmean(_likeliest(ours) == _likeliest(theirs) for ours, theirs in window) for window in pairs],
    )


def divergence(reference: Position, served: Position) -> float:
    """Return a lower bound of KL(reference || served) in nats: that of the tokens which both tell, and all the rest.

    Taking outcomes together never raises the divergence (Cover and Thomas, Elements of Information Theory, 2.9).
    """
    shared = reference.keys() & served.keys()
    told = sum(math.exp(reference[token]) * (reference[token] - served[token]) for token in shared)
    rest, rest_served = (
        max(_LEAST_REST, 1 - math.fsum(math.exp(position[token]) for token in shared))
        for position in (reference, served)
    )
    return max(0.0, told + rest * math.log(rest / rest_served))


def _likeliest(position: Position) -> int:
    return max(position, key=lambda token: position[token])
