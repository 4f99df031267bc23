"""``why``: tell by their profiles why recipes are faster or slower than their baseline."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.base import terminal
from harness.base.text import one_line
from harness.records.run import Run
from harness.report import blocks, why
from harness.report.tables import collect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m harness why``."""
    parser.add_argument("names", metavar="RUN", nargs="+", help="a run's name, 'last', or a path to its folder")
    parser.add_argument("--runs", metavar="FOLDER", type=Path, default=Path("results/runs"), help="where runs lie")


def run(arguments: argparse.Namespace) -> int:
    """Print, for each server and phase, milliseconds by kind of kernel and of layer, and the difference in words.

    Returns 1 where nothing was profiled. Raises HarnessError for a run that is not there.
    """
    # Not at the top: a session of the suites need not wait for pyarrow.
    from harness.records import columns

    opened = Run.open_all(arguments.runs, arguments.names)
    loaded = columns.load(opened)
    wide = None if arguments.wide else terminal.columns()
    told, problems = 0, list(loaded.problems)
    for subject in collect(loaded.standing()):
        sides, damaged = why.sides(subject, opened)
        problems += damaged
        for side in sides:
            print(f"\n## {subject.heading}" if not told else "")
            print(blocks.text([it for it in (why.table(side), why.by_layer(side)) if it], wide))
            for sentence in why.sentences(side):
                print(f"- {sentence}")
            told += 1
    for problem in problems:
        print(problem, file=sys.stderr)
    if not told:
        names = one_line(", ".join(one.name for one in opened))
        kept = "" if why.details_of(opened) else ", or the details of its records (attachments/) are not there"
        print(f"{names}: nothing was profiled{kept}; test_kernels of suites/test_engine.py does", file=sys.stderr)
        return 1
    return 0
