"""Reads matrix.toml and says where in it a mistake lies."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from harness.base.errors import MatrixError, nearest
from harness.matrix.plan import Matrix
from harness.matrix.schema import CellEntry, Measurements, Model, Recipe, Threshold, _File, _Table
from harness.records.metrics import METRICS


def load(path: Path) -> Matrix:
    """Read and check a matrix file.

    Raises MatrixError naming file, line and key for a syntax error, a key that does not exist, a wrong type or
    unit, and a name that nothing defines.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MatrixError(f"{path}: cannot be read ({error})") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MatrixError(f"{path}: not valid TOML: {error}") from error
    for kind in ("models", "recipes"):
        entries = data.get(kind)
        if isinstance(entries, dict):
            data[kind] = {
                name: {**entry, "name": name} if isinstance(entry, dict) else entry for name, entry in entries.items()
            }
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        raise MatrixError(_explain(path, text, error)) from error
    matrix = Matrix(
        path=path,
        models=file.models,
        recipes=file.recipes,
        entries=file.cells,
        measurements={str(name): value for name, value in file.measurements.items()},
        thresholds=file.thresholds,
    )
    _check_names(matrix, text)
    return matrix


def _check_names(matrix: Matrix, text: str) -> None:
    baselines = [recipe.name for recipe in matrix.recipes.values() if recipe.baseline]
    if len(baselines) != 1:
        raise MatrixError(f"{matrix.path}: recipes: exactly one needs `baseline = true`; have {baselines or 'none'}")
    for index, entry in enumerate(matrix.entries):
        if entry.hardware not in matrix.measurements:
            _raise_name(matrix, text, ("cells", index, "hardware"), entry.hardware, matrix.measurements)
        for name in entry.models:
            if name not in matrix.models:
                _raise_name(matrix, text, ("cells", index, "models"), name, matrix.models)
        for name in entry.recipes:
            if name not in matrix.recipes:
                _raise_name(matrix, text, ("cells", index, "recipes"), name, matrix.recipes)
    for index, threshold in enumerate(matrix.thresholds):
        for name in threshold.models or ():
            if name not in matrix.models:
                _raise_name(matrix, text, ("thresholds", index, "models"), name, matrix.models)
        for name in threshold.recipes or ():
            if name not in matrix.recipes:
                _raise_name(matrix, text, ("thresholds", index, "recipes"), name, matrix.recipes)
        known = METRICS[threshold.metric].parameters
        for name in threshold.parameters:
            if name not in known:
                line = locate(text, ("thresholds", index, "parameters", name))
                raise MatrixError(
                    f"{matrix.path}, line {line}: thresholds.{index}.parameters.{name}: {threshold.metric} has no such "
                    f"parameter, so the limit would never apply; {nearest(name, known)}"
                )
    for model in matrix.models.values():
        if model.random and model.random.tokenizer not in matrix.models:
            key = ("models", model.name, "random")
            _raise_name(matrix, text, key, model.random.tokenizer, matrix.models)


def _raise_name(matrix: Matrix, text: str, location: tuple[str | int, ...], name: str, known: Any) -> None:
    line = locate(text, location)
    key = ".".join(str(part) for part in location)
    raise MatrixError(f"{matrix.path}, line {line}: {key}: {name!r} is not defined; {nearest(name, known)}")


def _explain(path: Path, text: str, error: ValidationError) -> str:
    messages = []
    for problem in error.errors():
        location = problem["loc"]
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "this key does not exist here"
            known = _known_keys(location[:-1])
            if known:
                message += f"; {nearest(str(location[-1]), known)}"
        elif problem["type"] != "missing" and not isinstance(problem["input"], dict):
            message += f" (it is {problem['input']!r})"
        key = ".".join(str(part) for part in location)
        messages.append(f"{path}, line {locate(text, location)}: {key}: {message}")
    return "\n".join(messages)


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    """Return the keys that the table at ``location`` takes, following the models' fields."""
    tables: dict[str, type[BaseModel]] = {
        "models": Model,
        "recipes": Recipe,
        "cells": CellEntry,
        "measurements": Measurements,
        "thresholds": Threshold,
    }
    if not location:
        return ["schema", *tables]
    table = tables.get(str(location[0]))
    for part in location[2:]:
        field = table.model_fields.get(str(part)) if table else None
        candidates = [kind for kind in _Table.__subclasses__() if field and kind.__name__ in str(field.annotation)]
        table = candidates[0] if candidates else None
    return [name for name in table.model_fields if name != "name"] if table else []


_HEADER = re.compile(r"^\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(?:#.*)?$")


_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")


_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


def locate(text: str, location: tuple[str | int, ...]) -> int:
    """Return the line, from 1, of the key at ``location`` in TOML ``text``, or of its nearest enclosing table."""
    counts: dict[tuple[str | int, ...], int] = {}
    prefix: tuple[str | int, ...] = ()
    best, best_depth = 1, 0
    for number, line in enumerate(text.split("\n"), 1):
        header = _HEADER.match(line)
        key = None if header else _KEY.match(line)
        if header:
            prefix = ()
            parts = _parts(header.group(2))
            for depth, part in enumerate(parts, 1):
                prefix = (*prefix, part)
                if depth == len(parts) and header.group(1) == "[[":
                    counts[prefix] = counts.get(prefix, -1) + 1
                if prefix in counts:
                    prefix = (*prefix, counts[prefix])
            path = prefix
        elif key:
            path = (*prefix, *_parts(key.group(1)))
        else:
            continue
        depth = min(len(path), len(location))
        if depth > best_depth and path[:depth] == location[:depth]:
            best, best_depth = number, depth
    return best


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(dotted)]
