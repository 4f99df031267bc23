"""A session's flow over cells: what is cached and what lasts, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.matrix.plan import Cell, Matrix
from harness.matrix.schema import TaskOptions, Threshold
from harness.matrix.workload import Workload
from harness.measure.checkpoints import Checkpoints, Program
from harness.measure.clock import Clock
from harness.measure.fleet import Fleet
from harness.measure.kept import Kept
from harness.measure.memory import PeakMemory
from harness.measure.plain import Keys, PlainModels
from harness.measure.rounds import MakeRule
from harness.measure.workers import Forks, Workers
from harness.records.place import Place
from harness.records.run import Run
from harness.records.schema import Cell as CellIdentity
from harness.runtime.environment import Environment
from harness.runtime.store import Store


@dataclass(frozen=True)
class Flow:
    """What measurements are made with: artifacts that are cached, workers that last, and the time that both take.

    ``data`` is a folder that has tasks' documents and prompts, ``limit`` the number of documents of a task, and
    ``task_options`` tells by a task's name how it is asked, ``limits`` those of a cell's metric, as
    :meth:`harness.matrix.plan.Matrix.limits` does; ``workload`` tells one by its name, and ``settings`` are what was
    set otherwise than the matrix has it, which every record says. ``rule`` makes what ends rounds early; without, all
    are taken. ``kept`` has what earlier runs measured that does not change; without, all is measured.
    """

    workers: Workers
    checkpoints: Checkpoints
    fleet: Fleet
    clock: Clock
    memory: PeakMemory
    data: Path | None = None
    limit: int | None = None
    task_options: Callable[[str], TaskOptions] = lambda _: TaskOptions()
    limits: Callable[..., Sequence[Threshold]] = lambda *_, **__: ()
    workload: Callable[[str], Workload] | None = None
    settings: tuple[str, ...] = ()
    rule: MakeRule | None = None
    kept: Kept | None = None

    @classmethod
    def open(
        cls,
        store: Store,
        run: Run,
        matrix: Matrix,
        *,
        environment: Environment,
        environments: Mapping[str, Environment] | None = None,
        data: Path | None = None,
        limit: int | None = None,
        progress: Callable[[str], None] = lambda _: None,
        waiting: Callable[[], None] = lambda: None,
        plan: Sequence[tuple[Place, str]] = (),
        programs: Callable[[], Sequence[Program]] = tuple,
        memories: Callable[[], Sequence[Cell]] = tuple,
        apart: Mapping[str, str | None] | None = None,
        side: str = "",
        block: int = 0,
        models: PlainModels | None = None,
        forks: Forks | None = None,
        checkpoints: Checkpoints | None = None,
        rule: MakeRule | None = None,
        kept: Kept | None = None,
    ) -> Flow:
        """Return a flow that knows no worker yet.

        ``models``, ``forks`` and ``checkpoints`` are those of another flow, if it is to share them: plain weights, the
        processes of its environment, and whatever it has quantized. The rest goes to :class:`Workers`,
        :class:`Checkpoints`, :class:`Fleet` and, as ``memories``, to :class:`PeakMemory`.
        """
        limits = next(iter(matrix.measurements.values())).time_limits
        told: dict[str, Any] = {"progress": progress, "waiting": waiting}
        workers = Workers(store, run.logs, environment, limits=limits, forks=forks, side=side, **told)
        keys = Keys(environment, apart or {})
        models = models or PlainModels(workers, matrix, keys)
        clock = Clock(run, models.known)
        made = checkpoints or Checkpoints(
            workers, models, keys, clock, matrix, run.name, data=data, programs=programs, block=block
        )
        fleet = Fleet(workers, made, clock, environments=environments, plan=plan, data=data)
        memory = PeakMemory(workers, made, fleet, memories)
        return cls(
            workers,
            made,
            fleet,
            clock,
            memory,
            data,
            limit,
            matrix.task_options,
            matrix.limits,
            matrix.workload,
            matrix.settings,
            rule,
            kept,
        )

    def cell_identity(self, cell: Cell) -> CellIdentity:
        """Return the cell as records name it."""
        return self.checkpoints.cell_identity(cell)

    def progress(self, words: str) -> None:
        """Tell whoever waits what is going on."""
        self.workers.progress(words)

    def close(self) -> None:
        """End every worker and server, and what they are forked from."""
        self.fleet.end()
        self.workers.close()
