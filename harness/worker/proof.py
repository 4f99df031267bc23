"""What became of a plan: which parameters are quantized, which are plain and by which rule, and their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from harness.contract.weights import Unusable
from harness.worker import parameters, tensors, widths
from harness.worker.parameters import Parameter
from harness.worker.plan import Plan


def check(found: Mapping[str, Parameter], plan: Plan, config: str, what: str) -> None:
    """Raise Unusable unless exactly what a plan means is quantized.

    ``what`` names the model that is held against the recipe. The message names the weights, says how much of the model
    they are, and what to do.
    """
    quantized = [name for name, parameter in found.items() if parameter.quantized]
    meant = [name for name, choice in plan.items() if choice.config is not None]
    if not quantized:
        raise Unusable(
            f"{what} has no quantized weight at all: {config} means {len(meant)} of its {len(found)}, "
            f"{parameters.share(found, meant)} of its parameters ({parameters.named(meant)})"
        )
    if plain := [name for name in meant if not found[name].quantized]:
        shapes = sorted({str(found[name].shape) for name in plain})
        raise Unusable(
            f"{what}: {config} left {len(plain)} of {len(meant)} weights unquantized without a word, "
            f"{parameters.share(found, plain)} of all parameters: {parameters.named(plain)} (shapes "
            f"{', '.join(shapes)}). {parameters.leave_plain(found, plain)}"
        )
    if more := [name for name in quantized if plan[name].config is None]:
        rules = "; ".join(dict.fromkeys(plan[name].rule for name in more))
        kinds = dict.fromkeys(found[name].part or found[name].kind for name in more)
        raise Unusable(
            f"{what} holds {len(more)} quantized weights that the recipe leaves plain, "
            f"{parameters.share(found, more)} of all parameters: {parameters.named(more)} ({rules}). Measure it by a "
            f"recipe whose `quantizes` has these kinds too ({' '.join(f'--quantize {kind}' for kind in kinds)})"
        )


def table(found: Mapping[str, Parameter], plan: Plan) -> dict[str, dict[str, Any]]:
    """Return by name what records keep of each parameter: kind, part, shape, tensor class, bytes, why it is plain."""
    return {
        name: {
            "layer": parameter.layer,
            "kind": parameter.kind,
            "part": parameter.part,
            "shape": list(parameter.shape),
            "tensor": parameter.tensor,
            "quantized": parameter.quantized,
            "bytes": parameter.bytes,
            "rule": "" if parameter.quantized else plan[name].rule if name in plan else "",
        }
        for name, parameter in found.items()
    }


def predicted_bytes(model: torch.nn.Module, found: Mapping[str, Parameter], plan: Plan) -> tuple[int | None, list[str]]:
    """Return the bytes that all parameters take by a plan's bit widths, and the configs of which none are known.

    What stays plain takes two bytes a value, or four where the model keeps float32. None where a config is not known.
    """
    unknown = dict.fromkeys(
        type(choice.config).__name__
        for choice in plan.values()
        if choice.config is not None and widths.width(choice.config) is None
    )
    if unknown:
        return None, list(unknown)
    total = 0
    for name, parameter in found.items():
        config = plan[name].config if name in plan else None
        known = widths.width(config, torch.bfloat16) if config is not None else None
        wide = parameter.value.dtype == torch.float32 and keeps_float32(model, name)
        total += known.bytes(parameter.shape) if known else parameter.size * (4 if wide else 2)
    return total, []


def keeps_float32(model: torch.nn.Module, name: str) -> bool:
    """Return whether a model of transformers says of a parameter that it is kept in float32 whatever else is not."""
    kept = {*(getattr(model, "_keep_in_fp32_modules", None) or ()), *_strict(model)}
    return any(one in name for one in kept)


def _strict(model: torch.nn.Module) -> tuple[str, ...]:
    return tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())


def buffer_bytes(model: torch.nn.Module, persistent: bool) -> int:
    """Return the bytes of a model's buffers, or of those alone that are saved."""
    kept = set(model.state_dict()) if persistent else None
    return sum(
        leaf.numel() * leaf.element_size()
        for name, buffer in model.named_buffers()
        if kept is None or name in kept
        for leaf in tensors.leaves(buffer)
    )
