"""A recipe's data -> the torchao config object that it names."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

_GRANULARITY = re.compile(r"^(Per\w+)\((.*)\)$")


def build(config: str, arguments: dict[str, Any]) -> Any:
    """Return the torchao config ``config(**arguments)``.

    Strings of the form ``torch.NAME`` become dtypes, ``PerGroup(32)`` and its like granularities, and tables with
    a ``config`` key nested configs; torchao's own enums take their plain string values. Raises ValueError for a
    class or an argument that this torchao does not have.
    """
    import torchao.prototype.quantization as prototype
    import torchao.quantization as stable

    kind = getattr(stable, config, None) or getattr(prototype, config, None)
    if kind is None:
        known = ", ".join(sorted(name for name in dir(stable) if name.endswith("Config")))
        raise ValueError(f"torchao has no config class {config!r}; it has: {known}")
    signature = inspect.signature(kind)
    for name in arguments:
        if name not in signature.parameters:
            raise ValueError(f"{config} has no argument {name!r}; it has: {', '.join(signature.parameters)}")
    return kind(**{name: _value(value) for name, value in arguments.items()})


def _value(value: Any) -> Any:
    import torch
    import torchao.quantization.granularity as granularities

    if isinstance(value, str) and value.startswith("torch."):
        found = getattr(torch, value.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"{value!r} is not a torch dtype")
        return found
    if isinstance(value, str) and (match := _GRANULARITY.match(value)):
        kind = getattr(granularities, match.group(1), None)
        if kind is None:
            raise ValueError(f"{value!r} is not a granularity of torchao")
        return kind(*ast.literal_eval(f"({match.group(2)},)" if match.group(2) else "()"))
    if isinstance(value, dict):
        if "config" in value:
            return build(value["config"], value.get("arguments", {}))
        from collections import OrderedDict

        return OrderedDict((name, _value(inner)) for name, inner in value.items())
    if isinstance(value, list):
        return [_value(inner) for inner in value]
    return value
