"""A year of nights of 50 metrics on a machine of which the truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness.judge.nights import FEWEST, NIGHTS_A_YEAR, WINDOW, Figure, look

METRICS, CONTROLS = 50, 5
STEP = 0.05
"""Of one metric, in the steps that are planted."""

Machine = Callable[[np.random.Generator, int], np.ndarray]
"""Draws the logs of all metrics, (METRICS, nights)."""


def noisy(own: float, shared: float = 0.0, kept: float = 0.0, walk: float = 0.0) -> Machine:
    """Return a machine: noise of each metric, of a night that all share (of which the next keeps a share), a walk."""

    def draw(rng: np.random.Generator, nights: int) -> np.ndarray:
        night = rng.normal(0, shared, nights)
        for at in range(1, nights):
            night[at] = kept * night[at - 1] + (1 - kept**2) ** 0.5 * night[at]
        night = night + np.cumsum(rng.normal(0, walk, nights))
        return np.asarray(night + rng.normal(0, own, (METRICS, nights)))

    return draw


@dataclass(frozen=True)
class Year:
    """False alarms of a year: each begins one night, and may last; and how often a step was found in five nights."""

    alarms: int
    found: int
    steps: int


def figures(logs: np.ndarray) -> list[Figure]:
    return [Figure(f"m{at}", "lower", 0.05, at < CONTROLS, one) for at, one in enumerate(logs)]


def year(machine: Machine, rng: np.random.Generator, nights: int = NIGHTS_A_YEAR, steps: int = 12) -> Year:
    """Look at every night of an unchanged year, and at steps planted in metrics of it one by one."""
    logs = machine(rng, nights + 2 * FEWEST + WINDOW)
    alarms, before = 0, frozenset[str]()
    for end in range(2 * FEWEST + WINDOW, logs.shape[1]):
        now = frozenset(it.figure.label for it in look(figures(logs[:, : end + 1])) if it.alarm)
        alarms += len(now - before)
        before = now
    found = 0
    for at in np.linspace(4 * FEWEST, logs.shape[1] - WINDOW, steps).astype(int):
        metric = int(rng.integers(CONTROLS, METRICS))
        stepped = logs.copy()
        stepped[metric, at:] += np.log1p(STEP)
        nights_of = (look(figures(stepped[:, : at + after]))[metric] for after in range(1, WINDOW + 1))
        found += any(it.alarm for it in nights_of)
    return Year(alarms, found, steps)
