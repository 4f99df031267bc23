"""One block of a gate: both sides in fresh workers, their rounds in turns, every figure on the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import hardware
from harness.artifacts import Store
from harness.errors import (
    ArtifactError,
    BrokenEnvironment,
    DiscardedBlocks,
    HarnessError,
    MatrixError,
    RecordError,
    WorkerError,
    WrongKernels,
)
from harness.flow import Checkpoint, Flow
from harness.matrix import Cell, Matrix, Stage
from harness.measure import Measure
from harness.pair import Pair
from harness.records import Failure, Line, Measurement, Run, Scalar
from harness.schedule import SIDES, Side, Turns
from harness.verdict import RULES, Series, Verdict

# What says nothing of the recipe that was being measured, and the words of a worker that met a full disk.
_OF_THE_MACHINE = (ArtifactError, BrokenEnvironment, DiscardedBlocks, MatrixError, RecordError)
_FULL_DISK = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
# A machine that loses more than this many workers in one block has another problem than bad luck.
REPEATS = 2


class SharedRun(Run):
    """A run that both sides of a block append to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._lock = threading.Lock()

    def append(self, line: Line) -> None:
        with self._lock:
            super().append(line)


class CarriedFlow(Flow):
    """A flow that works on the checkpoints of another one, which may live in another environment."""

    maker: Flow

    def checkpoint(self, cell: Cell) -> Checkpoint:
        return self.maker.checkpoint(cell)

    def ask_once(self, cell: Cell, command: str, **arguments: Any) -> dict[str, Any]:
        """Ask the checkpoint's predictions in a worker of its own; see harness.worker.compatibility."""
        specification = {
            "checkpoint": str(self.checkpoint(cell).folder),
            "device": hardware.torch_device(cell.hardware),
            "trust_remote_code": cell.model.trust_remote_code,
        }
        return self.once("compatibility", specification, command, cell, **arguments)


@dataclass
class Bench:
    """What every block of a gate shares: the two environments, the store, the run and the matrix."""

    pair: Pair
    store: Store
    run: SharedRun
    matrix: Matrix
    base: Flow
    data: Path | None = None
    limit: int | None = None
    progress: Callable[[str], None] = lambda _: None
    _roots: dict[Side, Flow] = field(default_factory=dict)

    def flow(self, side: Side, kind: type[Flow] = Flow) -> Any:
        """Return a flow of one side that knows no worker yet, and starts from the weights that both sides share."""
        made = kind(
            self.store,
            self.run,
            self.matrix,
            environment=self.pair.side(side),
            data=self.data,
            limit=self.limit,
            progress=self.progress,
            apart=self.pair.apart(side),
            side=side,
        )
        if side == "new" and self.pair.alike:
            # The cache would give what the other side has just found: evaluated anew, it says what it differs by.
            made.block = 1
        made.share_plain(self.base)
        if side in self._roots:
            made.share_forks(self._roots[side])
        else:
            self._roots[side] = made
        return made

    def close(self) -> None:
        """End what workers are forked from on either side."""
        for root in self._roots.values():
            root.close()
        self.base.close()

    def carried(self, side: Side, maker: Flow) -> CarriedFlow:
        """Return a flow of one side that works on the checkpoints of ``maker``."""
        flow: CarriedFlow = self.flow(side, CarriedFlow)
        flow.maker = maker
        return flow

    def guarded(self, work: Callable[[Side], Any], side: Side) -> Any:
        """Do something on one side; returns its result, or the HarnessError that it raised."""
        try:
            return work(side)
        except HarnessError as error:
            return error
        except OSError as error:
            return RecordError(f"{self.run.folder}: {error}")

    def both(self, work: Callable[[Side], Any], abort: Callable[[], None] = lambda: None) -> dict[Side, Any]:
        """Do something on both sides at once; returns each side's result, or the HarnessError that it raised."""

        with ThreadPoolExecutor(max_workers=2, thread_name_prefix="side") as pool:
            futures: dict[Side, Future[Any]] = {side: pool.submit(self.guarded, work, side) for side in SIDES}
            try:
                wait(futures.values())
            except BaseException:
                # Interrupted: what a side waits for must end first, or its thread would never.
                abort()
                raise
            return {side: future.result() for side, future in futures.items()}


