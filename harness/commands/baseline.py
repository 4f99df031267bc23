"""``baseline``: store what several runs measured, with their spread, as this hardware's baseline."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.base.text import one_line
from harness.judge.baseline import MOST_MARGIN, collect, smallest_margin
from harness.records.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's name or folder; at least three, one machine's")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where runs/ is (default: results)")
    parser.add_argument("-o", "--output", type=Path, help="the folder to write to (default: RESULTS/baselines)")


def run(arguments: argparse.Namespace) -> int:
    """``python -m harness baseline RUN RUN RUN``: write results/baselines/HARDWARE.json and say what is in it."""
    runs = [Run.open(arguments.results / "runs", name) for name in arguments.runs]
    for baseline in collect(runs):
        path = baseline.write(arguments.output or arguments.results / "baselines")
        print(
            f"{path}: {len(baseline.entries)} metrics of {len(baseline.runs)} runs on {one_line(baseline.device.name)}"
        )
        print(f"  {'spread':>8} {'margin':>8}   the smallest margin that lets an unchanged metric pass")
        for entry in baseline.entries:
            if not entry.spread:
                print(f"  {'none':>8} {'':>8}   {one_line(entry.label)}")
                continue
            least = smallest_margin(entry.spread, len(entry.values))
            shown = f"{least:8.1%}" if least <= MOST_MARGIN else "too wide"
            print(f"  {entry.spread:8.2%} {shown}   {one_line(entry.label)}")
    return 0
