"""Weights that vLLM makes for a checkpoint to fill: quantized once for each shape, not once for each layer.

Before it reads a torchao checkpoint, vLLM quantizes whatever memory each layer was given, for the classes and shapes of
what comes out; the checkpoint then overwrites all of it. Of SmolLM2's 120 layers that was a quarter of an engine's
start on a processor. Here the first layer of a shape is quantized, and those after it get memory of the same classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

_MARK = "_harness_unmade"
_QUANTIZE = "torchao_quantize_param_data"


def install() -> None:
    """Have vLLM make such weights by shape; a release that makes them in another way goes on as it does."""
    from vllm.model_executor.layers.quantization import torchao

    method = getattr(torchao, "TorchAOLinearMethod", None)
    if method is not None and hasattr(torchao, _QUANTIZE) and not hasattr(method.create_weights, _MARK):
        method.create_weights = _by_shape(method.create_weights, torchao)


def _by_shape(make: Callable[..., None], module: Any) -> Callable[..., None]:
    known: dict[Any, torch.nn.Parameter] = {}

    @functools.wraps(make)
    def create_weights(self: Any, *arguments: Any, **named: Any) -> None:
        quantize = getattr(module, _QUANTIZE)

        def alike(weight: torch.Tensor, config: Any) -> torch.nn.Parameter:
            key = (type(config), repr(config), tuple(weight.shape), weight.dtype, weight.device)
            if key in known and (found := empty_like(known[key])) is not None:
                return torch.nn.Parameter(found, requires_grad=known[key].requires_grad)
            known[key] = quantize(weight, config)
            return known[key]

        # Within this method alone: elsewhere real weights are quantized by that function.
        with patch.object(module, _QUANTIZE, alike):
            make(self, *arguments, **named)

    setattr(create_weights, _MARK, True)
    return create_weights


def empty_like(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return a tensor of the same class, shape and attributes in memory of its own, whatever that holds.

    None where a tensor's class does not tell what it is made of.
    """
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        return torch.empty_like(tensor.detach())
    if not hasattr(tensor, "__tensor_flatten__"):
        return None
    names, attributes = tensor.__tensor_flatten__()
    parts = {name: empty_like(getattr(tensor, name)) for name in names}
    if any(part is None for part in parts.values()):
        return None
    found: torch.Tensor = type(tensor).__tensor_unflatten__(parts, attributes, tensor.size(), tensor.stride())
    return found
