"""Which weights a model's own code computes with beside its layers' products, so that they cannot be quantized."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from harness.worker import parameters, tensors
from harness.worker.parameters import Parameter

# What a quantized weight has like every tensor; the rest of what code does with one is arithmetic.
_HARMLESS = frozenset(
    {"dtype", "device", "shape", "size", "dim", "ndim", "numel", "is_cuda", "requires_grad", "data_ptr"}
)
_PRODUCTS = frozenset({torch.nn.functional.linear, torch.nn.functional.embedding})


@tensors.inferring
def refused(model: Any) -> Exception | None:
    """Return the error of a model with quantized weights that cannot run, or None for one that can.

    It is a NotImplementedError where torchao has no operator for what is done with a weight.
    """
    try:
        model(_ids(model), use_cache=False)
    except Exception as error:  # whatever kernels and libraries raise
        return error
    return None


def rules(model: Any, found: Mapping[str, Parameter]) -> dict[str, str]:
    """Return a rule for each linear weight of a model that its code takes otherwise than by the layer's product.

    The weights must be plain. ``found`` is the model's survey.
    """
    uses = _Uses({id(one.value): name for name, one in found.items() if one.kind == parameters.LINEAR})
    with tensors.inference(model), uses:
        model(_ids(model), use_cache=False)
    return {
        name: f"the model's own code computes with it ({function}), which no quantized weight takes"
        for name, function in uses.found.items()
    }


def words(error: BaseException) -> str:
    """Return which operator torchao has not for a quantized weight, or the error's first line; else the code's own."""
    line = next(iter(str(error).strip().splitlines()), "")
    if not line:
        # An assertion without words: what it asserts says most.
        code = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.line]
        return f"{type(error).__name__}{f': {code[-1]}' if code else ''}"
    operator = re.search(r"op='([\w.]+)'", line)
    return operator[1] if operator else line


def _ids(model: Any) -> torch.Tensor:
    return torch.zeros((1, 8), dtype=torch.long, device=model.device)


class _Uses(TorchFunctionMode):  # type: ignore[misc]
    """Notes the first function that takes one of some tensors and is no product of a layer's."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.found: dict[str, str] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        name = _name(function)
        if function not in _PRODUCTS and name not in _HARMLESS:
            for one in (*arguments, *(named or {}).values()):
                if id(one) in self._names:
                    self.found.setdefault(self._names[id(one)], name)
        return function(*arguments, **(named or {}))


def _name(function: Callable[..., Any]) -> str:
    """Return a function's name; of a property such as ``Tensor.T`` that of the property."""
    name = str(getattr(function, "__name__", function))
    owner = getattr(function, "__self__", None)
    return str(getattr(owner, "__name__", name)) if name in ("__get__", "__set__") else name
