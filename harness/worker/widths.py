"""How many bytes a weight takes under a torchao config, by arithmetic: its bits, scales and zero points of blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Width:
    """What stands behind a weight: ``bits`` for each of its values, ``block_bytes`` for each block that shares a scale.

    ``group`` is the number of values along the last dimension of a block, 0 for a whole row, None for the whole tensor.
    ``tensor_bytes`` are there once, ``column_bytes`` for each value of the last dimension.
    """

    bits: int
    group: int | None
    block_bytes: int
    tensor_bytes: int = 0
    column_bytes: int = 0

    def blocks(self, shape: tuple[int, ...]) -> int:
        """Return how many blocks a weight of this shape has."""
        if self.group is None:
            return 1
        rows = math.prod(shape[:-1])
        return rows * (math.ceil(shape[-1] / self.group) if self.group else 1)

    def bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a weight of this shape."""
        once = self.tensor_bytes + self.column_bytes * shape[-1]
        return math.ceil(math.prod(shape) * self.bits / 8) + self.blocks(shape) * self.block_bytes + once


def width(config: Any, dtype: torch.dtype = torch.bfloat16) -> Width | None:
    """Return the width that a torchao config gives to weights of ``dtype``, or None for one that is not known here.

    Formats as torchao 0.18 has them: int8 and float8 keep float32 scales, int8 an int8 zero point beside each; intx
    holds less than eight bits in eight. Configs of versions without the fields that decide it are not known.
    """
    known: Callable[[Any, torch.dtype], Width | None] | None = _KNOWN.get(type(config).__name__)
    try:
        return known(config, dtype) if known else None
    except AttributeError:
        return None


def group_size(config: Any) -> int | None:
    """Return the number of values that must divide the last dimension of a weight, or None if any length will do."""
    found = width(config)
    return found.group or None if found else None


def _group(granularity: Any) -> int | None:
    name = type(granularity).__name__
    if name == "PerTensor":
        return None
    return int(granularity.group_size) if name == "PerGroup" else 0


def _of_weight(granularity: Any) -> Any:
    """Return the weight's granularity of a pair of activation's and weight's, or of one for both."""
    return granularity[1] if isinstance(granularity, (list, tuple)) else granularity


def _int8(config: Any, _: torch.dtype) -> Width:
    granularity = _of_weight(config.granularity)
    return Width(8, 0 if granularity is None else _group(granularity), 4 + 1)


def _float8(config: Any, _: torch.dtype) -> Width | None:
    granularity = _of_weight(config.granularity)
    if type(granularity).__name__ not in ("PerRow", "PerTensor", "PerGroup"):
        return None  # blocks of 128 by 128
    if "SPARSE" in str(getattr(config, "packing_format", "")).upper():
        return None
    return Width(8, _group(granularity), 4)


def _intx(granularity: str, scale: str) -> Any:
    def of(config: Any, dtype: torch.dtype) -> Width | None:
        if "OPAQUE" in str(getattr(config, "intx_packing_format", "")).upper():
            return None
        scale_dtype = getattr(config, scale) or dtype
        return Width(8, _group(getattr(config, granularity)), scale_dtype.itemsize + 1)

    return of


def _int4(config: Any, dtype: torch.dtype) -> Width | None:
    if "PRESHUFFLED" in str(config.int4_packing_format).upper():
        return None
    return Width(4, int(getattr(config, "group_size", 128)), 2 * dtype.itemsize)


def _mx(config: Any, _: torch.dtype) -> Width:
    """Of values of 8, 6 or 4 bits, and one byte of exponent for each block."""
    bits = 4 if "float4" in str(config.weight_dtype) else 8
    return Width(bits, int(config.block_size), 1)


def _nvfp4(config: Any, _: torch.dtype) -> Width:
    return Width(4, 16, 1, 4 if config.use_dynamic_per_tensor_scale else 0)


def _stretched(config: Any, dtype: torch.dtype) -> Width:
    scale = config.scale_dtype or dtype
    return Width(8, _group(config.granularity), scale.itemsize + dtype.itemsize)


def _static(config: Any, dtype: torch.dtype) -> Width:
    """As int8, and a scale and a zero point of the activations."""
    return replace(_int8(config, dtype), tensor_bytes=4 + 1)


def _scaled(config: Any, dtype: torch.dtype) -> Width | None:
    """As the config that it is put on top of, and a scale for each input."""
    found = width(config.base_config, dtype)
    return replace(found, column_bytes=dtype.itemsize) if found else None


def _as_base(config: Any, dtype: torch.dtype) -> Width | None:
    return width(config.base_config, dtype)


_KNOWN: dict[str, Any] = {
    "AWQConfig": _scaled,
    "SmoothQuantConfig": _scaled,
    "GPTQConfig": _as_base,
    "QATConfig": _as_base,
    "Int8StaticActivationInt8WeightConfig": _static,
    "Float8StaticActivationFloat8WeightConfig": lambda *_: Width(8, None, 4, 4),
    "MXDynamicActivationMXWeightConfig": _mx,
    "NVFP4WeightOnlyConfig": _nvfp4,
    "NVFP4DynamicActivationNVFP4WeightConfig": _nvfp4,
    "PrototypeInt4WeightOnlyConfig": lambda config, dtype: Width(4, int(config.group_size), 2 * dtype.itemsize),
    "StretchedIntxWeightConfig": _stretched,
    "Int8WeightOnlyConfig": _int8,
    "Int8DynamicActivationInt8WeightConfig": _int8,
    "Float8WeightOnlyConfig": _float8,
    "Float8DynamicActivationFloat8WeightConfig": _float8,
    "Int8DynamicActivationIntxWeightConfig": _intx("weight_granularity", "weight_scale_dtype"),
    "IntxWeightOnlyConfig": _intx("granularity", "scale_dtype"),
    "Int4WeightOnlyConfig": _int4,
    "Float8DynamicActivationInt4WeightConfig": _int4,
}
