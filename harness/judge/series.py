"""Records of a gate as series: one metric on both sides, paired block by block or sample by sample."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from harness.judge.rules import RULES
from harness.records.metrics import GATED
from harness.records.schema import Line, Measurement

Side = Literal["old", "new"]


SIDES: tuple[Side, Side] = ("old", "new")


def other(side: Side) -> Side:
    return "new" if side == "old" else "old"


@dataclass(frozen=True)
class Series:
    """One metric of one cell: values of both sides, block by block; of quality, document by document.

    ``rounds`` are the samples of every block's rounds, where a block has several. ``parts`` are the tasks whose
    documents these are, if it is several tasks' accuracy together.
    """

    model: str
    recipe: str
    server: str | None
    metric: str
    label: str
    task: str | None = None
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    drift_cancelled: bool = False
    task_metric: str = ""
    rounds: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    parts: tuple[Series, ...] = ()

    @property
    def old(self) -> list[float]:
        return list(self.values.get("old", ()))

    @property
    def new(self) -> list[float]:
        return list(self.values.get("new", ()))


def unit_id(cell: str, stage: str) -> str:
    """Return what a unit is called: as its cell, unless it is the second one of a cell."""
    return f"{cell}-server" if stage == "server" else cell


def stage_of(metric: str, label: str) -> str:
    """Return at which stage a metric is measured in a gate; of a start its label says which."""
    stages = [stage for stage, metrics in GATED.items() if metric in metrics]
    named = label.removeprefix("kind=")
    return named if named in stages else next(iter(stages), "")


def series(lines: Iterable[Line], interleaved: bool) -> list[Series]:
    """Return what the records of a gate say, metric by metric, paired.

    Metrics judged by blocks and sizes give one value a block: both sides' of every block that has both; of several
    rounds in a block, their median, whatever the record's own value is (a latency's is the published mean). Quality
    gives the samples of its one evaluation a side, document by document. The start of the serving benchmark's client
    says nothing of what is served, and is left out.
    """
    blocks: dict[tuple[str, ...], dict[tuple[int, int], dict[str, Measurement]]] = {}
    for line in lines:
        if isinstance(line, Measurement) and "side" in line.flags and not line.discarded and line.metric in RULES:
            if line.parameters.get("kind") == "client":
                continue
            key = _key(line)
            block = (int(line.flags.get("block", -1)), int(line.flags.get("attempt", 0)))
            blocks.setdefault(key, {}).setdefault(block, {})[str(line.flags["side"])] = line
    found = []
    for (model, recipe, server, metric, task, task_metric, label), taken in blocks.items():
        # Of a block that was repeated the last attempt counts that has both sides, and that one alone.
        last = {block: sides for (block, _), sides in sorted(taken.items()) if len(sides) == len(SIDES)}
        whole = list(last.values())
        if RULES[metric].kind in ("blocks", "size"):
            values: dict[str, list[float]] = {side: [_value(sides[side]) for sides in whole] for side in SIDES}
        else:
            values = {side: list(whole[0][side].samples) if whole else [] for side in SIDES}
        in_turns = RULES[metric].kind == "blocks" and metric not in ("engine_start", "compile_time")
        rounds: dict[str, list[list[float]]] = {}
        # The advisory times of serving have a sample a request, not a round.
        if in_turns and RULES[metric].primary:
            rounds = {side: [sides[side].samples for sides in whole] for side in SIDES}
        found.append(
            Series(
                model=model,
                recipe=recipe,
                server=server or None,
                metric=metric,
                label=label,
                task=task or None,
                values=values,
                drift_cancelled=interleaved and in_turns,
                task_metric=task_metric,
                rounds=rounds,
            )
        )
    return found


def _value(line: Measurement) -> float:
    """Return what a process counts with."""
    return statistics.median(line.samples) if RULES[line.metric].kind == "blocks" and line.samples else line.value


def _key(line: Measurement) -> tuple[str, ...]:
    """Return what a verdict is about: model, recipe, server, metric, task, and the parameters that tell it apart."""
    task, task_metric = (str(line.parameters.get(name, "")) for name in ("task", "task_metric"))
    shown = {
        name: value
        for name, value in line.parameters.items()
        if name in ("batch_size", "num_prompts", "kind", "task", "task_metric")
        and (name != "batch_size" or line.metric == "latency")
    }
    label = ", ".join(f"{name}={value}" for name, value in shown.items())
    return (line.cell.model.name, line.cell.recipe.name, line.cell.server, line.metric, task, task_metric, label)
