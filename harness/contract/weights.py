"""Which files of a model's folder are its weights, and what is wrong with them; read by planner and workers alike.

Nothing is loaded: safetensors headers, an index and the first bytes of a file tell. The files are those that
Transformers opens. Every function raises :class:`Unusable` for a folder whose weights must not be measured.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from harness.contract import quantized

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_POINTER = b"version https://git-lfs"
# A pointer of git-lfs is some 130 bytes long.
_POINTER_BYTES = 1024
# safetensors itself refuses a header of more.
_HEADER_BYTES = 100_000_000
_PICKLES = (".bin", ".pt", ".pt2", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth")


class Unusable(ValueError):
    """A model that is not measured; the message is one line that says why, and what to do."""


def check(folder: Path, merging: bool = False) -> None:
    """Raise Unusable unless a folder has all of a model's own weights, as safetensors files or one GGUF file.

    An adapter beside them is refused, unless it is to be merged into them: then it must be there. One that is alone is
    refused either way: :func:`adapter_alone` tells what it is to be merged into.
    """
    for file in _files(folder):
        if is_pointer(file):
            raise Unusable(
                f"{file} is a pointer of git-lfs, not the file that it stands for: run `git lfs pull` in its folder, "
                "or download the model again"
            )
    _check_adapter(folder, merging)
    if found := gguf(folder):
        _check_gguf(folder, found)
        return
    if not (folder / "config.json").is_file():
        raise Unusable(_no_config(folder))
    held: dict[str, dict[str, Any]] = {}
    for file in files(folder):
        held |= header(file)
    _check_numbers(folder, held)
    if (index := _index(folder)) and (absent := sorted(index_of(index).keys() - held.keys())):
        raise Unusable(
            f"{index} names {shown(absent)}, which none of its files holds: the files are of another model than the "
            "index; download them again"
        )


def adapter_alone(folder: Path) -> tuple[str, str] | None:
    """Return the base model that an adapter without one beside it names, and its revision; None for other folders.

    The revision is an empty string where it names none. Raises Unusable for an adapter whose weights are no
    safetensors file.
    """
    if not (folder / ADAPTER).is_file() or (folder / "config.json").is_file():
        return None
    told = _table(folder / ADAPTER)
    base = str(told.get("base_model_name_or_path") or "")
    if base:
        _check_adapter_weights(folder)
    return (base, str(told.get("revision") or "")) if base else None


def files(folder: Path) -> list[Path]:
    """Return the safetensors files that Transformers loads from a folder, in the order of their names.

    ``consolidated.safetensors`` and others beside them are not. Raises Unusable where there are none, for shards that
    are missing, and for two sets of weights of which one library would take the one and another the other.
    """
    single, index = folder / SINGLE, _index(folder)
    if named := _named_in_config(folder):
        _check_inside(folder / "config.json", named)
        single = folder / named
        if not os.path.isfile(single):
            raise Unusable(f"{folder}: config.json names {named} (transformers_weights), which is not there")
    if index is None:
        if single.is_file():
            return [single]
        raise Unusable(_no_weights(folder))
    shards = sorted(set(index_of(index).values()))
    for name in shards:
        _check_inside(index, name)
    if single.is_file() and shards != [single.name]:
        raise Unusable(
            f"{folder} holds two sets of weights, {single.name} and those of {index.name}, and libraries differ in "
            "which they load: leave one"
        )
    if absent := [name for name in shards if not os.path.isfile(folder / name)]:
        raise Unusable(
            f"{index} names {len(shards)} files, of which {len(absent)} cannot be found: {shown(absent)}. The download "
            "was interrupted: download what is missing"
        )
    return [folder / name for name in shards]


def _check_inside(where: Path, name: str) -> None:
    """Raise Unusable for weights that lie elsewhere, which the folder's digest would not be of, and for other formats.

    Transformers joins the name to the folder's, wherever that leads, and opens as a pickle what does not end so.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or any(part.startswith(".") for part in path.parts) or "\\" in name or "\0" in name:
        raise Unusable(
            f"{where} names {name[:200]!r}, which is not in its folder: weights from elsewhere are not loaded"
        )
    if not name.endswith((".safetensors", ".index.json")):
        raise Unusable(f"{where} names {name[:200]!r}, which is no safetensors file: save the model again")


