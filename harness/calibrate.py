"""``python -m harness calibrate``: gates of this environment against itself, and what they say of the machine."""

from __future__ import annotations

import argparse
import datetime
import math
import os
import statistics
from collections import defaultdict
from dataclasses import replace
from typing import Any

from harness import gate_command, hardware, stats
from harness.calibration import Calibration, Noise
from harness.errors import HarnessError
from harness.pair import Pair
from harness.rendering import Table, render
from harness.session import machine_lock, only_session
from harness.verdict import RULES

# Shown in the table of what a verdict costs.
MARGINS = (0.03, 0.05, 0.10)


def summarise(outcomes: list[dict[str, Any]], on: str, budget: float) -> Calibration:
    """Return the calibration that several gates of old against old amount to; raises HarnessError without blocks."""
    logs: dict[tuple[str, str, str, str, str], list[list[float]]] = defaultdict(list)
    seconds: dict[tuple[str, str, str, str, str], list[float]] = defaultdict(list)
    for data in outcomes:
        for it in data["verdicts"]:
            rule = RULES.get(it["metric"])
            pairs = list(zip(it["samples"]["old"], it["samples"]["new"], strict=True))
            if rule is None or rule.kind != "blocks" or len(pairs) < 2:
                continue
            key = (it["model"], it["recipe"], it["server"] or "", it["metric"], it["label"])
            logs[key].append([math.log(new / old) for old, new in pairs])
            unit = f"{it['model']}-{it['recipe']}-{data['hardware']}-{it['server']}"
            seconds[key].append(data["units"][unit]["seconds"])
    noise = []
    for key, gates in logs.items():
        degrees = sum(len(values) - 1 for values in gates)
        # Around no difference, which is known here, rather than around each gate's own mean.
        pooled = math.sqrt(sum(value * value for values in gates for value in values) / (degrees + len(gates)))
        model, recipe, server, metric, label = key
        noise.append(
            Noise(
                model=model,
                recipe=recipe,
                server=server,
                metric=metric,
                label=label,
                sd=pooled,
                blocks=degrees + len(gates),
                block_seconds=statistics.median(seconds[key]),
            )
        )
    if not noise:
        raise HarnessError("no gate came as far as two blocks of any metric: raise --budget")
    primary = [it for data in outcomes for it in data["verdicts"] if it["primary"]]
    return Calibration(
        hardware=on,
        device=hardware.device(on).name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        gates=len(outcomes),
        judged=len(primary),
        alarms=sum(data["exit_status"] == 1 for data in outcomes),
        verdicts_regressed=sum(it["verdict"] == "regressed" for it in primary),
        verdicts_inconclusive=sum(it["verdict"] == "inconclusive" for it in primary),
        budget_seconds=budget,
        threads=os.environ.get("OMP_NUM_THREADS", ""),
        noise=noise,
    )


def table(found: Calibration) -> Table:
    """Return the noise of each metric, the smallest effect within the budget, and what a verdict costs."""
    rows = []
    for it in found.noise:
        blocks = max(2, int(found.budget_seconds / it.block_seconds))
        costs = []
        for margin in MARGINS:
            needed = stats.samples_needed(it.sd, margin)
            costs.append("-" if needed is None else f"{needed} ({needed * it.block_seconds:.0f} s)")
        smallest = f"{stats.smallest_effect(it.sd, blocks):.1%}"
        metric = it.metric + (f" ({it.label})" if it.label else "")
        rows.append((f"{it.recipe} {it.server}", metric, f"{it.sd:.2%}", f"{it.block_seconds:.1f} s", smallest, *costs))
    rate = stats.proportion(found.alarms, found.gates)
    return Table(
        f"Calibration of {found.device}",
        "",
        (
            "cell",
            "metric",
            "noise of a block",
            "a block takes",
            f"smallest effect in {found.budget_seconds:.0f} s",
            *(f"blocks for {margin:.0%}" for margin in MARGINS),
        ),
        tuple(rows),
        (
            f"false alarms: {found.alarms} of {found.gates} gates of old against old "
            f"(rate {rate.estimate:.2f} [{rate.low:.2f}, {rate.high:.2f}])",
            "noise: standard deviation of the log ratio of a block's two sides; smallest effect and blocks: at a "
            "confidence of 95 % and a power of 90 %",
        ),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    gate_command.add_common_arguments(parser)
    parser.add_argument("--gates", type=int, default=5, metavar="N", help="gates of old against old (default: 5)")


def run(arguments: argparse.Namespace) -> int:
    if arguments.gates < 1:
        raise HarnessError(f"--gates {arguments.gates}: at least one is needed")
    place = gate_command.workplace(arguments)
    wanted = gate_command.options(arguments, "this environment", "this environment")
    outcomes: list[dict[str, Any]] = []
    lock = only_session(machine_lock(), place.progress)
    try:
        for index in range(arguments.gates):
            place.progress(f"gate {index + 1} of {arguments.gates}, old against old")
            pair = Pair("none", place.base, place.base, ())
            outcomes.append(place.gate(replace(wanted, seed=wanted.seed + index), pair=pair).data)
    finally:
        lock.release()
    found = summarise(outcomes, arguments.hardware, wanted.budget)
    print(render([table(found)], "md"), end="")
    print(f"calibration: {found.write(place.results)}")
    return 0
