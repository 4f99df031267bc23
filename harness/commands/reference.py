"""``reference``: make the committed tables from the committed records, or check that they agree."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.base.errors import HarnessError
from harness.base.files import write_text
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Failure, Line, Measurement
from harness.report import tables
from harness.report.rendering import render
from harness.report.stacks import stacks
from harness.report.support import support

FOLDER = Path("results/reference")
SHELF = "shelf"
"""Beside the folder: runs of recipes that no cell has, for the table of all recipes and none of a hardware."""
TABLES = "tables"
STACKS = "stacks.md"
SUPPORT = "support.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``harness reference``."""
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        default=FOLDER,
        help="holds a folder a run (default: %(default)s)",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the tables there differ")


def run(args: argparse.Namespace) -> int:
    """Write FOLDER/tables: a file a hardware and format, one of all stacks, one of all recipes. ``--check`` compares.

    Then 1 is returned where what is there differs.
    Raises HarnessError where the folder has no run, or a run a line that cannot be read.
    """
    if not args.check:
        for path in write(args.folder, args.folder / TABLES):
            print(path)
        return 0
    with tempfile.TemporaryDirectory() as made:
        wanted = {path.name: path.read_bytes() for path in write(args.folder, Path(made))}
    there = {path.name: path.read_bytes() for path in (args.folder / TABLES).glob("*")}
    differing = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    for name in differing:
        what = "is missing" if name not in there else "is of no run" if name not in wanted else "differs"
        print(f"{args.folder / TABLES / name} {what}", file=sys.stderr)
    if differing:
        print(f"python -m harness reference {args.folder} makes them anew", file=sys.stderr)
    return 1 if differing else 0


def write(folder: Path, into: Path) -> list[Path]:
    """Write the tables of a folder's runs, those of one hardware together, and their stacks; returns the paths."""
    # Not at the top: other commands need not wait for pyarrow.
    from harness.records import columns

    runs = _runs(folder)
    if not runs:
        raise HarnessError(f"{folder}: no run in it; each is a folder with its records.jsonl")
    lines = {name: _read(run) for name, run in runs.items()}
    on: dict[str, list[str]] = {}
    for name, found in lines.items():
        for hardware in dict.fromkeys(_hardware(found)):
            on.setdefault(hardware, []).append(name)
    failures = columns.load(runs.values()).failures()
    facts = {"runs": ", ".join(runs)}
    written = [into / STACKS, into / SUPPORT]
    write_text(written[0], render([stacks(lines.values())], "md", title="Stacks that were seen working", facts=facts))
    title, shelf = "Which recipe runs where, as runs show it", _runs(folder.parent / SHELF)
    facts = {"runs": ", ".join([*runs, *shelf])}
    told = support([*lines.values(), *map(_read, shelf.values())])
    write_text(written[1], render(told, "md", title=title, facts=facts))
    for hardware, names in sorted(on.items()):
        of = [line for name in names for line in lines[name]]
        written += tables.write(
            into,
            [line for line in of if isinstance(line, Measurement) and line.cell.hardware == hardware],
            Documented.load(),
            runs=names,
            failures=[line for line in failures if line.cell.hardware == hardware],
            skips=[skip for skip in tables.skips_of(of) if skip.hardware == hardware],
        )
    return written


def _runs(folder: Path) -> dict[str, Run]:
    return {run.name: run for run in Run.below(folder)}


def _read(run: Run) -> list[Line]:
    lines, problems = run.read()
    if problems:
        raise HarnessError(problems[0])
    return lines


def _hardware(lines: list[Line]) -> Iterator[str]:
    yield from (line.cell.hardware for line in lines if isinstance(line, (Measurement, Failure)))
