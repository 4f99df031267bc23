"""``python -m harness bisect``: the first release of a package that makes a metric worse."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness import gate_command, pair
from harness.blocks import TASKS
from harness.errors import BrokenEnvironment, HarnessError, nearest
from harness.gate import EXIT
from harness.gate_command import Workplace
from harness.gate_report import interval, name
from harness.lock import machine_lock, only_session
from harness.selection import units
from harness.verdict import MEASURING, RULES

Answer = Literal["pass", "regressed", "inconclusive", "error"]


@dataclass(frozen=True)
class Found:
    """What a bisection came to: the last good release and the first bad one, and those that could not be judged."""

    good: str
    bad: str | None
    undecided: tuple[str, ...]
    status: int


def search(releases: Sequence[str], answer: Callable[[str], Answer]) -> Found:
    """Return the first release that is bad against the first of ``releases``, which counts as good.

    ``answer`` says how a release compares with the first one. The last one is asked first: without a regression there
    is nothing to look for. A release that cannot be judged is passed over for its neighbours, and named.
    """
    last = answer(releases[-1])
    if last != "regressed":
        return Found(releases[0], None, () if last == "pass" else (releases[-1],), EXIT[last])
    low, high = 0, len(releases) - 1
    undecided: set[int] = set()
    while open_ := [index for index in range(low + 1, high) if index not in undecided]:
        middle = min(open_, key=lambda index: abs(2 * index - low - high))
        said = answer(releases[middle])
        if said == "regressed":
            high = middle
        elif said == "pass":
            low = middle
        else:
            undecided.add(middle)
    between = tuple(releases[index] for index in sorted(undecided) if low < index < high)
    return Found(releases[low], releases[high], between, EXIT["inconclusive"] if between else EXIT["regressed"])


def _answer(data: dict[str, Any], metric: str) -> Answer:
    """Return how one gate of the bisection ended on the metric; a cell that stopped working is a regression."""
    found = [it for it in data["verdicts"] if _tells(it, metric)]
    said = {it["verdict"] for it in found}
    order: tuple[Answer, ...] = ("regressed", "error", "inconclusive", "pass")
    return next((verdict for verdict in order if verdict in said), "error")


def _tells(verdict: dict[str, Any], metric: str) -> bool:
    """Return whether a verdict is on the metric, or on why it could not be measured."""
    return verdict["metric"] in (metric, MEASURING) or verdict["reason"] == "stopped-working"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", help="a package, such as torchao")
    parser.add_argument("range", help="the releases to search, as in 0.15.0..0.18.0")
    parser.add_argument("--metric", required=True, help="what got worse, as gates call it")
    gate_command.add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.metric not in RULES:
        raise HarnessError(f"--metric {arguments.metric!r} is not judged by gates; {nearest(arguments.metric, RULES)}")
    if arguments.metric in TASKS and not arguments.task:
        raise HarnessError(f"--metric {arguments.metric} is measured on tasks: name one or several with --task")
    match = re.fullmatch(r"\s*(\S+?)\.\.(\S+?)\s*", arguments.range)
    if not match:
        raise HarnessError(f"{arguments.range!r} is not a range of releases such as 0.15.0..0.18.0")
    place: Workplace = gate_command.workplace(arguments)
    keyword = f"({arguments.keyword}) and {arguments.metric}" if arguments.keyword else arguments.metric
    wanted = replace(gate_command.options(arguments, "", ""), keyword=keyword)
    # Raises where nothing is left to be measured.
    units(place.matrix, wanted)
    known = pair.releases(arguments.package, place.base)
    releases = pair.between(known, match.group(1), match.group(2))
    place.progress(f"releases: {', '.join(releases)}")
    first = f"{arguments.package}=={releases[0]}"
    # What everything is held against must be there; any other release may be passed over.
    pair.make(place.store, first, first, place.base)
    lock = only_session(machine_lock(), place.progress)

    def answer(release: str) -> Answer:
        try:
            outcome = place.gate(replace(wanted, old=first, new=f"{arguments.package}=={release}"))
        except BrokenEnvironment as error:
            print(f"{release}: passed over: {error}", flush=True)
            return "error"
        said = _answer(outcome.data, arguments.metric)
        for it in outcome.data["verdicts"]:
            if _tells(it, arguments.metric):
                print(f"{release}: {name(it)}: {it['verdict']}, {interval(it)} ({it['reason']})", flush=True)
        return said

    try:
        found = search(releases, answer)
    finally:
        lock.release()
    if found.bad is None:
        what = f"could not be judged ({found.undecided[0]})" if found.undecided else "is not worse"
        print(f"{arguments.metric} {what} in {releases[-1]} against {found.good}: nothing to search for")
    else:
        unsure = f"; could not be judged in between: {', '.join(found.undecided)}" if found.undecided else ""
        print(f"first bad release: {found.bad} (last good: {found.good}){unsure}")
    return found.status
