"""Peak memory: generating in a process that has done nothing else, in several at once where several are coming."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.base.errors import HarnessError
from harness.matrix.plan import Cell
from harness.measure.checkpoints import Checkpoints
from harness.measure.fleet import Fleet
from harness.measure.workers import Failed, Workers
from harness.records.place import Place
from harness.runtime.job import Worker
from harness.runtime.parallel import Work, together

# What a process may come to hold: what it has imported, and weights that are read, then placed.
_PROCESS_BYTES = 1.5e9
_WEIGHTS_HELD = 2.5


@dataclass(frozen=True)
class Peak:
    """What a worker says of its peak memory, and the seconds that its start took."""

    answer: dict[str, Any]
    start_seconds: float


class PeakMemory:
    """Takes the peak memory of cells.

    A process's memory is its own, whatever runs beside it, and none of its times counts. So with the first that is
    asked for those of the coming tests are taken, as many at once as processors and free memory hold; ``coming`` tells
    then which they are. What fails so is taken once more, alone, by the test that asks for it.
    """

    def __init__(
        self, workers: Workers, checkpoints: Checkpoints, fleet: Fleet, coming: Callable[[], Sequence[Cell]] = tuple
    ) -> None:
        self._workers = workers
        self._checkpoints = checkpoints
        self._fleet = fleet
        self._coming: Callable[[], Sequence[Cell]] | None = coming
        self._failed = Failed()
        self._taken: dict[Place, Peak] = {}

    def peak(self, cell: Cell, due: Callable[[Cell], bool] = lambda _: True) -> Peak:
        """Return what generating from the tutorial's prompt took at most; ``due`` says which of the coming to take."""
        if not cell.hardware.whole_processes:
            return _ask(self._fleet.unused(cell), cell)
        self._take_ahead(cell, due)
        found = self._taken.pop(cell.base, None)
        # Beside it what the cell's next tests need can start.
        self._fleet.start_ahead(cell)
        if found is None:
            with self._failed.tried_once((cell.base, "memory")):
                found = self._take(cell)
        return found

    def _take_ahead(self, first: Cell, due: Callable[[Cell], bool]) -> None:
        coming, self._coming = self._coming, None
        asked = [cell for cell in (coming() if coming else ()) if cell.hardware.whole_processes]
        cells = {cell.base: cell for cell in asked if due(cell)}
        if len(cells) < 2 or first.base not in cells:
            return
        works = []
        # The baseline, which generates fastest, comes last: so processors do not wait long for the last one.
        for cell in reversed(self._checkpoints.make(list(cells.values()))):
            # One that cannot be had fails its own tests.
            with contextlib.suppress(HarnessError):
                held = _PROCESS_BYTES + _WEIGHTS_HELD * self._checkpoints.facts(cell)["weight_bytes"]
                works.append(Work(functools.partial(self._keep, cell), held))
        words = f"peak memory of {len(works)} recipes, as many at once as processors and free memory allow ..."
        self._workers.progress(words)
        together(works, self._workers.end_lasting)

    def _keep(self, cell: Cell) -> None:
        self._taken[cell.base] = self._take(cell)

    def _take(self, cell: Cell) -> Peak:
        worker = self._fleet.whole_process(cell)
        self._workers.beside.append(worker)
        try:
            return _ask(worker, cell)
        finally:
            self._workers.beside.remove(worker)
            worker.close()


def _ask(worker: Worker, cell: Cell) -> Peak:
    limits = cell.measurements.time_limits
    worker.wait_ready(limits.start)
    answer = worker.ask("peak_memory", limits.measure, max_new_tokens=cell.measurements.memory.max_new_tokens)
    return Peak(answer, worker.start_seconds)
