"""A checkpoint's folder: which files belong to it, that they are whole, and how the harness made it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from harness.base.errors import ArtifactError
from harness.base.files import file_digest
from harness.base.reading import json_file, json_value
from harness.contract import quantized
from harness.records.schema import ModelIdentity
from harness.runtime.store import MANIFEST, Store, manifest, problem

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".msgpack", ".h5", ".npy", ".npz")
"""Endings of files that run code when they are loaded, or that no safe reader exists for."""

# What Transformers saves and loads; whatever else lies in a folder stays at home.
_BELONGS = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("*.model", "*.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json"),
)
# Longer headers than this are refused by the safetensors library too.
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Origin:
    """How the harness made a checkpoint, out of the key that its artifact is stored under."""

    plain: str
    recipe: str
    device: str
    packages: Mapping[str, str | None]

    def is_of(self, model: ModelIdentity, store: Store) -> bool:
        """Whether the checkpoint was quantized from exactly these weights."""
        hub = model.source.removeprefix("hub:")
        if self.plain in (model.revision, f"{hub}@{model.revision}", f"plain/{model.revision}"):
            return True
        # A plain checkpoint that was itself rebuilt from a GGUF file is known by that file's digest.
        found = manifest(store.root / self.plain) if self.plain.startswith("plain/") else None
        return found is not None and found["key"].get("gguf") == model.revision


@dataclass(frozen=True)
class Checkpoint:
    """The files of a quantized checkpoint that may leave this machine."""

    folder: Path
    files: tuple[Path, ...]
    left_out: tuple[str, ...]
    config: dict[str, Any]
    origin: Origin | None

    @property
    def weights(self) -> list[Path]:
        return [path for path in self.files if path.suffix == ".safetensors"]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the safetensors files: the metric ``checkpoint_size``."""
        return sum(path.stat().st_size for path in self.weights)

    @property
    def classes(self) -> set[str]:
        """The torchao config classes that ``config.json`` names, nested ones too."""
        return set(quantized.classes(self.config["quantization_config"].get("quant_type")))


def open_checkpoint(folder: Path, store: Store) -> Checkpoint:
    """Look at a folder and return the checkpoint in it.

    Raises ArtifactError, naming the file and what to do, for pickles, for weights that are not there, cut off or not
    quantized by torchao, for a missing tokenizer, and for a stored checkpoint that has been changed.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is no folder; name a checkpoint's folder or a cached one as MODEL:RECIPE")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    pickles = [path.name for path in entries if path.suffix.casefold() in PICKLES]
    if pickles:
        raise ArtifactError(
            f"{folder} has {', '.join(pickles)}: pickles can run code where they are loaded and are not published; "
            "save the weights as safetensors (save_pretrained does) and take these files away"
        )
    files = [path for path in entries if path.is_file() and any(fnmatchcase(path.name, it) for it in _BELONGS)]
    weights = [path for path in files if path.suffix == ".safetensors"]
    if (folder / quantized.AT_LOAD).is_file():
        raise ArtifactError(
            f"{folder} is quantized as it is loaded, since torchao cannot save what its recipe makes of a weight: "
            "there are no quantized weights to publish"
        )
    if not weights:
        raise ArtifactError(f"{folder} has no .safetensors file: there are no weights to publish")
    for path in weights:
        check_whole(path)
    for index in (path for path in files if path.name.endswith(".safetensors.index.json")):
        missing = sorted(set(_json(index).get("weight_map", {}).values()) - {path.name for path in weights})
        if missing:
            raise ArtifactError(f"{index} names {', '.join(map(str, missing))}, which {folder} does not have")
    config = _json(folder / "config.json")
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "torchao":
        raise ArtifactError(f"{folder / 'config.json'} names no torchao quantization: only quantized models go out")
    if not any(path.name.startswith("tokenizer") for path in files):
        raise ArtifactError(f"{folder} has no tokenizer: put it there with tokenizer.save_pretrained({str(folder)!r})")
    left_out = tuple(path.name for path in entries if path not in files and path.name != MANIFEST)
    return Checkpoint(folder, tuple(files), left_out, config, _origin(folder, weights, store))


def cached(store: Store, recipe: str) -> Iterator[tuple[Path, Origin]]:
    """Yield every stored checkpoint that was made by the recipe of this hash."""
    for folder, found in store.manifests("checkpoint"):
        origin = _origin_of(found)
        if origin and origin.recipe == recipe:
            yield folder, origin


def _origin(folder: Path, weights: list[Path], store: Store) -> Origin | None:
    """Return how a folder was made: by its own manifest, or by that of a stored checkpoint with the same weights."""
    own = manifest(folder)
    if own is not None:
        wrong = problem(folder)
        if wrong:
            raise ArtifactError(f"{folder} is a stored checkpoint that was changed: {wrong}; quantize it again")
        return _origin_of(own)
    if (folder / MANIFEST).exists():
        raise ArtifactError(f"{folder / MANIFEST} cannot be read: it is damaged; quantize again, or take it away")
    digests: set[str] = set()
    for _, found in store.manifests("checkpoint"):
        stored = {it["sha256"] for name, it in found["files"].items() if name.endswith(".safetensors")}
        if len(stored) == len(weights):
            digests = digests or {file_digest(path) for path in weights}
            if stored == digests:
                return _origin_of(found)
    return None


def _origin_of(found: Mapping[str, Any]) -> Origin | None:
    key = found["key"]
    if not all(isinstance(key.get(name), str) for name in ("plain", "recipe", "device")):
        return None
    return Origin(key["plain"], key["recipe"], key["device"], key.get("packages") or {})


def check_whole(path: Path) -> None:
    """Hold a safetensors file against its own header. Source: the format's description, safetensors README."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise ArtifactError(f"{path} is not a safetensors file, whatever its name says; save the weights again")
        try:
            tensors = json_value(file.read(length), once=True)
            ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
            raise ArtifactError(f"{path} is not a safetensors file: its header does not hold ({error})") from error
    if size != whole:
        raise ArtifactError(f"{path} has {size} bytes where its header says {whole}: it is damaged; save it again")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json_file(path, once=True)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is not there: this is no checkpoint of Transformers") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} is not a JSON object")
    return found
