"""``compatibility``: hold what several gates found to work together, by version."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.base.files import is_folder
from harness.base.text import one_line
from harness.commands import told
from harness.judge.gatefile import GateError, GateFile, load
from harness.report import compatibility


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m harness compatibility``."""
    parser.add_argument(
        "gates", metavar="GATE", nargs="+", help="a gate's name, or a path to its folder or its gate.json"
    )
    parser.add_argument("--format", choices=("md", "rst"), default="md", help="as markdown or reStructuredText")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write to FILE instead of standard output")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where gates/ is")


def run(arguments: argparse.Namespace) -> int:
    """Print or write which recipe works under which version and which version reads whose checkpoints, and why not.

    Returns 1 where no recipe was tried under two versions. Raises HarnessError for a gate that is not there or cannot
    be read, and where gates are not of one package and hardware.
    """
    gates = {name: _gate(arguments.results, name) for name in dict.fromkeys(arguments.gates)}
    tables = [table for table in compatibility.tables(list(gates.values())) if table.rows]
    if not tables:
        print(f"{one_line(', '.join(gates))}: no recipe was tried", file=sys.stderr)
        return 1
    facts = {
        "gates": "; ".join(f"{Path(name).name}: {gate.title}" for name, gate in gates.items()),
        "device": ", ".join(dict.fromkeys(gate.device for gate in gates.values() if gate.device)),
    }
    facts = {name: words for name, words in facts.items() if words}
    told.tell(tables, arguments.format, facts, output=arguments.output, wide=arguments.wide)
    return 0


def _gate(results: Path, name: str) -> GateFile:
    path = Path(name)
    kept = results / "gates" / name
    if not path.exists() and not is_folder(kept):
        raise GateError(f"no gate {name}: neither a folder or gate.json, nor a gate in {results / 'gates'}")
    return load(path if path.exists() else kept)
