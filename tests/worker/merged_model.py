"""Builds the linear layers of a Llama as SGLang holds them (merged), both ways that sglang_model.py quantizes them.

Run in a worker's environment: ``python merged_model.py PLAIN ASKED``. In the JSON of ASKED, ``compare`` is a list
of (quantized checkpoint, recipe): for each pair it prints what went wrong, or for each layer the tensor class, whether
the recipe applied to the merged plain weights gave the same bytes as the checkpoint's parts joined, and the same
output. ``load`` is a list of (checkpoint, recipe or null) that go through the hook around SGLang's loading: for each it
prints what went wrong, or for each layer the tensor class.
"""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file


class LinearBase(torch.nn.Module):
    """Stands where SGLang's base class of linear layers is imported from: a weight, and nothing else that is used."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", None)


def merged(plain: dict[str, torch.Tensor], layers: int) -> torch.nn.Module:
    model = torch.nn.Module()
    model.model = torch.nn.Module()
    model.model.layers = torch.nn.ModuleList()
    for index in range(layers):
        layer = torch.nn.Module()
        at = f"model.layers.{index}"
        for block, names in (("self_attn", ("qkv_proj", "o_proj")), ("mlp", ("gate_up_proj", "down_proj"))):
            module = torch.nn.Module()
            for name in names:
                parts = sglang_model.MERGED.get(name, (name,))
                setattr(module, name, LinearBase(torch.cat([plain[f"{at}.{block}.{part}.weight"] for part in parts])))
            setattr(layer, block, module)
        model.model.layers.append(layer)
    model.lm_head = torch.nn.Linear(4, 4, bias=False)
    return model


def compare(plain: dict[str, torch.Tensor], quantized: str, recipe: dict[str, Any]) -> dict[str, Any]:
    at_load, from_checkpoint = merged(plain, 2), merged(plain, 2)
    try:
        sglang_model.quantize(at_load, **recipe)
    except ValueError as error:
        return {"error": str(error)}
    sglang_model.put_quantized(from_checkpoint, Path(quantized), "cpu")
    found = {}
    others = sglang_model.linear_modules(from_checkpoint)
    for name, module in sglang_model.linear_modules(at_load).items():
        pairs = zip(tensors.leaves(module.weight.data), tensors.leaves(others[name].weight.data), strict=True)
        same = all(torch.equal(one, other) for one, other in pairs)
        x = torch.ones(3, module.weight.shape[1], dtype=torch.bfloat16)
        outputs = [torch.nn.functional.linear(x, it.weight) for it in (module, others[name])]
        found[name] = [tensors.tensor_class(module.weight), same, bool(torch.equal(*outputs))]
    return {"layers": found, "head": tensors.tensor_class(at_load.lm_head.weight)}


def load(plain: dict[str, torch.Tensor], folder: str, recipe: dict[str, Any] | None) -> dict[str, Any]:
    arguments = {"model_config": SimpleNamespace(model_path=folder), "device_config": SimpleNamespace(device="cpu")}
    try:
        model = sglang_model._quantizing(recipe)(lambda *_, **__: merged(plain, 2), None, **arguments)
    except ValueError as error:
        return {"error": str(error)}
    return {"layers": sglang_model.layers(model)}


if __name__ == "__main__":
    linear = ModuleType("sglang.srt.layers.linear")
    linear.LinearBase = LinearBase
    sys.modules |= {name: ModuleType(name) for name in ("sglang", "sglang.srt", "sglang.srt.layers")}
    sys.modules["sglang.srt.layers.linear"] = linear
    from harness.worker import sglang_model, tensors

    weights = load_file(str(Path(sys.argv[1]) / "model.safetensors"))
    asked = json.loads(sys.argv[2])
    print(json.dumps({how.__name__: [how(weights, *pair) for pair in asked[how.__name__]] for how in (compare, load)}))
