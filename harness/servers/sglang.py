"""SGLang: what it is told, how it is started, and where it cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.contract import quantized
from harness.matrix.hardware import Needs
from harness.records.schema import Scalar
from harness.servers.base import SERVED_NAME, ServerBackend, command_flags

if TYPE_CHECKING:
    from harness.matrix.plan import Cell


class SGLang(ServerBackend):
    """SGLang, whose linear layers are given torchao tensors by harness/worker/sglang_model.py.

    It holds query, key and value, and gate and up, merged. So the recipe is applied to the plain checkpoint as it is
    loaded; one that is quantized already is loaded as it is.
    """

    several = "tp_size"
    at_load = True
    structured = False
    own_environment = True
    needs = (Needs(vendor=("nvidia",), capability=">=8.0"),)
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
        found = self.cut(cell)
        if engine.max_num_batched_tokens:
            # As many of the prompts' tokens at once as vLLM takes.
            found["chunked_prefill_size"] = engine.max_num_batched_tokens
        if kind := cell.recipe.kv_cache_dtype:
            # Which of the two float8 formats vLLM's word means is to be said here.
            found["kv_cache_dtype"] = "fp8_e4m3" if kind == "fp8" else kind
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
        return [*found, *command_flags(options), "--cuda-graph-bs", *map(str, self.graphs)]

    def cache_tokens(self, read: Callable[[str], str]) -> int | None:
        told = re.search(r'"max_total_num_tokens": ?(\d+)', read("/get_server_info"))
        return int(told[1]) if told else None

    def _recipe(self, cell: Cell, checkpoint: Path) -> dict[str, Any] | None:
        if cell.recipe.baseline or quantized.method(checkpoint):
            return None
        return {"config": cell.recipe.config, "arguments": cell.recipe.arguments}
