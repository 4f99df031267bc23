"""Starts workers and servers, forked from processes that have imported what they need, and ends them."""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import WorkerError
from harness.base.memory import check_limits
from harness.base.text import duration, file_name
from harness.contract.protocol import Job
from harness.matrix.measurements import TimeLimits
from harness.matrix.plan import Cell
from harness.records.place import Place
from harness.runtime.compiled import Compiled
from harness.runtime.environment import Environment
from harness.runtime.job import Server, Shared, Worker, free_port
from harness.runtime.process import ForkServer, Process
from harness.runtime.store import Store
from harness.servers.registry import TRANSFORMERS

# The workers that are forked from a process with Transformers' imports; of a server's its backend says its family.
_WITH_TRANSFORMERS = ("generate", "quantize", "limits", "executorch")

Key = tuple[Place, str]
"""What is made or kept for a cell: its base, and which of its workers or artifacts."""


class Failed:
    """What failed in this session: it is raised again, rather than waited for in every test."""

    def __init__(self) -> None:
        self._errors: dict[Key, WorkerError] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._errors

    def note(self, key: Key, error: WorkerError) -> None:
        self._errors[key] = error

    def raise_again(self, key: Key) -> None:
        """Raise what failed before, if it did."""
        if key in self._errors:
            raise self._errors[key].again()

    @contextlib.contextmanager
    def tried_once(self, key: Key) -> Iterator[None]:
        """Do what stands within unless it has failed before; note it if it fails."""
        self.raise_again(key)
        try:
            yield
        except WorkerError as error:
            self.note(key, error)
            raise


