"""SGLang's merged layers: a recipe applied as they are loaded gives the tensors of the saved checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.matrix.plan import Matrix

MERGED_LAYERS = 2 * 4
SPARED = ("model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj")
SCRIPT = Path(__file__).with_name("merged_model.py")
TENSORS = {"int8dq": "Int8Tensor", "8da4w": "IntxUnpackedToInt8Tensor", "float8wo": "Float8Tensor"}


@pytest.fixture(scope="module")
def merged(tiny_model: Any, run_code: Any) -> Any:
    """``merged(compare=[...], load=[...])`` asks the script."""

    def ask(**asked: list[Any]) -> Any:
        given = json.dumps({"compare": [], "load": []} | asked)
        result = run_code(SCRIPT.read_text(encoding="utf-8"), str(tiny_model.folder), given)
        assert result.returncode == 0, result.stderr[-2000:]
        return json.loads(result.stdout)

    return ask


@pytest.fixture(scope="module")
def found(merged: Any, quantizing: Any, suites_matrix: Matrix) -> dict[str, dict[str, Any]]:
    """What the script says of each recipe."""
    names = [*TENSORS, "8da4w-int8emb"]
    asked = []
    for name in names:
        recipe = suites_matrix.recipe(name)
        checkpoint = quantizing.by(name if name in TENSORS else "int8dq").folder
        asked.append((str(checkpoint), {"config": recipe.config, "arguments": recipe.arguments}))
    return dict(zip(names, merged(compare=asked)["compare"], strict=True))


@pytest.fixture(scope="module")
def loaded(merged: Any, quantizing: Any, suites_matrix: Matrix, tiny_model: Any) -> dict[str, dict[str, Any]]:
    """What comes of checkpoints and recipes through the hook around SGLang's loading."""
    config = suites_matrix.recipe("int8wo").identity.config
    some = quantizing.ask(**config | {"plain": SPARED})
    torn = quantizing.ask(**config | {"plain": ["model.layers.0.self_attn.k_proj"]})
    recipe = {"config": "Int8WeightOnlyConfig", "arguments": {}}
    asked = {
        "embedding": (quantizing.by("8da4w-int8emb").folder, None),
        "some plain": (some.folder, None),
        "one of three plain": (torn.folder, None),
        "twice": (quantizing.by("int8wo").folder, recipe),
        "recipe": (tiny_model.folder, recipe),
        "plain": (tiny_model.folder, None),
    }
    answers = merged(load=[(str(folder), given) for folder, given in asked.values()])["load"]
    return dict(zip(asked, answers, strict=True))


@pytest.mark.parametrize("name", list(TENSORS))
def test_a_recipe_at_load_and_the_saved_checkpoint_are_the_same_tensors(found: Any, name: str) -> None:
    layers = found[name]["layers"]
    assert len(layers) == MERGED_LAYERS
    assert all(layer == [TENSORS[name], True, True] for layer in layers.values()), layers
    assert found[name]["head"] == "Tensor", "the output head is none of the layers that a recipe means"


def test_a_config_that_names_modules_is_refused(found: Any) -> None:
    assert found["8da4w-int8emb"] == {"error": "FqnToConfig names modules, and SGLang's merged ones have other names"}


def test_a_quantized_embedding_or_head_is_refused_by_name(loaded: Any) -> None:
    """SGLang's own loading has left them out: served, they would hold whatever was in their memory."""
    assert "no place for 2 quantized layers" in loaded["embedding"]["error"]
    assert "lm_head, model.embed_tokens." in loaded["embedding"]["error"]


def test_layers_that_a_checkpoint_leaves_plain_stay_plain(loaded: Any) -> None:
    layers = loaded["some plain"]["layers"]
    assert len(layers) == MERGED_LAYERS
    assert {name for name, tensor in layers.items() if tensor == "Tensor"} == set(SPARED)


def test_a_merged_layer_that_is_quantized_in_part_is_refused(loaded: Any) -> None:
    error = loaded["one of three plain"]["error"]
    assert "no place for 2 quantized layers" in error
    assert "model.layers.0.self_attn.q_proj, model.layers.0.self_attn.v_proj." in error


