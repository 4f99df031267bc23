"""What a unit still has to be measured for: figures that one block is enough for, tasks, and more blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.gate.plan import Unit
from harness.judge.family import settled
from harness.judge.ledger import Ledger
from harness.judge.looks import MINIMUM_BLOCKS
from harness.judge.rules import RULES
from harness.judge.series import task_of
from harness.judge.verdict import Verdict
from harness.measure.checkpoints import Checkpoints
from harness.records.metrics import SIZES, TASKS, TEXT_QUALITY


class Needs:
    """What is missing of units, by what is judged so far; ``tasks`` are those that were asked for."""

    def __init__(self, checkpoints: Checkpoints, ledger: Ledger, tasks: Sequence[str]) -> None:
        self._checkpoints = checkpoints
        self._ledger = ledger
        self._tasks = tasks
        self.undecided = True
        """Whether a metric may be left undecided whose effect is about as large as its margin."""

    def once(self, unit: Unit, judged: Iterable[Verdict]) -> frozenset[str]:
        """Return what one block is enough for and no block has yet; memory that grew is measured once more."""
        found = [verdict for verdict in judged if unit.holds(verdict.place)]
        have = {verdict.metric for verdict in found}
        wanted = {metric for metric in unit.metrics if RULES[metric].kind != "blocks"} - have - SIZES
        wanted |= {
            verdict.metric
            for verdict in found
            if verdict.metric == "peak_memory" and verdict.verdict != "pass" and verdict.blocks < 2
        }
        if self._random(unit):
            wanted -= TEXT_QUALITY
        wanted = wanted - TASKS | (unit.metrics & TASKS if self.tasks(unit) else frozenset())
        if unit.cell.recipe.baseline or self._checkpoints.alone(unit.cell):
            wanted -= TEXT_QUALITY - {"perplexity"}
        if unit.stage == "engine" and unit.cell.kernels and not unit.done:
            wanted |= {"quantized_kernel_share"}
        return frozenset(wanted)

    def tasks(self, unit: Unit) -> tuple[str, ...]:
        """Return the tasks that no block has evaluated on both sides, whichever metrics they give."""
        if not unit.metrics & TASKS or self._random(unit):
            return ()
        have = {task_of(one.place) for one in self._ledger.series() if one.old and unit.holds(one.place)}
        return tuple(task for task in dict.fromkeys(self._tasks) if task not in have)

    def settled(self, unit: Unit, judged: list[Verdict]) -> bool:
        """Return whether no further block of a unit can tell more than is known."""
        if self.once(unit, judged):
            return False
        timed = [verdict for verdict in judged if unit.holds(verdict.place) and verdict.metric in unit.timed]
        if not timed:
            # What is zero everywhere, as compile time where nothing is compiled, gives no verdict.
            return not unit.timed or unit.done >= MINIMUM_BLOCKS
        return all(settled(verdict, undecided=self.undecided) for verdict in timed)

    def _random(self, unit: Unit) -> bool:
        """Return whether the cell's weights are random, which have no quality."""
        return self._checkpoints.plain(unit.cell.model, unit.cell.hardware).model.weights == "random"
