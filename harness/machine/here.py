"""Which hardware of a matrix is here, which stands for a group of it, and a GPU that no entry of it is for."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from harness.machine import probe
from harness.machine.vendors import VENDORS
from harness.matrix.hardware import Hardware
from harness.matrix.plan import Matrix


def whole(matrix: Matrix) -> Matrix:
    """Return the matrix with an entry for the GPU that is here, if none of its own is for it.

    What it is its driver says; what is measured on it, and which cells it has, is said of its groups. Raises
    MatrixError if several entries are for it.
    """
    for name in VENDORS:
        product, problem = probe.product(name)
        if not problem and (unlisted := _unlisted(matrix, name, product)):
            matrix = matrix.with_hardware(unlisted)
    return matrix


def _unlisted(matrix: Matrix, vendor: str, product: str) -> Hardware | None:
    if matrix.entry_of(vendor, product):
        return None
    capability = VENDORS[vendor].capability()
    plain = re.sub(r"[^a-z0-9]+", "-", product.lower().removeprefix(vendor)).strip("-") or vendor
    taken = {*matrix.hardware, *matrix.groups}
    siblings = [it for it in matrix.hardware.values() if it.vendor == vendor]
    found = Hardware.model_validate(
        {
            "name": plain if plain not in taken else f"{vendor}-{plain}",
            "meaning": f"the GPU that is here, {product}, which no entry of {matrix.path.name} is for",
            "vendor": vendor,
            "match": f"^{re.escape(product)}$",
            "capability": capability,
            "arithmetic": VENDORS[vendor].arithmetic(capability),
            "install": siblings[0].install if siblings else "",
        }
    )
    return found.model_copy(update={"groups": found.implied_groups})


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
