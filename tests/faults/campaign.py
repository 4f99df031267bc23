"""Runs seeded faults one after another, keeps what each came to, and writes the table.

Fault number N of a seed is the same wherever it runs: its kind and all that it draws come from that seed and N. What
has run is not run again, so a campaign can be stopped at any time and gone on with.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PLURALS = ("records lost", "orphans", "silent passes", "tracebacks", "not complete", "other")
PROBLEMS = ("record lost", "orphan", "silent pass", "traceback", "not complete", "other")


@dataclass
class Fault:
    """One fault as it ran: whether it hit, and what of the promises did not hold."""

    draw: random.Random
    folder: Path
    what: str = ""
    hit: bool = False
    problems: list[str] = field(default_factory=list)
    lacks: str = ""
    """What this machine lacks to try it at all."""

    def broken(self, kind: str, words: str) -> None:
        """Note a promise that did not hold; ``kind`` is one of PROBLEMS."""
        if kind not in PROBLEMS:
            raise ValueError(f"{kind!r} is none of {PROBLEMS}")
        self.problems.append(f"{kind}: {words}"[:600])


Kind = Callable[[Fault], None]


@dataclass(frozen=True)
class Scenario:
    """A kind of fault: ``weight`` of it in a campaign, and whether one takes seconds, as continuous integration has."""

    name: str
    run: Kind
    weight: int
    quick: bool = True


def chosen(
    seed: int, number: int, scenarios: Sequence[Scenario], *, each: bool = False
) -> tuple[Scenario, random.Random]:
    """Return the scenario of a fault, in turns with ``each``, and what it draws from."""
    draw = random.Random(f"{seed}/{number}")
    scenarios = [scenarios[number % len(scenarios)]] if each else scenarios
    (scenario,) = draw.choices(scenarios, [it.weight for it in scenarios])
    return scenario, draw


def one(scenario: Scenario, draw: random.Random) -> dict[str, object]:
    """Run one fault and return what it came to, as JSON."""
    folder = Path(tempfile.mkdtemp(prefix="fault-"))
    fault, started = Fault(draw, folder), time.monotonic()
    try:
        scenario.run(fault)
    except Exception as error:
        words = traceback.format_exc().strip().splitlines()
        fault.broken("other", f"{type(error).__name__}: {error} ({' '.join(words[-3:-1])})")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = round(time.monotonic() - started, 3)
    found = {"kind": scenario.name, "what": fault.what, "hit": fault.hit, "problems": fault.problems}
    return {**found, "seconds": seconds, **({"lacks": fault.lacks} if fault.lacks else {})}


def run(
    seed: int,
    count: int,
    seconds: float,
    log: Path,
    scenarios: Sequence[Scenario],
    part: tuple[int, int] = (0, 1),
    *,
    each: bool = False,
    commit: str = "",
) -> list[dict[str, object]]:
    """Run faults 0 to ``count`` of a seed that ``log`` does not have yet, as far as the time reaches; return them all.

    ``part`` is this process's share where several run at once: (which, of how many). With ``each`` the kinds come in
    turns, instead of as often as they weigh. ``commit`` is noted with each.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    done = {int(str(it["number"])) for it in read([log], seed)}
    deadline = time.monotonic() + seconds
    for number in range(count):
        if number % part[1] != part[0] or number in done:
            continue
        if time.monotonic() > deadline:
            break
        scenario, draw = chosen(seed, number, scenarios, each=each)
        when = {"commit": commit, "date": datetime.date.today().isoformat()}
        found = {"seed": seed, "number": number, **one(scenario, draw), **when}
        if ended():
            break
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for problem in found["problems"] if isinstance(found["problems"], list) else []:
            print(f"fault {number} ({scenario.name}: {found['what']}): {problem}", flush=True)
    return read([log], seed)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def own_signals() -> None:
    """Take signals that whatever started this process has it ignore, as in the background: so would all it starts."""
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)


