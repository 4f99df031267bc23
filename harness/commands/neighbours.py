"""``neighbours``: hold the same figures alone and with a neighbour on another GPU of the host against each other."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.base import terminal
from harness.judge.neighbours import MARGIN, Check, Pair, checks
from harness.records.run import Run
from harness.records.schema import Measurement
from harness.report import blocks
from harness.report.rendering import Table

_WORDS = {"disturbed": "disturbed", "undisturbed": f"within {MARGIN:.0%}", "open": "not clear"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m harness neighbours``."""
    parser.add_argument(
        "names", metavar="RUN", nargs="+", help="runs of the same cells: on one GPU, and side by side with --on local"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="where runs/ and neighbours/ are")


def run(arguments: argparse.Namespace) -> int:
    """Print each figure's ratio with its interval, and keep it for later sessions on that device.

    Returns 1 where a neighbour makes a figure surely worse by more than MARGIN, 3 where nothing was measured both
    ways, else 0. Raises HarnessError for a run that is not there.
    """
    opened = Run.open_all(arguments.results / "runs", arguments.names)
    records = [line for one in opened for line in one.lines() if isinstance(line, Measurement)]
    found = checks(records, [one.name for one in opened])
    wide = None if arguments.wide else terminal.columns()
    for check in found:
        print(blocks.text([_table(check)], wide))
        print(f"kept as {check.write(arguments.results)}")
    if not found:
        print(
            "no figure was measured both alone and with a neighbour: run the same cells on one GPU "
            "(CUDA_VISIBLE_DEVICES=0), then side by side (--on local), and name both runs",
            file=sys.stderr,
        )
        return 3
    return int(any(pair.state == "disturbed" for check in found for pair in check.pairs))


def _table(check: Check) -> Table:
    rows = tuple(_row(pair) for pair in sorted(check.pairs, key=lambda it: (it.stage, it.what)))
    notes = ["beside / alone with its 95 % interval: of processes, or where a side has one, of its rounds"]
    return Table(
        f"Neighbours on {check.device}", "", ("figure", "alone", "beside", "ratio", "says"), rows, tuple(notes)
    )


def _row(pair: Pair) -> tuple[str, ...]:
    within = "" if pair.low is None else f" ({pair.low:.3f} to {pair.high:.3f})"
    return (
        pair.what,
        f"{pair.alone:.4g} {pair.unit}",
        f"{pair.beside:.4g} {pair.unit}",
        f"{pair.ratio:.3f}{within}",
        _WORDS[pair.state],
    )
