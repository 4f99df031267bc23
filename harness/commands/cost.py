"""``cost``: tell what the rows of runs cost, against the tutorial's commands one after another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.base.text import one_line
from harness.records import by_hand
from harness.records.run import Run
from harness.records.schema import Line
from harness.report.budget import cost, measured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m harness cost``."""
    parser.add_argument("names", metavar="RUN", nargs="+", help="a run's name, 'last', or a path to its folder")
    parser.add_argument("--runs", metavar="FOLDER", type=Path, default=Path("results/runs"), help="where runs lie")


def run(arguments: argparse.Namespace) -> int:
    """Print what the tutorial's rows of some runs cost together; returns 1 where they have none of them.

    Raises HarnessError for a run that is not there.
    """
    opened = Run.open_all(arguments.runs, arguments.names)
    lines: list[Line] = []
    beside: list[str] = []
    for one in opened:
        found, problems = one.read()
        lines += found
        if (commands := by_hand.load(one.folder)) and (ran := measured(found, commands)):
            beside += ran.lines()
        for problem in problems:
            print(problem, file=sys.stderr)
    if (told := cost(lines)) is None:
        names = one_line(", ".join(one.name for one in opened))
        print(f"{names}: none of the tutorial's rows: peak memory, latency and serving through vLLM", file=sys.stderr)
        return 1
    print("\n".join([*told.lines(), *beside]))
    return 0
