"""A recipe's data -> the torchao config object that it names."""

from __future__ import annotations

import difflib
import enum
import inspect
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from harness.contract import calibrated, notation, quantized
from harness.contract.weights import Unusable
from harness.worker import shelf

# Arguments that no tensor depends on; a nested config's version is torchao's choice.
_NOT_OF_TENSORS = ("set_inductor_config", "._version")


def build(config: str, arguments: dict[str, Any], inside: str = "") -> Any:
    """Return the torchao config ``config(**arguments)``; one that is applied in steps is that of their last.

    ``inside`` is the config that it is an argument of.
    The texts of :mod:`harness.contract.notation` become dtypes, granularities and members of torchao's enums, tables
    with a ``config`` key nested configs; an enum of strings takes its plain values too. Raises Unusable for a class,
    an argument or a value that this torchao does not have, and for arguments that it refuses together.
    """
    kind = shelf.find(config, arguments)
    if kind is not None and not isinstance(kind, type):
        raise Unusable(f"{config} is a {type(kind).__name__} of torchao and no config that `quantize_` takes")
    if kind is None:
        raise Unusable(f"torchao has no config class {config!r}; it has: {shelf.known()}")
    steps = calibrated.staged(config, arguments)
    if not steps and (refusal := shelf.refusal(kind)):
        raise Unusable(refusal)
    signature = inspect.signature(kind)
    for name in arguments:
        if name not in signature.parameters:
            close = difflib.get_close_matches(name, signature.parameters, n=1)
            meant = f" (did you mean {close[0]}?)" if close else ""
            raise Unusable(f"{config} has no argument {name!r}{meant}; it has: {', '.join(signature.parameters)}")
    if steps:
        if inside and not (inside == "SmoothQuantConfig" and config == "Int8StaticActivationInt8WeightConfig"):
            raise Unusable(f"{config} is applied in steps, to a whole model: it can be no part of {inside}")
        if "step" in arguments:
            raise Unusable(f"{config}: its steps are taken one after the other here: leave `step` out")
        if "step" in signature.parameters:
            arguments = {**arguments, "step": calibrated.last_step(config)}
    elif needed := shelf.calibration(kind, arguments):
        raise Unusable(needed)
    values = {name: _value(value, config) for name, value in arguments.items()}
    try:
        return kind(**values)
    except Exception as error:
        raise Unusable(f"{config}: torchao refuses its arguments ({' '.join(str(error).split())})") from error


def differences(config: str, arguments: dict[str, Any], stored: Any) -> list[str]:
    """Say where the config that a checkpoint was made by is another than ``config(**arguments)``.

    ``stored`` is what :func:`harness.contract.quantized.quant_type` returns. Arguments that it does not have yet
    count as this torchao's defaults, and a version that the recipe does not name is the checkpoint's.
    ``set_inductor_config`` is left out, which no tensor depends on. Raises Unusable for a config that this
    torchao cannot read.
    """
    from torchao.core.config import config_from_dict

    if not isinstance(stored, dict):
        return [f"{stored} by name alone, of a version of torchao that wrote no arguments down"]
    try:
        found = config_from_dict(stored)
        held = _serialized(found)
    except Exception as error:
        # torchao wraps what a class says of its arguments, which says what is wrong with them.
        reason = " ".join(str(error.__cause__ or error.__context__ or error).split())
        kind = f"{stored.get('_type', 'of no class')} of version {stored.get('_version', 1)}"
        raise Unusable(f"this torchao cannot read the checkpoint's own config, {kind}: {reason}") from error
    return list(dict.fromkeys(_differences(config, arguments, stored, found, held)))


