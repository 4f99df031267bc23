"""From the samples of both sides to a verdict a metric: which rule applies, its margin, and the reason code.

No verdict divides by bf16. In a gate old and new stand in one block, so the machine's drift is in both, and a ratio to
the bf16 of that block would only add its noise. ``--against`` takes none either: each figure is held against its own in
the baseline, and a drift of the whole machine shows in all of them. Ratios to bf16 are for the suites' limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from harness.base.errors import SampleError, TooFewSamples
from harness.judge import accuracy, answers, looks, stats, unseen
from harness.judge.intervals import Interval, log_ratios, logs
from harness.judge.looks import Look
from harness.judge.rules import CONFIDENCE, REASONS, RULES, Margins
from harness.judge.series import MEAN_OF, SIDES, Series, label_of, task_of
from harness.judge.stats import Decision
from harness.judge.unseen import Unseen
from harness.records.metric import Direction, Kind, Rule
from harness.records.metrics import METRICS
from harness.records.place import Parameters, Place
from harness.records.stored import LARGEST, factor

Ruling = Literal["pass", "regressed", "inconclusive", "error"]


SEVERITY: dict[str, int] = {"regressed": 0, "error": 1, "inconclusive": 2, "pass": 3}


_MORE = "more documents tell more (--limit, measurements.text.windows), more blocks do not"


# Which of a task's metrics counts in the mean over tasks.
TASK_METRICS = ("acc_norm", "acc", "exact_match", "em", "f1")


@dataclass(frozen=True)
class Verdict:
    """What a gate says of one metric of one cell, as gate.json holds it; ``ratio``, ``low``, ``high`` are new / old.

    ``samples`` are paired: block by block, or of quality, which one block is enough for, window by window of a text or
    document by document of a task. ``rounds`` holds what each block's sample is the median of.
    """

    place: Place
    unit: str
    direction: Direction
    primary: bool
    verdict: Ruling
    ratio: float | None
    low: float | None
    high: float | None
    confidence: float
    margin: float
    blocks: int
    reason: str
    detail: str
    drift_cancelled: bool
    samples: dict[str, list[float]]
    p: float | None = None
    rounds: dict[str, list[list[float]]] = field(default_factory=dict)
    accepted: str = ""
    """Why somebody accepted this regression, which fails no gate then."""
    since: str = ""
    """Since which version it is worse, in words, where stored gates tell."""
    freedom: float | None = None
    """Degrees of freedom of the interval over blocks: more than its blocks give where other metrics helped."""

    @property
    def metric(self) -> str:
        return self.place.metric

    @property
    def task(self) -> str | None:
        return task_of(self.place)

    @property
    def label(self) -> str:
        return label_of(self.place)

    @property
    def what(self) -> str:
        """The metric, with what tells it apart where there is something."""
        return f"{self.metric} ({self.label})" if self.label else self.metric

    @property
    def name(self) -> str:
        """The cell and the metric in words."""
        return " ".join(filter(None, (self.place.model, self.place.recipe, self.place.server, self.what)))

    @property
    def severity(self) -> tuple[int, bool, float, tuple[str, ...]]:
        """Sorts the worst first: by verdict, primary before advisory, then by how far the ratio is from 1."""
        far = abs(math.log(self.ratio)) if self.ratio and self.ratio > 0 else math.inf
        place = self.place
        name = (place.model, place.recipe, place.server, place.metric, self.label)
        return (SEVERITY[self.verdict], not self.primary, -far, name)


def judge(series: Series, margins: Margins) -> Verdict:
    """Return the verdict on one metric of one cell, before the family of all is controlled."""
    rule, margin = RULES[series.metric], margins.of(series.metric)
    try:
        interval, decision, detail, p, margin = _JUDGES[rule.kind](series, rule, margin)
    except TooFewSamples as error:
        return _verdict(series, rule, margin, None, Decision("inconclusive", "too-few-blocks"), str(error), None)
    except (SampleError, ValueError, OverflowError) as error:
        # Finite samples too may be so far apart that their ratio is none: math.exp and math.log refuse it.
        failed = _verdict(series, rule, margin, None, Decision("inconclusive", "bad-samples"), str(error), None)
        return replace(failed, verdict="error")
    if rule.kind == "blocks" and (fault := _unmeasured(series)):
        failed = _verdict(series, rule, margin, None, Decision("inconclusive", fault), REASONS[fault], None)
        return replace(failed, verdict="error")
    if series.old == series.new and decision.verdict == "pass":
        decision = Decision("pass", "identical")
    if decision.reason == "too-noisy" and rule.kind not in ("blocks", "size"):
        detail = f"{detail or REASONS[decision.reason]}; one block holds it all: {_MORE}"
    return _verdict(series, rule, margin, interval, decision, detail or REASONS[decision.reason], p)


def _unmeasured(series: Series) -> str:
    """Return the reason why timed samples cannot have been measured, or an empty text.

    Clocks tell more digits than machines repeat. A compile time of zero is that of nothing compiled.
    """
    old, new = series.old, series.new
    if len(old) < 2 or not any((*old, *new)):
        return ""
    if old == new or (len(old) > 2 and (len(set(old)) == 1 or len(set(new)) == 1)):
        return "stuck-clock"
    rounds = [tuple(tuple(samples) for samples in block) for block in zip(*series.rounds.values(), strict=True)]
    several = [block for block in rounds if min(map(len, block)) > 1]
    return "repeated-block" if len(set(several)) < len(several) else ""


def combined(tasks: Iterable[Series]) -> list[Series]:
    """Return the tasks' accuracies of every cell with several tasks taken together, to be judged as one metric more.

    One metric a task: the first of ``TASK_METRICS`` that it has. The rule of combination is accuracy.combine_tasks'.
    """
    cells: dict[Place, dict[str, Series]] = {}
    for one in tasks:
        task = task_of(one.place)
        if one.metric == "accuracy" and task and one.old and one.new:
            chosen = cells.setdefault(one.place.without("parameters"), {})
            if task not in chosen or _rank(one) < _rank(chosen[task]):
                chosen[task] = one
    return [
        Series(
            replace(accuracies, parameters=Parameters({MEAN_OF: len(chosen)})),
            values={side: [value for one in chosen.values() for value in one.values[side]] for side in SIDES},
            parts=tuple(chosen.values()),
        )
        for accuracies, chosen in cells.items()
        if len(chosen) > 1
    ]


def _rank(series: Series) -> int:
    known = str(series.place.parameters.get("task_metric", "")).partition(",")[0]
    return TASK_METRICS.index(known) if known in TASK_METRICS else len(TASK_METRICS)


def event(
    series: Series, ruling: Ruling, reason: str, detail: str, *, unit: str = "", direction: Direction = "none"
) -> Verdict:
    """Return the verdict on something that happened or not, rather than on a number."""
    return Verdict(
        place=series.place,
        unit=unit,
        direction=direction,
        primary=True,
        verdict=ruling,
        ratio=None,
        low=None,
        high=None,
        confidence=CONFIDENCE,
        margin=0.0,
        blocks=min(len(series.old), len(series.new)),
        reason=reason,
        detail=detail or REASONS[reason],
        drift_cancelled=False,
        samples={side: list(series.values.get(side, ())) for side in SIDES},
    )


def _verdict(
    series: Series,
    rule: Rule,
    margin: float,
    interval: Interval | None,
    decision: Decision,
    detail: str,
    p: float | None,
) -> Verdict:
    metric = METRICS[series.metric]
    pairs = min(len(series.old), len(series.new))
    return Verdict(
        place=series.place,
        unit=metric.unit,
        direction=metric.direction,
        primary=rule.primary,
        verdict=decision.verdict,
        ratio=interval.estimate if interval else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        confidence=interval.confidence if interval and interval.confidence else CONFIDENCE,
        margin=margin,
        blocks=pairs if rule.kind in ("blocks", "size") else min(1, pairs),
        reason=decision.reason,
        detail=detail,
        drift_cancelled=series.drift_cancelled,
        samples={side: list(series.values.get(side, ())) for side in SIDES},
        p=p,
        rounds={side: [list(samples) for samples in blocks] for side, blocks in series.rounds.items()},
        freedom=interval.freedom if interval and rule.kind == "blocks" else None,
    )


Judged = tuple[Interval, Decision, str, float | None, float]


def _blocks(series: Series, rule: Rule, margin: float) -> Judged:
    direction = METRICS[series.metric].direction
    others = unseen.of(series.rounds or series.requests, direction)
    interval, decision, p, detail = looked(Look.at(log_ratios(series.old, series.new)), others, margin, direction)
    return interval, decision, detail, p, margin


def looked(
    look: Look, others: Sequence[Unseen], margin: float, direction: Direction
) -> tuple[Interval, Decision, float, str]:
    """Return the interval of the ratio that a look is judged by, what it comes to, the p-value of its margin, and why.

    ``others`` are what the median does not see.
    """
    bound = math.log1p(margin)
    interval = look.interval(looks.confidence(look.blocks)).transformed(factor)
    decision = stats.decide(interval, margin, direction, narrow=look.narrow(bound))
    return unseen.judged(decision, interval, look.p(bound, direction), others, margin, direction)


def _size(series: Series, rule: Rule, margin: float) -> Judged:
    decision = stats.decide_memory(series.old, series.new, absolute=rule.absolute, relative=margin)
    return stats.range_ratio(series.old, series.new), decision, "", None, margin


def _ratio(series: Series, rule: Rule, margin: float) -> Judged:
    """Perplexity: each sample is a window's own perplexity."""
    old, new = (logs(side, "window's").tolist() for side in (series.old, series.new))
    interval = accuracy.perplexity_ratio(old, new, CONFIDENCE)
    direction = METRICS[series.metric].direction
    decision = stats.decide(interval, margin, direction)
    return interval, decision, "", stats.regression_p(series.old, series.new, margin, direction), margin


