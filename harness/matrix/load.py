"""Reads matrix.toml and says where in it a mistake lies."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from harness.base.errors import MatrixError, nearest
from harness.base.reading import toml_value
from harness.matrix.hardware import IMPLIED_GROUPS, Hardware, Needs
from harness.matrix.plan import Matrix
from harness.matrix.schema import (
    CellEntry,
    Measurements,
    Model,
    Recipe,
    TaskOptions,
    Threshold,
    _File,
    _Table,
)
from harness.matrix.texts import PATTERNS
from harness.records.metrics import METRICS

Location = tuple[str | int, ...]


def load(path: Path, servers: Collection[str] | None = None) -> Matrix:
    """Read and check a matrix file; ``servers`` are the names that it may give one, any if left out.

    Raises MatrixError naming file, line and key for a syntax error, a key that does not exist, a wrong type or
    unit, and a name that nothing defines.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MatrixError(f"{path}: cannot be read ({error})") from error
    try:
        data = toml_value(text)
    except ValueError as error:
        raise MatrixError(f"{path}: not valid TOML: {error}") from error
    where = _Place(path, text)
    for kind in ("models", "recipes", "hardware"):
        entries = data.get(kind)
        if isinstance(entries, dict):
            data[kind] = {
                name: {**entry, "name": name} if isinstance(entry, dict) else entry for name, entry in entries.items()
            }
    if isinstance(data.get("measurements"), dict):
        data["measurements"] = _alike(where, data["measurements"])
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        raise MatrixError(_explain(path, text, error)) from error
    matrix = Matrix(
        path=path,
        models=file.models,
        recipes=file.recipes,
        hardware=_grouped(file),
        groups=tuple(dict.fromkeys((*file.groups, *IMPLIED_GROUPS))),
        entries=file.cells,
        measurements=file.measurements,
        thresholds=file.thresholds,
        tasks=file.tasks,
        pass_env=tuple(file.pass_env),
        servers=tuple(servers) if servers is not None else _named(file),
    )
    if problems := list(_misnamed(matrix, file, where)):
        raise MatrixError("\n".join(problems))
    return matrix


@dataclass(frozen=True)
class _Place:
    """A matrix file, as errors name it."""

    path: Path
    text: str

    def told(self, location: Location, problem: str) -> str:
        key = ".".join(str(part) for part in location)
        return f"{self.path}, line {locate(self.text, location)}: {key}: {problem}"

    def unknown(self, location: Location, names: Iterable[str], known: Collection[str]) -> Iterator[str]:
        """Yield what is wrong with each name of a list that is not known."""
        for index, name in enumerate(names):
            if name not in known:
                yield self.told((*location, index), f"{name!r} is not defined; {nearest(name, known)}")


def _alike(where: _Place, tables: dict[str, Any]) -> dict[str, Any]:
    """Return the tables of measurements, each that is ``like`` another with what that one has and it has not."""

    def whole(name: str, after: tuple[str, ...]) -> Any:
        table = tables[name]
        if not isinstance(table, dict) or "like" not in table:
            return table
        other, location = table["like"], ("measurements", name, "like")
        if other not in tables:
            raise MatrixError(where.told(location, f"{other!r} is not defined; {nearest(str(other), tables)}"))
        if other in (*after, name):
            circle = " is like ".join((*after, name, other))
            raise MatrixError(where.told(location, f"{circle}: one of them must say for itself"))
        base = whole(other, (*after, name))
        own = {key: value for key, value in table.items() if key != "like"}
        return {**base, **own} if isinstance(base, dict) else base

    return {name: whole(name, ()) for name in tables}


def _grouped(file: _File) -> dict[str, Hardware]:
    """Return the hardware, each with the groups that it belongs to: the file's own, then what follows from a vendor."""
    found = {}
    for name, entry in file.hardware.items():
        own = [group for group, members in file.groups.items() if name in members]
        implied = [group for group in entry.implied_groups if group not in file.groups]
        found[name] = entry.model_copy(update={"groups": (*own, *implied)})
    return found


def _named(file: _File) -> tuple[str, ...]:
    """Return every server that a file names."""
    lists = [recipe.servers for recipe in file.recipes.values()] + [entry.servers for entry in file.cells]
    return tuple(dict.fromkeys(name for names in lists for name in names))


