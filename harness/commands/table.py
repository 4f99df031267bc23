"""``table``: write the tables of one or several runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.base.text import one_line
from harness.commands import told
from harness.records.published import Documented
from harness.records.run import Run
from harness.report.tables import LAYOUTS, SUMMARIES, failure_tables, provenance, tables_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m harness table``."""
    parser.add_argument("names", metavar="RUN", nargs="+", help="a run's name, 'last', or a path to its folder")
    parser.add_argument(
        "--format", choices=("md", "rst", "csv"), default="md", help="as markdown, reStructuredText or CSV"
    )
    parser.add_argument("--layout", choices=(*SUMMARIES, *LAYOUTS, "all"), default="published", help="which tables")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write to FILE instead of standard output")
    parser.add_argument("--runs", metavar="FOLDER", type=Path, default=Path("results/runs"), help="where runs lie")
    parser.add_argument("--documented", metavar="FOLDER", type=Path, help="published figures to use instead")


def run(args: argparse.Namespace) -> int:
    """Print or write the tables of some runs; lines that could not be read are named on standard error.

    What is printed as markdown is no wider than the terminal, in blocks of recipes, unless ``--wide`` is given.
    Returns 1 where the runs hold nothing for the layout. Raises HarnessError for a run that is not there.
    """
    # Not at the top: a session of the suites need not wait for pyarrow.
    from harness.records import columns

    opened = Run.open_all(args.runs, args.names)
    found = columns.load(opened)
    measurements, failures = found.standing(), found.failures()
    for problem in found.problems:
        print(problem, file=sys.stderr)
    names = [one.name for one in opened]
    tables = tables_of(args.layout, measurements, Documented.load(args.documented)) + failure_tables(failures)
    if not tables:
        of = one_line(", ".join(names))
        print(f"{of}: nothing measured for the layout {args.layout!r}; try --layout all", file=sys.stderr)
        return 1
    facts = provenance(measurements, names)
    told.tell(tables, args.format, facts, output=args.output, wide=args.wide)
    return 0
