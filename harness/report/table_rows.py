"""The rows of tables, in their order, and the words for better and worse."""

from __future__ import annotations

import math
from dataclasses import replace

from harness.base.numbers import decimal, whole
from harness.records.metric import Direction, Row, Words
from harness.records.metrics import METRICS

ROWS: tuple[Row, ...] = tuple(replace(row, metric=it.name) for it in METRICS.values() for row in it.rows)
"""Every known row, in the order of the tables: the tutorial's first, then what it did not measure."""

AGREEMENT = frozenset(("served_kl", "served_top1", "program_kl", "program_top1", "logit_difference"))
"""Metrics that hold two implementations of the same weights against each other: they need no weights of worth."""


def rows_of(metric: str, unit: str) -> list[Row]:
    """Return the rows that show a metric; one that no row knows, or that is in another unit, is shown as it is."""
    known = [row for row in ROWS if row.metric == metric and METRICS[metric].unit == unit]
    return known or [Row("detail", metric, Words.UNNAMED, f" {unit}", shown=None, metric=metric)]


def position(row: Row) -> int:
    """Return where a row stands among all rows; those not known here come last."""
    return ROWS.index(row) if row in ROWS else len(ROWS)


def improvement(baseline: float, value: float, direction: Direction) -> float | None:
    """Return how many times better ``value`` is than ``baseline``: above 1 is better whatever the direction.

    None where that means nothing: no direction, or numbers that are not positive and finite.
    """
    if direction == "none" or not (0 < baseline < math.inf and 0 < value < math.inf):
        return None
    ratio = baseline / value if direction == "lower" else value / baseline
    return ratio if ratio > 0 and math.isfinite(ratio) and math.isfinite(1 / ratio) else None


def ratio_text(ratio: float, words: Words = Words.SPEED) -> str:
    """Return an improvement in words: '1.16x speedup', '1.15x slowdown', '36% reduction', '12% increase'.

    What rounds to no change at all is '1.00x' or '0%', and called neither.
    """
    word = words.value[0] if ratio > 1 else words.value[1]
    if words is Words.PERCENT:
        percent = whole(abs(1 / ratio - 1) * 100)
        return "0%" if percent == "0" else f"{percent}% {word}"
    times = decimal(max(ratio, 1 / ratio))
    return "1.00x" if times == "1.00" else f"{times}x {word}"
