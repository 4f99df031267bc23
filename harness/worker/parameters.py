"""Every parameter of a model, once: what kind of weight it is, in which part of the model, and how it is held."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from harness.worker import tensors

LINEAR, EXPERTS, EMBEDDING, HEAD = "linear", "experts", "embedding", "head"
ROUTER, NORM, VECTOR, BIAS, CONVOLUTION, STATE, OTHER = (
    "router",
    "norm",
    "vector",
    "bias",
    "convolution",
    "state",
    "other",
)
MATRICES = (LINEAR, EXPERTS, EMBEDDING, HEAD)
"""The kinds whose weights a recipe may quantize."""

_ROUTER_CLASS = re.compile(r"Router|TopK\w*Gat|Gating|MoE\w*Gate")
_ROUTER_NAME = re.compile(r"(^|\.)(gate|router|wg|shared_expert_gate)(\.|$)")
_STATE_CLASS = re.compile(r"Mamba|Mixer|SSM|Rwkv|R[gG][lL][rR][uU]|DeltaNet|LinearAttention|ShortConv|LSTM")
_NORM_CLASS = re.compile(r"Norm|LayerScale")


@dataclass(frozen=True)
class Parameter:
    """One parameter. ``part`` is the tower that it is in (``vision``, ``audio``, ``projector``), empty for the text's.

    ``also`` are its other names: a tied weight is one parameter. ``transposed`` says that its matrices are held as
    (in, out), which torchao's products do not take.
    """

    name: str
    kind: str
    part: str
    value: torch.Tensor
    also: tuple[str, ...] = ()
    transposed: bool = False

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def layer(self) -> str:
        """The name that people know it by: the module's for its weight, the parameter's own for any other."""
        return self.name.removesuffix(".weight")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.value.shape)

    @property
    def size(self) -> int:
        return int(self.value.numel())

    @property
    def tensor(self) -> str:
        return tensors.tensor_class(self.value)

    @property
    def quantized(self) -> bool:
        return self.tensor != "Tensor"

    @property
    def bytes(self) -> int:
        """The bytes of what stands behind it: of a quantized one its data, scales and zero points."""
        return sum(leaf.numel() * leaf.element_size() for leaf in tensors.leaves(self.value.detach()))


def survey(model: torch.nn.Module) -> dict[str, Parameter]:
    """Return the parameters of a model of transformers by name, in its own order; one that is tied counts once."""
    parts = _Parts(model)
    counts = expert_counts(model.config)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names: dict[int, list[str]] = {}
    kinds: dict[int, tuple[str, str, torch.Tensor, bool]] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        for own_name, value in module._parameters.items():
            if value is None:
                continue
            name = f"{module_name}.{own_name}".removeprefix(".")
            names.setdefault(id(value), []).append(name)
            kind = HEAD if module is head and own_name == "weight" else _kind(module, name, own_name, value, counts)
            known = kinds.get(id(value))
            # A head that is tied to the embedding is the embedding.
            if known is None or (known[0] == HEAD and kind == EMBEDDING):
                part = "" if module is head else parts.of(module_name)
                kinds[id(value)] = (kind, part, value, _is_transposed(module, kind))
    return {
        names[key][0]: Parameter(names[key][0], kind, part, value, tuple(names[key][1:]), transposed)
        for key, (kind, part, value, transposed) in kinds.items()
    }


def multiplied(model: torch.nn.Module) -> dict[str, int]:
    """Return bytes and number of the weights that a token is multiplied by: linear layers, output head, its experts.

    Of the experts they are those of as many as a token is given to, which is what a step of one token reads, and the
    least that one of more does.
    """
    found = tensors.linear_weights(model)
    taken = experts_per_token(model.config)
    for one in survey(model).values():
        if one.kind == EXPERTS:
            share = min(1.0, taken / one.shape[0]) if taken else 1.0
            found["bytes"] += round(share * one.bytes)
            found["weights"] += round(share * one.size)
    return found


def experts_per_token(config: Any) -> int | None:
    """Return how many experts a token is given to, or None where a configuration does not say."""
    written = config.get_text_config().to_dict()
    names = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_k")
    return next((written[name] for name in names if isinstance(written.get(name), int) and written[name] > 0), None)


def expert_counts(config: Any) -> frozenset[int]:
    """Return how many experts a configuration may mean: its numbers of more than one whose names speak of experts."""
    found: dict[str, Any] = {}
    for one in (config, config.get_text_config()):
        found |= {name: value for name, value in one.to_dict().items() if "expert" in name}
    return frozenset(
        value
        for name, value in found.items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 1 and "per_tok" not in name
    )


def grouped(names: Iterable[str]) -> list[str]:
    """Return names with the numbers of layers and experts taken together, each once: ``model.layers.*.mlp.gate``."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name.removesuffix(".weight")) for name in names))


