"""Plain checkpoints: a model's unquantized weights, from the first of its sources that answers."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.base import network
from harness.base.errors import ArtifactError, MatrixError
from harness.base.reading import json_file
from harness.base.text import digest
from harness.contract import quantized, versions, weights
from harness.matrix.hardware import Hardware
from harness.matrix.plan import Cell, Matrix
from harness.matrix.schema import Model, Package
from harness.measure.workers import Failed, Workers
from harness.records.place import Place
from harness.records.schema import Cell as CellIdentity
from harness.records.schema import ModelIdentity
from harness.runtime import sources
from harness.runtime.environment import Environment
from harness.runtime.store import Artifact, Store
from harness.servers.registry import TRANSFORMERS

EVALUATORS = ("lm_eval",)
"""The packages whose versions are part of an evaluation's key beside those of versions.MAKERS."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with weights, configuration and tokenizer, and which model it is."""

    folder: Path
    key: str
    model: ModelIdentity
    facts: dict[str, Any]

    @functools.cached_property
    def quantized(self) -> str:
        """The torchao config class that it came quantized with, or an empty string if it is plain.

        Raises ArtifactError if something else than torchao quantized it, or if its config.json is damaged or does not
        say how.
        """
        try:
            method, refusal = quantized.method(self.folder), quantized.refusal(self.folder)
        except ValueError as error:
            raise ArtifactError(f"model {self.model.name}: {error}") from error
        if refusal:
            raise ArtifactError(f"model {self.model.name}: {refusal}")
        found = quantized.config_class(self.folder)
        if method and not found.endswith("Config"):
            raise ArtifactError(
                f"model {self.model.name} came quantized with torchao, and its config.json has {found or 'nothing'} in "
                "place of torchao's config with its arguments, so no recipe can be told from it: give the plain model"
            )
        return found

    @property
    def chats(self) -> bool:
        """Whether its tokenizer says how a chat is written; servers refuse a chat without."""
        if any((self.folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
            return True
        config = self.folder / "tokenizer_config.json"
        return config.exists() and bool(json_file(config).get("chat_template"))


@dataclass(frozen=True)
class Keys:
    """What of an environment is part of the keys of what is made in it.

    ``apart`` is what tells the environment of one side of a gate from the other's.
    """

    environment: Environment
    apart: Mapping[str, str | None]

    def packages(self, *more: str) -> dict[str, Any]:
        """Return the versions of those that make checkpoints, of ``more``, and what else tells a side apart."""
        installed = self.environment.decisive()
        found: dict[str, Any] = {"packages": {name: installed.get(name) for name in (*versions.MAKERS, *more)}}
        keyed = (*versions.MAKERS, *EVALUATORS)
        apart = {name: it for name, it in self.apart.items() if name.replace("-", "_") not in keyed}
        return found | ({"apart": apart} if apart else {})

    def makers(self) -> dict[str, Any]:
        """Return what of the code and the packages that make checkpoints is part of their keys."""
        return {**self.packages(), **versions.in_key("checkpoint", versions.CHECKPOINT)}


class PlainModels:
    """Finds the plain checkpoint of each model, once; a gate's two sides share it, and so start from the same weights.

    ``online`` says whether the hub answers, once that was asked.
    """

    def __init__(self, workers: Workers, matrix: Matrix, keys: Keys) -> None:
        self._workers = workers
        self._matrix = matrix
        self._keys = keys
        self._found: dict[str, Checkpoint] = {}
        self._failed = Failed()
        self._lock = threading.RLock()
        self.online: bool | None = None

    def of(self, model: Model, on: Hardware) -> Checkpoint:
        """Return the plain checkpoint of a model; one of random weights is made on the device of ``on``."""
        with self._lock:
            if model.name not in self._found:
                with self._failed.tried_once((Place(model=model.name), "plain")):
                    self._found[model.name] = self._find(model, on)
            return self._found[model.name]

    @property
    def names(self) -> frozenset[str]:
        """The names of the models whose weights were found in this session."""
        return frozenset(self._found)

    def known(self, cell: Cell) -> CellIdentity | None:
        """Return a cell as records name it, or None while its weights are not known."""
        found = self._found.get(cell.model.name)
        return cell_identity(cell, found.model) if found else None

    def _find(self, model: Model, on: Hardware) -> Checkpoint:
        if model.folder:
            return self._from_folder(model, Path(model.folder))
        if self.online is None:
            self.online = network.hub_answers()
        if found := self._from_hub(model):
            return found
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

    def _from_folder(self, model: Model, folder: Path) -> Checkpoint:
        if model.merge_adapter and (alone := sources.adapter_alone(model.name, folder)):
            return self._on_its_base(model, folder, f"folder:{folder.name}", *alone)
        sources.check(model.name, folder, model.merge_adapter)
        revision = sources.folder_revision(folder)
        identity = ModelIdentity(
            name=model.name, source=f"folder:{folder.name}", revision=revision, weights="pretrained"
        )
        if gguf := weights.gguf(folder):
            note = f"weights from {gguf[0].name}: the bf16 baseline has itself been through that quantization"
            return self._from_gguf(gguf[0], identity.model_copy(update={"note": note}))
        return self._merged(model, Checkpoint(folder, revision, identity, {}))

    def _from_hub(self, model: Model) -> Checkpoint | None:
        if model.hub is None:
            return None
        try:
            found = sources.from_hub(model.hub, model.revision, bool(self.online))
        except ArtifactError as error:
            raise ArtifactError(f"model {model.name}: {error}") from error
        if found is None:
            return None
        folder, revision = found
        if model.merge_adapter and (alone := sources.adapter_alone(model.name, folder)):
            return self._on_its_base(model, folder, f"hub:{model.hub}", *alone)
        sources.check(model.name, folder, model.merge_adapter)
        identity = ModelIdentity(name=model.name, source=f"hub:{model.hub}", revision=revision, weights="pretrained")
        return self._merged(model, Checkpoint(folder, f"{model.hub}@{revision}", identity, {}))

    def _merged(self, model: Model, found: Checkpoint) -> Checkpoint:
        """Return a model with the adapter beside it merged into its weights, where that is asked for."""
        if not model.merge_adapter:
            return _noted(found)
        if found.quantized:
            raise ArtifactError(f"model {model.name}: it came quantized, and no adapter is merged into such weights")
        key = {"merged": found.key}
        artifact = self._merge(model, found.folder, key)
        note = f"the adapter beside it ({artifact.facts['adapter']}) is merged into its weights"
        identity = found.model.model_copy(update={"revision": digest(key), "note": note})
        return Checkpoint(artifact.folder, artifact.key, identity, artifact.facts)

    def _on_its_base(self, model: Model, adapter: Path, source: str, named: str, revision: str) -> Checkpoint:
        """Return the base model that an adapter names, a folder or a hub id, with the adapter merged into it."""
        places = [Path(named), adapter / named]
        if folder := next((place for place in places if (place / "config.json").is_file()), None):
            base, at = folder, sources.folder_revision(folder)
        elif Path(named).is_absolute() or named.startswith("."):
            raise ArtifactError(
                f"model {model.name}: {adapter} is an adapter of {named}, and no model is there: name the base model's "
                "folder, or its hub id, as base_model_name_or_path in adapter_config.json"
            )
        else:
            if self.online is None:
                self.online = network.hub_answers()
            try:
                found = sources.from_hub(named, revision or "main", bool(self.online))
            except (ArtifactError, ValueError) as error:
                raise ArtifactError(f"model {model.name}: {error}") from error
            if found is None:
                raise ArtifactError(
                    f"model {model.name}: {adapter} is an adapter of {named}, which is no folder here, and the hub "
                    "does not answer: name the base model's folder as base_model_name_or_path in adapter_config.json"
                )
            base, at = found
        sources.check(f"{named}, which the adapter {model.name} is of", base)
        if quantized.method(base):
            raise ArtifactError(
                f"model {model.name}: its base {named} came quantized, and no adapter is merged into such weights"
            )
        key = {"adapter": sources.folder_revision(adapter), "base": at}
        artifact = self._merge(model, base, key, adapter=str(adapter))
        note = f"the adapter ({artifact.facts['adapter']}) is merged into its base model {named}"
        identity = ModelIdentity(name=model.name, source=source, revision=digest(key), weights="pretrained", note=note)
        return Checkpoint(artifact.folder, artifact.key, identity, artifact.facts)

    def _merge(self, model: Model, base: Path, key: dict[str, Any], **more: str) -> Artifact:
        def build(folder: Path) -> dict[str, Any]:
            given = {"checkpoint": str(base), "trust_remote_code": model.trust_remote_code, **more}
            return self._workers.once("quantize", {"device": "cpu"}, "merge_adapter", None, output=str(folder), **given)

        key = {**key, **self._keys.packages("peft"), **self._keys.makers()}
        label = f"{model.name} with its adapter"
        return self._workers.store.get("plain", key, build, label=label, facts=versions.CHECKPOINT_FACTS)

    def _packed(self, package: Package) -> Artifact:
        # A download is waited for; what will read it is imported meanwhile.
        return packed(self._workers.store, package, functools.partial(self._workers.import_ahead, TRANSFORMERS))

    def _from_gguf(self, file: Path, identity: ModelIdentity) -> Checkpoint:
        def build(folder: Path) -> dict[str, Any]:
            given = {"file": str(file), "output": str(folder)}
            return self._workers.once("quantize", {"device": "cpu"}, "plain_from_gguf", None, **given)

        key = {"gguf": identity.revision, "file": file.name, **self._keys.makers()}
        label = f"plain checkpoint of {identity.name}"
        artifact = self._workers.store.get("plain", key, build, label=label, facts=versions.CHECKPOINT_FACTS)
        return Checkpoint(artifact.folder, artifact.key, identity, artifact.facts)

    def _from_shape(self, model: Model, on: Hardware) -> Checkpoint:
        random = model.random
        assert random  # noqa: S101 - for the type alone
        shape = (self._matrix.path.parent / random.shape).resolve()
        if not shape.is_file():
            raise MatrixError(f"{self._matrix.path}: models.{model.name}.random.shape: {shape} is not there")
        lender = self.of(self._matrix.models[random.tokenizer], on)
        device = on.torch_device
        what: dict[str, Any] = {"shape": shape.read_text(encoding="utf-8"), "seed": random.seed, "device": device}
        what |= {"one_layer": True} if random.one_layer else {}
        key = {**what, "tokenizer": lender.key, **self._keys.makers()}

        def build(folder: Path) -> dict[str, Any]:
            given = {"shape": str(shape), "seed": random.seed, "tokenizer": str(lender.folder), "output": str(folder)}
            given |= {"one_layer": True} if random.one_layer else {}
            return self._workers.once("quantize", {"device": device}, "plain_from_shape", None, **given)

        label = f"random weights of {model.name}"
        artifact = self._workers.store.get("plain", key, build, label=label, facts=versions.CHECKPOINT_FACTS)
        identity = ModelIdentity(
            name=model.name,
            source=f"random:{shape.name}",
            # Not the artifact's key: the model stays the same one when a library that writes its files is upgraded.
            revision=digest({**what, "tokenizer": lender.model.revision}),
            weights="random",
            note=f"random weights of the exact shape, seed {random.seed}"
            f"{', one layer read for each' if random.one_layer else ''}; "
            f"tokenizer of {random.tokenizer}, so prompts have other token counts",
        )
        return Checkpoint(artifact.folder, artifact.key, identity, artifact.facts)


def packed(store: Store, package: Package, meanwhile: Callable[[], None] = lambda: None) -> Artifact:
    """Return the artifact that holds the file of a package, or of several; ``meanwhile`` is as of from_package."""
    if package.requirement:
        return sources.from_package(store, package.requirement, package.file, meanwhile)
    parts = [(part.requirement, part.file) for part in package.parts]
    return sources.from_parts(store, parts, package.file, str(package.sha256), meanwhile)


def cell_identity(cell: Cell, model: ModelIdentity) -> CellIdentity:
    """Return a cell as records name it."""
    recipe, on = cell.recipe.identity, cell.hardware.name
    return CellIdentity(model=model, recipe=recipe, hardware=on, server=cell.server, gpus=cell.gpus)


def _noted(found: Checkpoint) -> Checkpoint:
    """Have the records say of a model that it came quantized."""
    if not found.quantized:
        return found
    note = f"came quantized, with {found.quantized}, and was measured as it is"
    return replace(found, model=found.model.model_copy(update={"note": note, "came_quantized": True}))