def gguf(folder: Path) -> list[Path]:
    """Return the GGUF files of a folder whose weights are in no safetensors file."""
    return [] if any(folder.glob("*.safetensors")) else sorted(folder.glob("*.gguf"))


def header(file: Path) -> dict[str, dict[str, Any]]:
    """Return what a safetensors file says of its tensors by name: ``dtype``, ``shape``, ``data_offsets``.

    Raises Unusable for a file that is no safetensors file or is cut off.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        first = opened.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
        if not 0 <= length <= min(size - 8, _HEADER_BYTES):
            raise Unusable(f"{file} is no safetensors file, or is cut off ({size} bytes): {_AGAIN}")
        try:
            found = json.loads(opened.read(length), object_pairs_hook=_once)
            found.pop("__metadata__", None)
            ends = [int(tensor["data_offsets"][1]) for tensor in found.values()]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise Unusable(f"{file}: its header is broken ({type(error).__name__}: {error}): {_AGAIN}") from error
    due = 8 + length + max(ends, default=0)
    if due != size:
        what = "cut off" if size < due else "damaged"
        raise Unusable(f"{file} is {what}: its header tells of {due} bytes and it has {size}: {_AGAIN}")
    return {str(name): dict(tensor) for name, tensor in found.items()}


def index_of(index: Path) -> dict[str, str]:
    """Return the file of each tensor that an index of shards names."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_once)["weight_map"]
        return {str(name): str(file) for name, file in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unusable(f"{index} is no index of weights ({type(error).__name__}: {error}): {_AGAIN}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; ValueError for a name that it has twice, of which libraries take different ones."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in it")
    return found


def is_pointer(file: Path) -> bool:
    """Return whether a file is what git-lfs leaves in place of one that was not fetched."""
    if file.stat().st_size > _POINTER_BYTES:
        return False
    with file.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


def shown(names: Iterable[str], most: int = 6) -> str:
    """Return names in words, of many the first and the number of the others."""
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


_AGAIN = "download it again"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_file())


# What a weight is held in that is a number by itself; packed and scaled ones need a rule by which they are read.
_NUMBERS = ("F64", "F32", "F16", "BF16")


def _check_numbers(folder: Path, held: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise Unusable for matrices of integers or float8 in a folder that does not say how they are quantized."""
    packed = {
        name: str(tensor["dtype"])
        for name, tensor in held.items()
        if name.endswith("weight") and len(tensor.get("shape") or ()) > 1 and tensor.get("dtype") not in _NUMBERS
    }
    if packed and not quantized.method(folder):
        raise Unusable(
            f"{folder} holds {len(packed)} weights as {' and '.join(sorted(set(packed.values())))} "
            f"({shown(sorted(packed), 3)}), and its config.json names no quantization, so nothing says by which scales "
            "they are to be read; Transformers would take the bare numbers. Give the plain model, or save it in "
            "bfloat16 if bare numbers are meant"
        )


def _check_adapter(folder: Path, merging: bool) -> None:
    if not (folder / ADAPTER).is_file():
        if merging:
            raise Unusable(f"{folder} holds no adapter ({ADAPTER}) that could be merged: leave --merge-adapter out")
        return
    base = _table(folder / ADAPTER).get("base_model_name_or_path")
    of = f" of {base}" if base else ""
    if not (folder / "config.json").is_file():
        what = f"{folder} holds an adapter{of} and no model"
        if base:
            raise Unusable(
                f"{what}: give --merge-adapter to have it merged into {base} (a folder of that name, or the hub's), or "
                f"--model {base} to measure that alone"
            )
        raise Unusable(
            f"{what}, and {ADAPTER} does not name its base model (base_model_name_or_path): name it there and give "
            "--merge-adapter, or give the base model"
        )
    if not merging:
        raise Unusable(
            f"{folder} holds an adapter{of} ({ADAPTER}) beside a model, and Transformers would add it where other "
            "libraries would not: give --merge-adapter to have it merged into the model, or move it elsewhere to "
            "measure the model alone"
        )
    _check_adapter_weights(folder)
    if gguf(folder):
        raise Unusable(f"{folder} holds an adapter beside a GGUF file, into which none can be merged")


def _check_adapter_weights(folder: Path) -> None:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        found = [it for it in _pickles(folder) if it.startswith("adapter")]
        why = f", but pickles ({shown(found)}), which can run any code where they are opened" if found else ""
        raise Unusable(
            f"{folder} holds no {ADAPTER_WEIGHTS}{why}: an adapter of another kind is not loaded; save it with PEFT "
            "once more, which writes safetensors"
        )
    header(folder / ADAPTER_WEIGHTS)


def _check_gguf(folder: Path, found: list[Path]) -> None:
    if len(found) > 1:
        parts = any(re.search(r"-\d{5}-of-\d{5}\.gguf$", file.name) for file in found)
        do = "join its parts (llama.cpp's `llama-gguf-split --merge`)" if parts else "leave one"
        raise Unusable(f"{folder} has several GGUF files: {', '.join(file.name for file in found)}; {do}")
    with found[0].open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise Unusable(f"{found[0]} is no GGUF file: {_AGAIN}")


def _pickles(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix.casefold() in _PICKLES)


def _no_weights(folder: Path) -> str:
    """Return in words why a folder has no weights that Transformers would load as safetensors."""
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    pickles = [it for it in _pickles(folder) if it not in _NO_WEIGHTS]
    if pickles:
        beside = f", and {shown(others)} is not what Transformers loads" if others else ""
        return (
            f"the weights of {folder} are pickles ({shown(pickles)}){beside}: they are not loaded, since opening a "
            "pickle can run any code; load and save the model with Transformers once, which writes safetensors"
        )
    if others:
        return (
            f"{folder} holds {shown(others)}, and Transformers loads {SINGLE} or the files that {INDEX} names: rename "
            "the file, or save the model again"
        )
    named = f"{folder} holds neither .safetensors nor .gguf weights"
    kinds = [kind for pattern, kind in _FOREIGN.items() if any(folder.rglob(pattern))]
    if kinds:
        return (
            f"{named}, but those of {' and '.join(kinds)}: give the folder that Transformers' `save_pretrained` wrote"
        )
    return f"{named}{_below(folder)}"


_FOREIGN = {
    "*.onnx": "ONNX",
    "*.distcp": "a distributed checkpoint of PyTorch",
    "*.h5": "TensorFlow",
    "*.msgpack": "Flax",
    "*.nemo": "NeMo",
    "*.npz": "NumPy or MLX",
    "*.pte": "ExecuTorch",
    "*.engine": "TensorRT",
}


def _no_config(folder: Path) -> str:
    """Return in words that a folder has no config.json, and what it seems to be."""
    what = f"{folder} has no config.json, so nothing says what model it holds"
    if (folder / "params.json").is_file():
        return f"{what}: params.json is of Mistral's or Meta's own format; give the model in that of Transformers"
    if (folder / "model_index.json").is_file():
        return f"{what}: model_index.json is of a pipeline of diffusers, which is no language model"
    return f"{what}{_below(folder) or ': give the folder that `save_pretrained` wrote'}"


def _below(folder: Path) -> str:
    """Return which folders below seem to be models, in words, or an empty string."""
    below = sorted(path.parent.name for path in folder.glob("*/config.json"))
    return f": give one of the folders in it, {shown(below, 3)}" if below else ""


def _index(folder: Path) -> Path | None:
    named = _named_in_config(folder)
    index = folder / (named if named.endswith(".index.json") else INDEX)
    return index if index.is_file() and (not named or named.endswith(".index.json")) else None


def _named_in_config(folder: Path) -> str:
    """Return the file that config.json itself names as its weights, if it does."""
    config = folder / "config.json"
    return str(_table(config).get("transformers_weights") or "") if config.is_file() else ""


def _table(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Unusable(f"{file} cannot be read ({error}): it is damaged; save the model again") from error
    return found if isinstance(found, dict) else {}
