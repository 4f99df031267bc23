"""The parts of a gate that several devices measured as one gate.json, and a part of one that is gone on with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.gate import identity
from harness.gate.plan import Unit
from harness.judge import gatefile
from harness.judge.gatefile import GateFile, Works
from harness.judge.rules import EVENTS, MEASURING
from harness.judge.series import Series
from harness.judge.verdict import Verdict, event
from harness.records.place import Place

_ALIKE = ("environments", "contents", "interpreter")
_STATES = ("fails", "at load", "works", "not tried")


def alike(gate: GateFile) -> dict[str, Any]:
    """Return what all devices of one gate must have measured with."""
    return {name: getattr(gate, name) for name in _ALIKE}


def whole(
    parts: Sequence[GateFile],
    controlled: Iterable[Verdict],
    missing: Mapping[str, tuple[Unit, str]],
    *,
    moved: Sequence[str],
    begun: Mapping[str, Any],
) -> GateFile:
    """Return the gate that its parts make up.

    ``controlled`` are the verdicts on all figures together, which are one family; of the parts' own only those on what
    happened stand. ``missing`` are the units that no node measured to their end, with why: each is an error, so that
    no gate passes without them. ``moved`` are the parts that more than one device had blocks of. ``begun`` is what
    the gate is, whatever was measured.
    """
    happened: dict[Place, Verdict] = {}
    for verdict in sorted((it for part in parts for it in part.verdicts), key=lambda it: it.severity):
        if verdict.metric in EVENTS:
            happened.setdefault(verdict.place.named, verdict)
    lost = [event(_about(unit), "error", "no-node", why) for unit, why in missing.values()]
    verdicts = sorted([*controlled, *happened.values(), *lost], key=lambda verdict: verdict.severity)
    first = parts[0] if parts else None
    rows: dict[tuple[Place, str], Works] = {}
    for row in (row for part in parts for row in part.compatibility):
        key = (row.place.named, row.stage)
        rows[key] = _together(rows[key], row) if key in rows else row
    more: dict[str, Any] = {}
    if first:
        more = alike(first) | {"package": first.package, "old": first.old, "new": first.new, "device": first.device}
    changes = [it for part in parts for it in part.kernels]
    remarks = [remark for part in parts for remark in part.remarks]
    if moved:
        remarks.append(
            f"measured on several devices in turn: {', '.join(moved)}; both sides of each block are of one device"
        )
    return GateFile(
        **{
            **begun,
            **more,
            "measuring_seconds": round(sum(part.measuring_seconds for part in parts), 1),
            "differences": list(first.differences) if first else [],
            "verdicts": verdicts,
            "compatibility": list(rows.values()),
            "kernels": [it for number, it in enumerate(changes) if it not in changes[:number]],
            "profiles": [it for part in parts for it in part.profiles],
            "exit_status": gatefile.exit_status(verdicts, finished=bool(begun["finished"])),
            "units": {name: state for part in parts for name, state in part.units.items()},
            "remarks": list(dict.fromkeys(remarks)),
        }
    )


def part_of(gate: GateFile, units: Sequence[Unit]) -> GateFile | None:
    """Return the part of a stored gate that some units are; None where none of them was begun."""
    states = {unit.id: gate.units[unit.id] for unit in units if unit.id in gate.units}
    if not states:
        return None
    cells = {(unit.cell.model.name, unit.cell.recipe.name) for unit in units}

    def ours(place: Place) -> bool:
        return (place.model, place.recipe) in cells

    return gate.model_copy(
        update={
            "seconds": 0.0,
            "measuring_seconds": 0.0,
            "units": states,
            "verdicts": [it for it in gate.verdicts if ours(it.place) and it.reason != "no-node"],
            "compatibility": [it for it in gate.compatibility if ours(it.place)],
            "kernels": [it for it in gate.kernels if ours(it.place)],
            "profiles": [it for it in gate.profiles if ours(it.place)],
            "matrix": identity.matrix_of(units),
            "remarks": [],
        }
    )


def _together(one: Works, other: Works) -> Works:
    """Return a row that two parts have: what failed on either fails."""
    worse = {side: min(getattr(one, side), getattr(other, side), key=_STATES.index) for side in ("old", "new")}
    return replace(one, **worse, error=one.error or other.error)


def _about(unit: Unit) -> Series:
    return Series(replace(unit.place, metric=MEASURING))
