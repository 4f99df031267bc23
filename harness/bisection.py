"""``python -m harness bisect``: the first release that makes a metric worse, or reads an old checkpoint otherwise."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness import gate_command, pair
from harness.blocks import SIZES, TASKS, THROUGH
from harness.errors import BrokenEnvironment, HarnessError, nearest
from harness.gate import EXIT
from harness.gate_command import Workplace
from harness.gate_report import interval, name
from harness.lock import machine_lock, only_session
from harness.selection import units
from harness.verdict import LOAD, LOGITS, MEASURING, OLD_CHECKPOINT, QUANTIZE, RULES, SERVE

Answer = Literal["pass", "regressed", "inconclusive", "error"]

CHECKPOINT = OLD_CHECKPOINT.replace(" ", "_")
"""What is asked for to find the first release that does not read what the first one saved, or reads it otherwise."""
# Measured for it on the way, since a cell's first block comes before its old checkpoint: one metric through each
# server, at one stage, and a budget that no further block fits in.
_ON_THE_WAY = "(peak_memory or compile_time)"
_FIRST_BLOCKS = 1.0


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
    said = {it["verdict"] for it in data["verdicts"] if _tells(it, metric)}
    if metric == CHECKPOINT and any(
        row["stage"] == OLD_CHECKPOINT and row["old"] == row["new"] == "works" for row in data["compatibility"]
    ):
        # What works before and after has no verdict.
        said.add("pass")
    order: tuple[Answer, ...] = ("regressed", "error", "inconclusive", "pass")
    return next((verdict for verdict in order if verdict in said), "error")


def _tells(verdict: dict[str, Any], metric: str) -> bool:
    """Return whether a verdict is on the metric, or on why it could not be measured.

    A cell that stopped working counts at a stage that the metric needs: whether an old checkpoint is read is a question
    of its own, and sizes need no model that runs.
    """
    if verdict["reason"] == "stopped-working":
        needed = {OLD_CHECKPOINT} if metric == CHECKPOINT else {QUANTIZE} | _run_at(metric)
        return verdict["metric"] in {f"works: {stage}" for stage in needed}
    return verdict["metric"] in (LOGITS if metric == CHECKPOINT else metric, MEASURING)


def _run_at(metric: str) -> set[str]:
    """Return the stages of the compatibility matrix that run a model for a metric: none for a size."""
    stages = {stage for through in THROUGH.values() for stage, found in through.items() if metric in found - SIZES}
    return {SERVE if stage == "server" else LOAD for stage in stages}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", help="a package, such as torchao")
    parser.add_argument("range", help="the releases to search, as in 0.15.0..0.18.0")
    parser.add_argument(
        "--metric",
        required=True,
        help=f"what got worse, as gates call it, or {CHECKPOINT}: what the first release saved is read no more, or "
        "gives other logits",
    )
    gate_command.add_common_arguments(parser)


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
    place: Workplace = gate_command.workplace(arguments)
    measured = _ON_THE_WAY if arguments.metric == CHECKPOINT else arguments.metric
    keyword = f"({arguments.keyword}) and {measured}" if arguments.keyword else measured
    wanted = replace(gate_command.options(arguments, "", ""), keyword=keyword)
    if arguments.metric == CHECKPOINT:
        wanted = replace(wanted, budget=_FIRST_BLOCKS)
    # Raises where nothing is left to be measured.
    chosen = units(place.matrix, wanted)
    if arguments.metric == CHECKPOINT and all(unit.cell.recipe.baseline for unit in chosen):
        raise HarnessError(f"--metric {CHECKPOINT}: none of these cells has a quantized checkpoint; choose a --recipe")
    known = pair.releases(arguments.package, place.base)
    releases = pair.between(known, match.group(1), match.group(2))
    place.progress(f"releases: {', '.join(releases)}")
    first = f"{arguments.package}=={releases[0]}"
    # What everything is held against must be there; any other release may be passed over.
    pair.make(place.store, first, first, place.base)
    lock = only_session(machine_lock(), place.progress)

    def answer(release: str) -> Answer:
        try:
            asked = replace(wanted, old=first, new=f"{arguments.package}=={release}")
            outcome = place.gate(asked, calibrated=arguments.metric != CHECKPOINT)
        except BrokenEnvironment as error:
            print(f"{release}: passed over: {error}", flush=True)
            return "error"
        said, told = _answer(outcome.data, arguments.metric), False
        for it in outcome.data["verdicts"]:
            if _tells(it, arguments.metric):
                print(f"{release}: {name(it)}: {it['verdict']}, {interval(it)} ({it['reason']})", flush=True)
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
