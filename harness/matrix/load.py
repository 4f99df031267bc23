"""Reads matrix.toml and says where in it a mistake lies."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.base import shipped
from harness.base.errors import MatrixError, nearest
from harness.base.reading import toml_value
from harness.matrix import overlay
from harness.matrix.hardware import IMPLIED_GROUPS, Hardware
from harness.matrix.keys import known as known_keys
from harness.matrix.plan import Matrix
from harness.matrix.schema import CellEntry, File, Recipe
from harness.matrix.texts import PATTERNS
from harness.records.metrics import METRICS

Location = tuple[str | int, ...]
_MOST = 8
_KNOWN = re.compile(r" \(known: [^()]{100,}\)$")
_SHIPPED = 'extends = "shipped" takes from the shipped matrix what a file does not say'


def load(path: Path, servers: Collection[str] | None = None, settings: Sequence[str] = ()) -> Matrix:
    """Read and check a matrix file; ``servers`` are the names that it may give one, any if left out.

    A file with ``extends = "shipped"``, or another file's path, is laid over that one. ``settings`` are laid over all,
    as ``--set`` has them: ``latency.input_len=4096``.

    Raises MatrixError naming file, line and key for a syntax error, a key that does not exist, a wrong type or
    unit, and a name that nothing defines.
    """
    data, where, told = _read(path)
    put: dict[Location, str] = {place: text for text in settings for place in overlay.put(data, text)}
    try:
        file = File.model_validate(data)
    except ValidationError as error:
        raise MatrixError(_explain(where, error, put)) from error
    matrix = Matrix(
        path=path,
        models=file.models,
        recipes=file.recipes,
        hardware=_grouped(file),
        groups=tuple(dict.fromkeys((*file.groups, *IMPLIED_GROUPS))),
        entries=file.cells,
        measurements=file.measurements,
        workloads=file.workloads,
        thresholds=file.thresholds,
        tasks=file.tasks,
        pass_env=tuple(file.pass_env),
        servers=tuple(servers) if servers is not None else _named(file),
        settings=(*told, *settings),
    )
    if problems := list(_misnamed(matrix, file, where)):
        raise MatrixError(_few(problems))
    return matrix


def _read(path: Path, after: tuple[Path, ...] = ()) -> tuple[dict[str, Any], _Place, list[str]]:
    """Return the tables of a file over those that it extends, where they stand, and what it sets of measurements."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MatrixError(f"{path}: cannot be read ({error})") from error
    try:
        data = toml_value(text)
    except ValueError as error:
        raise MatrixError(f"{path}: not valid TOML: {error}") from error
    if not data:
        raise MatrixError(f"{path}: there is nothing in it; {_SHIPPED}, and `harness init DIR` writes a whole one")
    where = _Place(path, text)
    told: list[str] = []
    extends = data.pop("extends", None)
    for kind in ("models", "recipes", "hardware", "workloads"):
        entries = data.get(kind)
        if isinstance(entries, dict):
            data[kind] = {
                name: {**entry, "name": name} if isinstance(entry, dict) else entry for name, entry in entries.items()
            }
    data = overlay.rooted(data, path.parent, models=bool(after))
    if extends is not None:
        if not isinstance(extends, str):
            raise MatrixError(where.told(("extends",), f"{extends!r} is neither {overlay.SHIPPED!r} nor a file's path"))
        other = shipped.suites() / shipped.MATRIX if extends == overlay.SHIPPED else path.parent / extends
        if other.resolve() in (path.resolve(), *after):
            raise MatrixError(where.told(("extends",), f"{other} is this file, or extends it"))
        base, beneath, told = _read(other, (*after, path.resolve()))
        told += overlay.told(base, data)
        data = overlay.laid_over(base, data)
        where = _Place(path, text, beneath)
    if isinstance(data.get("measurements"), dict):
        data["measurements"] = _alike(where, data["measurements"])
    return data, where, told


