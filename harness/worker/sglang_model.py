"""What happens to a model inside of SGLang's scheduler process: torchao tensors go in, and what is there is told.

SGLang's linear layers call ``F.linear`` on their weight, and a torchao tensor dispatches to its kernel from there.
:func:`run_scheduler` stands in for SGLang's own function of that name (an argument of its engine and its server), and
registers hooks with SGLang's plugin registry that act when the model has been loaded, before CUDA graphs are captured.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from harness.contract import quantized
from harness.worker import profiling, tensors
from harness.worker import recipe as recipes

_LOADER = "sglang.srt.model_loader.loader.DefaultModelLoader"
# Modules that SGLang holds as one, and what they are in a checkpoint that holds them apart.
MERGED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def run_scheduler(recipe: dict[str, Any] | None, *arguments: Any) -> None:
    """Run SGLang's scheduler with the model quantized as it is loaded.

    ``recipe`` has ``config`` and ``arguments`` of a torchao config to apply to a plain checkpoint; None leaves that as
    it is. A checkpoint that is quantized with torchao already is loaded as such.
    """
    from sglang.srt.managers import scheduler

    _hook(
        (f"{_LOADER}._get_all_weights", _plain_weights, "AROUND"),
        (f"{_LOADER}.load_model", _quantizing(recipe), "AROUND"),
        (f"{_LOADER}.load_model", _settle_kernels, "BEFORE"),
    )
    for asked in (tell_layers, start_profile_of_kernels, stop_profile_of_kernels):
        setattr(scheduler.Scheduler, asked.__name__, asked)
    _own_norms()
    scheduler.run_scheduler_process(*arguments)


def _hook(*hooks: tuple[str, Callable[..., Any], str]) -> None:
    """Apply hooks (target, function, kind) with SGLang's plugin registry.

    Raises RuntimeError if a target is not there: SGLang logs that alone, and would serve a model without its recipe.
    """
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for target, function, kind in hooks:
        HookRegistry.register(target, function, HookType[kind])
    load_plugins()
    if missing := sorted({target for target, *_ in hooks} - HookRegistry._patched):
        raise RuntimeError(f"this version of SGLang takes no hook at {', '.join(missing)}")


def _own_norms() -> None:
    """Have sgl_kernel use its own RMS norms: flashinfer's, which it prefers, are compiled from sources at first use."""
    with contextlib.suppress(ImportError):
        from sgl_kernel import elementwise

        elementwise._has_flashinfer = False


def _settle_kernels(*_: Any, model_config: Any, **__: Any) -> None:
    """Compile the kernels that SGLang would compile one after the other at the first forward pass, all at once.

    Where that cannot be, it is given what needs no compiler and computes the same, rather than fail minutes later.
    """
    from sglang.jit_kernel import activation, clamp_position, kvcache

    row_bytes = model_config.get_num_kv_heads(1) * model_config.head_dim * torch.bfloat16.itemsize
    builds: list[Callable[[], Any]] = [
        functools.partial(kvcache.can_use_store_cache, row_bytes),
        functools.partial(activation._jit_activation_module, torch.bfloat16),
        functools.partial(clamp_position._jit_clamp_position_module, torch.int64),
    ]
    try:
        with _cuda_runtime_to_link(), ThreadPoolExecutor(len(builds)) as pool:
            list(pool.map(lambda build: build(), builds))
    except Exception as error:
        print(f"SGLang's kernels cannot be compiled here, so others take their place: {error}", file=sys.stderr)
        import sgl_kernel
        from sglang.srt.layers import activation as layers_activation
        from sglang.srt.model_executor import forward_batch_info

        layers_activation.silu_and_mul = sgl_kernel.silu_and_mul
        forward_batch_info.clamp_position = forward_batch_info._clamp_position_native


