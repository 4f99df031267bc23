"""How what a cell needs is started: its engine, its server, its Transformers, its program and its client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.base.reading import json_file
from harness.contract import repeated
from harness.machine import probe, processor
from harness.matrix.plan import Cell
from harness.measure import served
from harness.measure.checkpoints import Checkpoints
from harness.measure.workers import Workers
from harness.records.schema import Scalar
from harness.runtime.compiled import KIND, Compiled
from harness.runtime.environment import Environment
from harness.runtime.job import Server, Worker
from harness.servers import registry
from harness.servers.base import ServerBackend
from harness.servers.registry import SERVERS

SHARED = "shared engine"
"""The kind of a worker that is a cell's offline engine and its server."""
# Whose memory is measured, a process of its own. While it generates, others do or start beside it: threads that wait
# for work by spinning, as OpenMP's do by default, would take the processors from one another (on two cores one that
# wants 10 s of processor time was seen to take 68 s, in 96 s), so these sleep. The memory is the same.
_MEMORY = "memory"
_SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE"}
# The parts of the key of what is compiled that tell the code of a server.
_PACKAGES = ("server", "packages", "python")


class Launches:
    """Starts what a cell needs, by what its server says, and waits for none of it.

    ``environments`` are those of servers that have one of their own, ``data`` is a folder with tasks' documents.
    """

    def __init__(
        self,
        workers: Workers,
        checkpoints: Checkpoints,
        environments: Mapping[str, Environment] | None = None,
        data: Path | None = None,
    ) -> None:
        self._workers = workers
        self._checkpoints = checkpoints
        self._environments = dict(environments or {})
        self._data = data

    def whole_process(self, cell: Cell) -> Worker:
        """Start a Transformers worker whose memory is its own, not ready yet; in any thread, and nothing ends it here.

        It is no fork, which would share what it inherits, and does without nothing that a user's process imports.
        """
        return self._launch_transformers(cell, _MEMORY)

    def backend(self, cell: Cell) -> ServerBackend:
        """Return the backend that the cell's server names."""
        return SERVERS[cell.server]

    def import_ahead(self, cells: Iterable[Cell]) -> None:
        """Begin the imports of what will serve cells, where nothing that is timed comes before it stands."""
        for cell in cells:
            if cell.server in SERVERS and cell.hardware.workers_at_once:
                self._workers.import_ahead(self.backend(cell).family, self.variables(cell), self.environment_of(cell))

    def unserved(self, cell: Cell) -> str:
        """Return why the cell's server cannot hold the cell's checkpoint, or an empty string if it can."""
        server = serving(cell).server
        if cell.recipe.baseline or server not in SERVERS:
            return ""
        checkpoint = self._checkpoints.served(cell)
        return (
            served.unsaved(checkpoint.folder, cell.recipe.name, server)
            or served.refusal(checkpoint.facts["weights"], SERVERS[server].quantized_kinds, server)
            or served.passed_over(checkpoint.folder, server)
        )

    def environment_of(self, cell: Cell) -> Environment:
        """Return what the cell's server runs in; all else runs in the workers' environment."""
        return self._environments.get(cell.server, self._workers.environment)

    def packages(self, cell: Cell) -> dict[str, str]:
        """Return the versions of the packages that decide what is measured of a cell."""
        return self.environment_of(cell).decisive(*registry.distributions())

    def options(self, cell: Cell) -> dict[str, Scalar]:
        """Return the options of engine and server, the same for baseline and recipe."""
        told = repeated.overrides(self._config(cell))
        return self.backend(cell).options(cell, self._context(cell)) | ({"hf_overrides": told} if told else {})

    def variables(self, cell: Cell) -> dict[str, str]:
        """Return the environment variables of engine and server, the same for baseline and recipe."""
        return self.backend(cell).variables(cell)

    def _config(self, cell: Cell) -> dict[str, Any]:
        found: dict[str, Any] = json_file(self._checkpoints.served(cell).folder / "config.json")
        return found

    def _context(self, cell: Cell) -> int:
        """Return the longest context that the model's configuration allows."""
        config = self._config(cell)
        text = config.get("text_config", config)
        return int(
            text.get("max_position_embeddings") or text.get("n_positions") or cell.measurements.engine.max_model_len
        )

    def depth(self, cell: Cell) -> int:
        """Return how many layers the model has, by its configuration; 0 where that does not say."""
        config = repeated.whole(self._config(cell))
        text = config.get("text_config", config)
        return int(text.get("num_hidden_layers") or text.get("n_layer") or 0)

    def launch(self, cell: Cell, kind: str) -> Worker | Server:
        """Start a worker, a server or both, not ready yet."""
        if kind == "transformers":
            return self._launch_transformers(cell, kind)
        if kind.startswith("executorch"):
            return self._launch_program(cell, kind)
        cell = serving(cell)
        backend, options = self.backend(cell), self.options(cell)
        checkpoint = self._checkpoints.served(cell).folder
        common: dict[str, Any] = {
            "of": cell.id,
            "variables": self.variables(cell),
            "environment": self.environment_of(cell),
            "family": backend.family,
            "compiled": self._compiled(cell, options),
        }
        if shares(cell):
            return self._workers.share(
                backend.shared_worker, lambda port: backend.shared(cell, checkpoint, options, port), SHARED, **common
            )
        if kind == "engine":
            return self._workers.start(backend.worker, backend.specification(cell, checkpoint, options), kind, **common)
        return self._workers.serve(
            backend.module, lambda port: backend.arguments(cell, checkpoint, options, port), kind, **common
        )

    def _compiled(self, cell: Cell, options: Mapping[str, Scalar]) -> Compiled | None:
        """Return where a start's compilers work; None where it compiles nothing.

        The key is all that decides what they make: the model's shape and recipe as its configuration has them, what the
        server is told, and the packages, interpreter and device. Of torchao it has the code too: compilers keep
        what its tensors did and look at no more than its version.
        """
        backend = self.backend(cell)
        into = backend.compiles_into(options)
        if not into:
            return None
        environment = self.environment_of(cell)
        key = {
            "server": cell.server,
            "config": {name: value for name, value in self._config(cell).items() if name != "_name_or_path"},
            "options": {name: value for name, value in options.items() if name not in backend.compiled_alike},
            "variables": self.variables(cell),
            "packages": environment.decisive(*registry.distributions()),
            "torchao": environment.sources("torchao"),
            "python": [environment.python, environment.interpreter(), str(environment.overlay or "")],
            "device": probe.device(cell.hardware).name,
            "processor": processor.instructions(),
        }
        return Compiled(self._workers.store, key, into, cell.id, common=backend.inspected, of=_PACKAGES)

    def compiled(self) -> set[str]:
        """Return the ids of the cells whose compilation is kept for the packages that are here."""
        packages = self._workers.environment.decisive(*registry.distributions())
        return {
            str(kept["facts"].get("cell"))
            for _, kept in self._workers.store.manifests(KIND)
            if kept["key"].get("packages") == packages
        }

    def _launch_transformers(self, cell: Cell, kind: str) -> Worker:
        specification = {
            "checkpoint": str(self._checkpoints.of(cell).folder),
            "device": cell.hardware.torch_device,
            "trust_remote_code": cell.model.trust_remote_code,
        }
        alone = kind == _MEMORY
        return self._workers.start(
            "generate",
            specification,
            kind,
            of=cell.id,
            variables=_SLEEPING if alone else self._online(),
            family="" if alone else None,
            whole=alone,
        )

    def _launch_program(self, cell: Cell, kind: str) -> Worker:
        program = self._checkpoints.program(cell, kind.split()[1])
        specification = {
            "program": str(program.folder / program.facts["file"]),
            "checkpoint": str(self._checkpoints.of(cell).folder),
            "trust_remote_code": cell.model.trust_remote_code,
        }
        return self._workers.start("executorch", specification, kind, of=cell.id, variables=self._online())

    def start_client(self, cell: Cell) -> Worker:
        """Start the client with the variables of its server's engine, so that the same fork server serves both.

        It runs in the workers' environment, or in the harness's own where that alone has it.
        """
        backend = registry.client()
        places = (self._workers.environment, Environment())
        where = next((it for it in places if it.has(*backend.distributions)), self._workers.environment)
        return self._workers.start(
            backend.client,
            {},
            "client",
            variables=backend.variables(cell) | self._online(),
            environment=where,
            family=backend.family,
        )

    def _online(self) -> dict[str, str]:
        """Let a worker that evaluates tasks fetch their documents, where the hub answers and no folder was given."""
        if self._data is not None or not self._checkpoints.models.online:
            return {}
        return {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}


def serving(cell: Cell) -> Cell:
    """Return the cell through a server: its own, or for one through Transformers the first of those it is served by."""
    if cell.server in SERVERS:
        return cell
    return replace(cell, server=next((name for name in cell.servers if name in SERVERS), cell.server))


def shares(cell: Cell) -> bool:
    """Return whether one engine is a cell's offline engine and its server's."""
    server = SERVERS.get(serving(cell).server)
    return cell.measurements.engine.shared and server is not None and bool(server.shared_worker)


def shared_flag(cell: Cell) -> dict[str, Scalar]:
    """Return the flag of a cell's records whose engine is shared; empty where it is not."""
    return {"shared_engine": True} if shares(cell) else {}
