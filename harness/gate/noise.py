"""What blocks of the same environment on both sides say about a machine's noise."""

from __future__ import annotations

import datetime
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.base.errors import HarnessError
from harness.judge import accuracy, answers, stats
from harness.judge.calibration import Calibration, Noise, Steady
from harness.judge.gatefile import GateFile
from harness.judge.rules import RULES
from harness.judge.series import unit_of
from harness.judge.verdict import Verdict
from harness.records.place import Place
from harness.runtime.environment import worker_threads


def device(gates: Sequence[GateFile]) -> str:
    """Return what gates ran on; raises HarnessError if that is several devices, each of which has its own noise."""
    names = sorted({gate.device for gate in gates})
    if len(names) > 1:
        raise HarnessError(f"these gates ran on several devices ({'; '.join(names)}): calibrate each by itself")
    return names[0]


def summarise(gates: Sequence[GateFile], on: str, budget: float) -> Calibration:
    """Return the calibration that several gates of old against old amount to, of the device that they ran on.

    Raises HarnessError without blocks, and if the gates ran on several devices.
    """
    timed: dict[Place, _Timed] = defaultdict(_Timed)
    steady: dict[Place, Steady] = {}
    for gate in gates:
        for it in gate.verdicts:
            rule = RULES.get(it.metric)
            if rule is None or it.verdict == "error" or not it.samples["old"] or not it.samples["new"]:
                continue
            if rule.kind == "blocks":
                timed[it.place].add(it, gate)
            elif it.reason != "too-few-blocks" and (it.task or rule.kind != "documents"):
                found = _steady(it)
                before = steady.get(it.place, found)
                steady[it.place] = max(found, before, key=lambda one: one.smallest)
    noise = [one.noise(place) for place, one in timed.items() if one.logs]
    if not noise and (timed or not steady):
        raise HarnessError("no gate came as far as two blocks of any metric: raise --budget")
    primary = [it for gate in gates for it in gate.verdicts if it.primary]
    return Calibration(
        hardware=on,
        device=device(gates),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        gates=len(gates),
        judged=len(primary),
        alarms=sum(gate.exit_status == 1 for gate in gates),
        verdicts_regressed=sum(it.verdict == "regressed" for it in primary),
        verdicts_inconclusive=sum(it.verdict == "inconclusive" for it in primary),
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

    def add(self, it: Verdict, gate: GateFile) -> None:
        """Take in one gate's verdict; one block alone says nothing of noise."""
        pairs = list(zip(it.samples["old"], it.samples["new"], strict=True))
        if len(pairs) < 2:
            return
        self.logs.append([math.log(new / old) for old, new in pairs])
        here = unit_of(it.place)
        found = [unit.seconds for unit in gate.units.values() if unit_of(unit.place) == here]
        if not found:
            raise HarnessError(f"the gate of {gate.created} does not say how long a block of {here} took: leave it out")
        self.block_seconds += found
        for old, new in zip(it.rounds.get("old", ()), it.rounds.get("new", ()), strict=True):
            # The two sides' rounds were taken in turns: what the machine did meanwhile is in both.
            self.rounds.append([after / before for before, after in zip(old, new, strict=False)])
            self.round_seconds += [_seconds(it, value) for value in (*old, *new)]

    def noise(self, place: Place) -> Noise:
        values = [value for gate in self.logs for value in gate]
        seconds = statistics.median(self.block_seconds)
        return Noise(
            place=place,
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


def _seconds(it: Verdict, value: float) -> float:
    """Return how long the round took that gave ``value``: a time, or a rate of its prompts or of its new tokens."""
    if it.unit == "s":
        return value
    worth = "num_prompts" if it.metric == "request_throughput" else "max_new_tokens"
    count = it.place.parameters.get(worth)
    if not count or not value:
        raise HarnessError(f"a gate's verdict on {it.place} does not say how many {worth} a round had: leave it out")
    return float(count) / value


def _steady(it: Verdict) -> Steady:
    """Return how far something that is not timed is from itself, and the smallest worsening that its rule would call.

    A size: what its margins allow, and the range of the same measured twice on top. Documents: the fewest lost ones
    that the interval of that many documents tells from the margin. Other quality: the margin, and the arm of the
    interval of old against itself, both evaluated.
    """
    old, new, rule = it.samples["old"], it.samples["new"], RULES[it.metric]
    value = statistics.median(old) if rule.kind == "size" else statistics.fmean(old)
    if rule.kind == "size":
        differs = max(*old, *new) - min(*old, *new)
        smallest = max(rule.absolute, it.margin * value) + differs
    elif rule.kind == "documents" and {*old, *new} <= {0.0, 1.0}:
        found = accuracy.flips(old, new)
        differs = found.share
        smallest = _fewest_lost(found, it.margin) / found.documents
    elif rule.kind == "answers":
        differs = abs(statistics.fmean(new) - value)
        called, share = answers.changed(old, new), answers.density([*old, *new])
        smallest = max(it.margin, called.high - called.estimate) / share if share else 0.0
    elif rule.kind in ("ratio", "likelihood"):
        # On the log scale, as the ratio of perplexities is judged.
        old, new = ([-v if rule.kind == "likelihood" else math.log(v) for v in side] for side in (old, new))
        value = math.exp(min(700.0, statistics.fmean(old)))
        differs = value * math.expm1(abs(statistics.fmean(new) - statistics.fmean(old)))
        smallest = value * math.expm1(math.log1p(it.margin) + _arm(old, new))
    else:
        differs = abs(statistics.fmean(new) - statistics.fmean(old))
        smallest = it.margin + _arm(old, new)
    return Steady(
        place=it.place,
        unit=it.unit,
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
