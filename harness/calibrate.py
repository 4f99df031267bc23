"""``python -m harness calibrate``: gates of this environment against itself, and what they say of the machine."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import accuracy, gate_command, hardware, stats
from harness.blocks import stage_of, unit_id
from harness.calibration import Calibration, Noise, Steady, blocks_within
from harness.environment import worker_threads
from harness.errors import HarnessError
from harness.gate import stored
from harness.gate_report import over
from harness.lock import machine_lock, only_session
from harness.pair import Pair
from harness.rendering import Table, render, write_text
from harness.selection import Options
from harness.verdict import RULES

# Shown in the table of what a verdict costs.
MARGINS = (0.03, 0.05, 0.10)

Key = tuple[str, str, str, str, str]


def device(outcomes: Sequence[dict[str, Any]]) -> str:
    """Return what gates ran on; raises HarnessError if that is several devices, each of which has its own noise."""
    names = sorted({str(data["device"]) for data in outcomes})
    if len(names) > 1:
        raise HarnessError(f"these gates ran on several devices ({'; '.join(names)}): calibrate each by itself")
    return names[0]


def summarise(outcomes: list[dict[str, Any]], on: str, budget: float) -> Calibration:
    """Return the calibration that several gates of old against old amount to, of the device that they ran on.

    Raises HarnessError without blocks, and if the gates ran on several devices.
    """
    timed: dict[Key, _Timed] = defaultdict(_Timed)
    steady: dict[Key, Steady] = {}
    for data in outcomes:
        for it in data["verdicts"]:
            rule = RULES.get(it["metric"])
            if rule is None or it["reason"] == "bad-samples" or not it["samples"]["old"] or not it["samples"]["new"]:
                continue
            key = (it["model"], it["recipe"], it["server"] or "", it["metric"], it["label"])
            if rule.kind == "blocks":
                timed[key].add(it, data)
            elif it["reason"] != "too-few-blocks" and (it["task"] or rule.kind != "documents"):
                found = _steady(key, it)
                before = steady.get(key, found)
                steady[key] = max(found, before, key=lambda one: one.smallest)
    noise = [one.noise(key) for key, one in timed.items() if one.logs]
    if not noise and (timed or not steady):
        raise HarnessError("no gate came as far as two blocks of any metric: raise --budget")
    primary = [it for data in outcomes for it in data["verdicts"] if it["primary"]]
    return Calibration(
        hardware=on,
        device=device(outcomes),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        gates=len(outcomes),
        judged=len(primary),
        alarms=sum(data["exit_status"] == 1 for data in outcomes),
        verdicts_regressed=sum(it["verdict"] == "regressed" for it in primary),
        verdicts_inconclusive=sum(it["verdict"] == "inconclusive" for it in primary),
        budget_seconds=budget,
        threads=worker_threads(),
        noise=noise,
        steady=list(steady.values()),
    )


@dataclass
class _Timed:
    """One timed metric of one cell over all gates: log ratios of blocks, gate by gate, and ratios of rounds."""

    logs: list[list[float]] = field(default_factory=list)
    rounds: list[list[float]] = field(default_factory=list)
    block_seconds: list[float] = field(default_factory=list)
    round_seconds: list[float] = field(default_factory=list)

    def add(self, it: dict[str, Any], data: dict[str, Any]) -> None:
        """Take in one gate's verdict; one block alone says nothing of noise."""
        pairs = list(zip(it["samples"]["old"], it["samples"]["new"], strict=True))
        if len(pairs) < 2:
            return
        self.logs.append([math.log(new / old) for old, new in pairs])
        cell = f"{it['model']}-{it['recipe']}-{data['hardware']}-{it['server']}"
        unit = unit_id(cell, stage_of(it["server"], it["metric"], it["label"]))
        self.block_seconds.append(data["units"][unit]["seconds"])
        rounds = it.get("rounds") or {"old": [], "new": []}
        for old, new in zip(rounds["old"], rounds["new"], strict=True):
            # The two sides' rounds were taken in turns: what the machine did meanwhile is in both.
            self.rounds.append([after / before for before, after in zip(old, new, strict=False)])
            self.round_seconds += [_seconds(it, value, data) for value in (*old, *new)]

    def noise(self, key: Key) -> Noise:
        model, recipe, server, metric, label = key
        values = [value for gate in self.logs for value in gate]
        seconds = statistics.median(self.block_seconds)
        return Noise(
            model=model,
            recipe=recipe,
            server=server,
            metric=metric,
            label=label,
            # Around no difference, which is known here, rather than around each gate's own mean.
            sd=math.sqrt(sum(value * value for value in values) / len(values)),
            blocks=len(values),
            block_seconds=seconds,
            **self._nested(seconds),
        )

    def _nested(self, block_seconds: float) -> dict[str, Any]:
        """Return how the variance splits between processes and within one, and how many rounds a process should give.

        Kalibera and Jones' optimum, of the log ratio of a block's two processes: a further block costs the starts of
        both, a further round one round of each.
        """
        if len(self.rounds) < 2 or min(map(len, self.rounds)) < 2:
            return {}
        found = stats.variance_components(self.rounds)
        rounds = statistics.median_low([len(block) for block in self.rounds])
        a_round = 2 * statistics.median(self.round_seconds)
        best = stats.inner_samples(found, max(0.0, block_seconds - rounds * a_round), a_round)
        return {
            "between": math.sqrt(found.between),
            "within": math.sqrt(found.within),
            "rounds": rounds,
            "best_rounds": best,
        }


