"""What vLLM compiled on a CPU: loaded by the next start as it is, for whatever weights that has, and counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.needs import program
from tests.worker.conftest import QuantizeWorker

pytestmark = [pytest.mark.models, pytest.mark.usefixtures("imports_stand"), program("g++")]

# The second answer is of the same weights, as the model is written.
ENGINE = """
import json, os, sys
checkpoint, folder = sys.argv[1:]
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
os.environ |= {"VLLM_CACHE_ROOT": f"{folder}/vllm", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
from harness.worker import lean
with lean.imports():
    from harness.worker.vllm import Engine
    from vllm.compilation.counter import compilation_counter as counter
engine = Engine(print)
told = engine.open(checkpoint, enforce_eager=False, max_model_len=256, trust_remote_code=False, max_logprobs=-1)

def asked():
    with_them = engine.predictions([list(range(10, 20))], 10240)["top"][0]
    return [[logprob for _, logprob in sorted(row)] for row in with_them]

found = {"seconds": told["compile_seconds"], "compiled": asked()}
found |= {"made": counter.num_aot_compiles, "loaded": counter.num_aot_artifacts_loaded}

def as_it_is_written(worker):
    for module in worker.model_runner.get_model().modules():
        if hasattr(module, "do_not_compile"):
            module.do_not_compile = True

engine.llm.collective_rpc(as_it_is_written)
print(json.dumps(found | {"written": asked()}), flush=True)
engine.close()
"""
OTHER_WEIGHTS = """
import sys
from safetensors import safe_open
from safetensors.torch import save_file
with safe_open(sys.argv[1], "pt") as file:
    told, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
turned = [name for name in tensors if "mlp" in name and tensors[name].dim() == 2 and tensors[name].shape[-1] > 1]
assert turned
for name in turned:
    tensors[name] = tensors[name].flip(0).contiguous()
save_file(tensors, sys.argv[1], told)
"""
LAWS = """
import contextlib, json
from types import SimpleNamespace
import torch
from harness.worker import precompiled

finished = []

def own(config):
    finished.append(config)

def loaded(**named):
    one = lambda: None
    vars(one).update(named)
    return SimpleNamespace(_artifacts=SimpleNamespace(compiled_fn=one))

for what in (loaded(), loaded(finalize_loading=own), SimpleNamespace()):
    again = precompiled._finished(lambda: what)()
    assert again is what
    if hasattr(what, "_artifacts"):
        what._artifacts.compiled_fn.finalize_loading("config")

@contextlib.contextmanager
def monitor(vllm_config, message="", is_encoder=False, tag=""):
    yield
    vllm_config.compilation_config.compilation_time += counts

told = []
kinds = [(0.0, False, {}), (5.0, False, {"tag": "backbone"}), (0.0, True, {}), (0.0, False, {"is_encoder": True})]
for counts, fails, of in kinds:
    config = SimpleNamespace(compilation_config=SimpleNamespace(compilation_time=0.0))
    with contextlib.suppress(KeyError), precompiled._counted(monitor)(config, **of):
        if fails:
            raise KeyError
    told.append(config.compilation_config.compilation_time)
print(json.dumps([finished, told]))
"""


def test_what_finishes_or_counts_by_itself_does_so_as_ever(run_code: Callable[..., Any]) -> None:
    done = run_code(LAWS)
    assert done.returncode == 0, done.stderr
    finished, told = json.loads(done.stdout.splitlines()[-1])
    assert finished == ["config"]
    assert 0 < told[0] < 5
    assert told[1:] == [5.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "recipe", ["int8dq", *(pytest.param(it, marks=pytest.mark.slow) for it in ("bf16", "int8wo", "8da4w"))]
)
def test_a_second_start_compiles_nothing_and_computes_with_the_weights_that_it_has(
    recipe: str, quantizing: QuantizeWorker, tiny_model: Any, run_code: Callable[..., Any], tmp_path: Path
) -> None:
    # vLLM's own key has the folder's name: other weights come into the same one.
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_model.folder if recipe == "bf16" else quantizing.by(recipe).folder, checkpoint)

    def start() -> dict[str, Any]:
        done = run_code(ENGINE, str(checkpoint), str(tmp_path / "compiled"))
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    first = start()
    done = run_code(OTHER_WEIGHTS, str(checkpoint / "model.safetensors"))
    assert done.returncode == 0, done.stderr
    second = start()
    assert (first["made"], first["loaded"]) == (1, 0)
    assert (second["made"], second["loaded"]) == (0, 1)
    assert first["seconds"] > second["seconds"] > 0
    for one in (first, second):
        assert _apart(one["compiled"], one["written"]) < _apart(first["written"], second["written"]) / 4


def _apart(one: list[list[float]], other: list[list[float]]) -> float:
    """Return the mean difference of log-probabilities in nats."""
    rows = [[abs(a - b) for a, b in zip(*pair, strict=True)] for pair in zip(one, other, strict=True)]
    return sum(map(sum, rows)) / sum(map(len, rows))
