"""A session held against a stored baseline: one verdict a metric, and a regression counts once it has recurred."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.base.errors import HarnessError, SampleError
from harness.base.files import json_finite
from harness.judge import baseline as baselines
from harness.judge import rules, stats, verdict
from harness.judge.baseline import MOST_MARGIN, Baseline, BaselineEntry, Coverage
from harness.judge.gatefile import VERDICT
from harness.judge.migrations import GATE_SCHEMA
from harness.judge.rules import RULES
from harness.judge.series import Series
from harness.judge.stats import Decision
from harness.judge.verdict import Verdict
from harness.measure.recorder import Recorder
from harness.records.metric import Rule
from harness.records.metrics import METRICS
from harness.records.place import Place
from harness.records.schema import Measurement

# One block a day and few runs behind it: Schuirmann's 90 % interval, 5 % to each side. That a regression must recur in
# a second block keeps false alarms rarer than that; results/rules.md has their rate.
CONFIDENCE = 0.9
# Without the old version beside it serving varies more than within a gate's block; a gate judges requests, not tokens.
_SERVING = Rule("blocks", 0.10, True)
_RULES = RULES | {"request_throughput": _SERVING, "output_throughput": replace(_SERVING, primary=False)}
_ADVISORY = Rule("blocks", 0.10, False)

REASONS = rules.REASONS | {
    "did-not-recur": "beyond the margin in one block, and not in a second, independent one",
    "not-repeated": "beyond the margin, and the second block could not be measured",
    "other-identity": "the baseline's figure is of something else, so the two are not compared",
    "missing": "it stands in the baseline and was not measured today",
}


class Regression(HarnessError):
    """A metric is worse than its baseline in two independent blocks, or cannot be compared with it."""


class Comparison:
    """Compares each test's measurements with a baseline's, and has a test repeated whose figures are worse."""

    def __init__(self, baseline: Baseline, path: Path, coverage: Coverage, recorder: Recorder) -> None:
        self.baseline = baseline
        self.path = path
        self.coverage = coverage
        self.recorder = recorder
        self.verdicts: dict[Place, Verdict] = {}
        self._entries = {entry.place.named: entry for entry in baseline.entries}
        self._looked = 0
        self._unknown: set[Place] = set()

    def check(self, repeat: Callable[[], object]) -> None:
        """Judge what was measured since the last call; ``repeat`` measures it again, in fresh workers.

        Raises Regression for primary metrics that are worse twice, and for those that cannot be compared.
        """
        first = self._judge_new()
        worse = {key for key, found in first.items() if found.primary and found.verdict == "regressed"}
        self.verdicts |= first
        if worse:
            self.verdicts |= self._second(worse, repeat)
        failed = [
            self.verdicts[key]
            for key in first
            if self.verdicts[key].primary and self.verdicts[key].verdict in ("regressed", "error")
        ]
        if failed:
            raise Regression("\n".join(describe(found) for found in failed))

    def missing(self) -> list[str]:
        """Return what stands in the baseline, was meant to be measured today and was not; each becomes an error."""
        # What an earlier session of the run measured by the way, as a worker's start, is not measured again.
        for row in self.recorder.standing():
            key = Place.of(row).named
            if key in self._entries and key not in self.verdicts:
                self.verdicts[key] = judge(self._entries[key], row)
        found = []
        for key, entry in self._entries.items():
            if key not in self.verdicts and self.coverage.expects(entry):
                values = {"old": entry.values}
                self.verdicts[key] = verdict.event(_series(entry, values), "error", "missing", REASONS["missing"])
                found.append(entry.label)
        return found

    def lines(self) -> list[str]:
        """Return the session's summary: what is not a pass, worst first, and how many of each verdict there are."""
        ordered = sorted(self.verdicts.values(), key=lambda found: found.severity)
        counts = [
            f"{sum(found.verdict == name for found in ordered)} {name}"
            for name in ("regressed", "error", "inconclusive", "pass")
        ]
        shown = [describe(found) for found in ordered if found.verdict != "pass"]
        wide = [found.margin for found in ordered if found.verdict == "pass" and found.margin > _margin(found)]
        if wide:
            shown.append(
                f"{len(wide)} passed at a margin of up to {max(wide):.1%}, which is more than is asked for: the "
                f"{len(self.baseline.runs)} runs of the baseline tell no less; add runs to it"
            )
        if self._unknown:
            recipes = ", ".join(sorted({key.recipe for key in self._unknown}))
            count = len(self._unknown)
            told = "1 figure is" if count == 1 else f"{count} figures are"
            shown.append(f"{told} not in the baseline, so held against nothing: of {recipes}")
        return [*shown, f"{', '.join(counts)}; {len(self.baseline.runs)} runs stand behind {self.path}"]

    def write(self, folder: Path) -> Path:
        """Write every verdict, in the fields of a gate's file, to ``folder``/against.json."""
        data = {
            "schema": GATE_SCHEMA,
            "baseline": str(self.path),
            "runs": self.baseline.runs,
            "verdicts": [VERDICT.dump_python(found) for found in self.verdicts.values()],
        }
        path = folder / "against.json"
        path.write_text(json.dumps(json_finite(data), indent=1, allow_nan=False), encoding="utf-8")
        return path

    # ------------------------------------------------------------------------------------------------------ blocks

    def _judge_new(self) -> dict[Place, Verdict]:
        rows = self.recorder.measurements[self._looked :]
        self._looked = len(self.recorder.measurements)
        latest = {Place.of(row).named: row for row in rows if not row.discarded}
        self._unknown |= {key for key in latest if key not in self._entries and key.metric in _RULES}
        return {key: judge(self._entries[key], row) for key, row in latest.items() if key in self._entries}

    def _second(self, worse: set[Place], repeat: Callable[[], object]) -> dict[Place, Verdict]:
        """Measure the test once more and return what stands of the regressions."""
        before = {key: self.verdicts[key] for key in worse}
        problem = ""
        try:
            with self.recorder.second_block():
                repeat()
        except HarnessError as error:
            # A limit of the matrix that does not hold either time is no reason not to compare.
            problem = str(error)
        again = self._judge_new()
        found = {}
        for key, first in before.items():
            second = again.get(key)
            if second is None:
                detail = f"{REASONS['not-repeated']}: {problem or 'it gave no figure'}"
                found[key] = replace(first, verdict="error", reason="not-repeated", detail=detail)
            elif second.verdict == "regressed":
                samples = {"old": first.samples["old"], "new": first.samples["new"] + second.samples["new"]}
                found[key] = replace(second, samples=samples, blocks=2)
            else:
                detail = f"{REASONS['did-not-recur']}: {_ratio(first)}, then {_ratio(second)}"
                found[key] = replace(first, verdict="inconclusive", reason="did-not-recur", detail=detail, blocks=2)
        return found


