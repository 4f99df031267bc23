"""The verdicts of one gate together: each with what the others say of it, and whether it needs more blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from harness.judge import looks, stats, unseen
from harness.judge.intervals import Interval, log_ratios
from harness.judge.looks import Look, Prior
from harness.judge.rules import FALSE_DISCOVERIES, REASONS, RULES
from harness.judge.stats import Decision
from harness.judge.verdict import Verdict, looked
from harness.records.place import Place


def control(verdicts: Sequence[Verdict], q: float = FALSE_DISCOVERIES, *, kept: float = 0.0) -> list[Verdict]:
    """Return the verdicts of one gate, each with what the others say of it.

    The noise of primary metrics over blocks is estimated from all of them, and so is how much each block depends on the
    one before it, unless the machine is known to have blocks ``kept`` more of it (harness.judge.looks). The family of
    primary verdicts that rest on a test is held against a false discovery rate of ``q``: every p-value is one-sided and
    of "not worse than the margin", and a regression that Benjamini-Hochberg does not keep becomes inconclusive. Sizes,
    which hardly vary, have no p-value and stay out of it.
    """
    known = _beside(verdicts, kept)
    family = family_of(known)
    decisions = [
        Decision("regressed" if verdict.verdict == "regressed" else "pass", verdict.reason) for verdict in family
    ]
    held = stats.control_family(decisions, [float(verdict.p or 0.0) for verdict in family], q)
    weakened = {
        id(verdict) for verdict, decision in zip(family, held, strict=True) if decision.verdict == "inconclusive"
    }
    return [
        replace(verdict, verdict="inconclusive", reason="false-discovery", detail=REASONS["false-discovery"])
        if id(verdict) in weakened
        else verdict
        for verdict in known
    ]


def dependence(verdicts: Iterable[Verdict], kept: float = 0.0) -> float:
    """Return the share of a block's deviation that the next one keeps, as :func:`control` allows for it."""
    return looks.dependence(list(over_blocks(verdicts).values()), kept)


def over_blocks(verdicts: Iterable[Verdict]) -> dict[int, np.ndarray]:
    """Return the log ratios of each primary verdict over blocks, stored ones too, by its identity."""
    return {
        id(it): log_ratios(it.samples["old"], it.samples["new"])
        for it in verdicts
        if it.primary and it.p is not None and len(it.samples["old"]) > 1 and _kind(it) == "blocks"
    }


def _kind(verdict: Verdict) -> str:
    # A stored gate may know metrics that are none any more.
    return RULES[verdict.metric].kind if verdict.metric in RULES else ""


def _beside(verdicts: Sequence[Verdict], kept: float) -> list[Verdict]:
    """Return the verdicts, those of primary metrics over blocks by the noise and the dependence of all of those."""
    logs = over_blocks(verdicts)
    prior = Prior.of([float(one.var(ddof=1)) for one in logs.values()], [len(one) - 1 for one in logs.values()])
    kept = looks.dependence(list(logs.values()), kept)
    if prior is None and not kept:
        return list(verdicts)
    found = []
    for it in verdicts:
        if id(it) in logs:
            others = unseen.of(it.rounds, it.direction, kept)
            look = Look.at(logs[id(it)], prior, kept)
            interval, decision, p, detail = looked(look, others, it.margin, it.direction)
            detail = detail or REASONS[decision.reason]
            it = replace(
                it,
                verdict=decision.verdict,
                reason=decision.reason,
                detail=f"{detail}; a block keeps {kept:.0%} of the one before, and is worth less" if kept else detail,
                ratio=interval.estimate,
                low=interval.low,
                high=interval.high,
                freedom=interval.freedom,
                p=p,
            )
        found.append(it)
    return found


def alarmed(
    verdicts: Sequence[Verdict],
    requests: Mapping[Place, unseen.Samples],
    q: float = FALSE_DISCOVERIES,
    *,
    kept: float = 0.0,
) -> list[Verdict]:
    """Return the verdicts, with those primary that are alarms and certainly worse; no gate waits for these.

    What time to first token and its like are beside throughput: noisier, and what users see. They are held at ``q``
    over all alarms together (Bonferroni), and blocks are allowed to depend on one another as with primary metrics.
    ``requests`` are the samples of each block, where they are of requests.
    """
    alarms = [it for it in verdicts if it.metric in RULES and RULES[it.metric].alarm and it.p is not None]
    found = []
    for it in verdicts:
        if any(it is one for one in alarms) and it.verdict == "regressed":
            look = Look.at(log_ratios(it.samples["old"], it.samples["new"]), None, kept)
            others = unseen.of(it.rounds or requests.get(it.place, {}), it.direction, kept)
            _, decision, p, _ = looked(look, others, it.margin, it.direction)
            certain = decision.verdict == "regressed" and p <= q / len(alarms)
            it = replace(it, primary=certain and it.blocks >= looks.MINIMUM_BLOCKS)
        found.append(it)
    return found


def family_of(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return the verdicts whose false discovery rate is held: the primary ones that rest on a test."""
    return [verdict for verdict in verdicts if verdict.primary and verdict.p is not None]


def settled(verdict: Verdict, *, undecided: bool = True) -> bool:
    """Return whether no more blocks are needed for a verdict, as :func:`control` returns it.

    It is one way or the other; or its interval is so narrow that it is about as large as its margin, which counts
    where it may be left ``undecided``. What cannot be judged at all is not measured on.
    """
    if verdict.verdict == "error":
        return verdict.blocks >= looks.MINIMUM_BLOCKS
    if verdict.ratio is None or verdict.low is None or verdict.high is None or verdict.freedom is None:
        return False
    if not looks.enough(verdict.blocks, verdict.freedom):
        return False
    if verdict.verdict in ("pass", "regressed"):
        return True
    found = Interval(verdict.ratio, verdict.low, verdict.high, verdict.confidence, "", verdict.blocks, verdict.freedom)
    return undecided and Look.of(found.transformed(math.log)).narrow(math.log1p(verdict.margin))