@dataclass(frozen=True)
class _Place:
    """A matrix file, as errors name it, and the one that it is laid over."""

    path: Path
    text: str
    beneath: _Place | None = None

    def told(self, location: Location, problem: str) -> str:
        key = ".".join(str(part) for part in location)
        return f"{self.line(location)}: {key}: {problem}"

    def line(self, location: Location) -> str:
        """Return the file and the line of a key: in this file, unless the other one has more of it."""
        line, depth = _found(self.text, location)
        if self.beneath is not None and _found(self.beneath.text, location)[1] > depth:
            return self.beneath.line(location)
        return f"{self.path}, line {line}"

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


def _grouped(file: File) -> dict[str, Hardware]:
    """Return the hardware, each with the groups that it belongs to: the file's own, then what follows from a vendor."""
    found = {}
    for name, entry in file.hardware.items():
        own = [group for group, members in file.groups.items() if name in members]
        implied = [group for group in entry.implied_groups if group not in file.groups]
        found[name] = entry.model_copy(update={"groups": (*own, *implied)})
    return found


def _named(file: File) -> tuple[str, ...]:
    """Return every server that a file names."""
    lists = [recipe.servers for recipe in file.recipes.values()] + [entry.servers for entry in file.cells]
    return tuple(dict.fromkeys(name for names in lists for name in names))


def _misnamed(matrix: Matrix, file: File, where: _Place) -> Iterator[str]:
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
    for name, wanted in matrix.measurements.items():
        yield from where.unknown(("measurements", name, "load", "workloads"), wanted.load.workloads, matrix.workloads)
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


def _explain(where: _Place, error: ValidationError, put: Mapping[Location, str]) -> str:
    """Say where each mistake lies: in a file, or in a setting of the command line, which ``put`` has by its place."""
    messages = []
    for problem in error.errors():
        location = problem["loc"]
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "this key does not exist here"
            known = known_keys(location[:-1])
            if known:
                message += f"; {nearest(str(location[-1]), known)}"
        elif problem["type"] == "string_pattern_mismatch" and (meant := PATTERNS.get(problem["ctx"]["pattern"])):
            message = f"{problem['input']!r} is not {meant}"
        elif problem["type"] == "missing":
            message = "this key is required, and missing" + ("" if location[1:] else f"; {_SHIPPED}")
        elif not isinstance(problem["input"], dict):
            message += f" (it is {problem['input']!r})"
        setting = next((text for place, text in put.items() if location[: len(place)] == place), None)
        setting = setting or next((text for place, text in put.items() if place[: len(location)] == location), None)
        told = where.told(location, message)
        messages.append(f"--set {setting!r}: {message}" if setting else told)
    return _few(list(dict.fromkeys(messages)))


def _few(problems: Sequence[str]) -> str:
    """Return some of many mistakes, which often are one; what is known is listed once, where that is long."""
    found: list[str] = []
    listed: set[str] = set()
    # One more takes no more room than to say so.
    for problem in problems[: _MOST if len(problems) > _MOST + 1 else None]:
        known = _KNOWN.search(problem)
        found.append(problem[: known.start()] if known and known[0] in listed else problem)
        listed |= {known[0]} if known else set()
    more = len(problems) - len(found)
    return "\n".join([*found, *([f"and {more} more mistakes"] if more else [])])


_HEADER = re.compile(r"^\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(?:#.*)?$")


_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")


_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


def locate(text: str, location: Location) -> int:
    """Return the line, from 1, of the key at ``location`` in TOML ``text``, or of its nearest enclosing table."""
    return _found(text, location)[0]


def _found(text: str, location: Location) -> tuple[int, int]:
    """Return the line of a key, or of its nearest enclosing table, and how many parts of its place that has."""
    best, best_depth = 1, 0
    for number, path in _places(text):
        depth = min(len(path), len(location))
        if depth > best_depth and path[:depth] == location[:depth]:
            best, best_depth = number, depth
    return best, best_depth


# Of many mistakes each is looked for in the same text.
@functools.lru_cache(maxsize=4)
def _places(text: str) -> list[tuple[int, Location]]:
    """Return the lines of TOML that have a table's header or a key, each with its place."""
    counts: dict[Location, int] = {}
    prefix: Location = ()
    found: list[tuple[int, Location]] = []
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
            found.append((number, prefix))
        elif key:
            found.append((number, (*prefix, *_parts(key.group(1)))))
    return found


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(dotted)]
