"""What a gate is asked for, and which cells and metrics that selects."""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.base.errors import HarnessError, nearest
from harness.base.expressions import unmatched
from harness.judge.gatefile import Options
from harness.judge.rules import RULES
from harness.judge.series import unit_of
from harness.matrix.measurements import Measurements
from harness.matrix.plan import Cell, Matrix
from harness.measure.fleet import gated
from harness.records.metric import Stage
from harness.records.metrics import OF_LOAD, SIZES, TASKS
from harness.records.place import Place


def units(matrix: Matrix, options: Options) -> list[Unit]:
    """Return what is to be measured: every chosen cell through every chosen server, with the chosen metrics.

    What the matrix does not send through a server, or not through all of its stages, is not gated there either.
    Raises HarnessError where nothing is left.
    """
    chosen = [
        cell
        for cell in matrix.cells(list(options.models) or None, list(options.recipes) or None)
        if cell.hardware.name == options.hardware
    ]
    if options.recipes:
        # Old and new are compared with each other: the baseline is measured only where it is asked for.
        chosen = [cell for cell in chosen if not cell.recipe.baseline or cell.recipe.name in options.recipes]
    found = []
    workloads = tuple(matrix.workload(name).name for name in options.workloads)
    for cell in chosen:
        for server, stages in gated(cell).items():
            if options.servers and server not in options.servers:
                continue
            through = replace(cell, server=server, measurements=_with_rounds(cell.measurements))
            for stage, measured in stages.items():
                if stage not in cell.servers[server].stages:
                    continue
                name = unit_id(through.id, stage)
                metrics = frozenset(metric for metric in measured if _selected(options.keyword, f"{name} {metric}"))
                if not options.tasks:
                    metrics -= TASKS
                if not options.workloads:
                    metrics -= OF_LOAD
                if metrics:
                    found.append(Unit(through, stage, metrics, workloads=workloads))
    if not found:
        raise HarnessError(
            f"nothing to gate: no cell of {matrix.path.name} on {options.hardware} is left by the options given"
        )
    return found


def check_keyword(matrix: Matrix, options: Options) -> None:
    """Raise HarnessError for a word that -k asks for and that no cell and no metric has in its name."""
    if options.keyword:
        every = units(matrix, replace(options, keyword=""))
        named = {unit.id for unit in every} | {metric for unit in every for metric in unit.metrics}
        try:
            words = unmatched(options.keyword, named)
        except SyntaxError as error:
            raise HarnessError(f"-k {options.keyword!r}: {error}") from error
        for word in words:
            known = named | {unit.cell.recipe.name for unit in every}
            raise HarnessError(
                f"-k {options.keyword!r}: no cell or metric has {word!r} in its name; {nearest(word, known)}"
            )


def unit_id(cell: str, stage: str) -> str:
    """Return what a unit is called: as its cell, unless it is the second one of a cell."""
    return f"{cell}-server" if stage == "server" else cell


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
    except (SyntaxError, RecursionError) as error:
        raise HarnessError(f"-k {keyword!r}: {error}") from error


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