def ended() -> bool:
    """Return whether a command in this process took a signal that was to end the campaign, and ended in its place."""
    return any(signal.getsignal(number) is signal.SIG_IGN for number in SIGNALS)


def read(logs: Sequence[Path], seed: int | None = None) -> list[dict[str, object]]:
    """Return what logs have of a seed, or of all, each fault once: as it was tried last.

    One that broke a promise then and held when it was tried again has ``mended``: what it had broken, and at which
    commit.
    """
    found: dict[tuple[object, object], dict[str, object]] = {}
    for log in logs:
        for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
            try:
                it = json.loads(line)
            except ValueError:
                continue  # a campaign that was killed in the middle of a line
            if seed is None or it["seed"] == seed:
                before = found.get((it["seed"], it["number"]), {})
                if before.get("problems") and not it["problems"]:
                    it["mended"] = [before.get("commit", ""), *_list(before["problems"])]
                found[it["seed"], it["number"]] = it
    return list(found.values())


def summary(found: Sequence[dict[str, object]]) -> str:
    """Return how many faults there were, how many of them hit, and what could not be tried here."""
    hit, kinds = sum(bool(it["hit"]) for it in found), len({it["kind"] for it in found})
    bad = sum(bool(it["problems"]) for it in found)
    lines = [f"{len(found)} faults of {kinds} kinds, {hit} hit, {bad} with problems"]
    lines += [f"not tried: {told}" for told in lacking(found)]
    return "\n".join(lines)


def lacking(found: Sequence[dict[str, object]]) -> list[str]:
    """Return the kinds of which a fault could not be tried, how many there were, and for want of what."""
    counts = Counter((str(it["kind"]), str(it["lacks"])) for it in found if it.get("lacks"))
    return [f"{kind}, {count} times: {lacks}" for (kind, lacks), count in sorted(counts.items())]


def table(
    found: Sequence[dict[str, object]],
    fuzzed: dict[str, int],
    uncaught: Sequence[str],
    commit: str,
    mended: Sequence[str] = (),
    stand_ins: Mapping[str, str] | None = None,
    fuzzed_at: Mapping[str, int] | None = None,
) -> str:
    """Return the table of what ran, as markdown.

    ``mended`` are readers of which an input was once not held; ``stand_ins`` says of kinds what in them is not the
    thing itself, ``fuzzed_at`` how many inputs were tried at each commit.
    """
    kinds = sorted({str(it["kind"]) for it in found})
    head = ("kind of fault", "tried", "hit", "missed", *_PLURALS, "last at commit")
    rows = [head, tuple("---" if index == 0 else "---:" for index in range(len(head)))]

    def row(name: str, them: Sequence[dict[str, object]]) -> tuple[str, ...]:
        hit = sum(bool(it["hit"]) for it in them)
        counts = [
            sum(str(words).startswith(f"{problem}:") for it in them for words in _list(it["problems"]))
            for problem in PROBLEMS
        ]
        last = sorted(them, key=lambda it: str(it.get("date", "")))[-1:]
        at = str(last[0].get("commit", "")) if last and name in kinds else ""
        return (name, *map(str, (len(them), hit, len(them) - hit, *counts)), at)

    rows += [row(kind, [it for it in found if it["kind"] == kind]) for kind in kinds]
    rows.append(row("**all**", found))
    lines = ["| " + " | ".join(it) + " |" for it in rows]
    seeds = ", ".join(sorted({str(it["seed"]) for it in found}))
    hours = sum(float(str(it["seconds"])) for it in found) / 3600
    told = [f"- {it['kind']}, seed {it['seed']}, fault {it['number']} ({it['what']}): {words}"
            for it in found for words in _list(it["problems"])]  # fmt: skip
    examples = [f"| {name} | {count:,} |" for name, count in sorted(fuzzed.items())]
    return "\n".join(
        [
            "# The fault campaign",
            "",
            "Written by `python -m tests.faults --table`, of what `tox run -e faults` really ran; see tests/faults.",
            "A fault has missed where nothing was there to be hit any more, e.g. a process that had ended by itself.",
            "",
            f"Seeds {seeds}; {hours:.1f} hours of faults; the table at commit {commit}.",
            "",
            *(f"- {line}" for line in _dated(found)),
            *(f"- not tried: {line}" for line in lacking(found)),
            "",
            *lines,
            "",
            *_told_stand_ins({kind: words for kind, words in (stand_ins or {}).items() if words}),
            "What did not hold:" if told else "All promises held.",
            "",
            *told,
            *(
                ["Of those some did not at first; they were mended, and held when they were tried again:", "", *again]
                if (again := _mended(found))
                else []
            ),
            *(
                [
                    "",
                    "Fuzzed inputs, those that were tried at several commits counted at each; "
                    f"{len(uncaught)} of them raised what is not the reader's own error:",
                    "",
                    *uncaught,
                    *(f"- {count:,} inputs at commit {at}" for at, count in (fuzzed_at or {}).items()),
                    "",
                    *(
                        [
                            f"Of {', '.join(mended)} some did before they were mended; tried again they hold, and "
                            "those readers' share was run once more from its start.",
                            "",
                        ]
                        if mended
                        else []
                    ),
                ]
                if fuzzed
                else []
            ),
            *(["| reader | inputs |", "| --- | ---: |", *examples] if fuzzed else []),
            *([f"| **all** | {sum(fuzzed.values()):,} |"] if fuzzed else []),
            "",
        ]
    )


