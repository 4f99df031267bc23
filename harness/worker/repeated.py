"""One layer for all: what it says of the whole model, and how vLLM reads it once for each layer.

Every layer of a decoder of one kind has the same shapes, and takes the same time whatever its weights are. So a model
of random weights that no disk holds is made, quantized and proved with one layer, and its engine reads that layer,
by the same code as any checkpoint, into the memory of each.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from harness.contract.repeated import LAYER, LAYERS
from harness.contract.weights import Unusable
from harness.worker import proof
from harness.worker.parameters import EXPERTS, LINEAR, Parameter
from harness.worker.plan import Plan

_LAYER = re.compile(LAYER)
_MARK = "_harness_repeats"


def one_layer(shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of a model of one layer that stands for all of a shape's.

    Raises Unusable for a shape whose layers are of several kinds.
    """
    if kinds := [name for name in ("layer_types", "no_rope_layers", "mlp_layer_types") if shape.get(name)]:
        raise Unusable(f"the shape's layers are of several kinds ({', '.join(kinds)}), so that none stands for all")
    return {**shape, "num_hidden_layers": 1, LAYERS: int(shape["num_hidden_layers"])}


def whole_facts(
    facts: dict[str, Any], model: Any, found: Mapping[str, Parameter], plan: Plan, layers: int
) -> dict[str, Any]:
    """Return the facts of a model of ``layers`` layers by those of a model of one, which were taken.

    Nothing of the whole lies in files, so it has no size there. Raises Unusable where no layer or experts are found.
    """
    of_layer = {name: one for name, one in found.items() if _LAYER.search(name)}
    if not of_layer or any(one.kind == EXPERTS for one in of_layer.values()):
        raise Unusable("one layer stands for all of a decoder of dense layers (model.layers.0.) alone")
    more = layers - 1
    linear = [one for one in of_layer.values() if one.kind == LINEAR]
    predicted, _ = proof.predicted_bytes(model, of_layer, plan)
    held = facts["predicted_weight_bytes"]
    weights: dict[str, Any] = {}
    for name, one in facts["weights"].items():
        for number in range(layers if name in of_layer else 1):
            own = _named(name, number)
            weights[own] = {**one, "layer": _named(one["layer"], number)}
    return {
        **facts,
        "checkpoint_bytes": None,
        "predicted_checkpoint_bytes": None,
        "weight_bytes": facts["weight_bytes"] + more * sum(one.bytes for one in of_layer.values()),
        "predicted_weight_bytes": None if held is None or predicted is None else held + more * predicted,
        "parameters": facts["parameters"] + more * sum(one.size for one in of_layer.values()),
        "weights": weights,
        "linear": {
            "bytes": facts["linear"]["bytes"] + more * sum(one.bytes for one in linear),
            "weights": facts["linear"]["weights"] + more * sum(one.size for one in linear),
        },
    }


def install() -> None:
    """Have vLLM's loader read the only layer of such a checkpoint for each layer of its model; any other as ever."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    if not hasattr(DefaultModelLoader.get_all_weights, _MARK):
        DefaultModelLoader.get_all_weights = _repeating(DefaultModelLoader.get_all_weights)


def _repeating(ask: Callable[..., Iterator[tuple[str, torch.Tensor]]]) -> Callable[..., Any]:
    @functools.wraps(ask)
    def get_all_weights(self: Any, model_config: Any, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        layers = int(getattr(model_config.hf_config, LAYERS, 0) or 0)
        for name, tensor in ask(self, model_config, model):
            for number in range(layers if layers and _LAYER.search(name) else 1):
                yield _named(name, number), tensor

    setattr(get_all_weights, _MARK, True)
    return get_all_weights


def _named(name: str, number: int) -> str:
    """Return the name of a parameter of the only layer as that of another layer has it; any other as it is."""
    return _LAYER.sub(rf"\g<1>layers.{number}.", name, count=1) if number else name