@contextlib.contextmanager
def _cuda_runtime_to_link() -> Iterator[None]:
    """Let the linker find the CUDA runtime that torch has loaded.

    SGLang looks for it beside ``nvcc`` alone, which may be a script that stands elsewhere, or come without it.
    """
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    loaded = next((line.split(maxsplit=5)[-1] for line in maps if "/libcudart.so" in line), None)
    before = os.environ.get("LIBRARY_PATH")
    with tempfile.TemporaryDirectory() as folder:
        if loaded:
            (Path(folder) / "libcudart.so").symlink_to(loaded)
            os.environ["LIBRARY_PATH"] = os.pathsep.join(filter(None, [before, folder]))
        try:
            yield
        finally:
            if before is None:
                os.environ.pop("LIBRARY_PATH", None)
            else:
                os.environ["LIBRARY_PATH"] = before


def is_quantized(folder: Path) -> bool:
    """Say whether a checkpoint holds torchao tensors; ValueError if it is quantized by something else.

    Such a checkpoint must not show SGLang its ``quantization_config``, which it does not know.
    """
    if refusal := quantized.refusal(folder):
        raise ValueError(refusal)
    return bool(quantized.method(folder))


def admit(folder: Path, recipe: dict[str, Any] | None) -> None:
    """Raise ValueError for a recipe on a quantized checkpoint: it would change nothing but what the records say."""
    if recipe is not None and is_quantized(folder):
        raise ValueError(
            f"{folder} is quantized already, so {recipe['config']} cannot be applied to it: serve the plain checkpoint "
            "with the recipe, or this one without"
        )


def _quantizing(recipe: dict[str, Any] | None) -> Callable[..., torch.nn.Module]:
    def load_model(original: Any, self: Any, **arguments: Any) -> torch.nn.Module:
        model: torch.nn.Module = original(self, **arguments)
        folder = Path(arguments["model_config"].model_path)
        device = str(arguments["device_config"].device)
        admit(folder, recipe)
        if is_quantized(folder):
            put_quantized(model, folder, device)
        if recipe is None:
            return model
        quantize(model, **recipe)
        plain = [name for name, tensor in layers(model).items() if tensor == "Tensor"]
        if plain:
            shown = ", ".join(plain[:6]) + (f" and {len(plain) - 6} more" if len(plain) > 6 else "")
            raise ValueError(f"{len(plain)} linear layers stayed unquantized: {shown}")
        return model

    return load_model