def named(names: Iterable[str], most: int = 6) -> str:
    """Return names in words, grouped; of many the first and the number of the others."""
    found = grouped(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def share(found: Mapping[str, Parameter], names: Iterable[str]) -> str:
    """Return which part of all parameters some are, in percent."""
    return f"{sum(found[name].size for name in names) / sum(one.size for one in found.values()):.1%}"


def leave_plain(found: Mapping[str, Parameter], names: Iterable[str]) -> str:
    """Say how to state that parameters stay plain on purpose: by kind or part if they are all of it, else by name."""
    left = set(names)
    for word in dict.fromkeys(one for name in sorted(left) for one in (found[name].kind, found[name].part) if one):
        if left == {name for name, one in found.items() if word in (one.kind, one.part)}:
            return f"To leave them plain on purpose: --leave-plain {word}"
    endings = dict.fromkeys(one.rpartition("*.")[2] for one in grouped(sorted(left)))
    rules = " ".join(f"--leave-plain 're:.*{re.escape(ending)}'" for ending in endings)
    if len(endings) > 3:
        rules = "--leave-plain NAME for each"
    return f"To leave them plain on purpose: {rules}"


def quantized_layers(model: torch.nn.Module) -> tuple[int, int]:
    """Return how many of a model's linear layers, experts and embeddings are quantized, and how many there are."""
    layers = [one for one in survey(model).values() if one.kind in MATRICES]
    return sum(one.quantized for one in layers), len(layers)


def _kind(module: torch.nn.Module, name: str, own_name: str, value: torch.Tensor, counts: frozenset[int]) -> str:
    kind_of_module = type(module).__name__
    if own_name == "bias" or own_name.endswith("_bias"):
        return BIAS
    if _is_router(module, name, value, counts):
        return ROUTER
    if value.dim() < 2:
        return NORM if _NORM_CLASS.search(kind_of_module) else STATE if _STATE_CLASS.search(kind_of_module) else VECTOR
    if isinstance(module, torch.nn.Embedding):
        return EMBEDDING
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        return CONVOLUTION
    if isinstance(module, (torch.nn.Linear, Conv1D)) and own_name == "weight":
        return LINEAR
    if value.dim() == 3 and (value.shape[0] in counts or "Expert" in kind_of_module or ".experts." in f".{name}."):
        return EXPERTS
    return STATE if _STATE_CLASS.search(kind_of_module) else OTHER


def _is_router(module: torch.nn.Module, name: str, value: torch.Tensor, counts: frozenset[int]) -> bool:
    """Say whether a weight chooses the experts of a token, or how much a shared one counts."""
    if not counts or value.dim() > 2:
        return False
    named = bool(_ROUTER_CLASS.search(type(module).__name__) or _ROUTER_NAME.search(name))
    return named and (value.shape[0] in counts or value.shape[0] == 1 or value.dim() == 1)


def _is_transposed(module: torch.nn.Module, kind: str) -> bool:
    """Say whether a module multiplies from the left, by matrices of (in, out)."""
    if isinstance(module, Conv1D):
        return True
    # Modules that do not say are those of transformers' own that have their own product of all experts (Llama 4).
    return kind == EXPERTS and bool(getattr(module, "is_transposed", not hasattr(module, "has_gate")))


class _Parts:
    """Which tower of a composite model a module belongs to, by the configuration that the modules around it have."""

    def __init__(self, model: torch.nn.Module) -> None:
        config = model.config
        text = config.get_text_config()
        self._by_type: dict[type, str] = {}
        self._prefixes: dict[str, str] = {}
        if text is config:
            return
        for name in getattr(config, "sub_configs", {}):
            part = getattr(config, name, None)
            if part is not None and part is not text and type(part) is not type(text):
                short = name.removesuffix("_config")
                self._by_type[type(part)] = short if short in ("vision", "audio") else "tower"
        self._by_type[type(text)] = ""
        for name, module in model.named_modules():
            own = type(getattr(module, "config", None))
            if own in self._by_type:
                self._prefixes[name] = self._by_type[own]

    def of(self, module: str) -> str:
        """Return the part of a module: that of the nearest module around it whose configuration tells."""
        if not self._prefixes:
            return ""
        name = module
        while name not in self._prefixes:
            if not name:
                return "projector"
            name = name.rpartition(".")[0]
        return self._prefixes[name]
