"""Whole gates: units of one or two metrics each, measured in rounds until the gate's own code calls them settled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.judge.family import control, settled
from harness.judge.gatefile import exit_status
from harness.judge.rules import Margins
from harness.judge.verdict import Verdict, judge
from harness.records.place import Place
from tests.simulation.draws import Draw, series

METRIC = "latency"
BLOCK_SECONDS = 23.5
"""What a block of SmolLM2-135M-Instruct takes on two cores: results/rules.md."""
FAMILY = (2,) * 10 + (1,) * 5
"""How many metrics each of the 15 units has: 25 in all, about as many as a gate over all CPU recipes."""
WORST = ("pass", "regressed", "error", "inconclusive")


@dataclass(frozen=True)
class Ended:
    """One simulated gate: its exit status, what it says of each metric, and the blocks that each unit took."""

    status: int
    verdicts: tuple[Verdict, ...]
    blocks: tuple[int, ...]


def gate(
    draw: Draw,
    rng: np.random.Generator,
    margin: float,
    effects: Sequence[float],
    units: Sequence[int] = (1,),
    most: int = 600,
    total: int = 10**9,
    kept: float = 0.0,
) -> Ended:
    """Measure units until all are settled, each of ``most`` blocks and all of ``total`` at most.

    ``effects`` are the metrics' true log ratios; ``units`` says how many metrics each unit has;
    ``kept`` is what is known of the machine's dependence.
    """
    logs = draw(rng, len(effects), most) + np.asarray(effects)[:, None]
    of = np.repeat(np.arange(len(units)), units)
    places = [Place("m", "", f"r{unit}", "", server="s").at(METRIC, {"batch_size": at}) for at, unit in enumerate(of)]
    margins = Margins([f"{METRIC}={margin}"])
    blocks = [0] * len(units)
    told: list[Verdict] = [judge(series(place, logs[at, :1]), margins) for at, place in enumerate(places)]
    pending = list(range(len(units)))
    while pending and sum(blocks) < total:
        for unit in pending[: total - sum(blocks)]:
            blocks[unit] += 1
            for at in np.flatnonzero(of == unit):
                told[at] = judge(series(places[at], logs[at, : blocks[unit]]), margins)
        if blocks[pending[0]] < 2:
            continue
        found = control(told, kept=kept)
        left = {of[at] for at, verdict in enumerate(found) if not settled(verdict)}
        pending = [unit for unit in range(len(units)) if unit in left and blocks[unit] < most]
    verdicts = control(told, kept=kept)
    return Ended(exit_status(verdicts), tuple(verdicts), tuple(blocks))


def counted(ended: Sequence[Ended]) -> Counter[str]:
    """Count the verdicts of all gates' metrics."""
    return Counter(verdict.verdict for one in ended for verdict in one.verdicts)
