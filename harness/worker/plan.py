"""What a recipe means for every parameter of a model: a config that quantizes it, or a rule that leaves it plain."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.contract.weights import Unusable
from harness.worker import parameters
from harness.worker.parameters import Parameter

_WHY = {
    parameters.EMBEDDING: "embeddings stay plain, which the recipe does not quantize",
    parameters.HEAD: "the output head stays plain, which the recipe does not quantize",
    parameters.LINEAR: "linear layers stay plain, which the recipe does not quantize",
    parameters.EXPERTS: "experts stay plain, which the recipe does not quantize",
    parameters.ROUTER: "routers stay plain: they choose the experts, and are small",
    parameters.NORM: "norms stay plain: they have one dimension",
    parameters.VECTOR: "weights of one dimension stay plain",
    parameters.BIAS: "biases stay plain",
    parameters.CONVOLUTION: "convolutions stay plain: torchao's recipes are for matrix products",
    parameters.STATE: "parameters of state spaces and recurrences stay plain: no matrix product takes them",
}
_PARTS = {"vision": "the vision tower", "audio": "the audio tower", "projector": "the projector", "tower": "a tower"}


@dataclass(frozen=True)
class Choice:
    """What is meant for a parameter: the torchao config to quantize it by, or None and the rule that keeps it plain."""

    config: Any
    rule: str = ""


Plan = Mapping[str, Choice]


def make(
    found: Mapping[str, Parameter],
    config: Any,
    quantizes: Sequence[str],
    plain: Sequence[str] = (),
    converted: Sequence[str] | None = None,
    own: Mapping[str, str] | None = None,
) -> dict[str, Choice]:
    """Return what a recipe means for every parameter of a model.

    ``config`` is a torchao config, ``quantizes`` the kinds and parts of a model that it is for. ``plain`` are rules
    that come first: a kind or a part, a module's name, or ``re:`` and an expression that the whole name of a module or
    a parameter matches. ``converted`` are patterns of Transformers' ``modules_to_not_convert``, if the recipe has
    them. ``own`` are rules by name, for weights that the model's own code computes with
    (:mod:`harness.worker.products`).

    A key of an FqnToConfig that is not ``_default`` means what it matches, whatever its kind; None there is a rule.
    Raises Unusable for a rule or a key that nothing matches.
    """
    table = named_configs(config)
    _check_keys(
        "plain", plain, {one: [p.name for p in found.values() if _matches_rule(p, one)] for one in plain}, found
    )
    if table is not None:
        keys = [key for key in table if key != "_default"]
        used = {key: [p.name for p in found.values() if key_of(p, table) == key] for key in keys}
        _check_keys("FqnToConfig", keys, used, found)
    own = own or {}
    return {
        name: Choice(None, own[name]) if name in own else _choose(parameter, config, table, quantizes, plain, converted)
        for name, parameter in found.items()
    }


def named_configs(config: Any) -> Mapping[str, Any] | None:
    """Return the configs by name of an FqnToConfig, or None for any other config."""
    return config.fqn_to_config if hasattr(config, "fqn_to_config") else None


def key_of(parameter: Parameter, table: Mapping[str, Any]) -> str | None:
    """Return the key of an FqnToConfig, ``_default`` apart, that a parameter goes by, in torchao's order, or None."""
    names = (parameter.name, *parameter.also)
    modules = [name.rpartition(".")[0] for name in names]
    for exact in (*names, *modules):
        if exact in table:
            return exact
    for key in table:
        if key.startswith("re:") and any(re.fullmatch(key[3:], name) for name in (*names, *modules)):
            return key
    return None


def _choose(
    parameter: Parameter,
    config: Any,
    table: Mapping[str, Any] | None,
    quantizes: Sequence[str],
    plain: Sequence[str],
    converted: Sequence[str] | None,
) -> Choice:
    if rule := next((one for one in plain if _matches_rule(parameter, one)), None):
        return Choice(None, f"left plain as asked ({rule})")
    if converted and (pattern := next((one for one in converted if _matches_converted(parameter, one)), None)):
        return Choice(None, f"left plain by the recipe's modules_to_not_convert ({pattern})")
    if table is not None:
        key = key_of(parameter, table)
        if key is not None and table[key] is None:
            return Choice(None, f"left plain by the recipe's FqnToConfig ({key} = None)")
        if key is not None and _may_be_meant(parameter, key):
            return Choice(table[key])
        if key is None and table.get("_default") is None:
            return Choice(None, "no key of the recipe's FqnToConfig is for it")
        config = table.get("_default")
    if why := _why_plain(parameter, quantizes):
        return Choice(None, why)
    return Choice(config) if parameter.kind in parameters.MATRICES else Choice(None)


def _may_be_meant(parameter: Parameter, key: str) -> bool:
    """Say whether a key that matches a parameter means it: the name of a module means its matrices, not its biases."""
    if parameter.kind in (*parameters.MATRICES, parameters.ROUTER):
        return True
    own = key[3:] if key.startswith("re:") else re.escape(key)
    module = re.fullmatch(own, parameter.module)
    return parameter.value.dim() > 1 and (parameter.kind == parameters.OTHER or not module)


def _why_plain(parameter: Parameter, quantizes: Sequence[str]) -> str:
    """Return the rule by which a recipe leaves a parameter plain that nothing names, or an empty string."""
    part = parameter.part
    if part and part not in quantizes:
        return f"{_PARTS[part]} stays plain, unless asked for (--quantize {part})"
    if part and parameter.kind in (parameters.EMBEDDING, parameters.HEAD):
        return f"embeddings of {_PARTS[part]} stay plain"
    # Experts are linear layers, many in one parameter.
    kind = parameters.LINEAR if parameter.kind == parameters.EXPERTS else parameter.kind
    if kind in quantizes:
        return ""
    if part and parameter.kind == parameters.OTHER:
        return f"what is no linear layer of {_PARTS[part]} stays plain"
    return _WHY.get(parameter.kind, "")


def _matches_rule(parameter: Parameter, rule: str) -> bool:
    if rule in (parameter.kind, parameter.part):
        return True
    for name in (parameter.name, *parameter.also):
        parents = _parents(name)
        if rule.startswith("re:"):
            if any(re.fullmatch(rule[3:], one) for one in (name, *parents)):
                return True
        elif rule == name or rule in parents:
            return True
    return False


def _matches_converted(parameter: Parameter, pattern: str) -> bool:
    """Say whether Transformers leaves a parameter out by a pattern, as its ``should_convert_module`` does."""
    return any(re.match(pattern, name) or name.endswith(pattern) for name in (parameter.name, *parameter.also))


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _check_keys(
    what: str, keys: Iterable[str], used: Mapping[str, Sequence[str]], found: Mapping[str, Parameter]
) -> None:
    """Raise Unusable for keys that mean no parameter, with the names that there are."""
    idle = [key for key in keys if not used[key]]
    if not idle:
        return
    names = [parameter.name for parameter in found.values()]
    matched = [key for key in idle if key.startswith("re:") and any(re.fullmatch(key[3:], name) for name in names)]
    parents = {parent for name in names for parent in _parents(name)}
    around = next((key for key in idle if key in parents), "")
    hint = (
        f"{matched[0]!r} is never used, since keys before it take all that it matches"
        if matched
        else f"{around!r} is a module around others: write 're:{re.escape(around)}\\..*' for all in it"
        if around
        else f"the model has {parameters.named(names, 12)}; an expression (re:) must match the whole name"
    )
    raise Unusable(
        f"{what}: {', '.join(map(repr, idle))} match{'es' if len(idle) == 1 else ''} nothing of the model: {hint}"
    )
