"""``report``: write one self-contained HTML page about runs and gates."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.base.errors import RecordError
from harness.base.files import is_file, write_text
from harness.judge.gatefile import load as load_gate
from harness.records.published import Documented
from harness.records.run import Run
from harness.report import html


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m harness report``."""
    parser.add_argument("names", metavar="RUN", nargs="+", help="a run, 'last', or a path; also a gate's folder")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the page to write")
    parser.add_argument("--title", default="", help="the page's heading instead of the names of the runs")
    parser.add_argument("--runs", metavar="FOLDER", type=Path, default=Path("results/runs"), help="where runs lie")
    parser.add_argument("--documented", metavar="FOLDER", type=Path, help="published figures to use instead")


def run(args: argparse.Namespace) -> int:
    """Write the page. Raises HarnessError for a run that is not there, and for a page above MOST_BYTES."""
    gates = [load_gate(Path(name)) for name in args.names if is_file(Path(name) / "gate.json")]
    names = [name for name in args.names if not is_file(Path(name) / "gate.json")]
    page, problems = html.render(
        [Run.open(args.runs, name) for name in names], gates, Documented.load(args.documented), args.title
    )
    for problem in problems:
        print(problem, file=sys.stderr)
    size = len(page.encode("utf-8", errors="backslashreplace"))
    if size > html.MOST_BYTES:
        raise RecordError(
            f"the page would take {size / 1e6:.1f} MB, over {html.MOST_BYTES / 1e6:g} MB: give fewer runs"
        )
    write_text(args.output, page)
    print(f"{args.output}: {size / 1e6:.2f} MB")
    return 0
