"""Quantized tensors put together from the parts in a file, each among its own parts rather than those of all.

Transformers has torchao put one tensor together at a time, and torchao looks for each through the names of all that
the file has: with 210 quantized weights that was two thirds of loading a model, and it grows with their square. So did
half of what was left: for each weight, all that the file says is copied, and looked through for what is not torchao's.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import patch

_FUNCTION = "unflatten_tensor_state_dict"
_LOOK = "is_metadata_torchao"
_READER = "TorchAoDeserialize"


@contextlib.contextmanager
def one_by_one() -> Iterator[None]:
    """Have torchao told, within, of those tensors alone whose parts it is given."""
    from transformers.integrations import torchao

    whole = getattr(torchao, _FUNCTION, None)
    # Another release may do it otherwise.
    if whole is None:
        yield
        return

    def own(parts: Mapping[str, Any], metadata: Mapping[str, Any], *more: Any, **named: Any) -> Any:
        return whole(parts, told_of(parts, metadata), *more, **named)

    with patch.object(torchao, _FUNCTION, own), _looked_through_once(torchao), _uncopied(torchao):
        yield


@contextlib.contextmanager
def _looked_through_once(torchao: Any) -> Iterator[None]:
    """Have the metadata of a file looked through with its first tensor alone; it stays the same object."""
    look = getattr(torchao, _LOOK, None)
    if look is None:
        yield
        return
    seen: list[Any] = []

    def once(metadata: Any) -> bool:
        if any(it is metadata for it in seen):
            return True
        if found := bool(look(metadata)):
            seen.append(metadata)
        return found

    with patch.object(torchao, _LOOK, once):
        yield


@contextlib.contextmanager
def _uncopied(torchao: Any) -> Iterator[None]:
    """Have what puts tensors together copied without the metadata that it reads: each weight has a copy of its own."""
    reader = getattr(torchao, _READER, None)
    if reader is None or hasattr(reader, "__deepcopy__"):
        yield
        return
    reader.__deepcopy__ = lambda it, _: copy.copy(it)
    try:
        yield
    finally:
        del reader.__deepcopy__


def told_of(parts: Mapping[str, Any], metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a file's metadata says of the tensors that some parts belong to; all of it where one belongs to none.

    A part is called ``MODULE._WEIGHT_PART`` of the tensor ``MODULE.WEIGHT``, or as its tensor where that is plain.
    """
    names: dict[str, None] = {}
    for part in parts:
        module, _, rest = part.rpartition(".")
        ends = [at for at, letter in enumerate(rest) if letter == "_" and at] if rest.startswith("_") else []
        found = [name for name in (part, *(f"{module}.{rest[1:end]}" for end in ends)) if name in metadata]
        if not found:
            return metadata
        names |= dict.fromkeys(found)
    return {"tensor_names": json.dumps(list(names)), **{name: metadata[name] for name in names}}