def test_a_recipe_on_a_quantized_checkpoint_is_refused(loaded: Any, quantizing: Any) -> None:
    """Before anything is loaded, too."""
    words = "is quantized already, so Int8WeightOnlyConfig cannot be applied to it"
    assert words in loaded["twice"]["error"]
    recipe = json.dumps({"config": "Int8WeightOnlyConfig", "arguments": {}})
    command = [sys.executable, "-m", "harness.worker.sglang", "--recipe", recipe, "--port", "30000"]
    command += ["--model-path", str(quantizing.by("int8wo").folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert words in done.stderr


def test_a_plain_checkpoint_with_and_without_a_recipe(loaded: Any) -> None:
    assert set(loaded["recipe"]["layers"].values()) == {"Int8Tensor"}
    assert set(loaded["plain"]["layers"].values()) == {"Tensor"}


def test_a_hook_that_sglang_does_not_take_is_an_error(run_code: Any) -> None:
    """SGLang itself only logs it, and would serve the model without its recipe."""
    code = """
import sys
from enum import Enum
from types import ModuleType
from harness.worker import sglang_model

class HookType(Enum):
    AROUND = "around"

class HookRegistry:
    _patched = {"loader.load_model"}
    register = staticmethod(lambda target, function, kind: print(target, kind.value))

plugins, registry = ModuleType("sglang.srt.plugins"), ModuleType("sglang.srt.plugins.hook_registry")
plugins.load_plugins = lambda: None
registry.HookRegistry, registry.HookType = HookRegistry, HookType
sys.modules |= {name: ModuleType(name) for name in ("sglang", "sglang.srt")}
sys.modules |= {module.__name__: module for module in (plugins, registry)}
sglang_model._hook(("loader.load_model", print, "AROUND"))
sglang_model._hook(("loader.load_model", print, "AROUND"), ("loader.gone", print, "AROUND"))
"""
    done = run_code(code)
    assert done.stdout.splitlines() == 2 * ["loader.load_model around"] + ["loader.gone around"]
    assert done.stderr.endswith("RuntimeError: this version of SGLang takes no hook at loader.gone\n")


def test_kernels_are_linked_with_the_cuda_runtime_that_torch_has_loaded(run_code: Any, tmp_path: Path) -> None:
    code = f"""
import ctypes, os, subprocess
from pathlib import Path
from harness.worker import sglang_model

runtime = {str(tmp_path / "libcudart.so.13")!r}
subprocess.run(["cc", "-shared", "-o", runtime, "-x", "c", "-"], input="", text=True, check=True)
ctypes.CDLL(runtime)
with sglang_model._cuda_runtime_to_link():
    (folder,) = os.environ["LIBRARY_PATH"].split(":")
    print(Path(folder, "libcudart.so").resolve())
print(os.environ.get("LIBRARY_PATH"))
"""
    assert run_code(code).stdout.splitlines() == [str((tmp_path / "libcudart.so.13").resolve()), "None"]


@pytest.mark.parametrize("compiles", [True, False])
def test_without_a_compiler_sglang_is_given_compiled_kernels(run_code: Any, compiles: bool) -> None:
    """All three are asked for at once; where one fails, the log says so and the others' places are taken."""
    code = f"""
import sys
from threading import Barrier
from types import ModuleType, SimpleNamespace
from harness.worker import sglang_model

def stub(name, **attributes):
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(attributes)
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, sys.modules[name])

together = Barrier(3, timeout=20)
def build(asked):
    together.wait()
    print(asked)

def fails(asked):
    build(asked)
    if not {compiles}:
        raise RuntimeError("no nvcc here")

for name in ("sglang", "sglang.jit_kernel", "sglang.srt", "sglang.srt.layers", "sglang.srt.model_executor"):
    stub(name)
stub("sglang.jit_kernel.kvcache", can_use_store_cache=build)
stub("sglang.jit_kernel.activation", _jit_activation_module=fails)
stub("sglang.jit_kernel.clamp_position", _jit_clamp_position_module=build)
stub("sgl_kernel", silu_and_mul="compiled")
stub("sglang.srt.layers.activation", silu_and_mul="own")
stub("sglang.srt.model_executor.forward_batch_info", clamp_position="own", _clamp_position_native="native")
config = SimpleNamespace(get_num_kv_heads=lambda tensor_parallel: 8, head_dim=128)
sglang_model._settle_kernels(None, model_config=config, device_config=None)
from sglang.srt.layers import activation
from sglang.srt.model_executor import forward_batch_info
print(activation.silu_and_mul, forward_batch_info.clamp_position)
"""
    done = run_code(code)
    *asked, used = done.stdout.splitlines()
    assert sorted(asked) == ["2048", "torch.bfloat16", "torch.int64"], done.stderr[-2000:]
    assert used == ("own own" if compiles else "compiled native")
    assert ("no nvcc here" in done.stderr) is not compiles


def test_what_is_not_laid_out_by_rows_is_not_joined(run_code: Any) -> None:
    """One scale for a whole part is none for a whole merged layer."""
    code = """
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerTensor
from harness.worker import sglang_model

parts = [torch.nn.Linear(64, 32, bias=False, dtype=torch.bfloat16) for _ in range(3)]
for part in parts:
    quantize_(part, Int8WeightOnlyConfig(granularity=PerTensor()))
try:
    sglang_model.join([part.weight for part in parts], "model.layers.0.self_attn.qkv_proj")
except ValueError as error:
    print(error)
"""
    words = "model.layers.0.self_attn.qkv_proj: Int8Tensor is not laid out by rows, so 3 of them cannot be merged"
    assert run_code(code).stdout.startswith(words)
