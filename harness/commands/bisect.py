"""``bisect``: which package makes a metric worse, and the first release of it that does."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.base.errors import BrokenEnvironment, HarnessError, nearest
from harness.base.interruption import Interrupted
from harness.base.memory import wanting
from harness.commands import sides, workplace
from harness.commands.searched import Searched, asked_of
from harness.commands.workplace import Workplace
from harness.gate import culprits
from harness.gate.bisect import CHECKPOINT, FIRST_BLOCKS, ON_THE_WAY, answer_of, search, tells
from harness.gate.culprits import Culprits
from harness.judge.gatefile import EXIT, Options
from harness.judge.rules import RULES
from harness.judge.verdict import Ruling
from harness.machine.lock import machine_lock, only_session
from harness.records.metrics import TASKS
from harness.report.gate_report import interval, name
from harness.runtime import environment_pair, mixtures
from harness.runtime.environment_pair import Pair
from harness.runtime.mixtures import Mixtures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", nargs="?", metavar="package", help="a package, such as torchao")
    parser.add_argument("new", nargs="?", metavar="range", help="the releases to search, as in 0.15.0..0.18.0")
    sides.add_arguments(parser)
    parser.add_argument(
        "--metric",
        required=True,
        help=f"what got worse, as gates call it, or {CHECKPOINT}: what the first release saved is read no more, or "
        "gives other logits",
    )
    parser.add_argument(
        "--resume", metavar="SEARCH", help="go on with an interrupted search (last: the latest): no gate is run twice"
    )
    workplace.add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    known_metrics = (*RULES, CHECKPOINT)
    if arguments.metric not in known_metrics:
        raise HarnessError(
            f"--metric {arguments.metric!r} is not judged by gates; {nearest(arguments.metric, known_metrics)}"
        )
    if arguments.metric in TASKS and not arguments.task:
        raise HarnessError(f"--metric {arguments.metric} is measured on tasks: name one or several with --task")
    old, new = sides.of(arguments, "torchao 0.15.0..0.18.0")
    match = re.fullmatch(r"\s*(\S+?)\.\.(\S+?)\s*", new)
    if not match and not arguments.old_side:
        raise HarnessError(f"{new!r} is not a range of releases such as 0.15.0..0.18.0")
    searching = _Searching.of(arguments, old, new)
    if match and not arguments.old_side:
        found = _releases(searching, old, match.group(1), match.group(2))
    else:
        found = _packages(searching, old, new)
    lock = only_session(machine_lock(), searching.place.progress)
    try:
        return found()
    except KeyboardInterrupt as interruption:
        raise Interrupted(interruption, _kept(searching)) from None
    except Exception as error:
        if wanting(error):
            print(_kept(searching), file=sys.stderr)
        raise
    finally:
        lock.release()


def _kept(searching: _Searching) -> str:
    return (
        f"the gates that were measured are kept in {searching.place.results / 'gates'}, and what was made for them in "
        f"the cache; the same command goes on with --resume {searching.searched.path.stem}"
    )


@dataclass(frozen=True)
class _Searching:
    """Where gates run, what each is asked for, and the metric that they are to tell."""

    place: Workplace
    wanted: Options
    metric: str
    searched: Searched

    @classmethod
    def of(cls, arguments: argparse.Namespace, old: str, new: str) -> _Searching:
        """Return it as the command line says. Raises HarnessError where nothing would be measured."""
        place = workplace.opened(arguments)
        measured = ON_THE_WAY if arguments.metric == CHECKPOINT else arguments.metric
        keyword = f"({arguments.keyword}) and {measured}" if arguments.keyword else measured
        # By the words that were given: the metric's own is none of them.
        sides.check_names(place.matrix, workplace.options(arguments, "", ""), place.base)
        wanted = replace(workplace.options(arguments, "", ""), keyword=keyword)
        if arguments.metric == CHECKPOINT:
            wanted = replace(wanted, blocks=FIRST_BLOCKS)
        # Raises where nothing is left to be measured.
        chosen = place.units(wanted)
        if arguments.metric == CHECKPOINT and all(unit.cell.recipe.baseline for unit in chosen):
            raise HarnessError(
                f"--metric {CHECKPOINT}: none of these cells has a quantized checkpoint; choose a --recipe"
            )
        asked = asked_of(arguments.metric, old, new, wanted, place.base.packages())
        searched = (
            Searched.resume(place.results, arguments.resume, asked)
            if arguments.resume
            else Searched.begin(place.results, asked)
        )
        return cls(place, wanted, arguments.metric, searched)

    def answer(self, label: str, old: str, new: str, make: Callable[[], Pair] | None = None) -> Ruling:
        """Return how a gate of two sides ends on the metric, and say it; ``make`` gives its environments."""
        asked = replace(self.wanted, old=old, new=new)
        file = self.searched.answered(label, self.metric, asked)
        if file is None:
            self.searched.keep()
            try:
                with self.place.working():
                    environments = workplace.given(make()) if make else self.place.made
                    begun = self.searched.begun(label, asked)
                    outcome = self.place.gate(asked, environments, begun, calibrated=self.metric != CHECKPOINT)
            except BrokenEnvironment as error:
                print(f"{label}: passed over: {error}", flush=True)
                return "error"
            self.searched.note(label, outcome.folder.name)
            file = outcome.file
        said, told = answer_of(file, self.metric), False
        for it in file.verdicts:
            if tells(it, self.metric):
                print(f"{label}: {name(it)}: {it.verdict}, {interval(it)} ({it.reason})", flush=True)
                told = True
        if not told:
            print(f"{label}: {self.metric}: {said if said == 'pass' else 'no verdict'}", flush=True)
        return said


def _releases(searching: _Searching, package: str, first: str, last: str) -> Callable[[], int]:
    """Return the search for the first bad release of a package, all others as they are here."""
    place = searching.place
    releases = environment_pair.between(environment_pair.releases(package, place.base), first, last)
    place.progress(f"releases: {', '.join(releases)}")
    good = f"{package}=={releases[0]}"
    # What everything is held against must be there; any other release may be passed over.
    environment_pair.make(place.store, good, good, place.base)
    return lambda: _first(
        searching, "", releases, lambda release: searching.answer(release, good, f"{package}=={release}")
    )


def _first(searching: _Searching, package: str, releases: list[str], answer: Callable[[str], Ruling]) -> int:
    found = search(releases, answer)
    of = f" of {package}" if package else ""
    if found.bad is None:
        what = f"could not be judged ({found.undecided[0]})" if found.undecided else "is not worse"
        print(f"{searching.metric} {what} in {releases[-1]} against {found.good}: nothing to search for")
    else:
        unsure = f"; could not be judged in between: {', '.join(found.undecided)}" if found.undecided else ""
        print(f"first bad release{of}: {found.bad} (last good: {found.good}){unsure}")
    return found.status


def _packages(searching: _Searching, old: str, new: str) -> Callable[[], int]:
    """Return the search for the package that did it, and then for its first bad release."""
    place = searching.place
    pair = environment_pair.make(place.store, old, new, place.base)
    mixed = mixtures.of(place.store, pair, place.base)
    place.progress(f"packages: {', '.join(mixed.told(it) for it in mixed.names)}")
    return lambda: _which(searching, mixed)


def _which(searching: _Searching, mixed: Mixtures) -> int:
    before = mixed.requirements()
    ruled_out: set[frozenset[str]] = set()

    def answer(chosen: frozenset[str]) -> Ruling:
        label = ", ".join(mixed.told(it) for it in mixed.names if it in chosen)
        if why := mixed.ruled_out(chosen):
            print(f"{label}: not without the others: {why}", flush=True)
            ruled_out.add(chosen)
            return "error"
        return searching.answer(label, before, mixed.requirements(chosen), lambda: mixed.pair(chosen))

    whole = answer(frozenset(mixed.names))
    if whole != "regressed":
        what = "is not worse" if whole == "pass" else f"could not be judged ({whole})"
        print(f"{searching.metric} {what} on the new side against the old one: nothing to search for")
        return EXIT[whole]
    found = culprits.search(mixed.names, answer)
    # What rules itself out can never be told; what could not be judged may be another time.
    found = replace(found, unsure=tuple(them for them in found.unsure if them not in ruled_out))
    print(_told(found, mixed), flush=True)
    status = EXIT["inconclusive" if found.unsure else "regressed"]
    for one in found.sets:
        releases = mixed.releases(one[0]) if len(one) == 1 else []
        if len(releases) > 2:
            searching.place.progress(f"releases of {one[0]}: {', '.join(releases)}")
            at = lambda release, package=one[0]: searching.answer(  # noqa: E731
                f"{package}=={release}", before, f"{package}=={release}", lambda: mixed.release(package, release)
            )
            status = max(status, _first(searching, one[0], releases, at))
    return status


def _told(found: Culprits, mixed: Mixtures) -> str:
    words = ["; ".join(" with ".join(mixed.told(it) for it in one) for one in found.sets)]
    if found.unsure:
        unsure = "; ".join(sorted(", ".join(sorted(them)) for them in found.unsure))
        words.append(f"could not be judged by themselves: {unsure}")
    count = sum(len(one) for one in found.sets)
    return f"made worse by {count} of {len(mixed.names)} packages: {'; '.join(words)}"
