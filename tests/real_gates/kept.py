"""The file of gates, a line each, which only grows; and the table of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from harness.base.reading import json_value
from harness.judge import stats
from harness.report.rendering import Table
from tests.real_gates.rules import FEWEST, RULES


@dataclass(frozen=True)
class Kept:
    """One gate: which fault was planted, what the gate said of the metric that should tell, and on which samples.

    ``old`` and ``new`` are the medians of the blocks, or of a text the values of its windows; ``load`` is the machine's
    load average when the gate began and when it ended, over ``processors``; ``alarms`` are other metrics that it called
    regressed.
    """

    arm: str
    created: str
    device: str
    processors: int
    load: tuple[float, float]
    seconds: float
    metric: str
    verdict: str
    reason: str
    margin: float
    blocks: int
    ratio: float | None
    low: float | None
    high: float | None
    old: tuple[float, ...]
    new: tuple[float, ...]
    alarms: tuple[str, ...] = ()

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def read(file: Path) -> list[Kept]:
    """Return the gates of a file; a last line that was cut off is none."""
    if not file.exists():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            data = json_value(line)
            lists = {name: tuple(data[name]) for name in ("load", "old", "new", "alarms")}
            found.append(Kept(**{**data, **lists}))
    return found


def append(file: Path, gate: Kept) -> None:
    """Add a gate; after a line that was cut off, on one of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = "".join(it.line() for it in read(file))
    if file.exists() and file.read_text(encoding="utf-8") != kept:
        file.write_text(kept, encoding="utf-8")
    with file.open("a", encoding="utf-8") as out:
        out.write(gate.line())


def of(count: int, total: int) -> str:
    """Return how many of them, with the exact interval of the rate (Clopper and Pearson)."""
    if not total:
        return "-"
    rate = stats.proportion(count, total)
    return f"{count} of {total} ({rate.low:.0%} to {rate.high:.0%})"


def verdicts(gates: Sequence[Kept], arms: Sequence[tuple[str, str]]) -> Table:
    """What the gate said under each fault; ``arms`` are their names and what they plant."""
    rows = []
    for arm, words in arms:
        them = [it for it in gates if it.arm == arm]
        if not them:
            continue
        said = [it.verdict for it in them]
        ratios = [it.ratio for it in them if it.ratio is not None]
        rows.append(
            (
                words,
                them[0].metric,
                f"{them[0].margin:.0%}",
                f"{statistics.median(ratios):.3f}" if ratios else "-",
                *(of(said.count(verdict), len(them)) for verdict in ("pass", "regressed", "inconclusive")),
                str(said.count("error")),
                str(sum(bool(it.alarms) for it in them)),
                f"{statistics.median(it.blocks for it in them):g}",
                f"{statistics.median(it.seconds for it in them):.0f} s",
            )
        )
    header = ("planted", "metric", "margin", "new / old, median", "pass", "regressed", "inconclusive", "error")
    header += ("gates with an alarm elsewhere", "blocks", "takes")
    return Table("What the gate said", "", header, tuple(rows), ("in brackets the exact 95 % interval of the rate",))


def beside(gates: Sequence[Kept], arms: Sequence[tuple[str, str]]) -> Table:
    """Which rules call the same samples slower; the gates are those of times."""
    rows = []
    for arm, words in arms:
        them = [it for it in gates if it.arm == arm and len(it.old) >= FEWEST]
        if not them:
            continue
        sides = [(1 / np.array(it.old), 1 / np.array(it.new)) for it in them]
        called = [of(sum(rule(old, new) for old, new in sides), len(them)) for rule in RULES.values()]
        rows.append((words, of(sum(it.verdict == "regressed" for it in them), len(them)), *called))
    note = (
        "regressed is what the gate calls worse than its margin; the other rules know no margin and call slower what "
        "they take for different, so that below the margin they may be right where the gate passes"
    )
    return Table("Beside other rules, on the same samples", "", ("planted", "this gate", *RULES), tuple(rows), (note,))


def quiet(gates: Sequence[Kept], arms: Sequence[tuple[str, str]]) -> Table:
    """The same gates by how much else the machine did."""
    rows = []
    for words, wanted in (("at most the processors", True), ("above that", False)):
        for arm, planted in arms:
            them = [it for it in gates if it.arm == arm and (max(it.load) <= it.processors) == wanted]
            if them:
                said = [it.verdict for it in them]
                counts = (of(said.count(name), len(them)) for name in ("pass", "regressed", "inconclusive"))
                rows.append((words, planted, *counts))
    return Table(
        "By the machine's load", "", ("load average", "planted", "pass", "regressed", "inconclusive"), tuple(rows)
    )