class Forks:
    """The processes that workers are forked from: one for each family of imports and each environment.

    They last, whatever becomes of the workers; flows of one environment may share them.
    """

    def __init__(self) -> None:
        self._servers: dict[tuple[str, ...], ForkServer] = {}
        self._lock = threading.Lock()

    def get(self, family: str, python: str, environ: dict[str, str], log: Callable[[str], Path]) -> ForkServer:
        """Return the process of a family, its imports begun; in any thread."""
        key = (family, python, *(f"{name}={value}" for name, value in sorted(environ.items())))
        with self._lock:
            server = self._servers.get(key)
            if server is None or not server.alive:
                if server is not None:
                    server.close()
                where = log(f"imports of {family} {len(self._servers)}")
                server = self._servers[key] = ForkServer(family, python=python, environ=environ, log=where)
            return server

    @property
    def processes(self) -> list[Process]:
        """Those that are alive, or were."""
        return [server.process for server in list(self._servers.values())]

    def close(self) -> None:
        """End them all."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()


class Workers:
    """Starts workers of one environment, or of another that is named, and ends those that are left.

    ``lasting`` are those that are kept for a cell, by what they are; ``beside`` those that run besides, each waited for
    by whoever started it. ``limits`` are the time limits of work that is of no cell. ``side`` goes before the logs'
    names: the two sides of a gate have one each, so that neither tells the other's errors.
    """

    def __init__(
        self,
        store: Store,
        logs: Path,
        environment: Environment,
        *,
        limits: TimeLimits,
        forks: Forks | None = None,
        side: str = "",
        progress: Callable[[str], None] = lambda _: None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.environment = environment
        self.side = side
        self.progress = progress
        self.lasting: dict[Key, Worker | Server] = {}
        self.beside: list[Worker] = []
        self._logs = logs
        self._limits = limits
        self._forks = forks or Forks()
        self._waiting = waiting
        self._once: list[Worker] = []
        self._processes: weakref.WeakSet[Process] = weakref.WeakSet()

    def start(
        self,
        backend: str,
        specification: dict[str, Any],
        role: str,
        *,
        of: str = "",
        variables: dict[str, str] | None = None,
        environment: Environment | None = None,
        family: str | None = None,
        compiled: Compiled | None = None,
        whole: bool = False,
    ) -> Worker:
        """Start a worker, not ready yet: forked with the imports of ``family``, or executed if that is empty.

        ``role`` is what it is to do, ``of`` which cell, ``compiled`` where its compilers work; one that is ``whole``
        imports all that a user's process does.
        """
        check_limits(worker=True)
        label = f"{role} {of}".strip()
        environment = environment or self.environment
        if family is None:
            family = TRANSFORMERS if backend in _WITH_TRANSFORMERS else ""
        worker = Worker(
            Job(backend=backend, specification=specification, whole=whole),
            environment=environment,
            store=self.store,
            log=self.log(label),
            label=label,
            role=role,
            variables=variables,
            forks=self._fork_server(family, variables or {}, environment),
            compiled=compiled,
            progress=lambda value: self.progress(f"{label}: {_in_words(value)}"),
            waiting=self._waiting,
        )
        self._processes.add(worker.process)
        return worker

    def serve(
        self,
        module: str,
        arguments: Callable[[int], list[str]],
        role: str,
        *,
        of: str,
        variables: dict[str, str],
        environment: Environment,
        family: str,
        compiled: Compiled | None = None,
    ) -> Server:
        """Start a server, which does not answer yet; ``arguments`` are those of its module for a port."""
        check_limits(worker=True)
        port, label = free_port(), f"{role} {of}"
        given, log = arguments(port), self.log(label)
        forks = self._fork_server(family, variables, environment)
        own = compiled.variables if compiled else {}
        if forks:
            process: Process = forks.start(module, given, log=log, environ=own)
        else:
            command = [environment.python, "-m", module, *given]
            process = Process(command, environ=environment.environ(self.store, variables) | own, log=log)
        self._processes.add(process)
        return Server(process, port=port, label=label, role=role, compiled=compiled)

    def share(self, backend: str, specification: Callable[[int], dict[str, Any]], role: str, **started: Any) -> Shared:
        """Start a worker that is a server too, not ready yet; ``specification`` is that for a port."""
        port = free_port()
        return Shared(self.start(backend, specification(port), role, **started), port=port)

    def import_ahead(
        self, family: str, variables: dict[str, str] | None = None, environment: Environment | None = None
    ) -> None:
        """Begin the imports of a family that workers will be forked with, while something else is waited for."""
        self._fork_server(family, variables or {}, environment or self.environment)

    def once(
        self, backend: str, specification: dict[str, Any], command: str, cell: Cell | None, **arguments: Any
    ) -> dict[str, Any]:
        """Ask one command of a worker that is started for it and ends with it."""
        limits = cell.measurements.time_limits if cell else self._limits
        of = cell.id if cell else ""
        self.progress(f"{command} {of} ..." if cell else f"{command} ...")
        if specification.get("device") == "cuda" and backend != "limits":
            # A server or an engine of the cell before holds most of the device.
            self.end_lasting()
        worker = self.start(backend, specification, command, of=of)
        self._once.append(worker)
        try:
            worker.wait_ready(limits.start)
            return worker.ask(command, limits.prepare, **arguments)
        finally:
            self._once.remove(worker)
            worker.close()

    def end_once(self) -> None:
        """End the workers that :meth:`once` waits for in other threads, which then raise WorkerError."""
        for worker in list(self._once):
            worker.process.end()

    def kill(self) -> None:
        """End every worker and server, and what they are forked from, from another thread and with no time to lose.

        Whoever waits for one raises WorkerError.
        """
        for process in [*self._processes, *self._forks.processes]:
            process.kill()

    def end_lasting(self) -> None:
        """End what lasts for a cell, and what runs beside it; who waits for the latter raises WorkerError.

        An interrupted gate calls this while the thread of a side may be starting another worker.
        """
        for worker in list(self.beside):
            worker.process.end()
        while self.lasting:
            self.end_these(list(self.lasting))

    def end_these(self, names: Sequence[Key]) -> None:
        """End some of what lasts: all are asked to, then each is waited for."""
        for name in names:
            if one := self.lasting.get(name):
                one.ask_to_end()
        for name in names:
            if one := self.lasting.pop(name, None):
                one.close()

    def close(self) -> None:
        """End what lasts, and what workers are forked from."""
        self.end_lasting()
        self._forks.close()

    def log(self, label: str) -> Path:
        """Return the file of a worker's log."""
        label = f"{self.side}-{label}" if self.side else label
        return self._logs / f"{file_name(label)}.log"

    def _fork_server(self, family: str, variables: dict[str, str], environment: Environment) -> ForkServer | None:
        """Return what workers of a family are forked from; None where there is no family, or no forking."""
        if not family or sys.platform != "linux":
            return None
        return self._forks.get(family, environment.python, environment.environ(self.store, variables), self.log)


def _in_words(progress: Mapping[str, Any]) -> str:
    """Return how far a worker is: what is done, of how much, and how long the rest will take, if it knows."""
    unit, left = progress.get("unit"), progress.get("left")
    words = f"{progress.get('done')} of {progress.get('of')}" + (f" {unit}" if unit else "")
    return words if left is None else f"{words}, about {duration(left)} left"
