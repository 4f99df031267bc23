"""Which recipe works under which version, and which version reads whose checkpoints: tables of several gates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from harness.base.errors import HarnessError
from harness.judge.gatefile import GateFile, State, Works
from harness.judge.rules import LOGITS, OLD_CHECKPOINT, QUANTIZE
from harness.records.place import Place
from harness.report.lines import NOTHING
from harness.report.rendering import Table

_LONGEST = 200

Row = tuple[str, str]
"""A model and a recipe."""


@dataclass(frozen=True)
class _Tried:
    """A stage of one recipe through one server under one version."""

    stage: str
    server: str
    state: State
    error: str


@dataclass(frozen=True)
class _Read:
    """What a newer version makes of an older one's checkpoint through one server, and why not more."""

    says: str
    why: str = ""


_WORST = ("fails", "reads, predicts otherwise", "reads", NOTHING)


def tables(gates: Sequence[GateFile]) -> list[Table]:
    """Return three tables of gates of one package: recipes by version, old checkpoints by pair of versions, and why.

    A recipe works under a version where each stage that was tried does, through each server; of several gates that
    tried one the latest tells. Raises HarnessError where gates are of several packages or hardware, or of sides that
    are not ``PACKAGE==VERSION``.
    """
    package, versions = _sides(gates)
    tried: dict[tuple[Row, str], dict[tuple[str, str], _Tried]] = {}
    read: dict[tuple[Row, str], dict[str, _Read]] = {}
    pairs: dict[tuple[str, str], str] = {}
    for gate in sorted(gates, key=lambda gate: gate.created):
        sides = {"old": _version(gate.old), "new": _version(gate.new)}
        pair = pairs.setdefault((sides["old"], sides["new"]), f"{sides['old']} read by {sides['new']}")
        for it in gate.compatibility:
            told, _, error = (it.error or "").partition(": ")
            if it.stage == OLD_CHECKPOINT:
                if (found := _reading(gate, it, error)).says != NOTHING:
                    read.setdefault((_row(it.place), pair), {})[it.place.server] = found
                continue
            for side, state in (("old", it.old), ("new", it.new)):
                one = _Tried(it.stage, it.place.server, state, error if told == side else "")
                stages = tried.setdefault((_row(it.place), sides[side]), {})
                if state != "not tried" or (it.stage, it.place.server) not in stages:
                    stages[it.stage, it.place.server] = one
    rows = list(dict.fromkeys(row for row, _ in tried))
    columns = [pairs[pair] for pair in sorted(pairs, key=lambda pair: tuple(map(_order, pair)))]
    several = len({model for model, _ in rows}) > 1
    on = f"{package} on {', '.join(dict.fromkeys(gate.hardware for gate in gates))}"
    return [
        _table(
            f"Recipes under {on}", versions, rows, several, lambda row, it: _state(tried.get((row, it), {}).values())
        ),
        _table(
            f"Checkpoints of an older version of {on}",
            columns,
            rows,
            several,
            lambda row, it: min(
                (one.says for one in read.get((row, it), {}).values()), key=_WORST.index, default=NOTHING
            ),
        ),
        _why(rows, versions, columns, several, tried, read),
    ]


def _sides(gates: Sequence[GateFile]) -> tuple[str, list[str]]:
    packages = list(dict.fromkeys(gate.package for gate in gates))
    hardware = list(dict.fromkeys(gate.hardware for gate in gates))
    for what, found in (("packages", packages), ("hardware", hardware)):
        if len(found) > 1:
            raise HarnessError(f"gates of several {what} make no one table: {', '.join(found)}; name those of one")
    versions = dict.fromkeys(_version(side) for gate in gates for side in (gate.old, gate.new))
    return packages[0], sorted(versions, key=_order)


def _version(side: str) -> str:
    name, separator, version = side.partition("==")
    if not separator or len(version.split()) != 1:
        raise HarnessError(f"a gate of {side!r} is not of one package's version, as {name.split()[0]}==VERSION is")
    return version


def _order(version: str) -> tuple[int, Version | str]:
    try:
        return 0, Version(version)
    except InvalidVersion:
        return 1, version


def _row(place: Place) -> Row:
    return place.model, place.recipe


def _table(
    title: str, columns: Sequence[str], rows: Iterable[Row], several: bool, cell: Callable[[Row, str], str]
) -> Table:
    lines = ((*_named(row, several), *(cell(row, column) for column in columns)) for row in rows)
    kept = tuple(line for line in lines if any(it != NOTHING for it in line[1 + several :]))
    return Table(title, "", (*_named(("model", "recipe"), several), *columns), kept)


def _named(row: Row, several: bool) -> Row | tuple[str]:
    return row if several else row[1:]


def _state(found: Collection[_Tried]) -> str:
    failed = [it for it in found if it.state == "fails"]
    if failed:
        stages = dict.fromkeys(f"{it.stage} ({it.server})" if it.server else it.stage for it in failed)
        return f"fails: {', '.join(stages)}"
    if not any(it.state in ("works", "at load") for it in found):
        return NOTHING
    saved = any(it.stage == QUANTIZE and it.state != "at load" for it in found)
    return "works" if saved else "works, quantized at load"


def _reading(gate: GateFile, it: Works, error: str) -> _Read:
    if it.new == "not tried":
        return _Read(NOTHING)
    if it.new == "fails":
        return _Read("fails", error)
    verdict = next((one for one in gate.verdicts if one.metric == LOGITS and _same(one.place, it.place)), None)
    if verdict and verdict.verdict == "regressed":
        return _Read("reads, predicts otherwise", verdict.detail)
    return _Read("reads")


def _same(one: Place, other: Place) -> bool:
    return one.named.cell == other.named.cell


def _why(
    rows: Iterable[Row],
    versions: Sequence[str],
    pairs: Sequence[str],
    several: bool,
    tried: Mapping[tuple[Row, str], Mapping[tuple[str, str], _Tried]],
    read: Mapping[tuple[Row, str], Mapping[str, _Read]],
) -> Table:
    lines = []
    for row in rows:
        told: dict[tuple[str, str], dict[str, None]] = {}
        for under in versions:
            for it in tried.get((row, under), {}).values():
                told.setdefault((it.stage, it.error), {})[under] = None
        for under in pairs:
            for one in read.get((row, under), {}).values():
                told.setdefault((OLD_CHECKPOINT, one.why), {})[under] = None
        lines += [
            (*_named(row, several), ", ".join(under), stage, _short(error))
            for (stage, error), under in told.items()
            if error
        ]
    return Table("Why", "", (*_named(("model", "recipe"), several), "under", "stage", "error"), tuple(lines))


def _short(error: str) -> str:
    words = " ".join(error.split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]} ..."