def _plain_weights(original: Any, self: Any, config: Any, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Keep the pieces of quantized tensors from SGLang's own loading, which has no place for them."""
    pieces: set[str] = set()
    for file in _quantized_files(Path(config.model_path)):
        pieces |= _names(file) - set(_tensor_names(file))
    for name, tensor in original(self, config, model):
        if name not in pieces:
            yield name, tensor


# ------------------------------------------------------------------------------------------------- quantized layers


def linear_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return SGLang's linear modules by name, without the output head."""
    from sglang.srt.layers.linear import LinearBase

    return {name: module for name, module in model.named_modules() if isinstance(module, LinearBase)}


def layers(model: torch.nn.Module) -> dict[str, str]:
    """Return the tensor class of every linear module's weight by the module's name."""
    return {name: tensors.tensor_class(module.weight) for name, module in linear_modules(model).items()}


def quantize(model: torch.nn.Module, config: str, arguments: dict[str, Any]) -> None:
    """Apply a torchao config to every linear module, merged ones (query, key and value; gate and up) included.

    Raises ValueError for a config that names modules: SGLang's have other names than the checkpoint's.
    """
    from torchao.quantization import FqnToConfig, quantize_

    chosen = recipes.build(config, arguments)
    if isinstance(chosen, FqnToConfig):
        raise ValueError(f"{config} names modules, and SGLang's merged ones have other names")
    wanted = set(map(id, linear_modules(model).values()))
    quantize_(model, chosen, filter_fn=lambda module, name: id(module) in wanted)


def put_quantized(model: torch.nn.Module, folder: Path, device: str) -> None:
    """Give every linear module its torchao tensor of a checkpoint; what a module merges is joined row by row.

    A layer that is plain in the checkpoint stays so. Raises ValueError naming quantized layers for which there is no
    place, such as an embedding or an output head: SGLang would go on with whatever was in their memory.
    """
    from safetensors import safe_open
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    data: dict[str, torch.Tensor] = {}
    metadata: dict[str, Any] = {}
    names: list[str] = []
    for file in _quantized_files(folder):
        with safe_open(file, framework="pt", device=device) as opened:
            metadata |= opened.metadata()
            whole = _tensor_names(file)
            names += [name for name in whole if json.loads(metadata[name])["_type"] != torch.Tensor.__name__]
            data |= {name: opened.get_tensor(name) for name in set(opened.keys()).difference(whole)}
    metadata["tensor_names"] = json.dumps(names)
    found, _ = unflatten_tensor_state_dict(data, metadata)
    if not found:
        raise ValueError(f"{folder} says that it is quantized with torchao, and holds no torchao tensor")
    placed: set[str] = set()
    for name, module in linear_modules(model).items():
        prefix, _, last = name.rpartition(".")
        parts = [f"{prefix}.{part}.weight" for part in MERGED.get(last, ())]
        if f"{name}.weight" in found:
            weight = found[f"{name}.weight"]
            placed.add(f"{name}.weight")
        elif parts and all(part in found for part in parts):
            weight = join([found[part] for part in parts], name)
            placed.update(parts)
        else:
            continue
        if weight.shape != module.weight.shape:
            raise ValueError(f"{name}: the checkpoint's {tuple(weight.shape)}, SGLang's {tuple(module.weight.shape)}")
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
    if left := sorted(name.removesuffix(".weight") for name in found.keys() - placed):
        shown = ", ".join(left[:6]) + (f" and {len(left) - 6} more" if len(left) > 6 else "")
        raise ValueError(
            f"SGLang has no place for {len(left)} quantized layers of {folder.name}: {shown}. It takes them in "
            "linear layers alone, and a part of a merged one (query, key, value; gate, up) only if all of it is so"
        )


def join(parts: list[torch.Tensor], name: str) -> torch.Tensor:
    """Return quantized weights of shape (rows, columns) one above the other.

    Raises ValueError for a format whose pieces are not laid out by rows: those can only be quantized when merged.
    """
    first = parts[0]
    pieces, attributes = first.__tensor_flatten__()
    if any(getattr(part, piece).shape[:1] != part.shape[:1] for part in parts for piece in pieces):
        raise ValueError(
            f"{name}: {tensors.tensor_class(first)} is not laid out by rows, so {len(parts)} of them cannot be merged; "
            "serve the plain checkpoint with the recipe applied at load"
        )
    joined = {piece: torch.cat([getattr(part, piece) for part in parts]) for piece in pieces}
    shape = torch.Size([sum(part.shape[0] for part in parts), *first.shape[1:]])
    made: torch.Tensor = type(first).__tensor_unflatten__(joined, attributes, shape, (shape[1], 1))
    return made


def _quantized_files(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.safetensors"))) if is_quantized(folder) else []


def _names(file: str) -> set[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return set(opened.keys())


def _tensor_names(file: str) -> list[str]:
    """Return the names of the tensors of a file as the model knows them; the pieces of quantized ones have others."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        found: list[str] = json.loads((opened.metadata() or {}).get("tensor_names", "[]"))
        return found


# ---------------------------------------------------------------------------------------- asked through SGLang's RPC


def tell_layers(self: Any, file: str) -> None:
    """Write what :func:`layers` says of the scheduler's model; SGLang's calls return nothing by themselves."""
    _write(self, file, layers(self.tp_worker.model_runner.model))


def start_profile_of_kernels(self: Any) -> None:
    """Start recording what runs on the device."""
    self.profile_of_kernels = profiling.start()


def stop_profile_of_kernels(self: Any, file: str) -> None:
    """Write every kernel since, see :func:`harness.worker.profiling.stop`."""
    _write(self, file, profiling.stop(self.profile_of_kernels))


def _write(scheduler: Any, file: str, value: Any) -> None:
    # Of several that share a model one answers: they hold the same layers, and do the same work.
    if getattr(scheduler, "tp_rank", 0):
        return
    Path(file).write_text(json.dumps(value), encoding="utf-8")
