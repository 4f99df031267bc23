"""How a safetensors file holds torchao's tensors: in parts, which its metadata names; read by planner and workers.

torchao writes the names of all tensors, quantized or plain, into a file's metadata, and a reader of its own (vLLM)
loads those alone. Transformers takes the names before it renames tensors for saving, such as the experts of a layer,
which it writes one by one: then the metadata names tensors that are not there, and not those that are.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.contract.weights import Unusable, header

_NAMES = "tensor_names"
_PLAIN = json.dumps({"_type": "Tensor"})


def unnamed(files: list[Path]) -> list[str]:
    """Return the tensors of torchao's files that their metadata does not name, so that such a reader passes over them.

    Files without that metadata have none. Raises Unusable for one whose metadata is damaged.
    """
    return [name for file in files if (told := _metadata(file)) for name in _lost(file, told)]


def name_what_is_held(file: Path) -> bool:
    """Have the metadata of a file name the plain tensors that it holds, and no others; return whether it did not.

    A tensor in parts keeps its name in every file: its parts may be in several.
    """
    told = _metadata(file)
    if not told:
        return False
    held = header(file)
    names = json.loads(told[_NAMES])
    stale = [name for name in names if _type(told, name) == "Tensor" and name not in held]
    lost = _lost(file, told)
    if not stale and not lost:
        return False
    kept = {name: text for name, text in told.items() if name not in stale} | dict.fromkeys(lost, _PLAIN)
    kept[_NAMES] = json.dumps([name for name in names if name not in stale] + lost)
    _write(file, kept, held)
    return True


def _lost(file: Path, told: Mapping[str, str]) -> list[str]:
    names = json.loads(told[_NAMES])
    plain = {name for name in names if _type(told, name) == "Tensor"}
    parts = tuple("{0}._{2}_".format(*name.rpartition(".")) for name in names if name not in plain)
    return [name for name in header(file) if name not in plain and not name.startswith(parts)]


def _type(told: Mapping[str, str], name: str) -> str:
    return str(json.loads(told[name])["_type"]).rpartition(".")[2]


def _metadata(file: Path) -> dict[str, str]:
    """Return the metadata of a file that torchao's tensors are in, or nothing for another file."""
    header(file)
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        found = json.loads(opened.read(length)).get("__metadata__") or {}
    try:
        if _NAMES not in found:
            return {}
        for name in json.loads(found[_NAMES]):
            _type(found, name)
        if not all(isinstance(text, str) for pair in found.items() for text in pair):
            raise TypeError("it holds more than texts")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unusable(f"{file}: its metadata of torchao's tensors is damaged ({error!r})") from error
    return dict(found)


def _write(file: Path, told: Mapping[str, str], held: Mapping[str, Any]) -> None:
    """Write a file's header anew, in one step; its tensors stay byte for byte as they are."""
    text = json.dumps({"__metadata__": told, **held}, separators=(",", ":")).encode()
    # safetensors begins the tensors at a multiple of 8.
    text += b" " * (-len(text) % 8)
    written = file.with_suffix(".tmp")
    with file.open("rb") as old, written.open("wb") as new:
        (length,) = struct.unpack("<Q", old.read(8))
        old.seek(8 + length)
        new.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(old, new, 1 << 22)
    os.replace(written, file)
