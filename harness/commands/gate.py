"""``python -m harness gate``: may we move from the old side to the new one?"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.base.errors import HarnessError, OutOfTime
from harness.base.files import write_text
from harness.base.interruption import Interrupted
from harness.base.memory import wanting
from harness.base.terminal import columns
from harness.commands import gate_far, sides, workplace
from harness.commands.unfinished import Unfinished
from harness.gate.gate import GateResult
from harness.gate.part import Part
from harness.judge import accepted, gatefile
from harness.judge.accepted import Acceptances
from harness.judge.gatefile import EXIT, GateFile, Options
from harness.judge.since import dated
from harness.machine.lock import Held, machine_lock, only_session
from harness.records.run import Run
from harness.report import gate_report, junit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "a requirement such as torchao==0.17.0, several of them in quotes, a wheel, or a lock (as pip freeze writes)"
    parser.add_argument("old", nargs="?", help=what)
    parser.add_argument("new", nargs="?", help="the same packages in other versions, or another lock")
    sides.add_arguments(parser)
    workplace.add_common_arguments(parser)
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted gate (last: the latest)")
    gate_far.add_arguments(parser)
    parser.add_argument("--explain", action="append", default=[], metavar="METRIC", help="walk through its decisions")
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="METRIC:REASON",
        help="let this gate's regressions of a metric be, and those of later gates that are no worse; repeatable",
    )
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write gate.json here too")


def _command(arguments: argparse.Namespace, wanted: Options) -> str:
    """Return the command that asks for a gate, with where it is to look and to write."""
    words = [word for name in arguments.pass_env for word in ("--pass-env", name)]
    for option in ("python", "matrix", "cache", "share", "junit", "json"):
        if value := getattr(arguments, option):
            words += [f"--{option}", str(value)]
    if getattr(arguments, "on", None):
        words += ["--on", arguments.on]
    if arguments.results != workplace.RESULTS:
        words += ["--results", str(arguments.results)]
    return wanted.command(*words)


def run(arguments: argparse.Namespace) -> int:
    gate_report.check_explained(arguments.explain)
    accept = accepted.parse(arguments.accept)
    acceptances = Acceptances.load(arguments.results)
    place = workplace.opened(arguments)
    wanted = workplace.options(arguments, *sides.of(arguments))
    wide = None if arguments.wide else columns()
    if part := Part.of_this_process():
        return gate_far.measure(replace(place, part=part, progress=part.tell), part, wanted, arguments.resume)
    sides.check(place.matrix, wanted, place.base)
    if arguments.resume:
        Run.open(place.results / "gates", arguments.resume)
    lock = only_session(machine_lock(), place.progress) if not arguments.on else Held()
    unfinished = Unfinished(place.results / "gates", time.time())
    try:
        with place.working(wanted.budget - place.startup):
            if arguments.on:
                outcome = gate_far.over(arguments, wanted, place)
            else:
                outcome = place.gate(wanted, place.made, arguments.resume)
    except OutOfTime as error:
        print(f"{error}: give more --budget", file=sys.stderr)
        return EXIT["inconclusive"]
    except KeyboardInterrupt as interruption:
        so_far = functools.partial(told, arguments, wanted, acceptances, wide)
        raise Interrupted(interruption, unfinished.interrupted(_command(arguments, wanted), so_far)) from None
    except Exception as error:
        if wanting(error):
            unfinished.short_of_memory(_command(arguments, wanted))
        raise
    finally:
        lock.release()
    gate = _judged(outcome, place.results, accept, acceptances)
    gate = gate.model_copy(update={"command": _command(arguments, wanted)})
    write_text(outcome.folder / "gate.json", gate.text())
    write_text(outcome.folder / "report.md", gate_report.text(gate))
    _write(arguments, gate)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("ab") as file:
            file.write(junit.markdown([gate]))
    print(gate_report.brief(gate, str(outcome.folder), wide, arguments.explain, coloured=sys.stdout.isatty()), end="")
    return gate.exit_status


def _write(arguments: argparse.Namespace, gate: GateFile) -> None:
    """Write a gate where its command asks for it too."""
    if arguments.junit:
        write_text(arguments.junit, junit.junit([gate]).decode())
    if arguments.json:
        write_text(arguments.json, gate.text())


def told(
    arguments: argparse.Namespace,
    wanted: Options,
    acceptances: Acceptances,
    wide: int | None,
    gate: GateFile,
    folder: Path,
) -> str:
    """Write what a gate that was interrupted has judged where it is asked for, and return it in words."""
    gate = acceptances.applied(dated(gate, earlier(arguments.results, folder)))
    gate = gate.model_copy(update={"command": _command(arguments, wanted)})
    try:
        _write(arguments, gate)
    except HarnessError as error:
        print(error, file=sys.stderr)
    return gate_report.brief(gate, str(folder), wide)


def _judged(
    outcome: GateResult, results: Path, accept: Sequence[tuple[str, str]], acceptances: Acceptances
) -> GateFile:
    """Return a gate with what was accepted, now and before, and since which version its regressions are there."""
    gate = dated(outcome.file, earlier(results, outcome.folder))
    remarks = []
    for metric, reason in accept:
        if more := acceptances.plus(gate, metric, reason, datetime.date.today()):
            acceptances = more
        else:
            remarks.append(f"--accept {metric}: nothing to accept, it has not regressed in this gate")
    if accept and len(remarks) < len(accept):
        remarks.append(f"accepted, for gates to come: {acceptances.write(results)}")
    return acceptances.applied(gate.model_copy(update={"remarks": [*gate.remarks, *remarks]}))


def earlier(results: Path, folder: Path) -> list[GateFile]:
    """Return the stored gates but for that of a folder; those that cannot be read are left out."""
    found = []
    for path in sorted((results / "gates").glob("*/gate.json")):
        if path.parent != folder:
            with contextlib.suppress(HarnessError):
                found.append(gatefile.load(path))
    return found
