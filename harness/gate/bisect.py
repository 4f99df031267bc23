"""``python -m harness bisect``: the first release that makes a metric worse, or reads an old checkpoint otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.judge.gatefile import EXIT, GateFile
from harness.judge.rules import LOAD, LOGITS, MEASURING, OLD_CHECKPOINT, QUANTIZE, SERVE
from harness.judge.verdict import Ruling, Verdict
from harness.records.metrics import GATED, SIZES

CHECKPOINT = OLD_CHECKPOINT.replace(" ", "_")
"""What is asked for to find the first release that does not read what the first one saved, or reads it otherwise."""


# Measured for it on the way, since a cell's first block comes before its old checkpoint: one metric through each
# server, at one stage, and a budget that no further block fits in.
ON_THE_WAY = "(peak_memory or compile_time)"


FIRST_BLOCKS = 1


@dataclass(frozen=True)
class Found:
    """What a bisection came to: the last good release and the first bad one, and those that could not be judged."""

    good: str
    bad: str | None
    undecided: tuple[str, ...]
    status: int


def search(releases: Sequence[str], answer: Callable[[str], Ruling]) -> Found:
    """Return the first release that is bad against the first of ``releases``, which counts as good.

    ``answer`` says how a release compares with the first one. The last one is asked first: without a regression there
    is nothing to look for. A release that cannot be judged is passed over for its neighbours, and named.
    """
    last = answer(releases[-1])
    if last != "regressed":
        return Found(releases[0], None, () if last == "pass" else (releases[-1],), EXIT[last])
    low, high = 0, len(releases) - 1
    undecided: set[int] = set()
    while open_ := [index for index in range(low + 1, high) if index not in undecided]:
        middle = min(open_, key=lambda index: abs(2 * index - low - high))
        said = answer(releases[middle])
        if said == "regressed":
            high = middle
        elif said == "pass":
            low = middle
        else:
            undecided.add(middle)
    between = tuple(releases[index] for index in sorted(undecided) if low < index < high)
    return Found(releases[low], releases[high], between, EXIT["inconclusive"] if between else EXIT["regressed"])


def answer_of(gate: GateFile, metric: str) -> Ruling:
    """Return how one gate of the bisection ended on the metric; a cell that stopped working is a regression."""
    said = {it.verdict for it in gate.verdicts if tells(it, metric)}
    if metric == CHECKPOINT and any(
        row.stage == OLD_CHECKPOINT and row.old == row.new == "works" for row in gate.compatibility
    ):
        # What works before and after has no verdict.
        said.add("pass")
    order: tuple[Ruling, ...] = ("regressed", "error", "inconclusive", "pass")
    return next((verdict for verdict in order if verdict in said), "error")


def tells(verdict: Verdict, metric: str) -> bool:
    """Return whether a verdict is on the metric, or on why it could not be measured.

    A cell that stopped working counts at a stage that the metric needs: whether an old checkpoint is read is a question
    of its own, and sizes need no model that runs.
    """
    if verdict.reason == "stopped-working":
        needed = {OLD_CHECKPOINT} if metric == CHECKPOINT else {QUANTIZE} | _run_at(metric)
        return verdict.metric in {f"works: {stage}" for stage in needed}
    return verdict.metric in (LOGITS if metric == CHECKPOINT else metric, MEASURING)


def _run_at(metric: str) -> set[str]:
    """Return the stages of the compatibility matrix that run a model for a metric: none for a size."""
    stages = {stage for stage, found in GATED.items() if metric in found - SIZES}
    return {SERVE if stage == "server" else LOAD for stage in stages}