def _seconds(it: dict[str, Any], value: float, data: dict[str, Any]) -> float:
    """Return how long the round took that gave ``value``: a time, or a rate of its prompts or of its new tokens."""
    if it["unit"] == "s":
        return value
    if it["metric"] == "request_throughput":
        return int(it["label"].removeprefix("num_prompts=")) / value
    return float(data["matrix"]["measurements"]["generate"]["max_new_tokens"]) / value


def _steady(key: Key, it: dict[str, Any]) -> Steady:
    """Return how far something that is not timed is from itself, and the smallest worsening that its rule would call.

    A size: what its margins allow, and the range of the same measured twice on top. Documents: the fewest lost ones
    that the interval of that many documents tells from the margin. Other quality: the margin, and the arm of the
    interval of old against itself, both evaluated.
    """
    model, recipe, server, metric, label = key
    old, new = it["samples"]["old"], it["samples"]["new"]
    rule, value = RULES[metric], statistics.median(old) if RULES[metric].kind == "size" else statistics.fmean(old)
    if rule.kind == "size":
        differs = max(*old, *new) - min(*old, *new)
        smallest = max(rule.absolute, it["margin"] * value) + differs
    elif rule.kind == "documents" and {*old, *new} <= {0.0, 1.0}:
        found = accuracy.flips(old, new)
        differs = found.share
        smallest = _fewest_lost(found, it["margin"]) / found.documents
    elif rule.kind in ("ratio", "likelihood"):
        # On the log scale, as the ratio of perplexities is judged.
        old, new = ([-v if rule.kind == "likelihood" else math.log(v) for v in side] for side in (old, new))
        value = math.exp(min(700.0, statistics.fmean(old)))
        differs = value * math.expm1(abs(statistics.fmean(new) - statistics.fmean(old)))
        smallest = value * math.expm1(math.log1p(it["margin"]) + _arm(old, new))
    else:
        differs = abs(statistics.fmean(new) - statistics.fmean(old))
        smallest = it["margin"] + _arm(old, new)
    return Steady(
        model=model,
        recipe=recipe,
        server=server,
        metric=metric,
        label=label,
        unit=it["unit"],
        pairs=min(len(old), len(new)),
        value=value,
        differs=differs,
        smallest=smallest,
    )


def _arm(old: Sequence[float], new: Sequence[float]) -> float:
    found = accuracy.paired_difference(old, new)
    return max(found.high - found.estimate, found.estimate - found.low)


def _fewest_lost(found: accuracy.Flips, margin: float) -> int:
    """Return the fewest documents lost beside those that change anyway whose interval lies beyond the margin."""
    for more in range(found.documents - found.lost - found.won + 1):
        if accuracy.tango_interval(found.lost + more, found.won, found.documents).high < -margin:
            return more
    return found.documents


def table(found: Calibration) -> Table:
    """Return the noise of each timed metric, the smallest effect within the budget, and what a verdict costs.

    The budget is that of a gate of all these cells together, as Calibration.check divides it; the blocks for a margin
    are no fewer than a gate may stop at.
    """
    rows = []
    cells: dict[tuple[str, ...], float] = {}
    for it in found.noise:
        cell = (it.model, it.recipe, it.server, stage_of(it.server, it.metric, it.label))
        cells[cell] = max(cells.get(cell, 0.0), it.block_seconds)
    blocks = blocks_within(found.budget_seconds, cells.values())
    for it in found.noise:
        costs = []
        for margin in MARGINS:
            needed = stats.samples_needed(it.sd, margin)
            fewest = max(stats.MINIMUM_BLOCKS, needed or 0)
            costs.append("-" if needed is None else f"{fewest} ({fewest * it.block_seconds:.0f} s)")
        smallest = f"{stats.smallest_effect(it.sd, blocks):.1%}" if blocks > 1 else "-"
        metric = it.metric + (f" ({it.label})" if it.label else "")
        split = "-" if it.between is None or it.within is None else f"{it.between:.2%}, {it.within:.2%}"
        best = "-" if it.best_rounds is None else f"{it.best_rounds} ({it.rounds})"
        noise = (f"{it.sd:.2%}", split, best, f"{it.block_seconds:.1f} s")
        rows.append((f"{it.recipe} {it.server}", metric, *noise, smallest, *costs))
    rate = stats.proportion(found.alarms, found.gates)
    return Table(
        f"Calibration of {found.device}",
        "",
        (
            "cell",
            "metric",
            "noise of a block",
            "between processes, within one",
            "best rounds (now)",
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
            f"smallest effect in {found.budget_seconds:.0f} s: in a gate of all these cells together "
            f"({len(cells)}, {blocks} blocks each), all of whose time goes into blocks, and none of which is settled "
            f"before; blocks: of that cell alone, at least {stats.MINIMUM_BLOCKS}, below which no gate stops by itself",
            "best rounds: as many a process as tell most in the same time (Kalibera and Jones, 2013), by the "
            "variance between processes and within one; now: as the matrix has it",
        ),
    )


