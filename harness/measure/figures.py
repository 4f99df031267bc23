"""What a block of measurement came to, before it is recorded, and the statistics of its samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# A record of everything would be out of proportion for the intervals of a thousand streamed answers.
MAX_SAMPLES = 5000

Timer = Callable[[Callable[[], None], int, int], int]
"""``timer(function, rounds, warmup)`` calls and times a function, and returns how many calls it meant to make.

A function that raises Enough ends its rounds; those before were all that was meant.
"""


class Enough(BaseException):
    """Raised in place of a round that would tell nothing; no Exception, since what times rounds notes those."""


@dataclass(frozen=True)
class Figure:
    """What one metric of a block came to, before it is a record."""

    value: float
    samples: Sequence[float] = ()
    warmup: Sequence[float] = ()
    statistics: dict[str, float] = field(default_factory=dict)
    attachment: str = ""
    from_cache: bool = False
    discarded: str = ""
    kept_from: str = ""
    kept_time: float | None = None

    def problem(self) -> str:
        """Return in words the first number that is NaN or infinite, or an empty string."""
        if not math.isfinite(self.value):
            return f"came out as {self.value}"
        for what, values in (("sample", self.samples), ("warm-up", self.warmup)):
            for index, value in enumerate(values):
                if not math.isfinite(value):
                    return f"has {value} as {what} {index} of {len(values)}"
        return next((f"has {value} as {of}" for of, value in self.statistics.items() if not math.isfinite(value)), "")


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """Return mean, standard deviation (n - 1) and p50, p90, p99 (linear interpolation) of samples."""
    ordered = sorted(samples)
    found = {"mean": statistics.fmean(ordered), "n": float(len(ordered))}
    if len(ordered) > 1:
        found["stdev"] = statistics.stdev(ordered)
    for percent in (50, 90, 99):
        position = (len(ordered) - 1) * percent / 100
        low, high = math.floor(position), math.ceil(position)
        found[f"p{percent}"] = ordered[low] + (ordered[high] - ordered[low]) * (position - low)
    return found


def between_rounds(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return how many rounds there were and how far their medians are apart: the spread (n - 1) of their logarithms.

    Requests of one round share what happened to it, so that many of them are no many rounds. Empty for one round, and
    where a median has no logarithm.
    """
    medians = [statistics.median(values) for values in rounds if values]
    if len(medians) < 2 or min(medians) <= 0:
        return {}
    return {"rounds": float(len(medians)), "rounds_log_sd": statistics.stdev(map(math.log, medians))}


def thinned(samples: Sequence[float]) -> list[float]:
    """Return at most MAX_SAMPLES samples, evenly over all of them."""
    step = max(1, math.ceil(len(samples) / MAX_SAMPLES))
    return list(samples[::step])


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the values' mean; 0 of a single one."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def split(values: list[float], warmup: int) -> tuple[list[float], list[float]]:
    """Return warm-up and counted values; with too few calls (timing disabled) all count."""
    return (values[:warmup], values[warmup:]) if len(values) > warmup else ([], values)


def warmed(tokens: int, of: int) -> dict[str, float]:
    """Return what a record's statistics say of warm-up rounds with fewer tokens than the ``of`` that are timed."""
    return {"warmup_tokens": float(tokens)} if tokens != of else {}


def cut_short(values: Sequence[float], wanted: int) -> str:
    """Return why a timing must not be used that ran fewer rounds than it should have, or an empty string."""
    return "" if len(values) >= wanted else f"timing was disabled: {len(values)} of {wanted} rounds ran"


def in_a_row(function: Callable[[], None], rounds: int, warmup: int) -> int:
    """Call a function as a timer does, without timing it."""
    for calls in range(warmup + rounds):
        try:
            function()
        except Enough:
            return calls
    return warmup + rounds
