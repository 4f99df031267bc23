"""The recipes that are held against each other, and the claims of the literature about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def _intx(bits: int, group: int, **more: Any) -> dict[str, Any]:
    arguments = {"weight_dtype": f"torch.int{bits}", "granularity": f"PerGroup({group})", **more}
    return {"config": "IntxWeightOnlyConfig", "arguments": arguments}


def _over(config: str, base: dict[str, Any], sequences: int, tokens: int, **more: Any) -> dict[str, Any]:
    return {
        "config": config,
        "arguments": {"base_config": base, **more},
        "calibration": {"sequences": sequences, "tokens": tokens},
    }


def _opaque(group: int) -> dict[str, Any]:
    return {"config": "PrototypeInt4WeightOnlyConfig", "arguments": {"group_size": group}}


# SmolLM2's layers have 576 and 1536 inputs, which groups of 128 do not divide: 64 and 192 stand to both sides of it.
RECIPES: dict[str, dict[str, Any]] = {
    "int8wo": {"config": "Int8WeightOnlyConfig"},
    "int8dq": {"config": "Int8DynamicActivationInt8WeightConfig"},
    "smoothquant-int8dq": _over("SmoothQuantConfig", {"config": "Int8DynamicActivationInt8WeightConfig"}, 16, 128),
    "intx4wo-g32": _intx(4, 32),
    "intx4wo-g64": _intx(4, 64),
    "intx4wo-g192": _intx(4, 192),
    "intx4wo-g32-hqq": _intx(4, 32, intx_choose_qparams_algorithm="hqq_scale_only"),
    "intx3wo-g32": _intx(3, 32),
    "mxfp4 weights": {"emulated": "mxfp4", "activations": False},
    "nvfp4 weights": {"emulated": "nvfp4", "activations": False},
    "mxfp4": {"emulated": "mxfp4", "activations": True},
    "nvfp4": {"emulated": "nvfp4", "activations": True},
    "nvfp4 weights, 6 layers": {"emulated": "nvfp4", "activations": False, "layers": 6},
    "gptq nvfp4 weights, 6 layers": {"gptq": {"sequences": 128, "tokens": 128}, "layers": 6},
    "int4 g64, 6 layers": {**_opaque(64), "layers": 6},
    "awq int4 g64, 6 layers": {**_over("AWQConfig", _opaque(64), 8, 64, scale_search_space_size=10), "layers": 6},
}
"""What runs on a processor. MXFP4 and NVFP4 are torchao's rounding, and ordinary products. AWQ and GPTQ take
a processor long: they are held against rounding over the first 6 of 30 layers."""


@dataclass(frozen=True)
class Claim:
    """That one recipe is nearer to the plain model than another one, over the same windows of text."""

    words: str
    better: str
    worse: str


CLAIMS = (
    Claim("AWQ is better than rounding to the nearest, int4", "awq int4 g64, 6 layers", "int4 g64, 6 layers"),
    Claim(
        "GPTQ is better than rounding to the nearest, NVFP4", "gptq nvfp4 weights, 6 layers", "nvfp4 weights, 6 layers"
    ),
    Claim("HQQ is better than rounding to the nearest, int4 in groups of 32", "intx4wo-g32-hqq", "intx4wo-g32"),
    Claim("SmoothQuant is better than int8 dynamic activations alone", "smoothquant-int8dq", "int8dq"),
    Claim("groups of 32 are better than of 64", "intx4wo-g32", "intx4wo-g64"),
    Claim("groups of 64 are better than of 192", "intx4wo-g64", "intx4wo-g192"),
    Claim("four bits are better than three", "intx4wo-g32", "intx3wo-g32"),
    Claim("NVFP4 is better than MXFP4, weights alone", "nvfp4 weights", "mxfp4 weights"),
    Claim("NVFP4 is better than MXFP4, weights and activations", "nvfp4", "mxfp4"),
)

NEAR = ("int8wo", "int8dq", "smoothquant-int8dq", "spinquant-int8dq")
"""What is as good as bfloat16: the perplexity is at most 3 % higher, by the upper end of its interval."""
NEAR_RATIO = 1.03

EXPLAINED = {
    "SpinQuant is better than rounding to the nearest, int4": "turned weights are rounded better, but the gains of the "
    "norm before the MLP are taken into its weights, so that what gate and up compute is further off",
    "int8dq": "activations of so small a model have outliers, which one scale a token does not take well: smoothed or "
    "turned they are as good as bfloat16, and so are the same weights alone",
}
"""What does not come out on SmolLM2, claims by their words and recipes of NEAR by name, and why."""

IN_RUNS = (
    Claim("AWQ is better than rounding to the nearest, int4", "awq-int4wo-opaque", "int4wo-opaque"),
    Claim("AWQ is better than rounding to the nearest, int8", "awq-int8wo", "int8wo"),
    Claim("HQQ is better than rounding to the nearest, groups of 32", "intx4wo-hqq", "intx4wo"),
    Claim("HQQ is better than rounding to the nearest, groups of 64", "int4wo-opaque-hqq", "int4wo-opaque"),
    Claim("SmoothQuant is better than int8 dynamic activations alone", "smoothquant-int8dq", "int8dq"),
    Claim("SpinQuant is better than int8 dynamic activations alone", "spinquant-int8dq", "int8dq"),
    Claim("SpinQuant is better than rounding to the nearest, int4", "spinquant-intx4wo", "intx4wo"),
    Claim("groups of 32 are better than rows, int4", "intx4wo", "intx4wo-axis"),
    Claim("groups of 32 are better than rows, int8", "int8wo-g32", "int8wo"),
    Claim("four bits are better than three", "intx4wo", "intx3wo"),
    Claim("eight bits are better than four", "int8wo", "intx4wo"),
)
"""What recipes of the matrix, measured by the suites over a whole model, are to show."""
