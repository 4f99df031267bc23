"""The stages of a flow as cached functions: same inputs, same key, same artifact; and the workers that last."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.base import network
from harness.base.errors import ArtifactError, HarnessError, MatrixError, Unsuitable, WorkerError
from harness.base.text import file_name
from harness.contract import versions, weights
from harness.contract.protocol import Job
from harness.machine import probe
from harness.matrix.hardware import Hardware
from harness.matrix.plan import Cell, Matrix
from harness.matrix.schema import Model, Package
from harness.measure.checkpoints import (
    _EVALUATORS,
    _EXPORT_BYTES,
    _EXPORT_BYTES_A_PARAMETER,
    _EXPORTERS,
    Checkpoint,
    _noted,
)
from harness.measure.fleet import _WITH_TRANSFORMERS, _WORKER_KINDS, _base, _key, _serving
from harness.records.run import Run
from harness.records.schema import Cell as CellIdentity
from harness.records.schema import ModelIdentity, Scalar, Timing
from harness.runtime import sources
from harness.runtime.environment import Environment
from harness.runtime.job import Server, Worker, free_port
from harness.runtime.process import ForkServer, Process
from harness.runtime.store import Artifact, Store
from harness.runtime.together import Work, together
from harness.servers.base import ServerBackend
from harness.servers.registry import SERVERS, TRANSFORMERS, client, distributions


class Flow:
    """Runs the stages of one session.

    ``plan`` lists in order which kind of worker each coming test needs, as (cell id without server, kind); where
    the machine can hold them (``together``), all workers of a cell are started at once, so that their imports
    overlap, and each waits, idle, for its turn. Otherwise one lives at a time. ``programs`` lists the programs that the
    coming tests need, as (cell, route).
    """

    def __init__(
        self,
        store: Store,
        run: Run,
        matrix: Matrix,
        *,
        environment: Environment,
        environments: Mapping[str, Environment] | None = None,
        data: Path | None = None,
        limit: int | None = None,
        progress: Callable[[str], None] = lambda _: None,
        apart: Mapping[str, str | None] | None = None,
        side: str = "",
    ) -> None:
        self.store = store
        self.run = run
        self.matrix = matrix
        self.environment = environment
        self.environments = dict(environments or {})
        self.data = data
        self.limit = limit
        self.progress = progress
        self._side = side
        # What tells the environment of one side of a gate from the other's beyond what is in the keys by itself.
        keyed = (*versions.MAKERS, *_EVALUATORS)
        self._apart = {name: it for name, it in (apart or {}).items() if name.replace("-", "_") not in keyed}
        self.waiting: Callable[[], None] = lambda: None
        self.plan: list[tuple[str, str]] = []
        self.programs: list[tuple[Cell, str]] = []
        self.start_ahead = True
        # Where peak memory is that of a whole process, a fork would have what it inherits in its own.
        self.whole_processes = True
        # Rises for a block that must not answer from an earlier one's cached evaluations.
        self.block = 0
        self._workers: dict[tuple[str, str], Worker | Server] = {}
        self._failed: dict[tuple[str, str], WorkerError] = {}
        self._failed_ahead: dict[tuple[str, str], HarnessError] = {}
        self._once: list[Worker] = []
        self._client: Worker | None = None
        self._forks: dict[tuple[str, ...], ForkServer] = {}
        self._plain: dict[str, Checkpoint] = {}
        self._online: bool | None = None
        self._inner: list[float] = []

    # ------------------------------------------------------------------------------------------ cached stages

    def plain(self, model: Model, on: Hardware) -> Checkpoint:
        """Return the unquantized checkpoint of a model, from the first of its sources that answers."""
        if model.name not in self._plain:
            with self._tried_once((model.name, "plain")), self.timed("setup"):
                self._plain[model.name] = self._find_plain(model, on)
        return self._plain[model.name]

    def share_plain(self, other: Flow) -> None:
        """Start from the very weights of another flow: two environments are compared by what they make of the same."""
        self._plain = other._plain

    def share_forks(self, other: Flow) -> None:
        """Fork workers from the processes of another flow of the same environment, which ends them."""
        self._forks = other._forks

    def checkpoint(self, cell: Cell) -> Checkpoint:
        """Return the checkpoint of a cell: the plain one for the baseline, otherwise a quantized one.

        A model that comes quantized is the checkpoint of the recipe that it was quantized with. Raises Unsuitable for
        any other recipe and for the baseline.
        """
        plain = self.plain(cell.model, cell.hardware)
        if plain.quantized:
            self._refuse_other(cell, plain)
            return replace(plain, facts=self._found(cell, plain))
        if cell.recipe.baseline:
            return self._checked(cell, plain)
        device = cell.hardware.torch_device
        config = cell.recipe.identity.config

        def build(folder: Path) -> dict[str, Any]:
            return self.once(
                "quantize",
                {"device": device},
                "quantize",
                cell,
                checkpoint=str(plain.folder),
                output=str(folder),
                trust_remote_code=cell.model.trust_remote_code,
                **config,
            )

        key = {"plain": plain.key, "recipe": cell.recipe.identity.hash, "device": device, **self._makers()}
        with self._tried_once((_base(cell), "checkpoint")), self.timed("quantize", cell):
            label = f"checkpoint {cell.id}"
            artifact = self.store.get("checkpoint", key, build, label=label, facts=versions.CHECKPOINT_FACTS)
        return Checkpoint(artifact.folder, artifact.key, plain.model, artifact.facts)

    def alone(self, cell: Cell) -> str:
        """Return why there is no baseline to hold a recipe against, or an empty string if there is one."""
        if self.plain(cell.model, cell.hardware).quantized:
            return f"{cell.model.name} came quantized, so there is no baseline"
        return ""

    def facts(self, cell: Cell) -> dict[str, Any]:
        """Return sizes and layers of a cell's checkpoint; one from a folder or the hub is loaded once to learn them."""
        return self.checkpoint(cell).facts

    def _checked(self, cell: Cell, plain: Checkpoint) -> Checkpoint:
        """Return a plain checkpoint with its facts: loaded once, it is known to have all of its weights."""
        return plain if plain.facts else replace(plain, facts=self._found(cell, plain))

    def _refuse_other(self, cell: Cell, model: Checkpoint) -> None:
        """Raise Unsuitable unless a cell's recipe is of the config class that its model came quantized with."""
        if cell.recipe.config == model.quantized:
            return
        what = f"model {cell.model.name} came quantized, with {model.quantized}"
        names = [one.name for one in self.matrix.recipes.values() if one.config == model.quantized]
        if cell.recipe.baseline or names:
            # A recipe of the matrix may have other arguments than the model was quantized with.
            known = " or ".join([*names, f"'{model.quantized}(...)'"])
            raise Unsuitable(f"{what}: it is measured as it is, by --recipe {known} alone")
        raise Unsuitable(
            f"{what}, which is no recipe of {self.matrix.path.name}: to measure it as it is, add the recipe there or "
            f"name it, as --recipe '{model.quantized}(...)'",
            nowhere=True,
        )

    def _found(self, cell: Cell, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return sizes and layers of a checkpoint that somebody else made, which is loaded for it once."""
        device = cell.hardware.torch_device
        config = cell.recipe.identity.config
        recipe = {name: config[name] for name in ("config", "arguments", "quantizes") if name in config}
        if not checkpoint.quantized:
            recipe = {}

        def build(_: Path) -> dict[str, Any]:
            arguments = {"checkpoint": str(checkpoint.folder), "trust_remote_code": cell.model.trust_remote_code}
            return self.once("quantize", {"device": device}, "facts", cell, **arguments, **recipe)

        key = {"checkpoint": checkpoint.key, "device": device, **self._versions()}
        if recipe:
            key["recipe"] = cell.recipe.identity.hash
        with self._tried_once((_base(cell), "facts")), self.timed("quantize", cell):
            label = f"facts of {cell.id}"
            return self.store.get("facts", key, build, label=label, facts=versions.CHECKPOINT_FACTS).facts

    def program(self, cell: Cell, route: str) -> Artifact:
        """Return the ExecuTorch program (.pte) of a cell by one of the export's routes, with facts of its making.

        With the first one all of ``programs`` that are missing are made, several at once, since an export keeps one
        processor busy; so none runs beside, or between, measurements.
        """
        key, build = self._program(cell, route)
        with self._tried_once((_base(cell), f"program {route}")), self.timed("export", cell):
            self._export_ahead()
            if error := self._failed_ahead.pop((_base(cell), route), None):
                raise error
            return self.store.get("program", key, build, label=f"program {cell.id} ({route})")

    def _program(self, cell: Cell, route: str) -> tuple[dict[str, Any], Callable[[Path], dict[str, Any]]]:
        """Return the key of a program and what builds it, in any thread."""
        checkpoint = self.checkpoint(cell)
        assert cell.measurements.mobile
        options: dict[str, Any] = {"context": cell.measurements.mobile.context}
        if route == "llama":
            options["model"] = cell.model.executorch

        def build(folder: Path) -> dict[str, Any]:
            arguments = {"checkpoint": str(checkpoint.folder), "trust_remote_code": cell.model.trust_remote_code}
            return self.once("export", {}, f"{route}_route", cell, output=str(folder), **arguments, **options)

        key = {
            "checkpoint": checkpoint.key,
            "route": route,
            **options,
            **self._versions(_EXPORTERS),
            **versions.in_key("lowering", versions.LOWERING[route]),
        }
        return key, build

    def _export_ahead(self) -> None:
        """Make what is missing of ``programs``; what fails is kept for the test that asks for it."""
        coming, self.programs = self.programs, []
        missing: dict[tuple[str, str], Work] = {}
        for cell, route in coming:
            # A checkpoint that cannot be made fails its own tests.
            with contextlib.suppress(HarnessError):
                key, build = self._program(cell, route)
                if not self.store.holds("program", key):
                    parameters = self.facts(cell)["parameters"]
                    label = f"program {cell.id} ({route})"
                    make = functools.partial(self.store.get, "program", key, build, label=label)
                    missing[_base(cell), route] = Work(make, _EXPORT_BYTES + _EXPORT_BYTES_A_PARAMETER * parameters)
        if len(missing) > 1:
            self.progress(f"exporting {len(missing)} programs, as many at once as processors and free memory allow ...")
        errors = together(list(missing.values()), self._end_once)
        self._failed_ahead |= {name: error for name, error in zip(missing, errors, strict=True) if error}

    def prompts(self) -> Artifact:
        """Return the ShareGPT prompts and text."""
        with self.timed("setup"):
            return sources.sharegpt(self.store, self.data)

    def evaluated(self, cell: Cell, what: str, key: dict[str, Any], ask: Callable[[], dict[str, Any]]) -> Artifact:
        """Return the result of a deterministic evaluation, computed once for the same weights, code and question."""
        key = {"checkpoint": self.checkpoint(cell).key, "hardware": cell.hardware.name, **key}
        key |= self._versions(_EVALUATORS)
        key["device"] = probe.device(cell.hardware).name
        if self.block:
            key |= {"block": self.block, "run": self.run.name}

        def build(folder: Path) -> dict[str, Any]:
            with self.timed("evaluate", cell):
                return ask()

        return self.store.get("evaluation", key, build, label=f"{what} of {cell.id}")

    def _find_plain(self, model: Model, on: Hardware) -> Checkpoint:
        if model.folder:
            folder = Path(model.folder)
            sources.check(model.name, folder)
            revision = sources.folder_revision(folder)
            identity = ModelIdentity(
                name=model.name, source=f"folder:{folder.name}", revision=revision, weights="pretrained"
            )
            if gguf := weights.gguf(folder):
                note = f"weights from {gguf[0].name}: the bf16 baseline has itself been through that quantization"
                return self._from_gguf(gguf[0], identity.model_copy(update={"note": note}))
            return _noted(Checkpoint(folder, revision, identity, {}))
        if self._online is None:
            self._online = network.hub_answers()
        if found := self._from_hub(model):
            folder, revision = found
            sources.check(model.name, folder)
            identity = ModelIdentity(
                name=model.name, source=f"hub:{model.hub}", revision=revision, weights="pretrained"
            )
            return _noted(Checkpoint(folder, f"{model.hub}@{revision}", identity, {}))
        if model.package:
            packed = self._packed(model.package)
            identity = ModelIdentity(
                name=model.name,
                source=f"package:{model.package.name}",
                revision=packed.facts["sha256" if model.package.parts else "wheel_sha256"][:16],
                weights="pretrained",
                note="; ".join(filter(None, (model.package_note, model.terms))),
            )
            return self._from_gguf(packed.folder / packed.facts["file"], identity)
        if model.random:
            return self._from_shape(model, on)
        raise ArtifactError(
            f"model {model.name}: the hub does not answer and {model.hub} is not in its local cache; "
            "give a folder with --model FOLDER, or try again with a network"
        )

    def _from_hub(self, model: Model) -> tuple[Path, str] | None:
        if model.hub is None:
            return None
        try:
            return sources.from_hub(model.hub, model.revision, bool(self._online))
        except ArtifactError as error:
            raise ArtifactError(f"model {model.name}: {error}") from error

    def _packed(self, package: Package) -> Artifact:
        if package.requirement:
            return sources.from_package(self.store, package.requirement, package.file)
        parts = [(part.requirement, part.file) for part in package.parts]
        return sources.from_parts(self.store, parts, package.file, str(package.sha256))

    def _from_gguf(self, file: Path, identity: ModelIdentity) -> Checkpoint:
        def build(folder: Path) -> dict[str, Any]:
            return self.once("quantize", {"device": "cpu"}, "plain_from_gguf", None, file=str(file), output=str(folder))

        key = {"gguf": identity.revision, "file": file.name, **self._makers()}
        label = f"plain checkpoint of {identity.name}"
        artifact = self.store.get("plain", key, build, label=label, facts=versions.CHECKPOINT_FACTS)
        return Checkpoint(artifact.folder, artifact.key, identity, artifact.facts)

    def _from_shape(self, model: Model, on: Hardware) -> Checkpoint:
        assert model.random
        shape = (self.matrix.path.parent / model.random.shape).resolve()
        if not shape.is_file():
            raise MatrixError(f"{self.matrix.path}: models.{model.name}.random.shape: {shape} is not there")
        lender = self.plain(self.matrix.models[model.random.tokenizer], on)
        device = on.torch_device
        key = {
            "shape": shape.read_text(encoding="utf-8"),
            "seed": model.random.seed,
            "tokenizer": lender.key,
            "device": device,
            **self._makers(),
        }

        def build(folder: Path) -> dict[str, Any]:
            assert model.random
            return self.once(
                "quantize",
                {"device": device},
                "plain_from_shape",
                None,
                shape=str(shape),
                seed=model.random.seed,
                tokenizer=str(lender.folder),
                output=str(folder),
            )

        label = f"random weights of {model.name}"
        artifact = self.store.get("plain", key, build, label=label, facts=versions.CHECKPOINT_FACTS)
        identity = ModelIdentity(
            name=model.name,
            source=f"random:{shape.name}",
            revision=artifact.key.split("/")[1],
            weights="random",
            note=f"random weights of the exact shape, seed {model.random.seed}; "
            f"tokenizer of {model.random.tokenizer}, so prompts have other token counts",
        )
        return Checkpoint(artifact.folder, artifact.key, identity, artifact.facts)

    def _makers(self) -> dict[str, Any]:
        """Return what of the code that makes checkpoints is part of their keys."""
        return {**self._versions(), **versions.in_key("checkpoint", versions.CHECKPOINT)}

    def _versions(self, more: tuple[str, ...] = ()) -> dict[str, Any]:
        packages = self.environment.decisive()
        found: dict[str, Any] = {"packages": {name: packages.get(name) for name in (*versions.MAKERS, *more)}}
        return found | ({"apart": self._apart} if self._apart else {})

    def once(
        self, backend: str, specification: dict[str, Any], command: str, cell: Cell | None, **arguments: Any
    ) -> dict[str, Any]:
        """Ask one command of a worker that is started for it and ends with it."""
        limits = cell.measurements.time_limits if cell else next(iter(self.matrix.measurements.values())).time_limits
        label = f"{command} {cell.id}" if cell else command
        self.progress(f"{label} ...")
        if specification.get("device") == "cuda" and backend != "limits":
            # A server or an engine of the cell before holds most of the device.
            self._end_lasting()
        worker = self._start(backend, specification, label)
        self._once.append(worker)
        try:
            worker.wait_ready(limits.start)
            return worker.ask(command, limits.prepare, **arguments)
        finally:
            self._once.remove(worker)
            worker.close()

    def _end_once(self) -> None:
        """End the workers that :meth:`once` waits for in other threads, which then raise WorkerError."""
        for worker in list(self._once):
            worker.process.end()

    # ---------------------------------------------------------------------------------------- lasting workers

    def transformers(self, cell: Cell, *, settled: bool = True) -> Worker:
        """Return the Transformers worker of a cell, ready.

        ``settled`` waits until all other workers that were started ahead are idle; what takes no time need not wait.
        """
        worker = self._get(cell, "transformers", settled)
        assert isinstance(worker, Worker)
        return worker

    def engine(self, cell: Cell) -> Worker:
        """Return the offline engine of a cell, ready."""
        worker = self._get(cell, "engine")
        assert isinstance(worker, Worker)
        return worker

    def server(self, cell: Cell) -> Server:
        """Return the HTTP server of a cell, ready."""
        server = self._get(cell, "server")
        assert isinstance(server, Server)
        return server

    def executorch(self, cell: Cell, route: str) -> Worker:
        """Return the worker that has a cell's ExecuTorch program, ready."""
        self.program(cell, route)
        worker = self._get(cell, f"executorch {route}")
        assert isinstance(worker, Worker)
        return worker

    def client(self, cell: Cell) -> Worker:
        """Return the benchmark's client, started once a session."""
        if self._client is None or not self._client.alive:
            self._client = self._start_client(cell)
        with self.timed("setup", cell):
            self._client.wait_ready(cell.measurements.time_limits.start)
        return self._client

    def _start_client(self, cell: Cell) -> Worker:
        """Start the client with the variables of its server's engine, so that the same fork server serves both."""
        benchmark = client()
        variables = benchmark.variables(cell) | self._online_variables()
        return self._start(benchmark.client, {}, "client", variables, family=benchmark.family)

    def limits(self, cell: Cell, **arguments: Any) -> dict[str, Any]:
        """Return the measured ceilings of the device that a cell runs on; idle workers may stay beside."""
        return self.once("limits", {"device": cell.hardware.torch_device}, "measure", cell, **arguments)

    def renew(self, cell: Cell, kind: str) -> None:
        """End a worker, so that the next one asked for is fresh."""
        worker = self._workers.pop(_key(cell, kind), None)
        if worker:
            worker.close()

    def environment_of(self, cell: Cell) -> Environment:
        """Return what the cell's server runs in; all else runs in the session's environment."""
        return self.environments.get(cell.server, self.environment)

    def packages(self, cell: Cell) -> dict[str, str]:
        """Return the versions of the packages that decide what is measured of a cell."""
        return self.environment_of(cell).decisive(*distributions())

    def backend(self, cell: Cell) -> ServerBackend:
        """Return the backend that the cell's server names."""
        return SERVERS[cell.server]

    def at_load(self, cell: Cell) -> bool:
        """Return whether the cell's server is given a plain checkpoint and applies the recipe as it loads it."""
        return cell.server in SERVERS and self.backend(cell).at_load

    def served(self, cell: Cell) -> Checkpoint:
        """Return the checkpoint that the cell's server is given: a plain one, if it applies the recipe itself.

        One that came quantized is that of its own recipe through such a server too.
        """
        if self.at_load(cell):
            plain = self.plain(cell.model, cell.hardware)
            if not plain.quantized:
                return self._checked(cell, plain)
        return self.checkpoint(cell)

    def engine_options(self, cell: Cell) -> dict[str, Scalar]:
        """Return the options of engine and server, the same for baseline and recipe."""
        return self.backend(cell).options(cell, self._context(cell))

    def _context(self, cell: Cell) -> int:
        """Return the longest context that the model's configuration allows."""
        config = json.loads((self.served(cell).folder / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config", config)
        return int(
            text.get("max_position_embeddings") or text.get("n_positions") or cell.measurements.engine.max_model_len
        )

    def engine_variables(self, cell: Cell) -> dict[str, str]:
        """Return the environment variables of engine and server, the same for baseline and recipe."""
        return self.backend(cell).variables(cell)

    def close(self) -> None:
        """End every worker and server, and what they are forked from."""
        self.end_workers()
        for server in self._forks.values():
            server.close()
        self._forks.clear()

    def end_workers(self) -> None:
        """End every worker and server; the next ones can still be forked."""
        self._end_lasting()
        if self._client:
            self._client.close()
            self._client = None

    def _end_lasting(self) -> None:
        """End what lasts for a cell; the session's client holds nothing of the device and goes on.

        An interrupted gate calls this while the thread of a side may be starting another worker.
        """
        while self._workers:
            self._workers.popitem()[1].close()

    @contextlib.contextmanager
    def timed(self, stage: str, cell: Cell | None = None) -> Iterator[None]:
        """Record where the session's time goes; the time of a stage inside another counts to the inner one only."""
        self._inner.append(0.0)
        start = time.monotonic()
        try:
            yield
        finally:
            whole = time.monotonic() - start
            own = whole - self._inner.pop()
            if self._inner:
                self._inner[-1] += whole
            self._note_time(stage, own, cell)

    def _note_time(self, stage: str, seconds: float, cell: Cell | None) -> None:
        if seconds > 0.01:
            identity = self.identity(cell) if cell and cell.model.name in self._plain else None
            self.run.append(Timing(stage=stage, cell=identity, seconds=seconds))

    @property
    def known_models(self) -> frozenset[str]:
        """The names of the models whose weights were found in this session."""
        return frozenset(self._plain)

    def identity(self, cell: Cell) -> CellIdentity:
        """Return the cell as records name it."""
        return CellIdentity(
            model=self.plain(cell.model, cell.hardware).model,
            recipe=cell.recipe.identity,
            hardware=cell.hardware.name,
            server=cell.server,
        )

    def _get(self, cell: Cell, kind: str, settled: bool = True) -> Worker | Server:
        key = _key(cell, kind)
        self._raise_again(key)
        # Made before anything is started for it.
        self.served(cell)
        together = cell.hardware.workers_at_once
        for other in [name for name in self._workers if name[0] != key[0] or (not together and name != key)]:
            self._workers.pop(other).close()
        worker = self._workers.get(key)
        if worker is not None and not worker.alive:
            self._workers.pop(key).close()
        kinds = [kind]
        if together and self.start_ahead:
            kinds += [ahead for name, ahead in self.plan if name == key[0] and ahead in _WORKER_KINDS]
        for wanted in dict.fromkeys(kinds):
            name = _key(cell, wanted)
            if name not in self._workers and name not in self._failed:
                self._workers[name] = self._launch(cell, wanted)
        if "server" in kinds and self._client is None:
            self._client = self._start_client(cell)
        worker = self._workers[key]
        if not worker.ready:
            self.progress(f"starting {kind} of {_base(cell)} ...")
        try:
            with self.timed("engine start" if kind != "transformers" else "setup", cell):
                self._wait(worker, cell)
                if together and settled:
                    self._settle(cell, key[0])
        except WorkerError as error:
            self._failed[key] = error
            self._workers.pop(key).close()
            raise
        return worker

    def _raise_again(self, key: tuple[str, str]) -> None:
        """Raise what failed before in this session, rather than wait for it to fail in every test."""
        if key in self._failed:
            raise self._failed[key].again()

    @contextlib.contextmanager
    def _tried_once(self, key: tuple[str, str]) -> Iterator[None]:
        self._raise_again(key)
        try:
            yield
        except WorkerError as error:
            self._failed[key] = error
            raise

    def _wait(self, worker: Worker | Server, cell: Cell) -> None:
        """Wait for a worker; the compilation that it reports counts as a stage of its own."""
        fresh = not worker.ready
        worker.wait_ready(cell.measurements.time_limits.start)
        compiling = float(worker.info.get("compile_seconds", 0.0)) if isinstance(worker, Worker) and fresh else 0.0
        self._inner[-1] += compiling
        self._note_time("compile", compiling, cell)

    def _settle(self, cell: Cell, base: str) -> None:
        """Wait until all workers started ahead are idle, so that none disturbs a measurement."""
        for key, worker in list(self._workers.items()):
            if key[0] == base:
                try:
                    worker.wait_ready(cell.measurements.time_limits.start)
                except WorkerError as error:
                    self._failed[key] = error
                    self._workers.pop(key).close()
        if self._client is not None:
            try:
                self._client.wait_ready(cell.measurements.time_limits.start)
            except WorkerError:
                # The test that needs the client starts it again, and reports it as its own.
                self._client = None

    def _launch(self, cell: Cell, kind: str) -> Worker | Server:
        if kind == "transformers":
            specification = {
                "checkpoint": str(self.checkpoint(cell).folder),
                "device": cell.hardware.torch_device,
                "trust_remote_code": cell.model.trust_remote_code,
            }
            whole = cell.hardware.whole_processes and self.whole_processes
            label = f"transformers {cell.id}"
            family = "" if whole else None
            return self._start("generate", specification, label, self._online_variables(), family=family)
        if kind.startswith("executorch"):
            program = self.program(cell, kind.split()[1])
            specification = {
                "program": str(program.folder / program.facts["file"]),
                "checkpoint": str(self.checkpoint(cell).folder),
                "trust_remote_code": cell.model.trust_remote_code,
            }
            return self._start("executorch", specification, f"{kind} {cell.id}", self._online_variables())
        cell = _serving(cell)
        backend, environment, options = self.backend(cell), self.environment_of(cell), self.engine_options(cell)
        checkpoint = self.served(cell).folder
        variables = self.engine_variables(cell)
        label = f"{kind} {cell.id}"
        if kind == "engine":
            specification = backend.specification(cell, checkpoint, options)
            return self._start(backend.worker, specification, label, variables, environment, backend.family)
        port = free_port()
        module, arguments = backend.module, backend.arguments(cell, checkpoint, options, port)
        forks = self._fork_server(backend.family, variables, environment)
        process = (
            forks.start(module, arguments, log=self._log(label))
            if forks
            else Process(
                [environment.python, "-m", module, *arguments],
                environ=environment.environ(self.store, variables),
                log=self._log(label),
            )
        )
        return Server(process, port=port, label=label)

    def _start(
        self,
        backend: str,
        specification: dict[str, Any],
        label: str,
        variables: dict[str, str] | None = None,
        environment: Environment | None = None,
        family: str | None = None,
    ) -> Worker:
        environment = environment or self.environment
        if family is None:
            family = TRANSFORMERS if backend in _WITH_TRANSFORMERS else ""
        return Worker(
            Job(backend=backend, specification=specification),
            environment=environment,
            store=self.store,
            log=self._log(label),
            label=label,
            variables=variables,
            forks=self._fork_server(family, variables or {}, environment),
            progress=lambda value: self.progress(f"{label}: {value.get('done')} of {value.get('of')}"),
            waiting=lambda: self.waiting(),
        )

    def _fork_server(self, family: str, variables: dict[str, str], environment: Environment) -> ForkServer | None:
        """Return the fork server of a family, its imports begun, or None if there is none; one serves a session."""
        if not family or sys.platform != "linux":
            return None
        environ = environment.environ(self.store, variables)
        key = (family, environment.python, *(f"{name}={value}" for name, value in sorted(environ.items())))
        server = self._forks.get(key)
        if server is None or not server.alive:
            if server is not None:
                server.close()
            log = self._log(f"imports of {family} {len(self._forks)}")
            server = self._forks[key] = ForkServer(family, python=environment.python, environ=environ, log=log)
        return server

    def _online_variables(self) -> dict[str, str]:
        """Let a worker that evaluates tasks fetch their documents, where the hub answers and no folder was given."""
        if self.data is not None or not self._online:
            return {}
        return {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}

    def _log(self, label: str) -> Path:
        """Return a log's file; the two sides of a gate have one each, so that neither tells the other's errors."""
        label = f"{self._side}-{label}" if self._side else label
        return self.run.logs / f"{file_name(label)}.log"
