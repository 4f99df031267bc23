"""Looks at a model's weights: which are quantized tensors, and how many bytes stand behind them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def leaves(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the plain tensors behind ``tensor``, which may be a (nested) tensor subclass."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from leaves(getattr(tensor, name))
    else:
        yield tensor


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of the distinct storages behind all parameters and buffers."""
    storages: dict[tuple[str, int], int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        for leaf in leaves(tensor.data if isinstance(tensor, torch.nn.Parameter) else tensor):
            storage = leaf.untyped_storage()
            storages[(str(leaf.device), storage.data_ptr())] = storage.nbytes()
    return sum(storages.values())


def not_finite(model: torch.nn.Module) -> dict[str, int]:
    """Return how many values of each parameter are NaN or infinite, of those that have any."""
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        for leaf in leaves(parameter.data):
            if leaf.is_floating_point():
                # Of float8 torch does not say which are finite.
                wide = leaf.to(torch.bfloat16) if leaf.element_size() == 1 else leaf
                if count := leaf.numel() - int(torch.isfinite(wide).sum()):
                    found[name] = found.get(name, 0) + count
    return found


def linear_weights(model: torch.nn.Module) -> dict[str, int]:
    """Return bytes and number of the weights that every step multiplies: linear layers and the output head."""
    seen: dict[int, tuple[int, int]] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, torch.nn.Linear) and weight is not None:
            size = sum(leaf.numel() * leaf.element_size() for leaf in leaves(weight.data))
            seen[id(module)] = (size, weight.numel())
    return {"bytes": sum(size for size, _ in seen.values()), "weights": sum(number for _, number in seen.values())}


def tensor_class(weight: Any) -> str:
    """Return the class of a weight: plain ``Tensor`` or the name of the quantized tensor class."""
    data = weight.data if isinstance(weight, torch.nn.Parameter) else weight
    name = type(data).__name__
    return "Tensor" if name in ("Parameter", "Tensor") else name


def layers(model: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """Return every linear and embedding module by its full name: kind, shape, tensor class, quantized or not.

    ``kind`` is ``linear``, ``head`` (the output projection) or ``embedding``.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2:
            continue
        if isinstance(module, torch.nn.Embedding):
            kind = "embedding"
        elif isinstance(module, torch.nn.Linear):
            kind = "head" if module is head else "linear"
        else:
            continue
        tensor = tensor_class(weight)
        found[name] = {
            "kind": kind,
            "shape": [int(size) for size in weight.shape],
            "tensor": tensor,
            "quantized": tensor != "Tensor",
        }
    return found


def unquantized(found: dict[str, dict[str, Any]], targets: list[str]) -> list[str]:
    """Return the names of layers whose kind is among ``targets`` but whose weight is not a quantized tensor."""
    return [name for name, layer in found.items() if layer["kind"] in targets and not layer["quantized"]]


def quantized_besides(found: dict[str, dict[str, Any]], targets: list[str]) -> list[str]:
    """Return the names of layers whose weight is a quantized tensor though their kind is not among ``targets``."""
    return [name for name, layer in found.items() if layer["quantized"] and layer["kind"] not in targets]
