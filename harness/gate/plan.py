"""What a gate is asked for, and which cells and metrics that selects."""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.base.errors import HarnessError, nearest
from harness.base.expressions import finds, unmatched
from harness.judge.gatefile import Options, UnitState
from harness.judge.rules import RULES
from harness.judge.series import unit_of
from harness.matrix.plan import Cell, Matrix
from harness.measure.fleet import gated
from harness.records.metric import Stage
from harness.records.metrics import OF_LOAD, SIZES, TASKS
from harness.records.place import Place


def units(matrix: Matrix, options: Options, *, words: bool = False) -> list[Unit]:
    """Return what is to be measured: every chosen cell through every chosen server, with the chosen metrics.

    Raises HarnessError where nothing is left, and with ``words`` also for a word that -k asks for and that no cell and
    no metric has in its name.
    """
    chosen = [
        cell
        for cell in matrix.cells(list(options.models) or None, list(options.recipes) or None)
        if cell.hardware.name == options.hardware
    ]
    if options.recipes:
        # Old and new are compared with each other: the baseline is measured only where it is asked for.
        chosen = [cell for cell in chosen if not cell.recipe.baseline or cell.recipe.name in options.recipes]
    workloads = tuple(matrix.workload(name).name for name in options.workloads)
    left_out = (frozenset() if options.tasks else TASKS) | (frozenset() if workloads else OF_LOAD)
    found = [
        Unit(
            replace(cell, server=server, measurements=cell.measurements.in_a_gate()),
            stage,
            metrics - left_out,
            workloads=workloads,
        )
        for cell in chosen
        for server, stages in gated(cell).items()
        if not options.servers or server in options.servers
        for stage, metrics in stages.items()
        if metrics - left_out
    ]
    if found and options.keyword:
        try:
            named = {unit.id for unit in found} | {metric for unit in found for metric in unit.metrics}
            if strange := unmatched(options.keyword, named)[:1] if words else []:
                known = named | {unit.cell.recipe.name for unit in found}
                raise HarnessError(
                    f"-k {options.keyword!r}: no cell or metric has {strange[0]!r} in its name; "
                    + nearest(strange[0], known)
                )
            found = [
                replace(unit, metrics=metrics)
                for unit in found
                if (metrics := frozenset(it for it in unit.metrics if finds(options.keyword, f"{unit.id} {it}")))
            ]
        except SyntaxError as error:
            raise HarnessError(f"-k {options.keyword!r}: {error}") from error
    if not found:
        raise HarnessError(
            f"nothing to gate: no cell of {matrix.path.name} on {options.hardware} is left by the options given"
        )
    return found


def unit_id(cell: str, stage: str) -> str:
    """Return what a unit is called: as its cell, unless it is the second one of a cell."""
    return f"{cell}-server" if stage == "server" else cell


@dataclass
class Unit:
    """What is measured block by block: one cell through one server at one of its stages, and how far it has come.

    ``metrics`` are those that were asked for; ``once`` those of them that the next block must take although one block
    of them is enough (memory, quality, kernels), and ``tasks`` the tasks that it evaluates; ``workloads``
    are put on its server in every block. A ``closed`` unit is not
    measured any more: the recipe fails, or something else went wrong, which ``reason`` (a code of verdict.REASONS) and
    ``problem`` name.
    """

    cell: Cell
    stage: Stage
    metrics: frozenset[str]
    once: frozenset[str] = frozenset()
    tasks: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    done: int = 0
    seconds: float = 0.0
    measuring: float = 0.0
    lost: int = 0
    closed: bool = False
    reason: str = ""
    problem: str = ""
    first: float = 0.0
    """Seconds that its first block took, with what it took once."""

    def close(self, reason: str = "", problem: str = "") -> None:
        """Measure it no more, for a reason that the compatibility matrix does not tell."""
        self.closed, self.reason, self.problem = True, reason, problem

    def go_on_from(self, kept: UnitState) -> None:
        """Take over how far it had come; what the machine was in the way of is tried again."""
        # A block that was cut off is measured again under its own number, and its later records count.
        self.done, self.lost = kept.done, kept.lost
        self.seconds, self.measuring, self.first = kept.seconds, kept.measuring, kept.first
        if kept.closed and kept.reason != "machine-trouble":
            self.close(kept.reason, kept.problem)

    @property
    def state(self) -> UnitState:
        """How far it has come, as gate.json holds it: seconds to their hundredths."""
        return UnitState(
            self.place,
            done=self.done,
            seconds=round(self.seconds, 2),
            measuring=round(self.measuring, 2),
            lost=self.lost,
            first=round(self.first, 2),
            closed=self.closed,
            reason=self.reason,
            problem=self.problem,
        )

    @property
    def id(self) -> str:
        return unit_id(self.cell.id, self.stage)

    @property
    def place(self) -> Place:
        """The cell at the unit's stage."""
        return replace(self.cell.place, stage=self.stage)

    def holds(self, about: Place) -> bool:
        """Return whether a figure is of this unit; a server's start is not the engine's."""
        return unit_of(about) == unit_of(self.place)

    @property
    def runs(self) -> bool:
        """Whether any of its metrics needs the model to be run."""
        return bool(self.metrics - SIZES)

    @property
    def timed(self) -> frozenset[str]:
        """Those of its metrics that are judged over blocks and say how many it takes: the primary ones, if any."""
        over_blocks = {metric for metric in self.metrics if RULES[metric].kind == "blocks"}
        return frozenset({metric for metric in over_blocks if RULES[metric].primary} or over_blocks)
