"""How far a server's predictions are from Transformers', told from the likeliest tokens of every position."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.base.errors import HarnessError

LIKELIEST = 20
"""How many tokens are asked for at each position: the most that vLLM returns by default."""

# A server whose log-probabilities sum to one only within rounding leaves this much for what it does not tell, at least.
_LEAST_REST = 1e-6

Position = Mapping[int, float]
"""Log-probabilities (nats) of a position's likeliest tokens by token id."""


@dataclass(frozen=True)
class Agreement:
    """One entry a window: mean KL(reference || served) in nats, and the share of equal most likely tokens."""

    kl: list[float]
    top1: list[float]


def hold(reference: Sequence[Sequence[Position]], served: Sequence[Sequence[Position]]) -> Agreement:
    """Hold a server's predictions against the reference's, window by window; raises ValueError if one lacks any.

    Raises HarnessError for predictions that are no numbers: a server may serve a model that it does not compute.
    """
    if [len(window) for window in reference] != [len(window) for window in served]:
        raise ValueError("the server did not answer for every position of the text")
    for who, windows in (("Transformers'", reference), ("the server's", served)):
        rows = [row for window in windows for row in window]
        # A worker's answer is JSON, which has None for what is no number.
        if broken := sum(any(value is None or math.isnan(value) for value in row.values()) for row in rows):
            raise HarnessError(
                f"{who} predictions are not finite (NaN) at {broken} of {len(rows)} positions of ordinary text, so no "
                "figure of it means anything: it cannot compute this model with this recipe here"
            )
    pairs = [list(zip(ours, theirs, strict=True)) for ours, theirs in zip(reference, served, strict=True)]
    return Agreement(
        kl=[statistics.fmean(divergence(ours, theirs) for ours, theirs in window) for window in pairs],
        top1=[statistics.fmean(_likeliest(ours) == _likeliest(theirs) for ours, theirs in window) for window in pairs],
    )


def divergence(reference: Position, served: Position) -> float:
    """Return a lower bound of KL(reference || served) in nats, from what is told and what follows of the rest.

    Tokens that both tell count one by one; those told by the reference alone, those told by the server alone and all
    the rest as one outcome each, which never raises the divergence (log-sum inequality; Cover and Thomas, Elements of
    Information Theory, 2.7). What a side does not tell of a token is at most its least likely told one, and the told
    and untold probabilities of a side sum to one; within that, what suits the server best is assumed.
    """
    shared = reference.keys() & served.keys()
    told = math.fsum(math.exp(reference[token]) * (reference[token] - served[token]) for token in shared)
    ours, theirs = reference.keys() - shared, served.keys() - shared
    ours_p = math.fsum(math.exp(reference[token]) for token in ours)
    theirs_q = math.fsum(math.exp(served[token]) for token in theirs)
    untold_p = max(0.0, 1 - math.fsum(map(math.exp, reference.values())))
    untold_q = max(_LEAST_REST, 1 - math.fsum(map(math.exp, served.values())))
    ours_q = min(untold_q, len(ours) * math.exp(min(served.values(), default=0.0)))
    theirs_p = min(untold_p, len(theirs) * math.exp(min(reference.values(), default=0.0)))

    def spread(q: float, p: float) -> float:
        """Return what the outcomes add if the server gives ``q`` to ours, and the reference ``p`` to theirs."""
        return _term(ours_p, q) + _term(p, theirs_q) + _term(untold_p - p, untold_q - q)

    # Convex in both, so the least lies where neither bound holds it back, or one, or both: a free one has the same
    # ratio of the two sides as the rest has. Of those within their bounds, the least is it.
    free = (ours_p + untold_p) / (theirs_q + untold_q)
    spreads = [(ours_p / free if free else 0.0, free * theirs_q), (ours_q, theirs_p)]
    if theirs_q + untold_q > ours_q:
        spreads.append((ours_q, untold_p * theirs_q / (theirs_q + untold_q - ours_q)))
    if ours_p + untold_p > theirs_p:
        spreads.append((ours_p * untold_q / (ours_p + untold_p - theirs_p), theirs_p))
    return max(0.0, told + min(spread(q, p) for q, p in spreads if q <= ours_q and p <= theirs_p))


def _term(p: float, q: float) -> float:
    """Return what an outcome of probability ``p``, and ``q`` on the other side, adds to the divergence."""
    # Where rounding leaves 1e-16 of one side and nothing of the other, that is no infinite divergence.
    return p * math.log(p / max(q, sys.float_info.min)) if p > 0 else 0.0


def _likeliest(position: Position) -> int:
    return max(position, key=lambda token: position[token])
