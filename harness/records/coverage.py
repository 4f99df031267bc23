"""How much of a model is quantized, what is not, and by which rule: from the facts of a checkpoint to words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from harness.base.numbers import percent

Weights = Mapping[str, Mapping[str, Any]]
"""Each parameter of a model by name, as harness/worker/proof.py tells of them: layer, kind, shape, bytes, rule."""


@dataclass
class Group:
    """Parameters that are held alike: ``rule`` is why they are plain, ``tensor`` the class of quantized ones."""

    rule: str
    tensor: str
    parameters: int = 0
    bytes: int = 0
    layers: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The layers with the numbers in them taken together, each once: ``model.layers.*.mlp.gate``."""
        return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in self.layers))


@dataclass(frozen=True)
class Coverage:
    """The groups of a model, quantized ones first, then the plain ones, the largest first."""

    groups: tuple[Group, ...]

    @classmethod
    def of(cls, weights: Weights) -> Coverage:
        found: dict[tuple[str, str], Group] = {}
        for weight in weights.values():
            key = ("", str(weight["tensor"])) if weight["quantized"] else (str(weight["rule"]), "")
            group = found.setdefault(key, Group(*key))
            group.parameters += prod(weight["shape"])
            group.bytes += int(weight["bytes"])
            group.layers.append(str(weight["layer"]))
        return cls(tuple(sorted(found.values(), key=lambda one: (not one.tensor, -one.parameters))))

    @property
    def quantized(self) -> list[Group]:
        return [group for group in self.groups if group.tensor]

    @property
    def plain(self) -> list[Group]:
        return [group for group in self.groups if not group.tensor]

    def share(self, groups: Iterable[Group]) -> float:
        """Return which part of the model's parameters some groups are."""
        return sum(group.parameters for group in groups) / (sum(group.parameters for group in self.groups) or 1)

    def share_of_bytes(self, groups: Iterable[Group]) -> float:
        """Return which part of the bytes of the model's parameters, as they are held, some groups are."""
        return sum(group.bytes for group in groups) / (sum(group.bytes for group in self.groups) or 1)

    def statistics(self) -> dict[str, float]:
        """Return the share of each group of parameters by the words for it."""
        return {
            "parameters": float(sum(group.parameters for group in self.groups)),
            **{group.tensor or group.rule: self.share([group]) for group in self.groups if group.tensor or group.rule},
        }

    def lines(self, most: int = 4) -> list[str]:
        """Say it: what is quantized, then for each rule what it leaves plain, with the names of the modules."""
        kinds = ", ".join(dict.fromkeys(group.tensor for group in self.quantized))
        parameters, held = self.share(self.quantized), self.share_of_bytes(self.quantized)
        first = (
            f"{percent(parameters)} of the parameters and {percent(held)} of the bytes are quantized "
            f"({kinds or 'nothing'})"
        )
        return [first, *(f"plain: {percent(self.share([group]))}, {_told(group, most)}" for group in self.plain)]


def _told(group: Group, most: int) -> str:
    names = group.names
    shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    return f"{group.rule}: {shown}" if group.rule else shown