def steady_table(found: Calibration) -> Table:
    """Return, for what is not timed, how far it is from itself and the smallest effect by its rule."""
    rows = []
    for it in found.steady:
        cell = f"{it.recipe} {it.server}".strip()
        metric = it.metric + (f" ({it.label})" if it.label else "")
        unit = "" if it.unit == "1" else f" {it.unit}"
        share = f" ({it.smallest / it.value:.2%})" if it.value and it.unit != "fraction" else ""
        effect = f"{it.smallest:.4g}{unit}{share}"
        rows.append((cell, metric, over(it.metric, it.pairs), f"{it.differs:.3g}{unit}", effect))
    return Table(
        "What is not timed",
        "",
        ("cell", "metric", "over", "differs from itself by", "smallest effect"),
        tuple(rows),
        (
            "sizes: what the margins allow and the range of the same measured twice; documents: the fewest lost ones "
            "that so many can tell; other quality: the margin, and what old differs from itself, evaluated twice",
        ),
    )


def _told(found: Calibration) -> str:
    return render([it for it in (table(found), steady_table(found)) if it.rows], "md")


class _Kept:
    """The gates that a calibration has finished, so that one that was interrupted can be gone on with."""

    def __init__(self, results: Path, options: Options) -> None:
        self.path = results / "calibration" / f"{options.hardware}.unfinished.json"
        self.gates = results / "gates"
        self.options = options
        self.names: list[str] = []

    def resume(self, packages: dict[str, str]) -> list[dict[str, Any]]:
        """Return the gates that are there; raises HarnessError if they are of something else, or of another device."""
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            changed = self.options.changed(kept["options"])
            if kept["threads"] != worker_threads():
                changed.append(f"OMP_NUM_THREADS: {kept['threads']} then, {worker_threads()} now")
            if kept["packages"] != packages:
                changed.append("packages are installed otherwise")
            self.names = list(kept["gates"])
            found = [stored(self.gates / name) for name in self.names]
            here = hardware.device(self.options.hardware).name
            if found and (there := device(found)) != here:
                changed.append(f"device: {there} then, {here} now")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HarnessError(f"--resume: no unfinished calibration can be read at {self.path} ({error})") from error
        if changed:
            raise HarnessError(f"{self.path}: this calibration was started otherwise: {'; '.join(changed)}")
        return found

    def add(self, folder: Path, packages: dict[str, str]) -> None:
        self.names.append(folder.name)
        kept = {
            "options": asdict(self.options),
            "threads": worker_threads(),
            "packages": packages,
            "gates": self.names,
        }
        write_text(self.path, json.dumps(kept, indent=1) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    gate_command.add_common_arguments(parser)
    parser.add_argument("--gates", type=int, default=5, metavar="N", help="gates of old against old (default: 5)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted calibration")


def run(arguments: argparse.Namespace) -> int:
    if arguments.gates < 1:
        raise HarnessError(f"--gates {arguments.gates}: at least one is needed")
    place = gate_command.workplace(arguments)
    wanted = gate_command.options(arguments, "this environment", "this environment")
    packages = place.base.packages()
    kept = _Kept(place.results, wanted)
    outcomes = kept.resume(packages) if arguments.resume else []
    lock = only_session(machine_lock(), place.progress)
    try:
        for index in range(len(outcomes), arguments.gates):
            place.progress(f"gate {index + 1} of {arguments.gates}, old against old")
            pair = Pair("none", place.base, place.base, ())
            outcome = place.gate(replace(wanted, seed=wanted.seed + index), pair=pair, calibrated=False)
            outcomes.append(outcome.data)
            kept.add(outcome.folder, packages)
    except KeyboardInterrupt:
        if outcomes:
            print(_told(summarise(outcomes, arguments.hardware, wanted.budget)), end="")
        print(
            f"interrupted after {len(outcomes)} of {arguments.gates} gates; the same command with --resume goes on",
            file=sys.stderr,
        )
        return 130
    finally:
        lock.release()
    found = summarise(outcomes, arguments.hardware, wanted.budget)
    print(_told(found), end="")
    print(f"calibration: {found.write(place.results)}")
    kept.path.unlink(missing_ok=True)
    return 0