def _likelihood(series: Series, rule: Rule, margin: float) -> Judged:
    """A task's perplexity: each sample is a document's log-likelihood."""
    interval = accuracy.perplexity_ratio([-v for v in series.old], [-v for v in series.new], CONFIDENCE)
    return interval, stats.decide(interval, margin, "lower"), "", None, margin


def _difference(series: Series, rule: Rule, margin: float) -> Judged:
    """A share or a divergence, window by window: the difference is judged, and told as a ratio of the old mean."""
    direction, unit = METRICS[series.metric].direction, METRICS[series.metric].unit
    found = accuracy.paired_difference(series.old, series.new, CONFIDENCE)
    before = math.fsum(series.old) / len(series.old)
    allowed = margin + rule.of_old * abs(before)
    decision = stats.decide_difference(found, allowed, direction)
    detail = (
        f"{REASONS[decision.reason]}: {before:.4g} {found.estimate:+.2g} {unit} "
        f"({found.low:+.2g} to {found.high:+.2g}), margin {allowed:.2g}"
    )
    p = stats.inverted_p(lambda level: accuracy.paired_difference(series.old, series.new, level), allowed, direction)
    return _as_ratio(found, before), decision, detail, p, allowed


def _documents(series: Series, rule: Rule, margin: float) -> Judged:
    parts = series.parts or (series,)
    alike = accuracy.shared([(one.old, one.new) for one in parts])
    each = [accuracy.noninferiority_at(one.old, one.new) for one in parts]

    def at(confidence: float) -> Interval:
        return accuracy.combine_tasks([interval(confidence) for interval in each], alike)

    found, p = at(CONFIDENCE), stats.inverted_p(at, margin, "higher")
    flips = accuracy.flips(series.old, series.new)
    before = math.fsum(math.fsum(one.old) / len(one.old) for one in parts) / len(parts)
    decision = stats.decide_difference(found, margin, "higher")
    named = ([one.place.parameters.get(name) for name in ("task", "task_metric")] for one in series.parts)
    tasks = ", ".join(" ".join(str(name) for name in names if name) for names in named)
    detail = (f"the mean over {tasks}, each task counting once, interval by MOVER: " if tasks else "") + (
        f"{REASONS[decision.reason]}: {before:.4f} {found.estimate:+.4f} ({found.low:+.4f} to {found.high:+.4f}); "
        f"flips {flips.share:.2%} of {flips.documents} ({flips.lost} lost, {flips.won} won), "
        f"exact McNemar p {accuracy.mcnemar_exact(flips.lost, flips.won):.3g}; "
        f"p of a loss within the margin {p:.3g}"
    )
    return _as_ratio(found, before), decision, detail, p, margin


