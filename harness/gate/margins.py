"""Which margins a machine can hold, by its calibration: refused before a gate measures anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.base.errors import HarnessError
from harness.base.text import duration
from harness.gate.plan import Unit
from harness.gate.promise import Expected, Promise
from harness.judge import stats
from harness.judge.calibration import Calibration, Noise, Steady, blocks_within
from harness.judge.gatefile import Options
from harness.judge.rules import RULES, Margins
from harness.runtime.environment import worker_threads

POWER = 0.9
"""How often a gate of metrics that are as they were must come to its end within its budget, or it is refused."""


def noise_of(calibration: Calibration, unit: Unit, metric: str) -> list[Noise]:
    """Return what is known of a metric of a unit; of a cell never calibrated, that metric's worst."""
    place = unit.place
    through = [
        it
        for it in calibration.noise
        if (it.metric, it.place.server, it.place.stage) == (metric, place.server, place.stage)
    ]
    return [it for it in through if _of(it, unit)] or sorted(through, key=lambda it: -it.sd)[:1]


def hold(calibration: Calibration | None, options: Options, units: Sequence[Unit], say: Callable[[str], None]) -> None:
    """Hold a gate's margins against the calibration of the machine, and say where that tells nothing of them.

    Raises HarnessError as :func:`check` does.
    """
    if calibration is None:
        say("this machine is not calibrated")
        say(f"next: python -m harness calibrate -m {options.hardware}")
    elif calibration.threads != worker_threads():
        say(
            f"this machine is calibrated for {calibration.threads} threads a worker and this gate runs "
            f"{worker_threads()}: its margins are not held against that; calibrate again, or set OMP_NUM_THREADS"
        )
    else:
        margins = options.tolerances
        if strange := unknown(calibration, margins, units):
            say(
                f"--margin: taken as given, since the calibration of this machine says nothing of "
                f"{'; nor of '.join(strange)}"
            )
        check(calibration, margins, units, options.budget)


def check(calibration: Calibration, margins: Margins, units: Sequence[Unit], budget: float) -> None:
    """Refuse margins that a machine cannot hold within ``budget`` seconds.

    Raises HarnessError that names each metric with the smallest effect that can be detected, the budget that all of
    them together need, and each size and quality of text that differs from itself by more than its margin.
    """
    timed = [_Timed.of(calibration, unit) for unit in units if unit.timed]
    promise = Promise.of([it.expected(margins) for it in timed])
    unsteady = _unsteady(calibration, margins, units)
    blocks = max(2, blocks_within(budget, [it.seconds for it in timed]))
    problems = []
    for metric in sorted({metric for it in timed for metric in it.noise}):
        for it in timed:
            smallest = max((stats.smallest_effect(one.sd, blocks) for one in it.noise.get(metric, ())), default=0.0)
            if smallest > margins.of(metric):
                problems.append(f"{metric} of {it.unit}: margin {margins.of(metric):.1%}, detectable {smallest:.1%}")
    if not problems and (kept := promise.kept(budget)) < POWER:
        needed = promise.seconds(POWER)
        problems.append(
            f"all metrics together: unchanged, they pass within that time in {kept:.0%} of gates; {POWER:.0%} do "
            + (f"in {duration(needed)}" if needed < float("inf") else "in no time that can be told")
        )
    if problems := problems + unsteady:
        raise HarnessError(
            f"this machine cannot hold these margins within {budget:.0f} s ({blocks} blocks a cell), by its "
            f"calibration of {calibration.created}:\n  " + "\n  ".join(problems) + "\nRaise --margin or --budget, take "
            "fewer cells, or calibrate again on a quieter machine."
        )


@dataclass(frozen=True)
class _Timed:
    """A unit that is judged over blocks: the seconds of one, and the noise of each primary metric, as far as known."""

    unit: str
    seconds: float
    noise: Mapping[str, Sequence[Noise]]

    @classmethod
    def of(cls, calibration: Calibration, unit: Unit) -> _Timed:
        known = {metric: noise_of(calibration, unit, metric) for metric in sorted(unit.metrics)}
        seconds = max((it.block_seconds for them in known.values() for it in them), default=0.0)
        judged = {name: them for name, them in known.items() if RULES[name].primary and RULES[name].kind == "blocks"}
        return cls(unit.id, seconds, judged)

    def expected(self, margins: Margins) -> Expected:
        """Return what it is expected to take where all of its metrics are as they were."""
        return Expected(
            self.seconds, [(it.sd, margins.of(metric)) for metric, them in self.noise.items() for it in them]
        )


def _unsteady(calibration: Calibration, margins: Margins, units: Sequence[Unit]) -> list[str]:
    """Return each size and quality of text that differs from itself by more than its margin."""
    problems = []
    given = _given(margins)
    for it in calibration.steady:
        # How many documents flip says little of their mean. What is advisory fails no gate, unless it is asked for.
        if RULES[it.metric].kind in ("documents", "answers") or not (RULES[it.metric].primary or it.metric in given):
            continue
        allowed = _allowed(it, margins)
        if it.differs > allowed and any(_measures(unit, it) for unit in units):
            unit_name = "" if it.unit == "1" else f" {it.unit}"
            problems.append(
                f"{it.metric} of {it.place.recipe}: margin {allowed:.4g}{unit_name}, and the same measured twice "
                f"differs by {it.differs:.4g}{unit_name}"
            )
    return problems


def unknown(calibration: Calibration, margins: Margins, units: Sequence[Unit]) -> list[str]:
    """Return each metric that was given a margin of its own, with the cells of which it is not calibrated."""
    found = []
    for metric in sorted(_given(margins)):
        cells = [unit.id for unit in units if metric in unit.metrics and not _knows(calibration, unit, metric)]
        if cells:
            found.append(f"{metric} of {', '.join(cells)}")
    return found


def _knows(calibration: Calibration, unit: Unit, metric: str) -> bool:
    if RULES[metric].kind == "blocks":
        return bool(noise_of(calibration, unit, metric))
    return any(it.metric == metric and _measures(unit, it) for it in calibration.steady)


def _given(margins: Margins) -> set[str]:
    """Return the metrics that were given a margin by their name."""
    return {name for text in margins.given if (name := text.rpartition("=")[0])}


def _allowed(it: Steady, margins: Margins) -> float:
    """Return what a margin allows in the metric's own unit."""
    rule, margin = RULES[it.metric], margins.of(it.metric)
    if rule.kind == "difference":
        return margin + rule.of_old * abs(it.value)
    return max(rule.absolute, margin * it.value)


def _of(it: Noise | Steady, unit: Unit) -> bool:
    return (it.place.model, it.place.recipe) == (unit.place.model, unit.place.recipe)


def _measures(unit: Unit, it: Steady) -> bool:
    return it.metric in unit.metrics and _of(it, unit)
