"""Whether one engine for batches and HTTP gives what an offline engine and a server give: all three in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from harness.base.errors import HarnessError
from harness.matrix.plan import Cell
from harness.measure.flow import Flow
from harness.measure.launches import shares
from harness.measure.serving import prompts_asked, to_server
from harness.records.schema import Scalar
from harness.runtime.job import Server, Shared, Worker


@dataclass(frozen=True)
class Figure:
    """One figure of a block: pairs of rounds in turns, ``apart`` by an engine or a server of its own."""

    metric: str
    parameters: dict[str, Scalar]
    apart: Sequence[float]
    shared: Sequence[float]


@dataclass(frozen=True)
class Three:
    """An offline engine, a server, and one that is both, of one recipe."""

    engine: Worker
    server: Server
    shared: Shared


def with_sharing(cell: Cell, shared: bool) -> Cell:
    """Return a cell whose engine and server are one start, or two."""
    engine = cell.measurements.engine.model_copy(update={"shared": shared})
    return replace(cell, measurements=cell.measurements.model_copy(update={"engine": engine}))


def block(flow: Flow, cell: Cell, number: int, rounds: int) -> list[Figure]:
    """Start all three anew and measure latency and serving, a round of one and a round of the other in turns.

    Which starts first and which is asked first goes round with the number of the block. Raises HarnessError where the
    cell's server has no such engine.
    """
    if not shares(with_sharing(cell, True)):
        raise HarnessError(f"{cell.id}: {cell.server} has no engine that batches and HTTP can share")
    found = []
    with _three(flow, cell, number) as three:
        for size in cell.measurements.latency.batch_sizes:
            sides = (_batch(cell, three.engine, size), _batch(cell, three.shared.worker, size))
            flow.progress(f"block {number + 1} of {cell.id}: latency, batch {size}")
            parameters: dict[str, Scalar] = {"batch_size": size}
            found.append(Figure("latency", parameters, *_turns(*sides, rounds, number)))
        for prompts in cell.measurements.serving.num_prompts:
            served = (_serving(flow, cell, three.server, prompts), _serving(flow, cell, three.shared, prompts))
            flow.progress(f"block {number + 1} of {cell.id}: serving {prompts} prompts")
            parameters = {"num_prompts": prompts}
            found.append(Figure("request_throughput", parameters, *_turns(*served, rounds, number)))
    return found


@contextmanager
def _three(flow: Flow, cell: Cell, number: int) -> Iterator[Three]:
    """Start them one after another, since an engine takes the device's free memory while it starts, and end them."""
    with ExitStack() as stack:
        flow.checkpoints.served(cell)
        started: dict[str, Worker | Server] = {}
        kinds = ["engine", "server", "shared"]
        for kind in kinds[number % 3 :] + kinds[: number % 3]:
            flow.progress(f"block {number + 1} of {cell.id}: starting {kind}")
            it = flow.fleet.launch(with_sharing(cell, kind == "shared"), "engine" if kind == "shared" else kind)
            stack.callback(it.close)
            it.wait_ready(cell.measurements.time_limits.start)
            started[kind] = it
        flow.fleet.client(cell)
        engine, server, shared = (started[kind] for kind in kinds)
        assert isinstance(engine, Worker) and isinstance(server, Server) and isinstance(shared, Shared)  # noqa: S101, PT018 - for the types alone
        yield Three(engine, server, shared)


def _batch(cell: Cell, worker: Worker, size: int) -> Callable[[], float]:
    wanted = cell.measurements.latency
    asked = {"batch_size": size, "input_len": wanted.input_len, "output_len": wanted.output_len}
    return lambda: float(worker.ask("latency", cell.measurements.time_limits.measure, **asked)["seconds"])


def _serving(flow: Flow, cell: Cell, server: Server, prompts: int) -> Callable[[], float]:
    asked = prompts_asked(flow, cell, prompts)
    stage = f"serving {prompts} prompts"
    return lambda: float(to_server(flow, cell, server, "serving", stage, asked)["request_throughput"])


def _turns(
    apart: Callable[[], float], shared: Callable[[], float], rounds: int, number: int
) -> tuple[list[float], list[float]]:
    """Ask both once for nothing, then in turns, each first in every other round."""
    sides = (apart, shared)
    for side in sides:
        side()
    samples: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        order = (0, 1) if (turn + number) % 2 == 0 else (1, 0)
        for side_of in order:
            samples[side_of].append(sides[side_of]())
    return samples