def _misnamed(matrix: Matrix, file: _File, where: _Place) -> Iterator[str]:
    """Yield what is wrong with the names by which the tables of a file speak of each other."""
    baselines = [recipe.name for recipe in matrix.recipes.values() if recipe.baseline]
    if len(baselines) != 1:
        yield f"{matrix.path}: recipes: exactly one needs `baseline = true`; have {baselines or 'none'}"
    places = [*matrix.hardware, *matrix.groups]
    for name, entry in file.hardware.items():
        if entry.groups:
            yield where.told(("hardware", name, "groups"), "a group lists its members: [groups]")
        if name in matrix.groups:
            yield where.told(("hardware", name), "a group is called so; give the hardware another name")
    for name, members in file.groups.items():
        yield from where.unknown(("groups", name), members, matrix.hardware)
    for name in matrix.measurements:
        if name not in places:
            yield where.told(("measurements", name), f"{name!r} is not defined; {nearest(name, places)}")
    defined: dict[str, Collection[str]] = {
        "models": matrix.models,
        "recipes": matrix.recipes,
        "hardware": places,
        "servers": matrix.servers,
    }
    for recipe in matrix.recipes.values():
        yield from _of_recipe(matrix, where, recipe, places)
    for index, cells in enumerate(matrix.entries):
        yield from _of_cells(matrix, where, ("cells", index), cells, defined)
    for index, threshold in enumerate(matrix.thresholds):
        for kind, known in defined.items():
            yield from where.unknown(("thresholds", index, kind), getattr(threshold, kind) or (), known)
        yield from where.unknown(("thresholds", index, "chosen_on"), threshold.chosen_on or (), matrix.models)
        parameters = METRICS[threshold.metric].parameters
        for name in threshold.parameters:
            if name not in parameters:
                yield where.told(
                    ("thresholds", index, "parameters", name),
                    f"{threshold.metric} has no such parameter, so the limit would never apply; "
                    f"{nearest(name, parameters)}",
                )
    for model in matrix.models.values():
        if model.random and model.random.tokenizer not in matrix.models:
            lender = model.random.tokenizer
            problem = f"{lender!r} is not defined; {nearest(lender, matrix.models)}"
            yield where.told(("models", model.name, "random"), problem)


def _of_cells(
    matrix: Matrix, where: _Place, location: Location, entry: CellEntry, defined: Mapping[str, Collection[str]]
) -> Iterator[str]:
    for kind, names in (("models", entry.models), ("recipes", entry.recipes), ("servers", entry.servers)):
        yield from where.unknown((*location, kind), names, defined[kind])
    if entry.hardware not in defined["hardware"]:
        problem = f"{entry.hardware!r} is not defined; {nearest(entry.hardware, defined['hardware'])}"
        yield where.told((*location, "hardware"), problem)
        return
    for hardware in matrix.members(entry.hardware):
        if hardware.pick(matrix.measurements) is None:
            there = f"known: {', '.join(matrix.measurements)}"
            problem = f"there is no [measurements.{hardware.name}], nor one of a group of it; {there}"
            yield where.told((*location, "hardware"), problem)


def _of_recipe(matrix: Matrix, where: _Place, recipe: Recipe, places: Collection[str]) -> Iterator[str]:
    location = ("recipes", recipe.name)
    yield from where.unknown((*location, "kernels"), recipe.kernels, places)
    yield from where.unknown((*location, "servers"), recipe.servers, matrix.servers)
    for name in recipe.reasons:
        if name not in places and name not in matrix.servers:
            known = nearest(name, [*places, *matrix.servers])
            problem = f"{name!r} is neither a hardware, nor a group, nor a server; {known}"
            yield where.told((*location, "reasons", name), problem)


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
        elif problem["type"] == "string_pattern_mismatch" and (meant := PATTERNS.get(problem["ctx"]["pattern"])):
            message = f"{problem['input']!r} is not {meant}"
        elif problem["type"] != "missing" and not isinstance(problem["input"], dict):
            message += f" (it is {problem['input']!r})"
        key = ".".join(str(part) for part in location)
        messages.append(f"{path}, line {locate(text, location)}: {key}: {message}")
    return "\n".join(messages)


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    """Return the keys that the table at ``location`` takes, following the models' fields."""
    tables: dict[str, type[BaseModel]] = {
        "hardware": Hardware,
        "groups": _Table,
        "models": Model,
        "recipes": Recipe,
        "tasks": TaskOptions,
        "cells": CellEntry,
        "measurements": Measurements,
        "thresholds": Threshold,
    }
    if not location:
        return ["schema", *tables]
    table = tables.get(str(location[0]))
    if len(location) > 2 and location[0] == "recipes" and location[2] == "needs":
        return list(Needs.model_fields)
    for part in location[2:]:
        field = table.model_fields.get(str(part)) if table else None
        candidates = [kind for kind in _Table.__subclasses__() if field and kind.__name__ in str(field.annotation)]
        table = candidates[0] if candidates else None
    return [name for name in table.model_fields if name not in ("name", "groups")] if table else []


_HEADER = re.compile(r"^\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(?:#.*)?$")


_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")


_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


def locate(text: str, location: Location) -> int:
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
