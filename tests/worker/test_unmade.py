"""Weights that a checkpoint will fill: of the classes that quantizing gives, in memory of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.models, pytest.mark.usefixtures("imports_stand")]

CODE = """
import copy, json, sys
from types import SimpleNamespace
import torch
from torchao import quantization
from torchao.quantization.granularity import PerGroup, PerRow
from harness.worker import tensors, unmade

CONFIGS = {
    "int8wo": quantization.Int8WeightOnlyConfig(),
    "int8wo-g32": quantization.Int8WeightOnlyConfig(granularity=PerGroup(32)),
    "int8dq": quantization.Int8DynamicActivationInt8WeightConfig(),
    "8da4w": quantization.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=PerGroup(32)
    ),
    "intx3wo": quantization.IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=PerGroup(32)),
    "float8wo": quantization.Float8WeightOnlyConfig(granularity=PerRow()),
}

def quantized(weight, config):
    quantizations.append(tuple(weight.shape))
    layer = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    layer[0].weight = torch.nn.Parameter(weight, requires_grad=False)
    quantization.quantize_(layer, config)
    return layer[0].weight

def parts(tensor):
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in parts(getattr(tensor, name))]

def create_weights(self, layer, rows):
    layer.weight = module.torchao_quantize_param_data(torch.empty(rows, 64, dtype=torch.bfloat16), self.config)

module = SimpleNamespace(torchao_quantize_param_data=quantized)
make = unmade._by_shape(create_weights, module)
told = {}
for name, config in CONFIGS.items():
    quantizations = []
    first, second, other = SimpleNamespace(), SimpleNamespace(), SimpleNamespace()
    method = SimpleNamespace(config=config)
    make(method, first, 32)
    make(method, second, 32)
    make(method, other, 96)
    assert module.torchao_quantize_param_data is quantized
    real = quantized(torch.randn(32, 64).to(torch.bfloat16), config)
    one, two = parts(first.weight), parts(second.weight)
    second.weight.data.copy_(real)
    same = [torch.equal(mine, theirs) for mine, theirs in zip(parts(second.weight), parts(real), strict=True)]
    x = torch.randn(3, 64).to(torch.bfloat16)
    linear = torch.nn.functional.linear
    told[name] = {
        "class": [type(it.weight.data).__name__ for it in (first, second, other)] + [type(real.data).__name__],
        "attributes": str(second.weight.__tensor_flatten__()[1]) == str(real.__tensor_flatten__()[1]),
        "apart": not {it.data_ptr() for it in one} & {it.data_ptr() for it in two},
        "alike": [(it.shape, it.dtype, it.stride()) for it in one] == [(it.shape, it.dtype, it.stride()) for it in two],
        "quantized": quantizations,
        "filled": all(same),
        "computes": torch.equal(linear(x, second.weight), linear(x, real)),
        "parameter": isinstance(second.weight, torch.nn.Parameter) and not second.weight.requires_grad,
    }
print(json.dumps(told))
"""


def test_after_the_first_of_a_shape_each_is_filled_as_if_it_had_been_quantized(
    run_code: Callable[..., Any],
) -> None:
    done = run_code(CODE)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == {"int8wo", "int8wo-g32", "int8dq", "8da4w", "intx3wo", "float8wo"}
    for name, found in told.items():
        assert len(set(found.pop("class"))) == 1, name
        assert found.pop("quantized") == [[32, 64], [96, 64], [32, 64]], name
        assert all(found.values()), (name, found)


def test_a_class_that_does_not_tell_its_parts_is_quantized_each_time(run_code: Callable[..., Any]) -> None:
    done = run_code("""
import torch
from types import SimpleNamespace
from harness.worker import unmade

class Closed(torch.Tensor):
    pass

asked = []
def quantize(weight, config):
    asked.append(config)
    return torch.nn.Parameter(torch.zeros(2).as_subclass(Closed), requires_grad=False)

module = SimpleNamespace(torchao_quantize_param_data=quantize)
make = unmade._by_shape(lambda self: module.torchao_quantize_param_data(torch.empty(2), "config"), module)
make(None), make(None)
print(len(asked), unmade.empty_like(torch.zeros(2).as_subclass(Closed)))
""")
    assert done.stdout.split() == ["2", "None"], done.stderr
