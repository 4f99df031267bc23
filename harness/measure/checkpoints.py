"""The stages of a flow as cached functions: same inputs, same key, same artifact."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError, Unsuitable
from harness.base.reading import json_file
from harness.contract import quantized, versions
from harness.machine import probe
from harness.matrix.hardware import Hardware
from harness.matrix.plan import Cell, Matrix
from harness.matrix.schema import Model
from harness.measure import served
from harness.measure.calibrations import Calibrations, observed
from harness.measure.clock import Clock
from harness.measure.plain import EVALUATORS, Checkpoint, Keys, PlainModels, cell_identity
from harness.measure.workers import Failed, Key, Workers
from harness.records.place import Place
from harness.records.schema import Cell as CellIdentity
from harness.runtime import sources
from harness.runtime.parallel import Work, together
from harness.runtime.store import Artifact
from harness.servers.registry import SERVERS

# The packages whose versions are part of a program's key beside those of versions.MAKERS.
_EXPORTERS = ("executorch",)
# What an export may come to hold: SmolLM2-135M's take 3.5 to 5.1 GB, most of it for the graph of 30 layers.
_EXPORT_BYTES = 5e9
_EXPORT_BYTES_A_PARAMETER = 4
# Logits as models of bfloat16 give them, and what of them is worth keeping: SmolLM2's are 0.4 GB, those of models with
# a vocabulary of 200,000 are many times as much, on GPUs that have computed them in a second.
_REFERENCE = "logits.safetensors"
_LOGIT_BYTES = 2
_MOST_REFERENCE_BYTES = 1 << 30
_LEAST_FREE = 4
# What quantizing may come to hold: what a process has imported, and the weights before and after.
_QUANTIZE_BYTES = 1.5e9
_QUANTIZE_WEIGHTS = 4

Program = tuple[Cell, str]
"""A cell's ExecuTorch program, by one of the export's routes."""


class Checkpoints:
    """Makes the checkpoints, programs and evaluations of cells, or finds them in the store.

    ``run`` names the run. ``programs`` tells, when the first program is asked for, which ones the coming tests need.
    ``block`` counts blocks that must not answer from an earlier one's evaluations; 0 is for those that may.
    """

    def __init__(
        self,
        workers: Workers,
        models: PlainModels,
        keys: Keys,
        clock: Clock,
        matrix: Matrix,
        run: str,
        *,
        data: Path | None = None,
        programs: Callable[[], Sequence[Program]] = tuple,
        block: int = 0,
    ) -> None:
        self.models = models
        self._workers = workers
        self._keys = keys
        self._clock = clock
        self._matrix = matrix
        self._run = run
        self._data = data
        self._programs: Callable[[], Sequence[Program]] | None = programs
        self._block = block
        self.calibrations = Calibrations(workers.store, data, self.prompts, workers.progress)
        self._failed = Failed()
        self._failed_ahead: dict[Key, HarnessError] = {}

    def plain(self, model: Model, on: Hardware) -> Checkpoint:
        """Return the unquantized checkpoint of a model, from the first of its sources that answers."""
        with self._clock.timed("setup"):
            return self.models.of(model, on)

    def cell_identity(self, cell: Cell) -> CellIdentity:
        """Return the cell as records name it."""
        return cell_identity(cell, self.plain(cell.model, cell.hardware).model)

    def of(self, cell: Cell) -> Checkpoint:
        """Return the checkpoint of a cell: the plain one for the baseline, otherwise a quantized one.

        A model that comes quantized is the checkpoint of the recipe that it was quantized with. Raises Unsuitable for
        any other recipe and for the baseline.
        """
        plain = self.plain(cell.model, cell.hardware)
        if plain.quantized:
            self._refuse_other(cell, plain)
            return replace(plain, facts=self._look(cell, plain))
        if cell.recipe.baseline:
            return self._whole(cell, plain)
        with self._failed.tried_once((cell.base, "checkpoint")), self._clock.timed("quantize", cell):
            if error := self._failed_ahead.pop((cell.base, "checkpoint"), None):
                raise error
            artifact = self._quantized(cell, plain)
        return Checkpoint(artifact.folder, artifact.key, plain.model, artifact.facts)

    def make(self, cells: Sequence[Cell]) -> list[Cell]:
        """Make the checkpoints of cells, several at once where each keeps one processor busy; return those that are.

        What fails is raised by whoever asks for it.
        """
        missing: dict[Place, Work] = {}
        failed: set[Place] = set()
        # Several with all threads each would have processors wait for one another.
        threads = 1 if sum(not cell.recipe.baseline for cell in cells) > 1 else 0
        for cell in cells:
            try:
                plain = self.plain(cell.model, cell.hardware)
                self.calibrations.of(cell)
            except HarnessError:
                failed.add(cell.base)
                continue
            if not (cell.recipe.baseline or plain.quantized or cell.hardware.is_gpu):
                run = functools.partial(self._quantized, cell, plain, threads)
                missing[cell.base] = Work(run, _held(cell, plain))
        with self._clock.timed("quantize"):
            errors = together(list(missing.values()), self._workers.end_once)
        for name, error in zip(missing, errors, strict=True):
            if error:
                self._failed_ahead[name, "checkpoint"] = error
                failed.add(name)
        return [cell for cell in cells if cell.base not in failed]

    def _quantized(self, cell: Cell, plain: Checkpoint, threads: int = 0) -> Artifact:
        """Return a recipe's checkpoint, made of a plain one by so many threads (0: as many as workers have); in any."""
        device, config = cell.hardware.torch_device, cell.recipe.identity.config
        started: dict[str, Any] = {"device": device, **({"threads": threads} if threads else {})}

        def build(folder: Path) -> dict[str, Any]:
            given = {"checkpoint": str(plain.folder), "trust_remote_code": cell.model.trust_remote_code, **text}
            return self._workers.once("quantize", started, "quantize", cell, output=str(folder), **given, **config)

        text = self.calibrations.given(cell)
        key = {"plain": plain.key, "recipe": cell.recipe.identity.hash, "device": device, **self._keys.makers()}
        key |= self.calibrations.key(cell)
        by_name = {"_default": None, **cell.recipe.arguments.get("fqn_to_config", {})}
        if cell.recipe.plain or (cell.recipe.config == quantized.BY_NAME and None in by_name.values()):
            key |= versions.in_key("named", versions.NAMED)
        label = f"checkpoint {cell.id}"
        return self._workers.store.get("checkpoint", key, build, label=label, facts=versions.CHECKPOINT_FACTS)

    def served(self, cell: Cell) -> Checkpoint:
        """Return the checkpoint that the cell's server is given: a plain one, if it applies the recipe itself.

        One that came quantized is that of its own recipe through such a server too.
        """
        if self.at_load(cell):
            plain = self.plain(cell.model, cell.hardware)
            if not plain.quantized:
                return self._whole(cell, plain)
        return self.of(cell)

    def at_load(self, cell: Cell) -> bool:
        """Return whether the cell's server is given a plain checkpoint and applies the recipe as it loads it."""
        return cell.server in SERVERS and SERVERS[cell.server].at_load

    def alone(self, cell: Cell) -> str:
        """Return why there is no baseline to hold a recipe against, or an empty string if there is one."""
        if self.plain(cell.model, cell.hardware).quantized:
            return f"{cell.model.name} came quantized, so there is no baseline"
        return ""

    def facts(self, cell: Cell) -> dict[str, Any]:
        """Return sizes and layers of a cell's checkpoint; one from a folder or the hub is loaded once to learn them."""
        return self.of(cell).facts

    def _whole(self, cell: Cell, plain: Checkpoint) -> Checkpoint:
        """Return a plain checkpoint with its facts: loaded once, it is known to have all of its weights."""
        return plain if plain.facts else replace(plain, facts=self._look(cell, plain))

    def _refuse_other(self, cell: Cell, model: Checkpoint) -> None:
        """Raise Unsuitable unless a cell's recipe is of the config class that its model came quantized with."""
        if cell.recipe.config == model.quantized:
            return
        if cell.recipe.config == quantized.BY_NAME:
            stored = quantized.quant_type(model.folder)
            if quantized.inner_classes(stored) == quantized.inner_classes(cell.recipe.arguments):
                return
        what = f"model {cell.model.name} came quantized, with {model.quantized}"
        names = [one.name for one in self._matrix.recipes.values() if one.config == model.quantized]
        if cell.recipe.baseline or names:
            # A recipe of the matrix may have other arguments than the model was quantized with.
            known = " or ".join([*names, f"'{model.quantized}(...)'"])
            raise Unsuitable(f"{what}: it is measured as it is, by --recipe {known} alone")
        raise Unsuitable(
            f"{what}, which is no recipe of {self._matrix.path.name}: to measure it as it is, add the recipe there or "
            f"name it, as --recipe '{model.quantized}(...)'",
            nowhere=True,
        )

    def _look(self, cell: Cell, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return sizes and layers of a checkpoint that somebody else made, which is loaded for it once."""
        device = cell.hardware.torch_device
        config = cell.recipe.identity.config
        known = ("config", "arguments", "quantizes", "plain", "transformers_options")
        recipe = {name: config[name] for name in known if name in config}
        if not checkpoint.quantized:
            recipe = {}

        def build(_: Path) -> dict[str, Any]:
            given = {"checkpoint": str(checkpoint.folder), "trust_remote_code": cell.model.trust_remote_code}
            return self._workers.once("quantize", {"device": device}, "facts", cell, **given, **recipe)

        key = {"checkpoint": checkpoint.key, "device": device, **self._keys.packages()}
        if recipe:
            key["recipe"] = cell.recipe.identity.hash
        with self._failed.tried_once((cell.base, "facts")), self._clock.timed("quantize", cell):
            label = f"facts of {cell.id}"
            return self._workers.store.get("facts", key, build, label=label, facts=versions.CHECKPOINT_FACTS).facts

    # ---------------------------------------------------------------------------------------------- programs

    def program(self, cell: Cell, route: str) -> Artifact:
        """Return the ExecuTorch program (.pte) of a cell by one of the export's routes, with facts of its making.

        With the first one all those of the coming tests that are missing are made, several at once, since an export
        keeps one processor busy; so none runs beside, or between, measurements.
        """
        key, build = self._export(cell, route)
        with self._failed.tried_once((cell.base, f"program {route}")), self._clock.timed("export", cell):
            self._export_ahead()
            if error := self._failed_ahead.pop((cell.base, route), None):
                raise error
            return self._workers.store.get("program", key, build, label=f"program {cell.id} ({route})")

    def _export(self, cell: Cell, route: str) -> tuple[dict[str, Any], Callable[[Path], dict[str, Any]]]:
        """Return the key of a program and what builds it, in any thread."""
        checkpoint = self.of(cell)
        if refusal := served.unsaved(checkpoint.folder, cell.recipe.name, "ExecuTorch's export"):
            raise Unsuitable(refusal)
        assert cell.measurements.mobile  # noqa: S101 - for the type alone
        options: dict[str, Any] = {"context": cell.measurements.mobile.context}
        if route == "llama":
            options["model"] = cell.model.executorch

        def build(folder: Path) -> dict[str, Any]:
            given = {"checkpoint": str(checkpoint.folder), "trust_remote_code": cell.model.trust_remote_code}
            return self._workers.once("export", {}, f"{route}_route", cell, output=str(folder), **given, **options)

        key = {
            "checkpoint": checkpoint.key,
            "route": route,
            **options,
            **self._keys.packages(*_EXPORTERS),
            **versions.in_key("lowering", versions.LOWERING[route]),
        }
        return key, build

    def _export_ahead(self) -> None:
        """Make the programs of the coming tests that are missing; what fails is kept for the test that asks for it."""
        coming, self._programs = self._programs, None
        missing: dict[Key, Work] = {}
        for cell, route in coming() if coming else ():
            # A checkpoint that cannot be made fails its own tests.
            with contextlib.suppress(HarnessError):
                key, build = self._export(cell, route)
                if not self._workers.store.holds("program", key):
                    parameters = self.facts(cell)["parameters"]
                    label = f"program {cell.id} ({route})"
                    make = functools.partial(self._workers.store.get, "program", key, build, label=label)
                    missing[cell.base, route] = Work(make, _EXPORT_BYTES + _EXPORT_BYTES_A_PARAMETER * parameters)
        if len(missing) > 1:
            words = f"exporting {len(missing)} programs, as many at once as processors and free memory allow ..."
            self._workers.progress(words)
        errors = together(list(missing.values()), self._workers.end_once)
        self._failed_ahead |= {name: error for name, error in zip(missing, errors, strict=True) if error}

    # ------------------------------------------------------------------------------------------- evaluations

    def prompts(self) -> Artifact:
        """Return the ShareGPT prompts and text."""
        with self._clock.timed("setup"):
            return sources.sharegpt(self._workers.store, self._data)

    def evaluated(self, cell: Cell, what: str, key: dict[str, Any], ask: Callable[[], dict[str, Any]]) -> Artifact:
        """Return the result of a deterministic evaluation, computed once for the same weights, code and question."""
        key = {"checkpoint": self.of(cell).key, "hardware": cell.hardware.name, **key}
        key |= self._keys.packages(*EVALUATORS)
        key["device"] = probe.device(cell.hardware).name
        if self._block:
            key |= {"block": self._block, "run": self._run}

        def build(folder: Path) -> dict[str, Any]:
            with self._clock.timed("evaluate", cell):
                return ask()

        label = f"{what} of {cell.id}"
        found = self._workers.store.get("evaluation", key, build, label=label)
        if not found.made:
            self._workers.progress(f"{label}: kept from {found.kept_from}")
        return found

    def reference(
        self, cell: Cell, question: Mapping[str, Any], predict: Callable[[Path, Path], dict[str, Any]]
    ) -> Path | None:
        """Return the file of what a cell's baseline predicts over windows of a text, computed once for all recipes.

        ``question`` is the key of the text and what else ``predict(checkpoint, output)``, which writes the file, goes
        by. None where it would be too large to be kept, or where blocks must not share it: then each recipe has it
        computed anew.
        """
        baseline = self.plain(cell.model, cell.hardware)
        size = question["windows"] * question["tokens"] * vocabulary(baseline.folder) * _LOGIT_BYTES
        root = self._workers.store.root
        if self._block or not 0 < size <= _MOST_REFERENCE_BYTES or shutil.disk_usage(root).free < _LEAST_FREE * size:
            return None
        key = {"checkpoint": baseline.key, **question}
        key |= {"hardware": cell.hardware.name, "device": probe.device(cell.hardware).name, **self._keys.packages()}

        def build(folder: Path) -> dict[str, Any]:
            with self._clock.timed("evaluate", cell):
                return predict(baseline.folder, folder / _REFERENCE)

        label = f"reference predictions of {cell.model.name}"
        return self._workers.store.get("reference", key, build, label=label).folder / _REFERENCE

    def prompt(self, cell: Cell, route: str, tokens: int, ask: Callable[[], dict[str, Any]]) -> Artifact:
        """Return a prompt of so many tokens for a cell's program."""
        key = {
            "checkpoint": self.of(cell).key,
            # Vocabularies are compared when a prompt is made: each program has one of its own.
            "program": self.program(cell, route).key,
            "text": self.prompts().key,
            "tokens": tokens,
        }
        return self._workers.store.get("prompt", key, lambda _: ask(), label=f"prompt of {cell.id}")

    @contextlib.contextmanager
    def anew(self) -> Iterator[None]:
        """Answer from no evaluation that was made before, within."""
        self._block += 1
        try:
            yield
        finally:
            self._block -= 1


def _held(cell: Cell, plain: Checkpoint) -> float:
    """Return the bytes that a process may come to hold that quantizes a model."""
    size = sum(file.stat().st_size for file in plain.folder.glob("*.safetensors"))
    return _QUANTIZE_BYTES + (_QUANTIZE_WEIGHTS + observed(cell)) * size


def vocabulary(folder: Path) -> int:
    """Return how many tokens a model of a folder tells apart by its config.json; 0 where that does not say."""
    config = json_file(folder / "config.json")
    return int(config.get("text_config", config).get("vocab_size") or 0)
