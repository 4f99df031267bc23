"""Which failures of a run still stand: those whose work nothing has measured since; identical ones are one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.base.reading import json_value
from harness.records.place import OF_CELL, Place
from harness.records.schema import Failure

Position = tuple[str, int]
"""Where a record stands: source and line."""

COLUMNS = (
    *("source", "line", "kind", "time", "model", "revision", "recipe", "recipe_hash", "hardware", "server"),
    *("gpus", "metric", "parameters", "discarded", "stage", "worker", "test", "outcome", "passed"),
)
"""The columns of :mod:`harness.records.columns` that :func:`standing` reads."""


@dataclass
class _Window:
    """What was recorded since the last test of a session ended."""

    failures: list[Position] = field(default_factory=list)
    judged: bool = False


def standing(rows: Iterable[Mapping[str, Any]]) -> set[Position]:
    """Return source and line of each failure that stands, of rows in the order of their runs and lines.

    A failure is overcome when the test that it ended has since come to an end with a measurement: passed, or beyond
    a limit. Of a failure without a test, as older runs and killed sessions have them, only what everything of its cell
    needs is taken to be overcome: a checkpoint or a start of an engine or server that a later session did measure.
    """
    failures: dict[Position, Mapping[str, Any]] = {}
    sessions: dict[Position, int] = {}
    test_of: dict[Position, str] = {}
    measured: dict[str, float] = {}
    reached: dict[tuple[Any, ...], tuple[int, float]] = {}
    session, window = 0, _Window()
    for row in rows:
        position = (row["source"], row["line"])
        kind = row["kind"]
        if kind == "header":
            session, window = session + 1, _Window()
        elif kind == "failure":
            failures[position], sessions[position] = row, session
            window.failures.append(position)
        elif kind == "judgement":
            window.judged |= not row["passed"]
        elif kind == "measurement" and not row["discarded"]:
            for what in _reached(row):
                reached[what] = (session, row["time"])
        elif kind == "outcome":
            test_of.update(dict.fromkeys(window.failures, str(row["test"])))
            if row["outcome"] == "passed" or (window.judged and not window.failures):
                measured[row["test"]] = max(row["time"], measured.get(row["test"], 0.0))
            window = _Window()
    found = set()
    for position, row in failures.items():
        if position in test_of:
            overcome = measured.get(test_of[position], -1.0) > row["time"]
        else:
            later, time = reached.get(_needed(row), (0, -1.0))
            overcome = later != sessions[position] and time > row["time"]
        if not overcome:
            found.add(position)
    return found


def counted(failures: Sequence[Failure]) -> list[tuple[Failure, int]]:
    """Return each failure once, in the order of the first, with how often it was recorded."""
    found: dict[tuple[Place, str, str, str], list[Failure]] = {}
    for it in failures:
        found.setdefault((Place.of(it), it.stage, it.failure, it.message), []).append(it)
    return [(them[0], len(them)) for them in found.values()]


def _cell(row: Mapping[str, Any]) -> Place:
    return Place(**{name: row[name] for name in OF_CELL})


def _reached(row: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return what a measurement shows to have worked."""
    found: list[tuple[Any, ...]] = [(_cell(row), "quantize")]
    if row["metric"] == "engine_start":
        found.append((_cell(row), "start", json_value(row["parameters"]).get("kind")))
    return found


def _needed(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what would show that a failure's own step has worked since."""
    if row["stage"] == "start":
        return (_cell(row), "start", row["worker"])
    return (_cell(row), row["stage"])
