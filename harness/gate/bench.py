"""Both sides of a gate with their environments, artifacts and flows, and what is done on both."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError, RecordError
from harness.base.memory import TooLittleMemory
from harness.gate.cutoff import CutOff
from harness.judge.series import SIDES, Side
from harness.matrix.plan import Cell, Matrix
from harness.measure.checkpoints import Checkpoints
from harness.measure.flow import Flow
from harness.measure.workers import Forks
from harness.records.run import Run
from harness.runtime.environment_pair import Pair
from harness.runtime.store import Store


@dataclass
class Bench:
    """What every block of a gate shares: the two environments, the store, the run and the matrix."""

    pair: Pair
    store: Store
    run: Run
    matrix: Matrix
    base: Flow
    data: Path | None = None
    limit: int | None = None
    progress: Callable[[str], None] = lambda _: None
    until_cut: Callable[[], float] = lambda: float("inf")
    """The seconds until what is at work is cut off."""
    cut_off: CutOff = field(init=False)
    _forks: dict[Side, Forks] = field(default_factory=dict)
    _flows: weakref.WeakSet[Flow] = field(default_factory=weakref.WeakSet)

    def __post_init__(self) -> None:
        self.cut_off = CutOff(lambda: self.until_cut(), self.end_at_once)

    def flow(self, side: Side, *, checkpoints: Checkpoints | None = None) -> Flow:
        """Return a flow of one side that knows no worker yet, and starts from the weights that both sides share.

        ``checkpoints`` are those of another flow, which may live in another environment, in place of its own.
        """
        found = Flow.open(
            self.store,
            self.run,
            self.matrix,
            environment=self.pair.side(side),
            data=self.data,
            limit=self.limit,
            progress=self.progress,
            apart=self.pair.apart(side),
            side=side,
            # The cache would give what the other side has just found: evaluated anew, it says what it differs by.
            block=1 if side == "new" and self.pair.alike else 0,
            models=self.base.checkpoints.models,
            forks=self._forks.setdefault(side, Forks()),
            checkpoints=checkpoints,
        )
        self._flows.add(found)
        return found

    def ask_once(self, side: Side, maker: Flow, cell: Cell, command: str, **arguments: Any) -> dict[str, Any]:
        """Ask one side about the predictions of a checkpoint of ``maker``; see harness.worker.compatibility."""
        specification = {
            "checkpoint": str(maker.checkpoints.of(cell).folder),
            "device": cell.hardware.torch_device,
            "trust_remote_code": cell.model.trust_remote_code,
        }
        return self.flow(side).workers.once("compatibility", specification, command, cell, **arguments)

    def renew(self) -> None:
        """End what workers are forked from on either side, between two blocks; the next ones start it anew."""
        for forks in self._forks.values():
            forks.close()

    def close(self) -> None:
        """End what workers are forked from on either side."""
        self.renew()
        self.base.close()

    def end_at_once(self) -> None:
        """End whatever process of either side is at work, however far it is."""
        for flow in [*self._flows, self.base]:
            flow.workers.kill()

    def guarded(self, work: Callable[[Side], Any], side: Side) -> Any:
        """Do something on one side; returns its result, or the HarnessError that it raised.

        Raises TooLittleMemory, which is of this process and so of all that would follow.
        """
        try:
            return work(side)
        except TooLittleMemory:
            raise
        except HarnessError as error:
            return self.cut_off.instead(error)
        except OSError as error:
            return self.cut_off.instead(RecordError(f"{self.run.folder}: {error}"))

    def both(self, work: Callable[[Side], Any], abort: Callable[[], None] = lambda: None) -> dict[Side, Any]:
        """Do something on both sides at once; returns each side's result, or the HarnessError that it raised."""

        with ThreadPoolExecutor(max_workers=2, thread_name_prefix="side") as pool:
            futures: dict[Side, Future[Any]] = {}
            try:
                for side in SIDES:
                    futures[side] = pool.submit(self.guarded, work, side)
                wait(futures.values())
            except BaseException:
                # Interrupted, or no thread can be had for the other side: what a side waits for must end first, or its
                # thread would never.
                pool.shutdown(wait=False, cancel_futures=True)
                abort()
                raise
            return {side: future.result() for side, future in futures.items()}
