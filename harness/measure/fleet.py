"""The workers and servers that last for a cell: started once, ahead where they can be, asked by every test of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.base.errors import Unsuitable, WorkerError
from harness.matrix.plan import Cell
from harness.measure.checkpoints import Checkpoints
from harness.measure.clock import Clock
from harness.measure.launches import SHARED, Launches, serving, shares
from harness.measure.workers import Failed, Key, Workers
from harness.records.metric import Stage
from harness.records.place import Place
from harness.runtime.environment import Environment
from harness.runtime.job import Server, Shared, Worker
from harness.servers import registry

_SERVING = ("engine", "server")
_KINDS = ("transformers", *_SERVING)


class Fleet(Launches):
    """Starts what lasts for a cell, waits for it, and ends it when another cell's turn comes.

    ``environments`` are those of servers that have one of their own. ``plan`` lists in order which kind of worker each
    coming test needs, as (cell id without server, kind): where the machine can hold them, all workers of a cell are
    started at once, so that their imports overlap, and each waits, idle, for its turn; otherwise one lives at a time.
    ``data`` is a folder with tasks' documents.
    """

    def __init__(
        self,
        workers: Workers,
        checkpoints: Checkpoints,
        clock: Clock,
        *,
        environments: Mapping[str, Environment] | None = None,
        plan: Sequence[tuple[Place, str]] = (),
        data: Path | None = None,
    ) -> None:
        super().__init__(workers, checkpoints, environments, data)
        self._clock = clock
        self._plan = plan
        self._failed = Failed()
        self._client: Worker | None = None

    # ------------------------------------------------------------------------------------------------- workers

    def transformers(self, cell: Cell) -> Worker:
        """Return the Transformers worker of a cell, ready, once all others that were started ahead are idle."""
        worker = self._get(cell, "transformers")
        assert isinstance(worker, Worker)  # noqa: S101 - for the type alone
        return worker

    def unused(self, cell: Cell) -> Worker:
        """Return the Transformers worker of a cell, ready, which has done nothing yet."""
        worker = self.transformers(cell)
        if worker.asked:
            self.renew(cell, "transformers")
            worker = self.transformers(cell)
        return worker

    def start_ahead(self, cell: Cell) -> None:
        """Start all workers that the coming tests of a cell need, where they may be there at once; waits for none."""
        if cell.hardware.workers_at_once:
            self._checkpoints.served(cell)
            self._end_others(cell.base)
            self._start(cell, self._planned(cell))

    def engine(self, cell: Cell) -> Worker:
        """Return the offline engine of a cell, ready; where it is shared, the server's."""
        worker = self._get(cell, "engine")
        if isinstance(worker, Shared):
            return worker.worker
        assert isinstance(worker, Worker)  # noqa: S101 - for the type alone
        return worker

    def server(self, cell: Cell) -> Server:
        """Return the HTTP server of a cell, ready."""
        server = self._get(cell, "server")
        assert isinstance(server, Server)  # noqa: S101 - for the type alone
        return server

    def executorch(self, cell: Cell, route: str) -> Worker:
        """Return the worker that has a cell's ExecuTorch program, ready."""
        self._checkpoints.program(cell, route)
        worker = self._get(cell, f"executorch {route}")
        assert isinstance(worker, Worker)  # noqa: S101 - for the type alone
        return worker

    def client(self, cell: Cell) -> Worker:
        """Return the benchmark's client, started once a session."""
        if self._client is None or not self._client.alive:
            self._client = self.start_client(cell)
        with self._clock.timed("setup", cell):
            self._client.wait_ready(cell.measurements.time_limits.start)
        return self._client

    def recipes_follow(self, cell: Cell) -> bool:
        """Return whether a coming test asks Transformers for another recipe of a cell's model on its hardware."""
        own = cell.base.without("recipe", "recipe_hash")
        others = {other for other, kind in self._plan if kind == "transformers" and other != cell.base}
        return any(other.without("recipe", "recipe_hash") == own for other in others)

    def renew(self, cell: Cell, kind: str) -> None:
        """End a worker, so that the next one asked for is fresh."""
        worker = self._workers.lasting.pop(self._key(cell, kind), None)
        if worker:
            worker.close()

    def end(self) -> None:
        """End every worker and server; the next ones can still be forked."""
        self._workers.end_lasting()
        if self._client:
            self._client.close()
            self._client = None

    # -------------------------------------------------------------------------------------------------- starts

    def _key(self, cell: Cell, kind: str) -> Key:
        """Return what tells workers apart: model, recipe and hardware; kind, and for an engine or a server its name."""
        if kind in _SERVING and shares(cell):
            kind = SHARED
        return (cell.base, kind if kind == "transformers" else f"{kind} of {serving(cell).server}")

    def _planned(self, cell: Cell) -> list[str]:
        """Return the kinds of workers that the coming tests of a cell need, without those that cannot hold it."""
        kinds = [kind for name, kind in self._plan if name == cell.base and kind in _KINDS]
        return [kind for kind in kinds if kind not in _SERVING or not self.unserved(cell)]

    def _end_others(self, of: Place, only: Key | None = None) -> None:
        """End what lasts for another cell, or with ``only`` all else."""
        lasting = self._workers.lasting
        self._workers.end_these([name for name in lasting if name[0] != of or (only and name != only)])

    def _start(self, cell: Cell, kinds: Sequence[str]) -> None:
        for kind in dict.fromkeys(kinds):
            name = self._key(cell, kind)
            if name not in self._workers.lasting and name not in self._failed:
                self._workers.lasting[name] = self.launch(cell, kind)
        if "server" in kinds and self._client is None:
            self._client = self.start_client(cell)

    def _get(self, cell: Cell, kind: str) -> Worker | Server:
        key, lasting = self._key(cell, kind), self._workers.lasting
        self._failed.raise_again(key)
        # Made before anything is started for it.
        self._checkpoints.served(cell)
        if kind in _SERVING and (refusal := self.unserved(cell)):
            raise Unsuitable(f"{cell.id}: {refusal}")
        together = cell.hardware.workers_at_once
        self._end_others(cell.base, None if together else key)
        worker = lasting.get(key)
        if worker is not None and not worker.alive:
            lasting.pop(key).close()
        self._start(cell, [kind, *(self._planned(cell) if together else ())])
        worker = lasting[key]
        if not worker.ready:
            self._workers.progress(f"starting {kind} of {cell.base} ...")
        try:
            with self._clock.timed("engine start" if kind != "transformers" else "setup", cell):
                try:
                    self._wait(worker, cell)
                except WorkerError as error:
                    worker = self._anew(cell, kind, error)
                if together:
                    self._settle(cell, key[0])
        except WorkerError as error:
            self._failed.note(key, error)
            lasting.pop(key).close()
            raise
        return worker

    def _anew(self, cell: Cell, kind: str, error: WorkerError) -> Worker | Server:
        """Start one that failed with what was compiled before once more, with nothing; raises every other error."""
        key, lasting = self._key(cell, kind), self._workers.lasting
        compiled = lasting[key].compiled
        if error.kind == "timeout" or compiled is None or not compiled.forget():
            raise error
        self._workers.progress(
            f"{kind} of {cell.base} did not start with what an earlier start had compiled, which is thrown away; "
            "starting it with nothing ..."
        )
        lasting.pop(key).close()
        lasting[key] = again = self.launch(cell, kind)
        self._wait(again, cell)
        return again

    def _wait(self, worker: Worker | Server, cell: Cell) -> None:
        """Wait for a worker; the compilation that it reports counts as a stage of its own."""
        fresh = not worker.ready
        worker.wait_ready(cell.measurements.time_limits.start)
        engine = worker.worker if isinstance(worker, Shared) else worker
        compiling = float(engine.info.get("compile_seconds", 0.0)) if isinstance(engine, Worker) and fresh else 0.0
        self._clock.inside("compile", compiling, cell)
        if fresh and worker.compiled:
            told = isinstance(engine, Worker) and {"compile_seconds": compiling, "start_seconds": engine.start_seconds}
            worker.compiled.keep(told or None)

    def _settle(self, cell: Cell, of: Place) -> None:
        """Wait until all workers started ahead are idle, so that none disturbs a measurement."""
        for key, worker in list(self._workers.lasting.items()):
            if key[0] == of:
                try:
                    worker.wait_ready(cell.measurements.time_limits.start)
                except WorkerError as error:
                    self._failed.note(key, error)
                    self._workers.lasting.pop(key).close()
        if self._client is not None:
            try:
                self._client.wait_ready(cell.measurements.time_limits.start)
            except WorkerError:
                # The test that needs the client starts it again, and reports it as its own.
                self._client = None


def gated(cell: Cell) -> dict[str, Mapping[Stage, frozenset[str]]]:
    """Return what a gate measures of a cell through each of its servers: metrics by stage.

    What the matrix does not send through a server, or not through all of its stages, is not gated there either; nor is
    it through one that cannot run on its hardware.
    """
    known = registry.gated()
    return {
        server: {stage: metrics for stage, metrics in known[server].items() if stage in through.stages}
        for server, through in cell.servers.items()
        if server in known and not registry.refusal(cell, server)
    }
