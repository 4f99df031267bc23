"""Which hardware of a matrix is here, and which stands for a group of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from harness.machine import probe
from harness.matrix.hardware import Hardware
from harness.matrix.plan import Matrix


def of_group(matrix: Matrix, name: str) -> Hardware | None:
    """Return the member of a group that is here, or else its first, which stands for all; None if it has none.

    A hardware stands for itself. Raises MatrixError for a name that is neither.
    """
    members = matrix.members(name)
    return next((it for it in members if not probe.missing(it)), next(iter(members), None))


def standing(matrix: Matrix) -> dict[str, Hardware]:
    """Return for each group that has members the one that stands for it."""
    return {group: it for group in matrix.groups if (it := of_group(matrix, group))}


def meant(matrix: Matrix, standing: Mapping[str, Hardware], named: Collection[str] = ()) -> dict[str, list[str]]:
    """Return of each group the members that cells are for: the one that stands for it, and those that are named."""
    return {
        group: [it.name for it in matrix.members(group) if it == standing.get(group) or it.name in named]
        for group in matrix.groups
    }


def looked_for(matrix: Matrix) -> list[Hardware]:
    """Return the hardware that a machine is asked for when none is named: of a group the one that stands for it."""
    of = meant(matrix, standing(matrix))
    tables = {entry.hardware for entry in matrix.entries}
    asked = {name for table in tables for name in of.get(table, (table,))}
    return [it for it in matrix.hardware.values() if not it.groups or it.name in asked]
