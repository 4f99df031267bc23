"""Looks at a model's weights: which are quantized tensors, and how many bytes stand behind them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def leaves(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the plain tensors behind ``tensor``, which may be a (nested) tensor subclass."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from leaves(getattr(tensor, name))
    else:
        yield tensor


def inference(model: torch.nn.Module) -> AbstractContextManager[Any]:
    """Return the context in which a model predicts: without gradients, and without what else only they need.

    Of a quantized weight that holds the matrices of several experts torchao takes one out, which a tensor made in
    inference mode does not let it do. Some classes of older versions take views in their product, which are refused
    there to what was made outside of it.
    """
    quantized = [one for one in model.parameters() if tensor_class(one) != "Tensor"]
    smallest = {type(one): one for one in sorted(quantized, key=torch.Tensor.numel, reverse=True)}
    plain = any(one.dim() > 2 for one in quantized) or not all(map(_infers, smallest.values()))
    found: AbstractContextManager[Any] = torch.no_grad() if plain else torch.inference_mode()
    return found


_INFERS: dict[type, bool] = {}


def _infers(weight: torch.Tensor) -> bool:
    """Return whether the product of a quantized weight can be taken in inference mode, as far as that is the reason."""
    kind = type(weight)
    if kind not in _INFERS:
        one = torch.zeros((1, weight.shape[-1]), dtype=weight.dtype, device=weight.device)
        _INFERS[kind] = True
        try:
            with torch.inference_mode():
                torch.nn.functional.linear(one, weight)
        except Exception as error:  # whatever kernels and libraries raise: the model's own run tells of it
            _INFERS[kind] = "inference tensor" not in str(error)
    return _INFERS[kind]


def inferring(function: Function) -> Function:
    """Have a function run in the :func:`inference` of the model that is its first argument, or that argument's own."""

    @functools.wraps(function)
    def run(first: Any, *arguments: Any, **named: Any) -> Any:
        model = first if isinstance(first, torch.nn.Module) else getattr(first, "model", None)
        with inference(model) if isinstance(model, torch.nn.Module) else torch.inference_mode():
            return function(first, *arguments, **named)

    return cast("Function", run)


def without_gradients(function: Function) -> Function:
    """Have a function run without gradients; unlike with :func:`inferring`, what it makes may be kept and changed."""

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        with torch.no_grad():
            return function(*arguments, **named)

    return cast("Function", run)


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
        # Not of its ``data``: some classes give none in inference mode.
        for leaf in leaves(parameter):
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
    # A parameter of a tensor subclass is of that class, whatever the subclass makes of its ``data``; an engine's own
    # kind of parameter (vLLM's ModelWeightParameter) says nothing of the tensor within.
    kind = type(weight.data) if issubclass(type(weight), torch.nn.Parameter) else type(weight)
    return "Tensor" if issubclass(kind, torch.nn.Parameter) or kind is torch.Tensor else kind.__name__
