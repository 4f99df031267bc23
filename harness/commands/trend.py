"""``trend``: look over the stored runs for change points and slow drift."""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from harness.base.errors import RecordError, nearest
from harness.base.text import one_line
from harness.judge.trend import MINIMUM_RUNS, report, series
from harness.records.metrics import METRICS
from harness.records.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs to look over (default: all of RESULTS/runs)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where runs/ is (default: results)")
    parser.add_argument("--metric", action="append", default=[], help="only this metric; repeatable")


def run(arguments: argparse.Namespace) -> int:
    """``python -m harness trend``: say what changed over the stored runs, and what could not be looked at."""
    root = arguments.results / "runs"
    runs = [Run.open(root, name) for name in arguments.runs] if arguments.runs else Run.below(root)
    found = series(runs, arguments.metric)
    for metric in arguments.metric:
        if metric not in METRICS:
            raise RecordError(f"--metric {metric!r} is no metric; {nearest(metric, METRICS)}")
    if not found:
        what = f" of {', '.join(arguments.metric)}" if arguments.metric else ""
        raise RecordError(f"{len(runs)} runs under {root} hold no figures{what} to look over")
    short: dict[int, int] = defaultdict(int)
    quiet = 0
    for one in found:
        if len(one.rows) < MINIMUM_RUNS:
            short[len(one.rows)] += 1
        elif lines := report(one):
            print(one_line(one.label))
            print("".join(f"  {line}\n" for line in lines), end="")
        else:
            quiet += 1
    if looked := len(found) - sum(short.values()):
        print(f"{quiet} of {looked} figures show no change point and no drift over {len(runs)} runs")
    if short:
        most = max(short)
        print(f"{sum(short.values())} were not looked at: a trend needs {MINIMUM_RUNS} runs, they have {most} at most")
    return 0
