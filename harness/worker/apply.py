"""A plan -> what Transformers is told: the torchao config and TorchAoConfig's options that quantize it, and no more."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import TorchAoConfig
from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from harness.contract.weights import Unusable
from harness.worker import parameters
from harness.worker import plan as plans
from harness.worker.parameters import Parameter
from harness.worker.plan import Plan


def torchao_config(found: Mapping[str, Parameter], plan: Plan, config: Any) -> Any:
    """Return the torchao config that quantizes what a plan means.

    It is the recipe's own where that will do. Experts and embeddings, which are parameters of no linear layer, are
    reached by name alone: then it is an FqnToConfig of the recipe's config, by their names and as its default.
    """
    table = plans.named_configs(config)
    by_name = {
        name: choice.config
        for name, choice in plan.items()
        if choice.config is not None
        and found[name].kind in (parameters.EXPERTS, parameters.EMBEDDING)
        and (table is None or plans.key_of(found[name], table) is None)
    }
    if not by_name:
        return config
    from torchao.quantization import FqnToConfig

    keys = [(f"re:{_expression(name)}", one) for name, one in by_name.items()]
    rest = {"_default": config} if table is None else dict(table)
    default = [("_default", rest.pop("_default"))] if "_default" in rest else []
    return FqnToConfig(OrderedDict([*rest.items(), *keys, *default]))


def _expression(name: str) -> str:
    """Return an expression for a parameter of every layer: ``model\\.layers\\.\\d+\\.mlp\\.experts\\.down_proj``."""
    return re.sub(r"(?<=\\\.)\d+(?=\\\.)", lambda _: r"\d+", re.escape(name))


def options(
    model: Any, found: Mapping[str, Parameter], plan: Plan, config: Any, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return TorchAoConfig's options under which Transformers quantizes exactly what a plan means.

    ``model`` may be without data; ``given`` are the recipe's own options. Raises Unusable naming what Transformers
    would do otherwise all the same.
    """
    meant = {name for name, choice in plan.items() if choice.config is not None}
    chosen = dict(given)
    if any(found[name].kind in (parameters.EMBEDDING, parameters.HEAD) for name in meant):
        chosen.setdefault("include_input_output_embeddings", True)
    routers = any(found[name].kind == parameters.ROUTER and name not in meant for name in found)
    if routers or _taken(model, config, chosen) != meant:
        free = {**chosen, "modules_to_not_convert": []}
        spared = sorted(_taken(model, config, free) - meant)
        chosen["modules_to_not_convert"] = _patterns(spared, meant) + _module_patterns(found, plan)
    taken = _taken(model, config, chosen)
    for what, names in (("quantize", taken - meant), ("leave out", meant - taken)):
        if names:
            raise Unusable(
                f"Transformers would {what} {len(names)} weights against the recipe: {parameters.named(sorted(names))}"
            )
    return chosen


def _taken(model: Any, config: Any, chosen: Mapping[str, Any]) -> set[str]:
    """Return the parameters that Transformers would quantize, by its own quantizer."""
    quantizer = TorchAoHfQuantizer(TorchAoConfig(config, **chosen))
    quantizer._process_model_before_weight_loading(model)
    table = plans.named_configs(config)
    return {
        name
        for name, _ in model.named_parameters()
        if quantizer.param_needs_quantization(model, name) and (table is None or _config_of(name, table) is not None)
    }


def _config_of(name: str, table: Mapping[str, Any]) -> Any:
    """Return the config by which Transformers quantizes a parameter, as its TorchAoQuantize.convert chooses it."""
    module = name.rpartition(".")[0]
    for exact in (name, module):
        if exact in table:
            return table[exact]
    for key, config in table.items():
        if key.startswith("re:") and (re.fullmatch(key[3:], name) or re.fullmatch(key[3:], module)):
            return config
    return table.get("_default")


def _patterns(spared: Sequence[str], meant: Iterable[str]) -> list[str]:
    """Return few patterns of ``modules_to_not_convert`` that leave out all of ``spared`` and none of ``meant``.

    Transformers takes them as endings of a parameter's name, and as expressions for its beginning.
    """
    kept = list(meant)
    found: list[str] = []
    while left := [name for name in spared if should_convert_module(name, found)]:
        parts = left[0].split(".")
        every = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        every += [re.escape(".".join(parts[:count])) for count in range(1, len(parts))]
        sound = [one for one in every if all(should_convert_module(name, [one]) for name in kept)]
        found.append(max(sound, key=lambda one: sum(not should_convert_module(name, [one]) for name in left)))
    return found


def _module_patterns(found: Mapping[str, Parameter], plan: Plan) -> list[str]:
    """Return names of plain modules as vLLM takes ``modules_to_not_convert``: components of a module's name.

    It has a linear layer for what is a bare parameter in Transformers, such as a router, and names of its own for
    what is around a part of the model.
    """
    quantized = [f".{found[name].module}." for name, choice in plan.items() if choice.config is not None]
    left = [
        found[name].module for name, choice in plan.items() if choice.config is None and found[name].value.dim() > 1
    ]
    names: list[str] = []
    while left:
        parts = left[0].split(".")
        spans = [
            ".".join(parts[start : start + length])
            for length in range(1, len(parts) + 1)
            for start in range(len(parts) - length + 1)
        ]
        sound = [one for one in spans if not any(f".{one}." in other for other in quantized)]
        if not sound:  # beside a quantized parameter in the same module
            left = left[1:]
            continue
        covered = {one: sum(f".{one}." in f".{module}." for module in left) for one in sound}
        names.append(max(sound, key=lambda one: covered[one]))
        left = [module for module in left if f".{names[-1]}." not in f".{module}."]
    return names
