"""The campaign: ``python -m tests.faults [--seed N] [--count N] [--seconds S]``, then ``--table results/faults.md``.

Logs lie in build/faults, one a process; what stands in one is not run again. ``--fuzz N`` also tries N inputs on the
readers. ``--quick --seed commit`` is the part of continuous integration: other faults for each commit.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.faults import (
    campaign,
    commands,
    damage,
    devices,
    disks,
    engines,
    fuzz,
    kept_files,
    names,
    peers,
    sessions,
    signals,
    signs,
    stand_ins,
    surroundings,
    unread,
)

REPOSITORY = Path(__file__).resolve().parents[2]
LOGS = REPOSITORY / "build" / "faults"
# How many inputs are tried before they are noted.
_KEPT = 20_000
SCENARIOS = [
    it
    for module in (
        sessions,
        peers,
        damage,
        kept_files,
        commands,
        devices,
        disks,
        names,
        signs,
        signals,
        engines,
        surroundings,
        unread,
    )
    for it in module.SCENARIOS
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", default="1", help="a number, or `commit` for one of the commit's own")
    parser.add_argument("--count", type=int, default=1000, help="faults 0 to N of the seed")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no fault after so long")
    parser.add_argument("--part", default="1/1", help="this process's share where several run at once, as 1/2")
    parser.add_argument("--fuzz", type=int, default=0, help="try so many inputs on the readers")
    parser.add_argument("--kind", action="append", default=[], help="only kinds with this in their name; repeatable")
    parser.add_argument("--quick", action="store_true", help="only kinds of which one fault takes seconds")
    parser.add_argument("--number", type=int, help="this fault of the seed alone, once more, and nothing is kept")
    parser.add_argument("--again", type=int, default=0, help="try what broke a promise so often again; fail if it does")
    parser.add_argument("--each", action="store_true", help="the kinds in turns, instead of as often as they weigh")
    parser.add_argument("--reader", action="append", default=[], help="with --fuzz: this reader alone, from its start")
    parser.add_argument("--table", type=Path, help="write the table of all logs here, and run nothing")
    parser.add_argument("--above", action="store_true", help="with --table: above the earlier campaigns of the file")
    arguments = parser.parse_args()
    campaign.own_signals()
    which, of = map(int, arguments.part.split("/"))
    if arguments.table:
        return _table(arguments.table, arguments.above)
    if arguments.fuzz:
        return _fuzz(arguments.fuzz, arguments.seconds, (which, of), arguments.reader)
    return _faults(arguments, (which, of))


def _faults(arguments: argparse.Namespace, part: tuple[int, int]) -> int:
    kinds = [it for it in SCENARIOS if not arguments.kind or any(part in it.name for part in arguments.kind)]
    kinds = [it for it in kinds if it.quick or not arguments.quick]
    seed = _seed_of(_commit()) if arguments.seed == "commit" else int(arguments.seed)
    print(f"seed {seed}, of {len(kinds)} kinds", flush=True)
    if arguments.number is not None:
        scenario, draw = campaign.chosen(seed, arguments.number, kinds, each=arguments.each)
        found = [{"number": arguments.number, **campaign.one(scenario, draw)}]
        print(*(json.dumps(it) for it in found))
    else:
        which, of = part
        logs, share = LOGS / f"seed-{seed}-{which}-of-{of}.jsonl", (which - 1, of)
        found = campaign.run(
            seed, arguments.count, arguments.seconds, logs, kinds, share, each=arguments.each, commit=_commit()
        )
    bad = [it for it in found if it["problems"]]
    print(campaign.summary(found), flush=True)
    if arguments.again:
        bad = [it for it in bad if not _held(seed, it, kinds, arguments)]
    for it in bad:
        again = [f"--seed {seed} --number {it['number']}", *(["--quick"] if arguments.quick else [])]
        again += [f"--kind {shlex.quote(kind)}" for kind in arguments.kind] + (["--each"] if arguments.each else [])
        print(f"once more: python -m tests.faults {' '.join(again)}", flush=True)
    return int(bool(bad))


def _held(
    seed: int, found: Mapping[str, Any], kinds: Sequence[campaign.Scenario], arguments: argparse.Namespace
) -> bool:
    """Return whether a fault that broke a promise breaks none when it is tried again, which is told either way."""
    for _ in range(arguments.again):
        scenario, draw = campaign.chosen(seed, int(found["number"]), kinds, each=arguments.each)
        if problems := campaign.one(scenario, draw)["problems"]:
            print(f"fault {found['number']} once more: {problems}", flush=True)
            return False
    print(f"fault {found['number']} held in {arguments.again} further tries: {found['problems']}", flush=True)
    return True


def _seed_of(commit: str) -> int:
    """Return the seed of a commit, or of the day where there is none."""
    try:
        return int(commit, 16) % 10**9
    except ValueError:
        return int(f"{datetime.date.today():%Y%m%d}")


def _fuzz(count: int, seconds: float, part: tuple[int, int], only: Sequence[str]) -> int:
    """Try inputs that have not been tried yet, and keep now and then how many there were of each reader."""
    which, of = part
    log = LOGS / f"fuzz-{which}-of-{of}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    before = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    problems: list[dict[str, object]] = []

    def found(name: str, seed: int, words: str) -> None:
        problems.append({"reader": name, "seed": seed, "words": words})
        print(f"fuzz: {name}, seed {seed}: {words}", flush=True)

    start = which - 1 if only else max((it["next"] for it in before), default=which - 1)
    deadline, done, bad = time.monotonic() + seconds, 0, 0
    while done < count and (left := deadline - time.monotonic()) > 0:
        counts, start = fuzz.run(min(_KEPT, count - done), left, itertools.count(start, of), found, only)
        done, bad = done + sum(counts.values()), bad + len(problems)
        with log.open("a", encoding="utf-8") as file:
            kept = {"next": start, "counts": counts, "problems": problems, "commit": _commit()}
            file.write(json.dumps(kept) + "\n")
        problems.clear()
    print(f"{done:,} inputs, {bad} with an error that is not the reader's own", flush=True)
    return int(bool(bad))


def _table(path: Path, above: bool = False) -> int:
    found = campaign.read(sorted(LOGS.glob("seed-*.jsonl")))
    counts, uncaught, mended, at = _fuzzed()
    told = {str(it["kind"]): stand_ins.of(str(it["kind"])) for it in found}
    made = campaign.table(found, counts, uncaught, _commit(), mended, told, at)
    if above:
        # The logs of earlier campaigns are gone with the machines that ran them.
        made = campaign.above(path.read_text(encoding="utf-8"), made)
    path.write_text(made, encoding="utf-8")
    print(f"{path}: {len(found)} faults, {sum(counts.values()):,} fuzzed inputs")
    return 0


def _commit() -> str:
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _fuzzed() -> tuple[dict[str, int], list[str], list[str], dict[str, int]]:
    """Return how many inputs of each reader are logged, and those that raise what is not the reader's own error.

    Then the readers of which one was mended, and how many inputs were tried at each commit.

    An input that did so is tried again, since it may have been mended; the readers of which one was are the last.
    """
    counts: Counter[str] = Counter()
    at: Counter[str] = Counter()
    wrong: list[tuple[str, int]] = []
    for log in sorted(LOGS.glob("fuzz-*.jsonl")):
        for line in log.read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            counts.update(told["counts"])
            at[told.get("commit", "unknown")] += sum(told["counts"].values())
            wrong += [(it["reader"], it["seed"]) for it in told["problems"]]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        readers = fuzz.Readers(Path(folder)) if wrong else None
        tried = [(name, seed, readers.one(name, seed)) for name, seed in dict.fromkeys(wrong)] if readers else []
    uncaught = [f"- {name}, seed {seed}: {words}"[:200].replace("\n", " ") for name, seed, words in tried if words]
    return dict(counts), uncaught, sorted({name for name, _, words in tried if not words}), dict(at)


if __name__ == "__main__":
    sys.exit(main())