@dataclass
class Unit:
    """What is measured block by block: one cell through one server at one of its stages, and how far it has come.

    ``metrics`` are those that were asked for; ``once`` those of them that the next block must take although one block
    of them is enough (memory, quality, kernels), and ``tasks`` the tasks that it evaluates. A ``closed`` unit is not
    measured any more: the recipe fails, or something else went wrong, which ``reason`` (a code of verdict.REASONS) and
    ``problem`` name.
    """

    cell: Cell
    stage: Stage
    metrics: frozenset[str]
    once: frozenset[str] = frozenset()
    tasks: tuple[str, ...] = ()
    done: int = 0
    seconds: float = 0.0
    measuring: float = 0.0
    lost: int = 0
    closed: bool = False
    reason: str = ""
    problem: str = ""

    def close(self, reason: str = "", problem: str = "") -> None:
        """Measure it no more, for a reason that the compatibility matrix does not tell."""
        self.closed, self.reason, self.problem = True, reason, problem

    @property
    def id(self) -> str:
        return unit_id(self.cell.id, self.stage)

    def holds(self, about: Series | Verdict) -> bool:
        """Return whether a figure is of this unit; a server's start is not the engine's."""
        cell = (self.cell.model.name, self.cell.recipe.name, self.cell.server)
        stage = stage_of(about.server, about.metric, about.label)
        return (about.model, about.recipe, about.server, stage) == (*cell, self.stage)

    @property
    def runs(self) -> bool:
        """Whether any of its metrics needs the model to be run."""
        return bool(self.metrics - SIZES)

    @property
    def timed(self) -> frozenset[str]:
        """Those of its metrics that are judged over blocks and say how many it takes: the primary ones, if any."""
        over_blocks = {metric for metric in self.metrics if RULES[metric].kind == "blocks"}
        return frozenset({metric for metric in over_blocks if RULES[metric].primary} or over_blocks)


TEXT_QUALITY = frozenset({"perplexity", "kl_divergence", "top1_agreement", "token_flips"})
TASKS = frozenset({"accuracy", "task_perplexity"})
# Known as soon as a checkpoint is made, without a block.
SIZES = frozenset({"checkpoint_size", "weight_size"})
THROUGH: dict[str, dict[Stage, frozenset[str]]] = {
    "transformers": {
        "transformers": frozenset({"peak_memory", "generate_throughput"}) | TEXT_QUALITY | TASKS | SIZES,
    },
    "vllm": {
        "engine": frozenset({"engine_start", "compile_time", "latency"}),
        "server": frozenset({"engine_start", "request_throughput", "ttft", "tpot", "itl"}),
    },
}
"""What is measured through each server at each of its stages, block by block; sizes need no server, and are asked for
with the first."""


def unit_id(cell: str, stage: str) -> str:
    """Return what a unit is called: as its cell, unless it is the second one of a cell."""
    return f"{cell}-server" if stage == "server" else cell


def stage_of(server: str | None, metric: str, label: str) -> str:
    """Return at which stage a metric is measured through a server; of a start its label says which."""
    stages = [stage for stage, metrics in THROUGH.get(server or "", {}).items() if metric in metrics]
    named = label.removeprefix("kind=")
    return named if named in stages else next(iter(stages), "")