def _margin(found: Verdict) -> float:
    """Return the margin that is asked of a metric; what is not timed is held against that or, by its rule, another."""
    rule = _RULES.get(found.metric, _ADVISORY)
    return rule.margin if rule.kind == "blocks" else found.margin


def judge(entry: BaselineEntry, measurement: Measurement) -> Verdict:
    """Return the verdict on one of today's measurements.

    Times and rates are held against the spread of the baseline's runs; their margin is the rule's, or the smallest
    that such a spread can tell, and beyond MOST_MARGIN nothing is judged. Sizes and documents go by the gate's rules.
    """
    rule = _RULES.get(entry.place.metric, _ADVISORY)
    if problem := baselines.difference(entry, measurement):
        series = _series(entry, {"old": entry.values, "new": [measurement.value]})
        found = verdict.event(series, "error", "other-identity", f"{REASONS['other-identity']}: {problem}")
        return replace(found, primary=rule.primary, unit=entry.unit)
    if rule.kind == "blocks":
        return _timed(entry, measurement.value, rule)
    if rule.kind == "size":
        values = {"old": entry.values, "new": [measurement.value]}
    else:
        values = {"old": entry.samples, "new": measurement.samples}
    return verdict.judge(_series(entry, values), rules.Margins())


def _timed(entry: BaselineEntry, today: float, rule: Rule) -> Verdict:
    series = _series(entry, {"old": entry.values, "new": [today]})
    blank = replace(
        verdict.event(series, "error", "bad-samples", ""),
        primary=rule.primary,
        unit=entry.unit,
        direction=METRICS[entry.place.metric].direction,
        confidence=CONFIDENCE,
        margin=rule.margin,
        blocks=1,
    )
    try:
        interval = stats.baseline_ratio(entry.values, [today], CONFIDENCE)
    except SampleError as error:
        return replace(blank, detail=str(error))
    least = baselines.smallest_margin(entry.spread or 0.0, len(entry.values), CONFIDENCE)
    margin = max(rule.margin, least) if least <= MOST_MARGIN else rule.margin
    decision = stats.decide(interval, margin, entry.direction)
    detail = rules.REASONS[decision.reason]
    if least > MOST_MARGIN:
        decision = Decision("inconclusive", "too-noisy")
        detail = f"the baseline's runs differ by {entry.spread:.1%}, so less than {least:.0%} cannot be told"
    elif least > rule.margin:
        detail += f" (a margin of {rule.margin:.0%} is less than the {len(entry.values)} runs of the baseline can tell)"
    return replace(
        blank,
        verdict=decision.verdict,
        reason=decision.reason,
        detail=detail,
        margin=margin,
        ratio=interval.estimate,
        low=interval.low,
        high=interval.high,
    )


def _series(entry: BaselineEntry, values: dict[str, list[float]]) -> Series:
    return Series(entry.place, values)


def describe(found: Verdict) -> str:
    """Return one line: verdict, metric, ratio with interval and margin, and why."""
    word = found.verdict if found.primary else f"{found.verdict} (advisory)"
    return f"{word}: {baselines.label(found.place)}: {_ratio(found)}{found.reason}: {found.detail}"


def _ratio(found: Verdict) -> str:
    if found.ratio is None or found.low is None or found.high is None or not math.isfinite(found.ratio):
        return ""
    return f"{found.ratio:.3f} of the baseline [{found.low:.3f}, {found.high:.3f}], margin {found.margin:.2g}; "
