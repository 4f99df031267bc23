"""One block of a gate: both sides in fresh workers, their rounds in turns, every figure on the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator

from harness.base.errors import (
    ArtifactError,
    BrokenEnvironment,
    DiscardedBlocks,
    HarnessError,
    MatrixError,
    OutOfTime,
    RecordError,
    VoidLoad,
    WorkerError,
    WrongKernels,
)
from harness.base.memory import TooLittleMemory
from harness.gate.bench import Bench
from harness.gate.plan import Unit
from harness.gate.schedule import Turns
from harness.judge.series import SIDES, Side
from harness.measure.flow import Flow
from harness.measure.measure import Measure
from harness.measure.recorder import Recorder
from harness.records.metrics import OF_LOAD, TEXT_QUALITY
from harness.records.schema import Failure, Scalar

# What says nothing of the recipe that was being measured, and the words of a worker that met a full disk.
_OF_THE_MACHINE = (
    ArtifactError,
    BrokenEnvironment,
    DiscardedBlocks,
    MatrixError,
    OutOfTime,
    RecordError,
    TooLittleMemory,
    VoidLoad,
)


_FULL_DISK = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


# A machine that loses more than this many workers in one block has another problem than bad luck.
REPEATS = 2


class BlockRunner:
    """Runs blocks: what each one measures, in which order, and what happens when a worker is lost."""

    def __init__(self, bench: Bench, again: Callable[[float], bool] = lambda _: True) -> None:
        """``again`` says whether there is time for what is expected to take so many seconds."""
        self.bench = bench
        self.again = again
        # Seconds of the last attempt for what a block takes only once, which the next block will not take.
        self._once = dict.fromkeys(SIDES, 0.0)

    def __call__(self, unit: Unit, order: tuple[Side, Side]) -> dict[Side, HarnessError | None]:
        """Measure one block; a block that lost a worker is repeated whole, and the loss is recorded.

        Returns each side's error if it failed for good. A failure that is an exception of the worker's own (a recipe
        that does not work) would come again, and is not tried again.
        """
        start = begun = time.monotonic()
        found: dict[Side, HarnessError | None] = dict.fromkeys(SIDES)
        for attempt in range(REPEATS + 1):
            begun = time.monotonic()
            tags: dict[str, Scalar] = {"block": unit.done, "attempt": attempt}
            found = self._attempt(unit, order, tags)
            lost = [side for side, error in found.items() if was_lost(error)]
            for side, error in found.items():
                if isinstance(error, WorkerError):
                    self._record(unit, side, tags, error)
            if not lost:
                break
            if not self.again(time.monotonic() - begun):
                found = {side: _without_time(error) if side in lost else error for side, error in found.items()}
                break
            unit.lost += 1
            self.bench.progress(f"block {unit.done} of {unit.id} lost its {' and '.join(lost)} worker: repeated")
        now = time.monotonic()
        at_once = unit.cell.hardware.sides_at_once
        unit.seconds = now - begun - (max if at_once else sum)(self._once.values())
        unit.measuring += now - start
        unit.done += 1
        return found

    def _attempt(
        self, unit: Unit, order: tuple[Side, Side], tags: dict[str, Scalar]
    ) -> dict[Side, HarnessError | None]:
        turns = Turns(order, unit.cell.measurements.blocks.gate_seconds)
        self._once = dict.fromkeys(SIDES, 0.0)
        flows = {side: self.bench.flow(side) for side in SIDES}
        take = {"transformers": self._transformers, "engine": self._engine, "server": self._server}[unit.stage]

        def work(side: Side) -> None:
            measure = Measure(Recorder(flows[side], self.bench.run, {"side": side, **tags}))
            try:
                take(measure, unit, side, turns)
            finally:
                turns.leave(side)

        def abort() -> None:
            turns.cancel()
            for flow in flows.values():
                flow.fleet.end()

        try:
            if unit.cell.hardware.sides_at_once:
                return self.bench.both(work, abort)
            # One engine at a time has the whole of a GPU's memory.
            return {side: self._alone(work, side, turns, flows[side]) for side in order}
        finally:
            for flow in flows.values():
                flow.fleet.end()

    def _alone(self, work: Callable[[Side], None], side: Side, turns: Turns, flow: Flow) -> HarnessError | None:
        for each in SIDES:
            if each != side:
                turns.leave(each)
        try:
            found: HarnessError | None = self.bench.guarded(work, side)
            return found
        finally:
            flow.fleet.end()

    def _transformers(self, measure: Measure, unit: Unit, side: Side, turns: Turns) -> None:
        cell = unit.cell
        with self._only_once(side):
            if "peak_memory" in unit.once:
                measure.peak_memory(cell)
        if "generate_throughput" in unit.metrics:
            measure.generate(cell, turns.timer(side))
        turns.meet(side)
        with self._only_once(side):
            if unit.once & TEXT_QUALITY:
                measure.text_quality(cell)
            for task in unit.tasks:
                measure.task(cell, task)

    @contextlib.contextmanager
    def _only_once(self, side: Side) -> Iterator[None]:
        """Take the time of what the next block will not take again, for the budget's sake."""
        start = time.monotonic()
        yield
        self._once[side] += time.monotonic() - start

    def _engine(self, measure: Measure, unit: Unit, side: Side, turns: Turns) -> None:
        cell = unit.cell
        measure.engine(cell)
        if "latency" in unit.metrics:
            for size in cell.measurements.latency.batch_sizes:
                measure.latency(cell, size, turns.timer(side))
        turns.meet(side)
        with self._only_once(side):
            if "quantized_kernel_share" in unit.once:
                try:
                    measure.kernels(cell)
                except WrongKernels as error:
                    if not error.known:
                        raise

    def _server(self, measure: Measure, unit: Unit, side: Side, turns: Turns) -> None:
        cell = unit.cell
        measure.server(cell)
        if unit.metrics - {"engine_start"} - OF_LOAD:
            for prompts in cell.measurements.serving.num_prompts:
                measure.serving(cell, prompts, turns.timer(side))
        for name in unit.workloads if unit.metrics & OF_LOAD else ():

            def put(name: str = name) -> None:
                measure.load(cell, name)
                if "capacity" in unit.metrics and measure.has_limits(name):
                    measure.capacity(cell, name)

            # A turn of its own: two servers at once would measure each other.
            turns.timer(side)(put, 1, 0)
        turns.meet(side)

    def _record(self, unit: Unit, side: Side, tags: dict[str, Scalar], error: WorkerError) -> None:
        where = f"{side} side, block {tags['block']}, attempt {tags['attempt']}"
        self.bench.run.append(
            Failure(
                cell=self.bench.base.cell_identity(unit.cell),
                stage=error.stage,
                failure=error.kind,
                message=f"{where}: {error.message}",
                log_tail=error.log_tail,
                worker=error.worker,
                repeated=error.repeated,
            )
        )


def _without_time(error: HarnessError | None) -> HarnessError:
    return DiscardedBlocks(f"{error}; the budget leaves no time for another try")


def was_lost(error: HarnessError | None) -> bool:
    """Return whether a worker ended otherwise than by an exception of its own, so that another try may succeed."""
    return isinstance(error, WorkerError) and error.kind in ("crash", "out_of_memory", "timeout")


def of_the_machine(error: HarnessError | None) -> bool:
    """Return whether a failure says nothing of the recipe: a full disk, or a machine that was throttled or shared."""
    if isinstance(error, WorkerError):
        return any(words in f"{error} {error.log_tail[-500:]}" for words in _FULL_DISK)
    return isinstance(error, _OF_THE_MACHINE)
