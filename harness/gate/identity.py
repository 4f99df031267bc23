"""What a gate's samples depend on beside its options: a gate that is resumed must find all of it as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.base.secrets import cleaned
from harness.gate.plan import Unit
from harness.judge.gatefile import GateFile
from harness.judge.series import SIDES
from harness.runtime.environment import Environment
from harness.runtime.environment_pair import Pair


def made_of(pair: Pair, base: Environment, units: Sequence[Unit]) -> dict[str, Any]:
    """Return packages, contents, interpreter and what the matrix has of the units' cells, as gate.json holds them."""
    return {
        "environments": {side: pair.side(side).packages() for side in SIDES},
        "contents": dict(pair.contents),
        "interpreter": base.interpreter(),
        "matrix": matrix_of(units),
    }


def matrix_of(units: Sequence[Unit]) -> dict[str, Any]:
    """Return what the matrix has of the units' cells, as gate.json holds it."""
    cells = {unit.id: unit.cell for unit in units}
    return {
        "cells": dict.fromkeys(cells, "measured"),
        "models": {cell.model.name: cell.model.model_dump(mode="json") for cell in cells.values()},
        "recipes": {cell.recipe.name: cell.recipe.model_dump(mode="json") for cell in cells.values()},
        "measurements": next(iter(cells.values())).measurements.model_dump(mode="json"),
    }


def changed(stored: GateFile, now: dict[str, Any]) -> list[str]:
    """Return what is not as it was when a stored gate was begun, in words."""
    return differing({name: getattr(stored, name) for name in now}, now)


def differing(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what is not the same in two of what :func:`made_of` gives, or of parts of it, in words."""
    before, after = _flat(cleaned(then)), _flat(cleaned(now))
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    shown = [f"{name}: {before.get(name, 'none')} then, {after.get(name, 'none')} now" for name in names[:8]]
    return shown + ([f"and {len(names) - 8} more"] if len(names) > 8 else [])


def _flat(data: Any, name: str = "") -> dict[str, Any]:
    """Return nested JSON as one level of dotted names."""
    if not isinstance(data, dict):
        return {name: data}
    return {
        inner: value for key, part in data.items() for inner, value in _flat(part, f"{name}.{key}".strip(".")).items()
    }
