"""Where simulated figures come from: log ratios new / old of blocks, of metrics that are as they were or are not."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from harness.judge.series import Series
from harness.records.place import Place

PROCESS = 0.03
"""Standard deviation of a process's logarithm: three per cent, as a quiet machine has it."""
RECORDED = Path(__file__).resolve().parents[2] / "results" / "gate_calibration.json"

Draw = Callable[[np.random.Generator, int, int], np.ndarray]
"""Gives log ratios of so many metrics and blocks: (metrics, blocks)."""


def even(rng: np.random.Generator, metrics: int, blocks: int) -> np.ndarray:
    """Normal noise, the same of every metric."""
    return rng.normal(0, PROCESS * math.sqrt(2), (metrics, blocks))


def uneven(rng: np.random.Generator, metrics: int, blocks: int) -> np.ndarray:
    """Normal noise that is 1.5 times as large or as small from metric to metric."""
    scale = PROCESS * math.sqrt(2) * np.exp(rng.normal(0, math.log(1.5), (metrics, 1)))
    return scale * rng.normal(0, 1, (metrics, blocks))


def recorded(rng: np.random.Generator, metrics: int, blocks: int) -> np.ndarray:
    """Draws from real blocks of the same on both sides, stragglers included, their median set to no change."""
    return rng.choice(_blocks(), (metrics, blocks))


@functools.cache
def _blocks() -> np.ndarray:
    gates = json.loads(RECORDED.read_text(encoding="utf-8"))["gates"]
    logs = np.array([math.log(old / new) for gate in gates for old, new in zip(gate["old"], gate["new"], strict=True)])
    return np.asarray(logs - np.median(logs))


def dependent(share: float) -> Draw:
    """Return noise of which each block keeps a share of the one before it (AR(1)), as large as ``even``."""

    def draw(rng: np.random.Generator, metrics: int, blocks: int) -> np.ndarray:
        found = even(rng, metrics, blocks)
        for at in range(1, blocks):
            found[:, at] = share * found[:, at - 1] + math.sqrt(1 - share**2) * found[:, at]
        return found

    return draw


def series(place: Place, logs: np.ndarray) -> Series:
    """Return blocks of a metric whose sides differ by these log ratios."""
    half = np.exp(logs / 2)
    return Series(place, {"old": (1 / half).tolist(), "new": half.tolist()}, drift_cancelled=True)


def answered(
    rng: np.random.Generator, documents: int, *, loss: float, flips: float = 0.02
) -> tuple[np.ndarray, np.ndarray]:
    """Return the margins (nats) of right answers, old and new, of which a share ``flips`` changes sides by noise.

    Two of three are right. The new ones are shifted so that the share ``loss`` of answers is lost on average. What
    differs between two numerics has heavier tails than a normal (Student's t with 5 degrees of freedom).
    """
    mean, spread = 1.0, 2.4
    at_zero = math.exp(-0.5 * (mean / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
    noise = flips / (at_zero * math.sqrt(2 / math.pi))
    old = rng.normal(mean, spread, documents)
    return old, old - loss / at_zero + noise * rng.standard_t(5, documents) / math.sqrt(5 / 3)