EARLIER = "# Earlier campaigns"
_SEEDS = re.compile(r"^Seeds ([\d, ]+);", re.MULTILINE)


def above(earlier: str, made: str) -> str:
    """Return a table above those of earlier campaigns, in place of one of the same campaign that stands there."""
    last, _, before = earlier.partition(f"\n{EARLIER}\n")
    if not _seeds(last) <= _seeds(made):
        before = f"{last.partition(chr(10))[2].rstrip()}\n{before and chr(10)}{before}"
    return f"{made.rstrip()}\n\n{EARLIER}\n{before}" if before else made


def _seeds(table: str) -> set[str]:
    return {seed for told in _SEEDS.findall(table) for seed in told.split(", ")}


def _dated(found: Sequence[dict[str, object]]) -> list[str]:
    """Return for each commit how many of the faults were run at it, and when."""
    said = []
    for at, _ in Counter(str(it.get("commit", "")) for it in found).most_common():
        them = [it for it in found if str(it.get("commit", "")) == at]
        days = sorted({str(it.get("date", "")) for it in them} - {""})
        hit = sum(bool(it["hit"]) for it in them)
        when = f", {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
        said.append(f"{len(them):,} faults, of which {hit:,} hit, at commit {at or 'unknown'}{when}")
    return said


def _mended(found: Sequence[dict[str, object]]) -> list[str]:
    lines = []
    for it in found:
        before, *problems = _list(it.get("mended", [])) or [""]
        for words in problems:
            last = str(words).strip().splitlines()
            said = last[0] if len(last) == 1 else f"{str(words).partition(':')[0]}: {last[-1]}"
            said = re.sub(r"/\S*/fault-\w+", "FOLDER", said)
            # Where a machine has things is nobody else's.
            said = re.sub(r"(?<![\w./])(?:/[\w.@+-]+)+/(?=[\w.@+-])", ".../", said)
            of = f"{it['kind']}, seed {it['seed']}, fault {it['number']} ({it['what']})"
            lines.append(f"- {of}, at commit {before}: {said[:200]}")
    return lines


def _told_stand_ins(of: Mapping[str, str]) -> list[str]:
    if not of:
        return []
    kinds: dict[str, list[str]] = {}
    for kind, words in sorted(of.items()):
        kinds.setdefault(words, []).append(kind)
    rows = [f"| {'; '.join(them)} | {words} |" for words, them in kinds.items()]
    return ["What stands in for the thing itself, by kind; of the others all is real:", "", "| kind | stand-in |",
            "| --- | --- |", *rows, ""]  # fmt: skip


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
