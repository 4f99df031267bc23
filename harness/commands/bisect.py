"""``bisect``: find the first release of a package that makes a metric worse."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace

from harness.base.errors import BrokenEnvironment, HarnessError, nearest
from harness.commands import gate
from harness.commands.gate import Workplace
from harness.gate.bisect import CHECKPOINT, FIRST_BLOCKS, ON_THE_WAY, answer_of, search, tells
from harness.judge.rules import RULES
from harness.judge.verdict import Ruling
from harness.machine.lock import machine_lock, only_session
from harness.records.metrics import TASKS
from harness.report.gate_report import interval, name
from harness.runtime import environment_pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", help="a package, such as torchao")
    parser.add_argument("range", help="the releases to search, as in 0.15.0..0.18.0")
    parser.add_argument(
        "--metric",
        required=True,
        help=f"what got worse, as gates call it, or {CHECKPOINT}: what the first release saved is read no more, or "
        "gives other logits",
    )
    gate.add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    known_metrics = (*RULES, CHECKPOINT)
    if arguments.metric not in known_metrics:
        raise HarnessError(
            f"--metric {arguments.metric!r} is not judged by gates; {nearest(arguments.metric, known_metrics)}"
        )
    if arguments.metric in TASKS and not arguments.task:
        raise HarnessError(f"--metric {arguments.metric} is measured on tasks: name one or several with --task")
    match = re.fullmatch(r"\s*(\S+?)\.\.(\S+?)\s*", arguments.range)
    if not match:
        raise HarnessError(f"{arguments.range!r} is not a range of releases such as 0.15.0..0.18.0")
    place: Workplace = gate.workplace(arguments)
    measured = ON_THE_WAY if arguments.metric == CHECKPOINT else arguments.metric
    keyword = f"({arguments.keyword}) and {measured}" if arguments.keyword else measured
    wanted = replace(gate.options(arguments, "", ""), keyword=keyword)
    if arguments.metric == CHECKPOINT:
        wanted = replace(wanted, blocks=FIRST_BLOCKS)
    # Raises where nothing is left to be measured.
    chosen = place.units(wanted)
    if arguments.metric == CHECKPOINT and all(unit.cell.recipe.baseline for unit in chosen):
        raise HarnessError(f"--metric {CHECKPOINT}: none of these cells has a quantized checkpoint; choose a --recipe")
    known = environment_pair.releases(arguments.package, place.base)
    releases = environment_pair.between(known, match.group(1), match.group(2))
    place.progress(f"releases: {', '.join(releases)}")
    first = f"{arguments.package}=={releases[0]}"
    # What everything is held against must be there; any other release may be passed over.
    environment_pair.make(place.store, first, first, place.base)
    lock = only_session(machine_lock(), place.progress)

    def answer(release: str) -> Ruling:
        try:
            asked = replace(wanted, old=first, new=f"{arguments.package}=={release}")
            with gate.working(place):
                outcome = place.gate(asked, calibrated=arguments.metric != CHECKPOINT)
        except BrokenEnvironment as error:
            print(f"{release}: passed over: {error}", flush=True)
            return "error"
        said, told = answer_of(outcome.file, arguments.metric), False
        for it in outcome.file.verdicts:
            if tells(it, arguments.metric):
                print(f"{release}: {name(it)}: {it.verdict}, {interval(it)} ({it.reason})", flush=True)
                told = True
        if not told:
            print(f"{release}: {arguments.metric}: {said if said == 'pass' else 'no verdict'}", flush=True)
        return said

    try:
        found = search(releases, answer)
    except KeyboardInterrupt:
        print(
            f"interrupted; the gates that were measured are kept in {place.results / 'gates'}, and what was made for "
            "them in the cache; the same command starts the search anew",
            file=sys.stderr,
        )
        return 130
    finally:
        lock.release()
    if found.bad is None:
        what = f"could not be judged ({found.undecided[0]})" if found.undecided else "is not worse"
        print(f"{arguments.metric} {what} in {releases[-1]} against {found.good}: nothing to search for")
    else:
        unsure = f"; could not be judged in between: {', '.join(found.undecided)}" if found.undecided else ""
        print(f"first bad release: {found.bad} (last good: {found.good}){unsure}")
    return found.status
