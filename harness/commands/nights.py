"""``nights``: hold the last night against those before it, with what the whole machine did taken out."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from harness.base.errors import HarnessError, RecordError
from harness.base.text import one_line
from harness.judge.nights import FEWEST, WINDOW, Figure, Finding, figures, look, machine
from harness.judge.trend import series
from harness.records.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs to look at (default: all of RESULTS/runs)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where runs/ is (default: results)")
    parser.add_argument(
        "--alarms",
        type=float,
        default=1.0,
        metavar="N",
        help="false alarms a year that all figures may give (default: 1)",
    )


def run(arguments: argparse.Namespace) -> int:
    """``python -m harness nights``: 1 where a figure got worse, 0 where none did, 3 where there are too few nights."""
    if not (math.isfinite(arguments.alarms) and arguments.alarms > 0):
        raise HarnessError(f"--alarms {arguments.alarms}: how many a year, above zero")
    root = arguments.results / "runs"
    runs = [Run.open(root, name) for name in arguments.runs] if arguments.runs else Run.below(root)
    devices = figures(series(runs))
    if not devices:
        raise RecordError(f"{len(runs)} runs under {root} hold no figures of speed to look at")
    statuses = [_device(name, *known, arguments.alarms) for name, known in sorted(devices.items())]
    return 1 if 1 in statuses else min(statuses)


def _device(name: str, nights: Sequence[date], known: Sequence[Figure], alarms: float) -> int:
    found, name = look(known, alarms), one_line(name)
    if not found:
        print(
            f"{name}: nothing can be said yet of {len(known)} figures: {len(nights)} nights were measured, and "
            f"{FEWEST} before the last {WINDOW} are needed"
        )
        return 3
    worse = sorted((it for it in found if it.alarm), key=lambda it: it.p)
    for it in worse:
        print(_line(it, nights))
    night = machine(known)
    told = "no control was measured, so what the machine did is in every figure"
    if night is not None:
        told = f"the controls, which the package has no part in, say that the machine was {_words(night)}"
    short = f"; {len(known) - len(found)} more have too few nights" if len(found) < len(known) else ""
    finest, coarsest = (of(it.detectable for it in found) for of in (min, max))
    print(f"{name}, night of {nights[-1]}: {len(worse)} of {len(found)} figures got worse{short}; {told}")
    print(
        f"  a step is found within {WINDOW} nights (9 of 10) from {finest:.1%} on, of the noisiest from {coarsest:.1%}"
    )
    return 1 if worse else 0


def _line(it: Finding, nights: Sequence[date]) -> str:
    since = nights[-it.nights]
    beside = "the other controls" if it.figure.control else "the controls"
    without = f", beyond what {beside} did" if it.adjusted else ""
    return f"worse: {one_line(it.figure.label)}: {math.expm1(it.shift):.1%} since {since}{without}; p {it.p:.1g}"


def _words(shift: float) -> str:
    share = math.expm1(abs(shift))
    if share < 0.005:
        return "as fast as before"
    return f"{share:.1%} {'slower' if shift > 0 else 'faster'} than before"
