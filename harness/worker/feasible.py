"""Whether torchao can quantize what a recipe means to, asked before a model is loaded; what cannot be is named."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from harness.contract.weights import Unusable
from harness.worker import products, staged, tensors, widths
from harness.worker.parameters import Parameter, grouped, leave_plain, named, share
from harness.worker.plan import Plan


def check(found: Mapping[str, Parameter], plan: Plan, config: str, device: str) -> None:
    """Raise Unusable for parameters that a recipe means and cannot quantize, and for those that no rule is about.

    The message names them, says which share of the parameters they are, and what to do.
    """
    meant = {name: found[name] for name, choice in plan.items() if choice.config is not None}
    unruled = [name for name, choice in plan.items() if choice.config is None and not choice.rule]
    if unruled:
        raise Unusable(
            f"{config} says nothing of {len(unruled)} weights that are in no linear layer, {share(found, unruled)} of "
            f"all parameters: {named(unruled)}. {leave_plain(found, unruled)}"
        )
    if not meant:
        raise Unusable(f"{config} would quantize nothing of the model: {'; '.join(_rules(found, plan))}")
    for wrong in (_tied(meant), _transposed(meant), _undivided(meant, plan), _untried(meant, plan, device)):
        if wrong is None:
            continue
        names, why, do = wrong
        if len(names) == len(meant):
            left = f"would quantize nothing of the model: {len(names)} weights are meant, {share(found, names)} of all"
        else:
            left = f"would leave {len(names)} of {len(meant)} weights unquantized, {share(found, names)} of all"
            do = " ".join(filter(None, (do, leave_plain(found, names))))
        raise Unusable(". ".join(filter(None, (f"{config} {left} parameters: {named(names)}: {why}", do))))


_Wrong = tuple[list[str], str, str] | None


def _tied(meant: Mapping[str, Parameter]) -> _Wrong:
    names = [name for name, parameter in meant.items() if parameter.also]
    if not names:
        return None
    others = named(other for name in names for other in meant[name].also)
    why = f"tied to {others}, and tied weights cannot be quantized"
    return names, why, "Give the recipe `untie_embeddings = true`."


def _transposed(meant: Mapping[str, Parameter]) -> _Wrong:
    names = [name for name, parameter in meant.items() if parameter.transposed]
    if not names:
        return None
    why = (
        "their matrices are held as (in, out), or multiplied by code of the model's own, and torchao has no product "
        "that takes quantized ones so"
    )
    return names, why, "Such layers can be quantized only once the model holds them as nn.Linear."


def _undivided(meant: Mapping[str, Parameter], plan: Plan) -> _Wrong:
    """Say which weights' last dimension is no multiple of the group size of their config."""
    lengths: dict[int, list[str]] = {}
    sizes: set[int] = set()
    for name, parameter in meant.items():
        size = widths.group_size(plan[name].config)
        if size and parameter.shape[-1] % size:
            lengths.setdefault(parameter.shape[-1], []).append(name)
            sizes.add(size)
    if not lengths:
        return None
    size = min(sizes)
    told = [
        f"{grouped(names)[0]} has {length} inputs, for which the nearest is {nearest_divisor(length, size)}"
        for length, names in sorted(lengths.items())
    ]
    every = largest_common_group([parameter.shape[-1] for parameter in meant.values()], size)
    names = [name for some in lengths.values() for name in some]
    why = f"groups of {' or '.join(map(str, sorted(sizes)))} do not divide their inputs ({'; '.join(told)})"
    return names, why, f"Groups of {every} divide those of every layer." if every > 1 else ""


def nearest_divisor(length: int, size: int) -> int:
    """Return the divisor of ``length`` that is nearest to ``size``; of two the smaller, which costs no accuracy."""
    divisors = [one for one in range(1, length + 1) if length % one == 0]
    return min(divisors, key=lambda one: (abs(one - size), one))


def largest_common_group(lengths: Iterable[int], most: int) -> int:
    """Return the largest number up to ``most`` that divides all of ``lengths``."""
    common = math.gcd(*lengths)
    return max(one for one in range(1, min(most, common) + 1) if common % one == 0)


def _untried(meant: Mapping[str, Parameter], plan: Plan, device: str) -> _Wrong:
    """Say which weights a config does not take, by trying it on a small weight of each shape."""
    failed: dict[str, list[str]] = {}
    tried: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, parameter in meant.items():
        config, shape = plan[name].config, tuple(_small(size) for size in parameter.shape[:-1]) + parameter.shape[-1:]
        key = (id(config), shape)
        if key not in tried:
            tried[key] = _try(config, shape, parameter.value.dtype, device)
        if tried[key]:
            failed.setdefault(tried[key], []).append(name)
    if not failed:
        return None
    names = [name for some in failed.values() for name in some]
    return names, "; ".join(failed), ""


# Rows that a trial has at most, and a number that the dimensions which kernels ask for divide.
_ROWS = 256
_TOKENS = 8


def _small(size: int) -> int:
    return size if size <= _ROWS else _ROWS + size % _ROWS


def _try(config: Any, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> str:
    """Return what is wrong with quantizing a weight of this shape by a config, or an empty string."""
    from torchao.quantization import FqnToConfig, quantize_

    shape = shape if len(shape) < 3 else (1, *shape[1:])
    module = torch.nn.Linear(shape[-1], shape[-2], bias=False, device="meta")
    module.weight = torch.nn.Parameter(torch.ones(shape, dtype=dtype, device=device), requires_grad=False)
    holder = torch.nn.Sequential(module)
    try:
        if stage := staged.of(config):
            ids = torch.ones((1, _TOKENS, shape[-1]), dtype=dtype, device=device)
            staged.try_on(holder, stage, ids)
        elif len(shape) == 2:
            quantize_(holder, config, filter_fn=lambda one, _: one is module)
        else:
            quantize_(holder, FqnToConfig({"0.weight": config}), filter_fn=None)
    except Unusable:
        raise
    except Exception as error:
        return f"torchao refuses it ({products.words(error)})"
    if tensors.tensor_class(holder[0].weight) == "Tensor":
        return f"torchao leaves a weight of this shape as it is ({'x'.join(map(str, shape))})"
    return ""


def _rules(found: Mapping[str, Parameter], plan: Plan) -> list[str]:
    by_rule: dict[str, list[str]] = {}
    for name, choice in plan.items():
        by_rule.setdefault(choice.rule, []).append(name)
    return [f"{rule} ({share(found, names)}: {named(names, 3)})" for rule, names in by_rule.items()]
