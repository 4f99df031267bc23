"""Files that commands keep beside records and read again, damaged or edited: refused by name, or saying what they may.

Checks of neighbours, what commands by hand took, searches and calibrations that were begun, accepted regressions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.commands import calibrate
from harness.commands.searched import Searched
from harness.judge import accepted, gatefile, neighbours
from harness.records import by_hand
from harness.records.metrics import METRICS
from harness.records.stored import LARGEST
from tests.faults.campaign import Fault, Scenario
from tests.faults.damage import REPOSITORY, edit, spoil

GATE = "20261128-082255"
Made = tuple[Path, Callable[[], Any], Callable[[Any, Any], str]]


def _neighbours(folder: Path) -> Made:
    pairs = []
    for metric in ("latency", "request_throughput"):
        known = METRICS[metric]
        pairs.append(
            neighbours.Pair(
                what=metric, metric=metric, stage="server", parameters={"batch_size": 1}, alone=1.0, beside=1.1,
                unit=known.unit, direction="lower" if known.direction == "lower" else "higher", ratio=1.1, low=1.05,
                high=1.2, processes=3,
            )
        )  # fmt: skip
    made = neighbours.Check(hardware="h200", device="d", created=1.0, runs=["one", "two"], pairs=pairs)
    path = made.write(folder)

    def wrong(before: Any, after: Any) -> str:
        for it in after.pairs if after else ():
            if (it.unit, it.direction) != (METRICS[it.metric].unit, METRICS[it.metric].direction):
                return f"{it}"
            if not math.isclose(it.ratio, it.beside / it.alone, rel_tol=1e-6):
                return f"{it}"
            it.state  # noqa: B018 - it may divide by what was edited
        return ""

    return path, lambda: neighbours.load(folder, "h200", "d"), wrong


def _by_hand(folder: Path) -> Made:
    more = {"model": "m", "recipe": "r", "parameters": {"batch_size": 1}, "command": "vllm x", "seconds": 2.5}
    ran = [by_hand.Ran.model_validate({**more, "metric": it, "value": 0.5}) for it in ("latency", "peak_memory")]
    path = by_hand.ByHand(device="d", created=1.0, ran=ran).write(folder)

    def wrong(before: Any, after: Any) -> str:
        return "" if after is None or 0 < after.seconds <= LARGEST else f"{after.seconds} s"

    return path, lambda: by_hand.load(folder), wrong


def _gates(folder: Path) -> gatefile.Options:
    """Copy a gate, and beside it one of another question whose name differs in one digit; return its options."""
    for name in (GATE, f"{GATE[:-1]}4"):
        place = folder / "gates" / name
        place.mkdir(parents=True)
        data = json.loads((REPOSITORY / "results" / "gates" / GATE / "gate.json").read_text(encoding="utf-8"))
        data["finished"] = True
        if name != GATE:
            data["options"]["keyword"] = "generate"
        (place / "gate.json").write_text(json.dumps(data), encoding="utf-8")
    options = gatefile.load(folder / "gates" / GATE).options
    assert options is not None
    return options


def _search(folder: Path) -> Made:
    options, asked = _gates(folder), {"metric": "latency", "old": "0.15.0", "new": "0.18.0"}
    begun = Searched.begin(folder, asked)
    begun.note("0.18.0", GATE)

    def read() -> Any:
        found = Searched.resume(folder, "last", asked)
        return found.answered("0.18.0", "checkpoint_size", options)

    def wrong(before: Any, after: Any) -> str:
        return "" if after is None or after == before else "another gate answers"

    return begun.path, read, wrong


def _calibration(folder: Path) -> Made:
    options = _gates(folder)
    kept = calibrate._Kept(folder, options, gatefile.load(folder / "gates" / GATE).device)
    kept.add(folder / "gates" / GATE, {"torch": "2"})

    def read() -> Any:
        return calibrate._Kept(folder, options, kept.device).resume({"torch": "2"})

    def wrong(before: Any, after: Any) -> str:
        return "" if after in (before, []) else "other gates count"

    return kept.path, read, wrong


def _accepted(folder: Path) -> Made:
    place = {"model": "m", "recipe": "r", "hardware": "cpu", "server": "", "stage": "", "metric": "latency"}
    one = {"metric": "latency", "reason": "x", "package": "torchao", "old": "1", "new": "2", "hardware": "cpu",
           "accepted": "2026-01-01", "figures": [{**place, "worse": 1.5, "reason": "beyond-margin"}]}  # fmt: skip
    path = accepted.Acceptances.model_validate({"schema": accepted.SCHEMA, "accepted": [one]}).write(folder)

    def wrong(before: Any, after: Any) -> str:
        for it in (figure for one in after.accepted for figure in one.figures):
            if it.worse is not None and not 1 < it.worse <= LARGEST:
                return f"accepted whatever comes: {it}"
        return ""

    return path, lambda: accepted.Acceptances.load(folder), wrong


KEPT: dict[str, Callable[[Path], Made]] = {
    "a check of neighbours": _neighbours,
    "what commands by hand took": _by_hand,
    "an unfinished search": _search,
    "an unfinished calibration": _calibration,
    "accepted.json": _accepted,
}


def kept(fault: Fault) -> None:
    """One of them is damaged, or edited to say something else."""
    name = fault.draw.choice(list(KEPT))
    path, reader, wrong = KEPT[name](fault.folder)
    before, data = reader(), path.read_bytes()
    how = edit(fault.draw, path) if fault.draw.random() < 0.6 else spoil(fault.draw, path)
    fault.what = f"{name}: {how}"
    fault.hit = not path.is_file() or path.read_bytes() != data
    try:
        after = reader()
    except HarnessError as error:
        # Of what is gone there is nothing to name but its place.
        if path.stem not in str(error) and path.parent.name not in str(error):
            fault.broken("other", f"the file is not named: {error}")
    else:
        if problem := wrong(before, after):
            fault.broken("silent pass", problem)


SCENARIOS = [Scenario("damage: neighbours, by hand, searches and calibrations begun, accepted", kept, 20)]