class BlockRunner:
    """Runs blocks: what each one measures, in which order, and what happens when a worker is lost."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
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
            unit.lost += 1
            self.bench.progress(f"block {unit.done} of {unit.id} lost its {' and '.join(lost)} worker: repeated")
        now = time.monotonic()
        at_once = hardware.torch_device(unit.cell.hardware) == "cpu"
        unit.seconds = now - begun - (max if at_once else sum)(self._once.values())
        unit.measuring += now - start
        unit.done += 1
        return found

    def _attempt(
        self, unit: Unit, order: tuple[Side, Side], tags: dict[str, Scalar]
    ) -> dict[Side, HarnessError | None]:
        turns = Turns(order, unit.cell.measurements.blocks.gate_seconds)
        self._once = dict.fromkeys(SIDES, 0.0)
        flows: dict[Side, Flow] = {side: self.bench.flow(side) for side in SIDES}
        for flow in flows.values():
            flow.whole_processes = "peak_memory" in unit.once
        take = {"transformers": self._transformers, "engine": self._engine, "server": self._server}[unit.stage]

        def work(side: Side) -> None:
            measure = Measure(flows[side], self.bench.run, {"side": side, **tags})
            try:
                take(measure, unit, side, turns)
            finally:
                turns.leave(side)

        def abort() -> None:
            turns.cancel()
            for flow in flows.values():
                flow.end_workers()

        try:
            if hardware.torch_device(unit.cell.hardware) == "cpu":
                return self.bench.both(work, abort)
            # One engine at a time has the whole of a GPU's memory.
            return {side: self._alone(work, side, turns, flows[side]) for side in order}
        finally:
            for flow in flows.values():
                flow.end_workers()

    def _alone(self, work: Callable[[Side], None], side: Side, turns: Turns, flow: Flow) -> HarnessError | None:
        for each in SIDES:
            if each != side:
                turns.leave(each)
        try:
            found: HarnessError | None = self.bench.guarded(work, side)
            return found
        finally:
            flow.end_workers()

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
        if unit.metrics - {"engine_start"}:
            for prompts in cell.measurements.serving.num_prompts:
                measure.serving(cell, prompts, turns.timer(side))
        turns.meet(side)

    def _record(self, unit: Unit, side: Side, tags: dict[str, Scalar], error: WorkerError) -> None:
        where = f"{side} side, block {tags['block']}, attempt {tags['attempt']}"
        self.bench.run.append(
            Failure(
                cell=self.bench.base.identity(unit.cell),
                stage=error.stage,
                failure=error.kind,
                message=f"{where}: {error}",
                log_tail=error.log_tail,
            )
        )


def was_lost(error: HarnessError | None) -> bool:
    """Return whether a worker ended otherwise than by an exception of its own, so that another try may succeed."""
    return isinstance(error, WorkerError) and error.kind in ("crash", "out_of_memory", "timeout")


def of_the_machine(error: HarnessError | None) -> bool:
    """Return whether a failure says nothing of the recipe: a full disk, or a machine that was throttled or shared."""
    if isinstance(error, WorkerError):
        return any(words in f"{error} {error.log_tail[-500:]}" for words in _FULL_DISK)
    return isinstance(error, _OF_THE_MACHINE)


def series(lines: Iterable[Line], interleaved: bool) -> list[Series]:
    """Return what the records of a gate say, metric by metric, paired.

    Metrics judged by blocks and sizes give one value a block: both sides' of every block that has both; of several
    rounds in a block, their median, whatever the record's own value is (a latency's is the published mean). Quality
    gives the samples of its one evaluation a side, document by document. The start of the serving benchmark's client
    says nothing of what is served, and is left out.
    """
    blocks: dict[tuple[str, ...], dict[tuple[int, int], dict[str, Measurement]]] = {}
    for line in lines:
        if isinstance(line, Measurement) and "side" in line.flags and not line.discarded and line.metric in RULES:
            if line.parameters.get("kind") == "client":
                continue
            key = _key(line)
            block = (int(line.flags.get("block", -1)), int(line.flags.get("attempt", 0)))
            blocks.setdefault(key, {}).setdefault(block, {})[str(line.flags["side"])] = line
    found = []
    for (model, recipe, server, metric, task, task_metric, label), taken in blocks.items():
        # Of a block that was repeated the last attempt counts that has both sides, and that one alone.
        last = {block: sides for (block, _), sides in sorted(taken.items()) if len(sides) == len(SIDES)}
        whole = list(last.values())
        if RULES[metric].kind in ("blocks", "size"):
            values: dict[str, list[float]] = {side: [_value(sides[side]) for sides in whole] for side in SIDES}
        else:
            values = {side: list(whole[0][side].samples) if whole else [] for side in SIDES}
        in_turns = RULES[metric].kind == "blocks" and metric not in ("engine_start", "compile_time")
        rounds: dict[str, list[list[float]]] = {}
        # The advisory times of serving have a sample a request, not a round.
        if in_turns and RULES[metric].primary:
            rounds = {side: [sides[side].samples for sides in whole] for side in SIDES}
        found.append(
            Series(
                model=model,
                recipe=recipe,
                server=server or None,
                metric=metric,
                label=label,
                task=task or None,
                values=values,
                drift_cancelled=interleaved and in_turns,
                task_metric=task_metric,
                rounds=rounds,
            )
        )
    return found


def _value(line: Measurement) -> float:
    """Return what a process counts with."""
    return statistics.median(line.samples) if RULES[line.metric].kind == "blocks" and line.samples else line.value


def _key(line: Measurement) -> tuple[str, ...]:
    """Return what a verdict is about: model, recipe, server, metric, task, and the parameters that tell it apart."""
    task, task_metric = (str(line.parameters.get(name, "")) for name in ("task", "task_metric"))
    shown = {
        name: value
        for name, value in line.parameters.items()
        if name in ("batch_size", "num_prompts", "kind", "task", "task_metric")
        and (name != "batch_size" or line.metric == "latency")
    }
    label = ", ".join(f"{name}={value}" for name, value in shown.items())
    return (line.cell.model.name, line.cell.recipe.name, line.cell.server, line.metric, task, task_metric, label)
