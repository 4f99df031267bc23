"""What a gate is asked for, and which cells and metrics that selects."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.blocks import TASKS, THROUGH, Unit, unit_id
from harness.errors import HarnessError
from harness.matrix import Matrix, Measurements


@dataclass(frozen=True)
class Options:
    """What a gate is asked for; kept in gate.json so that a resumed gate is the same gate."""

    old: str
    new: str
    hardware: str
    models: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    keyword: str = ""
    tasks: tuple[str, ...] = ()
    data: str = ""
    limit: int | None = None
    budget: float = 1800.0
    margins: tuple[str, ...] = ()
    seed: int = 0

    def changed(self, stored: dict[str, Any]) -> list[str]:
        """Return what differs from a stored gate's options; a larger budget is no difference."""
        mine = json.loads(json.dumps(asdict(self)))
        return [
            f"{name}: {stored.get(name)!r} then, {value!r} now"
            for name, value in mine.items()
            if name != "budget" and stored.get(name) != value
        ]


def units(matrix: Matrix, options: Options) -> list[Unit]:
    """Return what is to be measured: every chosen cell through every chosen server, with the chosen metrics.

    What the matrix does not send through a server, or not through all of its stages, is not gated there either.
    """
    chosen = [
        cell
        for cell in matrix.cells(list(options.models) or None, list(options.recipes) or None)
        if cell.hardware == options.hardware
    ]
    if options.recipes:
        # Old and new are compared with each other: the baseline is measured only where it is asked for.
        chosen = [cell for cell in chosen if not cell.recipe.baseline or cell.recipe.name in options.recipes]
    found = []
    for cell in chosen:
        for server, listed in cell.servers.items():
            if server not in THROUGH or server not in (options.servers or THROUGH) or cell.refusal(server):
                continue
            through = replace(cell, server=server, measurements=_with_rounds(cell.measurements))
            for stage, measured in THROUGH[server].items():
                if stage not in listed.stages:
                    continue
                name = unit_id(through.id, stage)
                metrics = frozenset(metric for metric in measured if _selected(options.keyword, f"{name} {metric}"))
                if not options.tasks:
                    metrics -= TASKS
                if metrics:
                    found.append(Unit(through, stage, metrics))
    if not found:
        raise HarnessError(
            f"nothing to gate: no cell of {matrix.path.name} on {options.hardware} is left by the options given"
        )
    return found


def _with_rounds(wanted: Measurements) -> Measurements:
    """Return the measurements with as many rounds as a gate's block has: of serving half as many."""
    rounds = wanted.blocks.gate_rounds
    if rounds is None:
        return wanted
    return wanted.model_copy(
        update={
            "generate": wanted.generate.model_copy(update={"rounds": rounds}),
            "latency": wanted.latency.model_copy(update={"rounds": rounds}),
            # A round is a benchmark of its own, which takes several times as long as a batch.
            "serving": wanted.serving.model_copy(update={"rounds": (rounds + 1) // 2}),
        }
    )


def _selected(keyword: str, text: str) -> bool:
    """Return whether pytest's -k expression selects a name."""
    if not keyword:
        return True
    from _pytest.mark.expression import Expression

    def contains(name: str, /, **_: str | int | bool | None) -> bool:
        return name.lower() in text.lower()

    try:
        return bool(Expression.compile(keyword).evaluate(contains))
    except SyntaxError as error:
        raise HarnessError(f"-k {keyword!r}: {error}") from error
