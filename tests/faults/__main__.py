"""The campaign: ``python -m tests.faults [--seed N] [--count N] [--seconds S]``, then ``--table results/faults.md``.

Logs lie in build/faults, one a process; what stands in one is not run again. ``--fuzz N`` also tries N inputs on the
readers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.faults import campaign, commands, damage, fuzz, peers, sessions

REPOSITORY = Path(__file__).resolve().parents[2]
LOGS = REPOSITORY / "build" / "faults"
SCENARIOS = [*sessions.SCENARIOS, *peers.SCENARIOS, *damage.SCENARIOS, *commands.SCENARIOS]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000, help="faults 0 to N of the seed")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no fault after so long")
    parser.add_argument("--part", default="1/1", help="this process's share where several run at once, as 1/2")
    parser.add_argument("--fuzz", type=int, default=0, help="try so many inputs on the readers")
    parser.add_argument("--table", type=Path, help="write the table of all logs here, and run nothing")
    arguments = parser.parse_args()
    which, of = map(int, arguments.part.split("/"))
    logs = LOGS / f"seed-{arguments.seed}-{which}-of-{of}.jsonl"
    fuzzed = LOGS / f"fuzz-{which}-of-{of}.jsonl"
    if arguments.table:
        return _table(arguments.table)
    if arguments.fuzz:
        return _fuzz(arguments.fuzz, arguments.seconds, fuzzed)
    if arguments.count:
        found = campaign.run(arguments.seed, arguments.count, arguments.seconds, logs, SCENARIOS, (which - 1, of))
        hit = sum(bool(it["hit"]) for it in found)
        print(f"{len(found)} faults, {hit} hit, {sum(bool(it['problems']) for it in found)} with problems", flush=True)
        return int(any(it["problems"] for it in found))
    return 0


def _fuzz(count: int, seconds: float, log: Path) -> int:
    """Try inputs that have not been tried yet, and keep how many there were of each reader."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    problems: list[str] = []

    def found(name: str, seed: int, words: str) -> None:
        problems.append(f"{name}, seed {seed}: {words}")
        print(f"fuzz: {problems[-1]}", flush=True)

    start = max((it["next"] for it in before), default=0)
    counts = fuzz.run(count, seconds, start, found)
    with log.open("a", encoding="utf-8") as file:
        kept = {"next": start + max(counts.values()), "counts": counts, "problems": problems}
        file.write(json.dumps(kept) + "\n")
    print(f"{sum(counts.values()):,} inputs, {len(problems)} with an error that is not the reader's own", flush=True)
    return int(bool(problems))


def _table(path: Path) -> int:
    found = campaign.read(sorted(LOGS.glob("seed-*.jsonl")))
    counts: Counter[str] = Counter()
    uncaught: list[str] = []
    for log in LOGS.glob("fuzz-*.jsonl"):
        for line in log.read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            counts.update(told["counts"])
            uncaught += [f"- {words}"[:200].replace("\n", " ") for words in told["problems"]]
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    path.write_text(campaign.table(found, dict(counts), uncaught, commit.stdout.strip() or "unknown"), encoding="utf-8")
    print(f"{path}: {len(found)} faults, {sum(counts.values()):,} fuzzed inputs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