def _differences(
    config: str, arguments: dict[str, Any], stored: dict[str, Any], found: Any, held: Any
) -> Iterator[str]:
    """Yield where a config, as it is, serialized once more and as it was stored, is not that of a recipe."""
    named = getattr(found, "fqn_to_config", None)
    if named is not None and shelf.find(config) is not type(found):
        # One config for all, by name where experts can be reached by name alone.
        for inner in quantized.named_configs(stored).values():
            if inner is not None:
                yield from differences(config, arguments, inner)
        return
    # The version that a config has by default is torchao's choice of a format, and rises with its releases.
    version = "_version" in stored and "version" in inspect.signature(type(found)).parameters
    same = {"version": stored["_version"]} if version and type(found) is shelf.find(config) else {}
    asked = _serialized(build(config, same | arguments))
    if named is not None:
        held = _without_experts(held, asked)
    for name, theirs, ours in _unequal("", held, asked):
        if not name.endswith(_NOT_OF_TENSORS):
            yield f"{name} {_shown(theirs)} where the recipe has {_shown(ours)}"


def _without_experts(held: Any, asked: Any) -> Any:
    """Leave out of a serialized FqnToConfig what the default was given to by name, as experts are."""
    data = {
        field: {
            key: inner
            for key, inner in table.items()
            if key in asked["_data"].get(field, {}) or inner != table.get("_default", inner)
        }
        if isinstance(table, dict) and field.endswith("fqn_to_config")
        else table
        for field, table in held["_data"].items()
    }
    return {**held, "_data": data}


def _serialized(config: Any) -> Any:
    from torchao.core.config import config_to_dict

    return config_to_dict(config)


def _unequal(name: str, held: Any, asked: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the leaves in which two serialized configs are not equal, each with where it is."""
    if isinstance(held, dict) and isinstance(asked, dict) and held.get("_type") == asked.get("_type"):
        for key in sorted(held.keys() | asked.keys()):
            inner = name if key == "_data" else f"{name}.{key}".removeprefix(".")
            yield from _unequal(inner, held.get(key), asked.get(key))
    elif isinstance(held, list) and isinstance(asked, list) and len(held) == len(asked):
        for index, (theirs, ours) in enumerate(zip(held, asked, strict=True)):
            yield from _unequal(f"{name}[{index}]", theirs, ours)
    elif _written(held) != _written(asked):
        yield name, held, asked


def _shown(value: Any) -> str:
    """Return a part of a serialized config as it is written in Python."""
    if not (isinstance(value, dict) and "_type" in value):
        return repr(value)
    data = value.get("_data")
    if isinstance(data, dict):
        return f"{value['_type']}({', '.join(f'{name}={_shown(inner)}' for name, inner in data.items())})"
    return f"{value['_type']}.{data}"


def _written(leaf: Any) -> Any:
    """Return a member of an enum of strings as its plain value, which torchao's configs take as well."""
    kind = shelf.find(leaf["_type"]) if isinstance(leaf, dict) and isinstance(leaf.get("_type"), str) else None
    if isinstance(kind, type) and issubclass(kind, str) and issubclass(kind, enum.Enum):
        return kind[leaf["_data"]].value
    return leaf


def _value(value: Any, inside: str) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        if notation.is_config(value):
            return build(value["config"], value.get("arguments", {}), inside)
        return OrderedDict((notation.key_of(name), _value(inner, inside)) for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return [_value(inner, inside) for inner in value]
    return value


def _text(value: str) -> Any:
    import torch
    import torchao.quantization.granularity as granularities

    if value.startswith("torch."):
        found = getattr(torch, value.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise Unusable(f"{value!r} is not a torch dtype")
        return found
    if notation.looks_like_granularity(value):
        parsed = notation.granularity(value)
        if parsed is None:
            raise Unusable(f"{value!r} is not of the form PerGroup(32) or PerGroup(group_size=32)")
        kind = getattr(granularities, parsed.name, None)
        if kind is None:
            raise Unusable(f"{value!r} is not a granularity of torchao")
        try:
            return kind(*parsed.values, **parsed.named)
        except TypeError as error:
            raise Unusable(f"{value!r}: {error}") from error
    if parts := notation.member(value):
        kind = shelf.find(parts[0])
        if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
            raise Unusable(f"{value!r}: torchao has no enum {parts[0]}")
        if parts[1] not in kind.__members__:
            raise Unusable(f"{value!r}: {parts[0]} has {', '.join(kind.__members__)}")
        return kind[parts[1]]
    return value
