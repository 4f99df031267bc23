"""JSON and TOML that others wrote, read so that whatever a file holds is data or a ValueError."""

from __future__ import annotations

import codecs
import json
import math
import re
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_DEPTH = 100
"""How deeply what is read may be nested: far beyond any file of ours, far below what Python and pydantic can walk."""

_LARGEST = 1 << 1000
_LONG = b"0" * len(str(_LARGEST))
# Half of a character: alone it can be written nowhere.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_AS_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)


def json_value(text: str | bytes, *, finite: bool = False, once: bool = False) -> Any:
    """Return what a JSON text holds.

    Raises ValueError for what is no JSON or no UTF-8, is nested more than :data:`MOST_DEPTH` deep, or has an integer
    of more than 1000 bits; with ``finite`` also for a number that is not finite, by its dotted name, and with ``once``
    for a name that an object has twice, of which other readers would take another value.
    """
    data = text.encode() if isinstance(text, str) else text.removeprefix(codecs.BOM_UTF8)
    try:
        found = json.loads(data.decode(), object_pairs_hook=_once if once else None)
    except RecursionError:
        raise ValueError(f"nested more than {MOST_DEPTH} deep") from None
    if finite or not is_plain(data):
        _check(found, finite)
    return found


def is_plain(data: bytes) -> bool:
    """Return whether a JSON text can hold nothing that :func:`json_value` refuses, by a glance at its bytes."""
    # Nothing is nested deeper than it has brackets, and no number is longer than its digits.
    return (
        data.count(b"{") + data.count(b"[") <= MOST_DEPTH
        and _LONG not in data.translate(_AS_ZEROS)
        and not _SURROGATE.search(data)
    )


def json_file(path: Path, *, finite: bool = False, once: bool = False) -> Any:
    """Return what a JSON file holds; raises OSError, and ValueError as :func:`json_value` does."""
    return json_value(path.read_bytes(), finite=finite, once=once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:99]!r} stands twice in one object: nothing says which of its values is meant")
    return found


def toml_value(text: str) -> dict[str, Any]:
    """Return what a TOML text holds; raises ValueError as :func:`json_value` does."""
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {MOST_DEPTH} deep") from None
    _check(found, False)
    return found


def check_pattern(text: str) -> None:
    """Raise ValueError, naming what is wrong with it, unless a text is a regular expression that Python compiles."""
    try:
        with warnings.catch_warnings():
            # Of `[[`, which some later Python may take for a set within a set: until then it is what it is.
            warnings.simplefilter("ignore", FutureWarning)
            re.compile(text)
    except RecursionError:
        raise ValueError(f"{text[:40]!r}... is not a regular expression that can be read: nested too deep") from None
    except (re.error, OverflowError) as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from error


def _check(data: Any, finite: bool) -> None:
    for name, depth, value in _parts(data):
        if depth > MOST_DEPTH:
            raise ValueError(f"nested more than {MOST_DEPTH} deep")
        for text in (value, *value) if isinstance(value, dict) else (value,):
            if isinstance(text, str) and not text.isascii():
                _encoded(name, text)
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise ValueError(f"{_told(name)} is an integer of {value.bit_length()} bits; at most 1000 are read")
        if finite and isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{_told(name)} is {value}: not a finite number")


def _encoded(name: tuple[Any, ...], text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{_told(name)} holds half of a character") from None


def _told(name: tuple[Any, ...]) -> str:
    parts: list[str] = []
    while name:
        name, part = name
        parts.append(str(part))
    return ".".join(reversed(parts)) or "the whole file"


def _parts(data: Any) -> Iterator[tuple[tuple[Any, ...], int, Any]]:
    """Yield every value with its name, as pairs of the name around it and its own, and its depth; without recursion."""
    pending: list[tuple[tuple[Any, ...], int, Any]] = [((), 0, data)]
    while pending:
        name, depth, value = pending.pop()
        yield name, depth, value
        if isinstance(value, dict):
            pending += [((name, key), depth + 1, part) for key, part in value.items()]
        elif isinstance(value, list):
            pending += [((name, index), depth + 1, part) for index, part in enumerate(value)]
