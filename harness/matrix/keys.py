"""Which keys a table of matrix.toml takes, by where it stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from harness.matrix.hardware import Hardware
from harness.matrix.measurements import Measurements
from harness.matrix.schema import CellEntry, Model, Recipe, TaskOptions, Threshold
from harness.matrix.workload import Workload

TABLES: dict[str, type[BaseModel] | None] = {
    "hardware": Hardware,
    "groups": None,
    "models": Model,
    "recipes": Recipe,
    "tasks": TaskOptions,
    "cells": CellEntry,
    "measurements": Measurements,
    "workloads": Workload,
    "thresholds": Threshold,
}
"""The tables of a file, each with the type of its entries."""


def known(location: Sequence[str | int]) -> list[str]:
    """Return the keys of the table at a location; none where it takes any, or is no table."""
    if not location:
        return ["schema", "extends", "pass_env", *TABLES]
    table = TABLES.get(str(location[0]))
    for part in location[2:]:
        # Of a list, whose entries are numbered and all of one type.
        if isinstance(part, int):
            continue
        field = table.model_fields.get(str(part)) if table else None
        table = next(_tables(field.annotation), None) if field else None
    return [name for name in table.model_fields if name not in ("name", "groups")] if table else []


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the tables that a type may be or hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _tables(inner)
