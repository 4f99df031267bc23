"""What an engine makes of a checkpoint: whether it takes the quantized weights, and which plain ones are meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.numbers import percent
from harness.contract import flattened, quantized, weights
from harness.records.coverage import Coverage, Weights

_OF_ANOTHER_PART = re.compile(r"vis(ion|ual)|audio|speech|project|multi_modal|connector")
_WORDS = {"embedding": "the embedding", "head": "the output head", "experts": "experts"}


def refusal(held: Weights, kinds: frozenset[str], server: str) -> str:
    """Return why a server cannot hold what is quantized of a checkpoint, or an empty string if it can.

    ``kinds`` are those of quantized weights that it takes.
    """
    others = {name: one for name, one in held.items() if one["quantized"] and one["kind"] not in kinds}
    if not others:
        return ""
    coverage = Coverage.of(held)
    group = Coverage.of(others).groups[0]
    parameters = sum(one.parameters for one in Coverage.of(others).groups)
    share = parameters / sum(one.parameters for one in coverage.groups)
    kinds_of_others = dict.fromkeys(str(one["kind"]) for one in others.values())
    what = " and ".join(_WORDS.get(kind, kind) for kind in kinds_of_others)
    verb = "is" if list(kinds_of_others) in (["embedding"], ["head"]) else "are"
    return (
        f"{server} takes torchao weights in {' and '.join(sorted(kinds))} layers alone, and here {what} {verb} "
        f"quantized too, {percent(share)} of the parameters ({', '.join(group.names[:3])}): measure it through "
        f"Transformers, or leave them plain for this server (--leave-plain {next(iter(kinds_of_others))})"
    )


def unsaved(folder: Path, recipe: str, server: str) -> str:
    """Return why a server cannot be given a recipe's checkpoint that is quantized as it is loaded; else nothing."""
    if not (folder / quantized.AT_LOAD).is_file():
        return ""
    return (
        f"torchao cannot save what {recipe} makes of a weight, so it is applied as a model is loaded, and {server} is "
        "given saved checkpoints: measure it through Transformers"
    )


def passed_over(folder: Path, server: str) -> str:
    """Return why a server that reads torchao's files by their metadata would leave weights of a checkpoint unread.

    What it does not read is whatever its memory held before. An empty string means that it reads all of them.
    """
    lost = flattened.unnamed(sorted(folder.glob("*.safetensors")))
    if not lost:
        return ""
    return (
        f"{server} reads of a torchao checkpoint what its metadata names, and that of {folder.name} does not name "
        f"{len(lost)} of its tensors ({weights.shown(lost, 3)}), which would be random: Transformers saves it so. "
        "Quantize the plain model here, which names them, or measure it through Transformers"
    )


def unmeant(layers: Mapping[str, str], held: Weights, parts: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the engine's linear layers that are plain though the checkpoint has no rule that leaves them so.

    ``layers`` are the tensor classes of the engine's layers by name, ``parts`` what it holds merged: the last component
    of the merged layer's name, and those of its parts. An engine may name what is around a model's layers otherwise.
    """
    known: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    for one in held.values():
        known.setdefault((_tail(str(one["layer"])), bool(one["part"])), []).append(one)
    found = []
    for name, tensor in layers.items():
        prefix, _, last = name.rpartition(".")
        names = [f"{prefix}.{part}" for part in parts.get(last, (last,))]
        another = bool(_OF_ANOTHER_PART.search(name))
        meant = [one for part in names for one in known.get((_tail(part), another), [])]
        if tensor == "Tensor" and not (meant and all(not one["quantized"] and one["rule"] for one in meant)):
            found.append(name)
    return found


def _tail(name: str) -> str:
    """Return a layer's name from the component before its first number on: ``layers.0.mlp.gate``."""
    found = re.search(r"[^.]+\.\d+\..*", name)
    return found[0] if found else name.rpartition(".")[2]
