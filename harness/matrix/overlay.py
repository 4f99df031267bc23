"""What is laid over a matrix: a file over the one that it extends, and what a command line sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import MatrixError, nearest
from harness.base.reading import toml_value
from harness.matrix.keys import known
from harness.matrix.measurements import Measurements

SHIPPED = "shipped"
"""What a file extends that lays itself over the matrix that comes with the harness."""
_LISTS = ("thresholds",)


def laid_over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return a file's tables over those of the one that it extends.

    Tables are joined key by key; a value, and a list, takes the other's place. Thresholds are added: one more limit
    takes none away. ``cells`` replace, since they say what is run.
    """
    found = dict(base)
    for key, value in own.items():
        before = found.get(key)
        if key in _LISTS and isinstance(value, list) and isinstance(before, list):
            found[key] = before + value
        elif isinstance(value, dict) and isinstance(before, dict):
            found[key] = _joined(before, value)
        else:
            found[key] = value
    return found


def _joined(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for key, value in own.items():
        before = found.get(key)
        found[key] = _joined(before, value) if isinstance(value, dict) and isinstance(before, dict) else value
    return found


def rooted(data: dict[str, Any], folder: Path, *, models: bool) -> dict[str, Any]:
    """Return tables whose files are named from a folder: those of workloads, and of ``models`` laid under a file."""
    for model in _entries(data, "models") if models else ():
        random = model.get("random")
        if isinstance(random, dict) and isinstance(random.get("shape"), str):
            random["shape"] = str(folder / random["shape"])
    for workload in _entries(data, "workloads"):
        arrival = workload.get("arrival")
        for table, key in ((arrival, "file"), (workload, "prompts")):
            if isinstance(table, dict) and table.get(key) not in (None, "random", "sharegpt"):
                # What is no text is told of where the whole is checked.
                table[key] = str(folder / table[key]) if isinstance(table[key], str) else table[key]
    return data


def _entries(data: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    tables = data.get(kind)
    return [entry for entry in tables.values() if isinstance(entry, dict)] if isinstance(tables, dict) else []


def told(base: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """Return what a file sets of the measurements and workloads of the one that it is laid over, as ``--set`` has it.

    A workload of its own sets nothing of another.
    """
    found: list[str] = []
    for kind in ("measurements", "workloads"):
        tables, before = own.get(kind), base.get(kind)
        if isinstance(tables, dict) and isinstance(before, dict):
            for name, table in tables.items():
                if name in before and isinstance(table, dict):
                    found += leaves({key: value for key, value in table.items() if key != "name"}, (kind, name))
    return found


def leaves(tables: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield every value of nested tables after its dotted path: ``measurements.cpu.latency.rounds=3``."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from leaves(value, (*before, key))
        else:
            yield f"{'.'.join((*before, key))}={_written(value)}"


def parsed(text: str) -> tuple[tuple[str, ...], Any]:
    """Return the path and the value of ``latency.input_len=4096``.

    A value is as TOML has it, or a bare word. A path begins with a table of measurements, which is set on all hardware,
    or with ``measurements.HARDWARE`` or ``workloads.NAME``. Raises MatrixError that names what does not exist, with
    the nearest that does.
    """
    dotted, equals, value = text.partition("=")
    path = tuple(part.strip() for part in dotted.split("."))
    if not equals or not all(path):
        raise MatrixError(f"--set {text!r}: give PATH=VALUE, such as latency.input_len=4096")
    measured = list(Measurements.model_fields)
    if path[0] in measured:
        _exists(text, ("measurements", "", *path))
    elif path[0] in ("measurements", "workloads"):
        if len(path) < 3:
            raise MatrixError(f"--set {text!r}: say what of it: {path[0]}.NAME.KEY=VALUE")
        _exists(text, path)
    else:
        raise MatrixError(
            f"--set {text!r}: {path[0]!r} is nothing that can be set; "
            f"{nearest(path[0], [*measured, 'measurements', 'workloads'])}"
        )
    return path, _value(value.strip())


def _exists(text: str, path: Sequence[str]) -> None:
    for depth in range(2, len(path)):
        names = known(path[:depth])
        if names and path[depth] not in names:
            place = ".".join(part for part in path[:depth] if part) or "it"
            raise MatrixError(f"--set {text!r}: {place} has no {path[depth]!r}; {nearest(path[depth], names)}")


def _value(text: str) -> Any:
    try:
        return toml_value(f"value = {text}")["value"]
    except ValueError:
        return text


def put(data: dict[str, Any], text: str) -> list[tuple[str, ...]]:
    """Set what one ``--set`` says in the tables of a matrix; returns the places that it was set at.

    Raises MatrixError for a table that the matrix does not have.
    """
    path, value = parsed(text)
    measurements = data.get("measurements", {})
    if path[0] not in ("measurements", "workloads"):
        paths: list[tuple[str, ...]] = [
            ("measurements", name, *path) for name, table in measurements.items() if _has(table, path[0])
        ]
    else:
        names = data.get(path[0], {})
        if path[1] not in names:
            raise MatrixError(f"--set {text!r}: there is no {path[0]}.{path[1]}; {nearest(path[1], names)}")
        paths = [path]
    for place in paths:
        table = data
        for part in place[:-1]:
            before = table.get(part)
            table[part] = dict(before) if isinstance(before, dict) else {}
            table = table[part]
        table[place[-1]] = value
    return paths


def _has(table: Any, name: str) -> bool:
    """Say whether measurements have a table; one that not all have (a phone's) is set where it is alone."""
    field = Measurements.model_fields[name]
    return isinstance(table, dict) and (name in table or (not field.is_required() and name != "mobile"))


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
