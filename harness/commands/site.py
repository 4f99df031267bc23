"""``site``: write a static site over all stored runs and gates."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.base.errors import HarnessError
from harness.base.files import is_file, is_folder
from harness.judge.gatefile import load as load_gate
from harness.records.published import Documented
from harness.records.run import Run
from harness.report.site import build


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m harness site``."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="where the site is written")
    parser.add_argument(
        "--runs",
        metavar="FOLDER",
        type=Path,
        action="append",
        help="a folder of runs; may be repeated (default: results/runs and the committed results/reference)",
    )
    parser.add_argument("--gates", metavar="FOLDER", type=Path, default=Path("results/gates"), help="where gates lie")
    parser.add_argument("--documented", metavar="FOLDER", type=Path, help="published figures to use instead")


def _runs(folder: Path) -> list[Run]:
    """Return the runs of a folder, or the one whose folder it is itself."""
    return [Run(folder)] if is_file(folder / "records.jsonl") else Run.below(folder)


def run(args: argparse.Namespace) -> int:
    """Write the site. Raises HarnessError for a folder that is not there, and where there is nothing to show."""
    for folder in args.runs or []:
        if not is_folder(folder):
            raise HarnessError(f"--runs {folder}: there is no such folder")
    folders = args.runs or [Path("results/runs"), Path("results/reference")]
    runs = [run for folder in folders for run in _runs(folder)]
    gates = {path.parent.name: load_gate(path) for path in sorted(args.gates.glob("*/gate.json"))}
    made = build(args.folder, runs, gates, Documented.load(args.documented), lambda line: print(line, flush=True))
    for problem in made.problems:
        print(problem, file=sys.stderr)
    print(f"{args.folder / 'index.html'}: {made.pages} pages, {made.written} files new, {made.bytes / 1e6:.1f} MB")
    return 0
