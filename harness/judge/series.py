"""Records of a gate as series: one metric on both sides, paired block by block or sample by sample."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from harness.judge.rules import MEASURING, RULES
from harness.records.place import Place
from harness.records.schema import Line, Measurement

Side = Literal["old", "new"]


SIDES: tuple[Side, Side] = ("old", "new")


def other(side: Side) -> Side:
    return "new" if side == "old" else "old"


DEVICE = "on_device"
"""The flag of a cluster's records that says which device of which node they are of."""

MEAN_OF = "mean_of_tasks"
"""The parameter of several tasks' accuracies taken together: how many they are."""


@dataclass(frozen=True)
class Series:
    """One metric of one cell: values of both sides, block by block; of quality, document by document.

    ``rounds`` are the samples of every block's rounds, where a block has several, ``requests`` those of its requests,
    where its samples are of these. ``parts`` are the tasks whose documents these are, if it is several tasks' accuracy
    together.
    """

    place: Place
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    drift_cancelled: bool = False
    rounds: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    parts: tuple[Series, ...] = ()
    requests: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        return self.place.metric

    @property
    def old(self) -> list[float]:
        return list(self.values.get("old", ()))

    @property
    def new(self) -> list[float]:
        return list(self.values.get("new", ()))


def task_of(place: Place) -> str | None:
    """Return the task that a figure is of, if it is of one."""
    return str(place.parameters["task"]) if place.parameters.get("task") else None


def label_of(place: Place) -> str:
    """Return in words what tells the verdicts on one metric of one cell apart, as in ``batch_size=1``; for people."""
    if place.metric == MEASURING:
        # The two units of a cell; of an only one there is nothing to tell.
        return "server" if place.stage == "server" else ""
    if MEAN_OF in place.parameters:
        return f"mean of {place.parameters[MEAN_OF]} tasks"
    told = ("batch_size",) if place.metric == "latency" else ()
    names = (*told, "num_prompts", "kind", "task", "task_metric")
    return ", ".join(f"{name}={place.parameters[name]}" for name in names if name in place.parameters)


def unit_of(place: Place) -> Place:
    """Return what a gate measures block by block and this figure is of: a cell, by its names, at one stage."""
    return place.named.without("metric", "parameters")


def in_series(line: Line) -> bool:
    """Return whether a record is one of a series.

    The start of the serving benchmark's client says nothing of what is served, and is left out.
    """
    return (
        isinstance(line, Measurement)
        and line.flags.get("side") in SIDES
        and not line.discarded
        and line.metric in RULES
        and line.parameters.get("kind") != "client"
    )


def place_of(line: Measurement) -> Place:
    """Return the place of a gate's record; how many documents a task gave is found, not asked for."""
    return Place.of(line).without_parameters("documents")


class Pairs:
    """What both sides measured at one place, from its records as they come."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._taken: dict[tuple[int, int, str], dict[str, Measurement]] = {}

    def add(self, line: Measurement) -> None:
        # Of a cluster: a block that one node began and another measured anew is no pair of both.
        block = (int(line.flags.get("block", -1)), int(line.flags.get("attempt", 0)), str(line.flags.get(DEVICE, "")))
        self._taken.setdefault(block, {})[str(line.flags["side"])] = line

    def series(self, interleaved: bool) -> Series:
        """Return what both sides have of the same blocks.

        Metrics judged by blocks and sizes give one value a block: both sides' of every block that has both; of several
        rounds in a block, their median, whatever the record's own value is (a latency's is the published mean). Quality
        gives the samples of its one evaluation a side, document by document.
        """
        # Of a block that was repeated the last attempt counts that has both sides, and that one alone.
        last = {block: sides for (block, *_), sides in sorted(self._taken.items()) if len(sides) == len(SIDES)}
        whole = list(last.values())
        rule, metric = RULES[self.place.metric], self.place.metric
        if rule.kind in ("blocks", "size"):
            values: dict[str, list[float]] = {side: [_value(sides[side]) for sides in whole] for side in SIDES}
        else:
            values = {side: list(whole[0][side].samples) if whole else [] for side in SIDES}
        in_turns = rule.kind == "blocks" and metric not in ("engine_start", "compile_time")
        samples: dict[str, list[list[float]]] = {}
        if in_turns:
            samples = {side: [sides[side].samples for sides in whole] for side in SIDES}
        # The advisory times of serving have a sample a request, not a round.
        found = Series(self.place, values, drift_cancelled=interleaved and in_turns)
        return replace(found, rounds=samples) if rule.primary else replace(found, requests=samples)


def series(lines: Iterable[Line], interleaved: bool) -> list[Series]:
    """Return what the records of a gate say, metric by metric, paired."""
    found: dict[Place, Pairs] = {}
    for line in lines:
        if isinstance(line, Measurement) and in_series(line):
            place = place_of(line)
            found.setdefault(place, Pairs(place)).add(line)
    return [pairs.series(interleaved) for pairs in found.values()]


def _value(line: Measurement) -> float:
    """Return what a process counts with."""
    return statistics.median(line.samples) if RULES[line.metric].kind == "blocks" and line.samples else line.value
