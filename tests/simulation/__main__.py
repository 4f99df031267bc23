"""``python -m tests.simulation [--quick] [-o results/simulation.md]``: seeded, so that it says the same again."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.report.rendering import render
from tests.simulation.tables import TABLES, Times

REPOSITORY = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of how often everything is drawn")
    parser.add_argument("--only", action="append", default=[], help="only these tables, and write nothing")
    parser.add_argument("-o", "--output", type=Path, default=REPOSITORY / "results" / "simulation.md")
    arguments = parser.parse_args()
    times = Times().shorter(arguments.scale)
    shown = [make(times) for make in TABLES if not arguments.only or make.__name__ in arguments.only]
    facts = {
        "what decides": "harness.judge, as in a gate; only the samples are drawn, and their truth is known",
        "drawn": f"{times.metrics} metrics, {times.gates} whole gates of a kind; intervals of 95 % (Clopper-Pearson)",
        "written by": "tox run -e simulate",
    }
    text = render(shown, "md", title="How often verdicts are wrong, simulated", facts=facts)
    if not arguments.only:
        arguments.output.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