def _answers(series: Series, rule: Rule, margin: float) -> Judged:
    """The margins of the right answers, document by document; told as a share of answers."""

    at = answers.changed_at(series.old, series.new)
    found, least = at(answers.CONFIDENCE), RULES["accuracy"].margin
    decision = answers.decide(at, margin, least)
    before = math.fsum(series.old) / len(series.old)
    after = math.fsum(series.new) / len(series.new)
    detail = (
        f"{REASONS[decision.reason]}: {before:.4g} {after - before:+.2g} nats, as much as {found.estimate:+.2%} of "
        f"answers ({found.low:+.2%} to {found.high:+.2%}); a loss of {margin:.2%} is called"
    )
    return _as_ratio(found, answers.right(series.old)), decision, detail, stats.inverted_p(at, 0.0, "higher"), margin


def _as_ratio(found: Interval, before: float) -> Interval:
    """Return a difference as a ratio of the old mean; of a mean of next to zero there is none, and NaN says so."""
    parts = (found.estimate, found.low, found.high)
    some = abs(before) * LARGEST > max(abs(before + part) for part in parts)

    def ratio(part: float) -> float:
        return (before + part) / before if some else math.nan

    return Interval(ratio(found.estimate), ratio(found.low), ratio(found.high), found.confidence, found.method, found.n)


_JUDGES: dict[Kind, Any] = {
    "blocks": _blocks,
    "size": _size,
    "ratio": _ratio,
    "difference": _difference,
    "documents": _documents,
    "answers": _answers,
    "likelihood": _likelihood,
}
