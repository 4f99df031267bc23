"""A machine's noise as tables."""

from __future__ import annotations

from harness.judge import stats
from harness.judge.calibration import Calibration, blocks_within
from harness.judge.looks import MINIMUM_BLOCKS
from harness.judge.series import unit_of
from harness.records.place import Place
from harness.report import blocks
from harness.report.gate_report import over
from harness.report.rendering import Table

# Shown in the table of what a verdict costs.
MARGINS = (0.03, 0.05, 0.10)


def table(found: Calibration) -> Table:
    """Return the noise of each timed metric, the smallest effect within the budget, and what a verdict costs.

    The budget is that of a gate of all these cells together, as Calibration.check divides it; the blocks for a margin
    are no fewer than a gate may stop at.
    """
    rows = []
    cells: dict[Place, float] = {}
    for it in found.noise:
        cell = unit_of(it.place)
        cells[cell] = max(cells.get(cell, 0.0), it.block_seconds)
    blocks = blocks_within(found.budget_seconds, cells.values())
    for it in found.noise:
        costs = []
        for margin in MARGINS:
            needed = stats.samples_needed(it.sd, margin)
            fewest = max(MINIMUM_BLOCKS, needed or 0)
            costs.append("-" if needed is None else f"{fewest} ({fewest * it.block_seconds:.0f} s)")
        smallest = f"{stats.smallest_effect(it.sd, blocks):.1%}" if blocks > 1 else "-"
        metric = it.metric + (f" ({it.label})" if it.label else "")
        split = "-" if it.between is None or it.within is None else f"{it.between:.2%}, {it.within:.2%}"
        best = "-" if it.best_rounds is None else f"{it.best_rounds} ({it.rounds})"
        noise = (f"{it.sd:.2%}", split, best, f"{it.block_seconds:.1f} s")
        rows.append((f"{it.place.recipe} {it.place.server}", metric, *noise, smallest, *costs))
    rate = stats.proportion(found.alarms, found.gates)
    return Table(
        f"Calibration of {found.device}",
        "",
        (
            "cell",
            "metric",
            "noise of a block",
            "between processes, within one",
            "best rounds (now)",
            "a block takes",
            f"smallest effect in {found.budget_seconds:.0f} s",
            *(f"blocks for {margin:.0%}" for margin in MARGINS),
        ),
        tuple(rows),
        (
            f"false alarms: {found.alarms} of {found.gates} gates of old against old "
            f"(rate {rate.estimate:.2f} [{rate.low:.2f}, {rate.high:.2f}])",
            "noise: standard deviation of the log ratio of a block's two sides; smallest effect and blocks: at a "
            "confidence of 95 % and a power of 90 %",
            f"smallest effect in {found.budget_seconds:.0f} s: in a gate of all these cells together "
            f"({len(cells)}, {blocks} blocks each), all of whose time goes into blocks, and none of which is settled "
            f"before; blocks: of that cell alone, at least {MINIMUM_BLOCKS}, below which no gate stops by itself",
            "best rounds: as many a process as tell most in the same time (Kalibera and Jones, 2013), by the "
            "variance between processes and within one; now: as the matrix has it",
        ),
    )


def steady_table(found: Calibration) -> Table:
    """Return, for what is not timed, how far it is from itself and the smallest effect by its rule."""
    rows = []
    for it in found.steady:
        cell = f"{it.place.recipe} {it.place.server}".strip()
        metric = it.metric + (f" ({it.label})" if it.label else "")
        unit = "" if it.unit == "1" else f" {it.unit}"
        share = f" ({it.smallest / it.value:.2%})" if it.value and it.unit != "fraction" else ""
        effect = f"{it.smallest:.4g}{unit}{share}"
        rows.append((cell, metric, over(it.metric, it.pairs), f"{it.differs:.3g}{unit}", effect))
    return Table(
        "What is not timed",
        "",
        ("cell", "metric", "over", "differs from itself by", "smallest effect"),
        tuple(rows),
        (
            "sizes: what the margins allow and the range of the same measured twice; documents: the fewest lost ones "
            "that so many can tell; other quality: the margin, and what old differs from itself, evaluated twice",
        ),
    )


def written(found: Calibration, wide: int | None = None) -> str:
    """Return the tables as markdown, of at most ``wide`` columns if that is given."""
    tables = [it for it in (table(found), steady_table(found)) if it.rows]
    return blocks.text(tables, wide, blocks=False)
