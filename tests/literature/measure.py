"""What recipes predict over windows of a text, each held against the plain model: run where torch and torchao are.

``python tests/literature/measure.py JOB.json``: the job names ``model`` (a folder, or a GGUF file), ``text``,
``calibration``, ``device``, ``windows``, ``tokens``, ``output`` and ``recipes``, by name with ``config``,
``arguments`` and ``calibration``, or ``emulated``. With ``python -O`` torchao's GPTQ runs on a processor too: that
it asserts a GPU is all that keeps it from one. Of each the output has the nats of every window (``nll``) and its
KL divergence from the plain model (``kl``), or ``error``; a recipe that the output has already is not measured again.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from harness.contract.weights import Unusable
from harness.worker import applied, evaluate, loading, reference, texts
from harness.worker.quantize import Quantize


def _nvfp4(value: torch.Tensor) -> torch.Tensor:
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    scale = per_tensor_amax_to_scale(value.abs().max())
    flat = NVFP4Tensor.to_nvfp4(value.reshape(-1, value.shape[-1]).contiguous(), per_tensor_scale=scale)
    return flat.dequantize(value.dtype).reshape(value.shape)


def _mxfp4(value: torch.Tensor) -> torch.Tensor:
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    flat = MXTensor.to_mx(value.reshape(-1, value.shape[-1]).contiguous(), torch.float4_e2m1fn_x2, 32)
    return flat.dequantize(value.dtype).reshape(value.shape)


_EMULATED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"nvfp4": _nvfp4, "mxfp4": _mxfp4}


def linear(model: nn.Module, layers: int | None) -> dict[str, nn.Linear]:
    """Return the linear layers but the output head by name: all of them, or those of the first layers of the model."""
    found = {name: it for name, it in model.named_modules() if isinstance(it, nn.Linear) and "lm_head" not in name}
    return {name: it for name, it in found.items() if layers is None or int(name.split(".")[2]) < layers}


@torch.no_grad()
def emulate(model: nn.Module, format_: str, activations: bool, layers: int | None) -> None:
    """Have linear layers hold, and be given, what torchao's format makes of values."""
    rounded = _EMULATED[format_]
    for layer in linear(model, layers).values():
        layer.weight = nn.Parameter(rounded(layer.weight), requires_grad=False)
        if activations:
            layer.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0].bfloat16()).to(inputs[0].dtype),))


@torch.no_grad()
def gptq(model: Any, ids: list[list[int]], layers: int | None) -> None:
    """Have linear layers hold what torchao's GPTQ makes of them in NVFP4."""
    from torchao.prototype.gptq import GPTQConfig
    from torchao.prototype.gptq.api import gptq_quantize
    from torchao.prototype.mx_formats.inference_workflow import NVFP4DynamicActivationNVFP4WeightConfig
    from torchao.quantization import quantize_

    if __debug__:
        raise Unusable("torchao's GPTQ asserts a CUDA device: run python -O")
    base = NVFP4DynamicActivationNVFP4WeightConfig()
    meant = linear(model, layers)
    quantize_(model, GPTQConfig(step="observe", base_config=base), filter_fn=lambda _, name: name in meant)
    body = model.model
    whole, body.layers = body.layers, body.layers[:layers]
    for window in ids:
        body(torch.tensor([window]), use_cache=False)
    body.layers = whole
    with patch("torch.cuda.synchronize"):
        for layer in meant.values():
            weight: Any = layer.weight
            found = gptq_quantize(weight.hessian, weight.hp_data.clone(), GPTQConfig(step="convert", base_config=base))
            layer.weight = nn.Parameter(found.dequantize(weight.hp_data.dtype), requires_grad=False)


def made(job: dict[str, Any], recipe: dict[str, Any], folder: str, report: Callable[[dict[str, Any]], None]) -> Any:
    """Return the model of a recipe, by the worker that makes checkpoints."""
    plain, device = job["model"], job["device"]
    if "emulated" in recipe:
        model = loading.model(plain, device_map=device)
        emulate(model, recipe["emulated"], recipe["activations"], recipe.get("layers"))
        return model
    if not recipe:
        return loading.model(plain, device_map=device)
    if "gptq" in recipe:
        model, wanted = loading.model(plain, device_map="cpu"), recipe["gptq"]
        found = texts.windows(loading.tokenizer(plain), Path(job["calibration"]), wanted["sequences"], wanted["tokens"])
        gptq(model, found.ids, recipe.get("layers"))
        return model.to(device)
    worker = Quantize(report)
    worker.open(device)
    later = "|".join(map(str, range(recipe.get("layers") or 0)))
    worker.quantize(
        plain,
        recipe["config"],
        recipe.get("arguments", {}),
        ["linear"],
        {},
        untie_embeddings=False,
        trust_remote_code=False,
        output=folder,
        plain=[rf"re:model\.layers\.(?!({later})\.)\d+\..*"] if later else [],
        calibration=recipe.get("calibration"),
        calibration_text=job["calibration"],
    )
    return applied.model(folder, device, trust_remote_code=False)


@torch.no_grad()
def widened(model: nn.Module) -> nn.Module:
    """Return a model whose weights alone are rounded with these in float32, in which many a processor is faster.

    torchao's own products widen them to bfloat16. One whose weights it cannot widen, or whose inputs it rounds, stays.
    """
    layers = list(linear(model, None).values())
    for layer in layers:
        weight: Any = layer.weight
        if getattr(weight, "act_quant_kwargs", None) or getattr(weight, "activation_quantization", None):
            return model
        if type(weight.data) not in (torch.Tensor, nn.Parameter) and not type(weight).__name__.startswith(
            ("Int8", "Intx")
        ):
            return model
    for layer in layers:
        if hasattr(layer.weight, "qdata"):
            layer.weight = nn.Parameter(layer.weight.dequantize(), requires_grad=False)
    # Transformers' own refuses a model that was quantized.
    return nn.Module.float(model)


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    output = Path(job["output"])
    found: dict[str, Any] = json.loads(output.read_text()) if output.is_file() else {}
    with tempfile.TemporaryDirectory() as scratch:
        if job["model"].endswith(".gguf"):
            worker = Quantize(lambda _: None)
            worker.open("cpu")
            worker.plain_from_gguf(job["model"], f"{scratch}/plain")
            job["model"] = f"{scratch}/plain"
        words = loading.tokenizer(job["model"])
        windows = texts.windows(words, Path(job["text"]), job["windows"], job["tokens"])
        kept = Path(scratch, "logits.safetensors")
        reference.keep(widened(loading.model(job["model"], device_map=job["device"])), windows, kept, lambda _: None)
        for name, recipe in {"bf16": {}, **job["recipes"]}.items():
            if name in found and "error" not in found[name]:
                continue
            begun = time.monotonic()
            print(name, "...", flush=True)
            folder = Path(scratch, name)
            folder.mkdir()
            try:
                model = widened(made(job, recipe, str(folder), lambda value: None))
                known = reference.Kept(kept, model.device)
                told = evaluate.text_quality(model, known, windows, lambda _: None)["windows"]
                found[name] = {"nll": told["nll"], "kl": told["kl"], "top1": told["top1"]}
                del model
            except (Unusable, RuntimeError, ValueError, TypeError, AssertionError, ImportError) as error:
                found[name] = {"error": " ".join(str(error).split())[:600] or type(error).__name__}
            seconds = time.monotonic() - begun
            kl = found[name].get("kl")
            print(name, sum(kl) / len(kl) if kl else found[name]["error"], f"{seconds:.0f} s", flush=True)
            output.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
