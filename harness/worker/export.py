"""Exports a checkpoint to an ExecuTorch program (.pte) for XNNPACK, and reports what was delegated and what was not."""

from __future__ import annotations

import contextlib
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoConfig

from harness.worker import delegation, loading, parameters
from harness.worker.backend import Backend
from harness.worker.generate import peak_resident_bytes

PROGRAM = "model.pte"
STEPS = ("load the checkpoint", "torch.export", "lower to XNNPACK", "to ExecuTorch", "write")


class Export(Backend):
    """Writes programs, one a process: the peak memory that it reports is that of one export."""

    commands: ClassVar[tuple[str, ...]] = ("transformers_route", "llama_route")

    def open(self) -> dict[str, Any]:
        return {}

    def transformers_route(self, checkpoint: str, output: str, context: int, trust_remote_code: bool) -> dict[str, Any]:
        """Export any causal LM of transformers, as it is, with a static KV cache of ``context`` tokens.

        The program takes token ids (1, n) and their positions (n) and gives the logits of every position,
        float32 (1, n, vocabulary). It needs no operators but ExecuTorch's own, so it runs wherever XNNPACK does.
        Returns facts of the program and of what its making cost.
        """
        clock = _Clock(self.report)
        clock.step(0)
        model, facts = load_float32(checkpoint, trust_remote_code)
        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        clock.step(1)
        exported = traced(model, context)
        methods = {
            "get_max_seq_len": context,
            "get_max_context_len": context,
            "get_vocab_size": vocabulary,
            "use_kv_cache": True,
            "enable_dynamic_shape": True,
            **_special_tokens(checkpoint, trust_remote_code),
        }
        del model
        clock.step(2)
        lowered = lower(exported, methods, quantized=facts["quantized_layers"] > 0)
        del exported
        report = delegation.report(lowered.exported_program())
        clock.step(3)
        program = _finished(lowered)
        clock.step(4)
        with (Path(output) / PROGRAM).open("wb") as file:
            program.write_to_file(file)
        return clock.facts({**facts, **report, "context": context, **_file_facts(Path(output) / PROGRAM)})

    def llama_route(
        self, checkpoint: str, output: str, context: int, model: str, trust_remote_code: bool
    ) -> dict[str, Any]:
        """Export by ExecuTorch's own ``export_llama`` with converted weights, as published.

        ``model`` is the name under which ExecuTorch lists the architecture. The program has a KV cache and the custom
        SDPA operator, and gives the logits of the last position only; it runs where that operator's library is.
        """
        from harness.worker import llama_export

        clock = _Clock(self.report)
        clock.step(0)
        converted, facts = llama_export.convert(checkpoint, Path(output), trust_remote_code)
        special = _special_tokens(checkpoint, trust_remote_code)
        clock.step(1)
        with out_variants_explained():
            report = llama_export.export(
                model,
                converted,
                Path(output) / PROGRAM,
                context,
                special,
                quantized=facts["quantized_layers"] > 0,
                begun=lambda stage: clock.step(2 + stage),
            )
        converted.remove()
        return clock.facts({**facts, **report, "context": context, **_file_facts(Path(output) / PROGRAM)})


def traced(model: Any, context: int) -> Any:
    """Return the graph of a causal LM with a static KV cache: ids (1, n), positions (n) -> logits (1, n, v)."""
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    settle_rope(model, context)
    model.generation_config.cache_implementation = "static"
    model.generation_config.use_cache = True
    model.config.get_text_config().use_cache = True
    # torch.export cannot trace the lookup of a padding row that no text has.
    model.get_input_embeddings().padding_idx = None
    wrapped = TorchExportableModuleForDecoderOnlyLM(model, batch_size=1, max_cache_len=context)
    length = torch.export.Dim("length", min=1, max=context - 1)
    return wrapped.export(
        input_ids=torch.zeros((1, 3), dtype=torch.long),
        cache_position=torch.arange(3),
        dynamic_shapes={"input_ids": {1: length}, "cache_position": {0: length}},
        strict=True,
    )


def settle_rope(model: Any, context: int) -> None:
    """Keep the rotary frequencies that a model has for short texts, where it would choose them by a text's length.

    A graph cannot choose (``longrope``, as Phi-4-mini has it, and ``dynamic``); what a program can hold is short.
    Raises ValueError for a context in which they would change.
    """
    for module in model.modules():
        kind = getattr(module, "rope_type", "")
        if not isinstance(kind, str) or not (kind == "longrope" or "dynamic" in kind):
            continue
        given = module.config.rope_parameters
        short = int(given.get("original_max_position_embeddings") or module.config.max_position_embeddings)
        if context > short:
            raise ValueError(
                f"the model's {kind} rotary embedding changes beyond {short} tokens, which a program cannot do: export "
                f"it for a context of {short} tokens or fewer instead of {context}"
            )
        module.rope_type = "default"


def lower(exported: Any, methods: dict[str, Any], quantized: bool) -> Any:
    """Lower a graph to XNNPACK: dynamically quantized layers first, each by itself, then all that is left.

    ``to_edge_transform_and_lower`` decomposes the whole graph once, and twice more for every partitioner it is given;
    the second one is applied in a call of its own, which decomposes nothing.
    """
    # Registers the out variants of the quantized operators that the program needs.
    import executorch.kernels.quantized  # noqa: F401
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    from harness.worker import lowering

    with lowering.uncollected(), lowering.compiled_once():
        lowered = to_edge_transform_and_lower(
            exported,
            partitioner=[lowering.LinearPartitioner() if quantized else XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            constant_methods=methods,
        )
    if not quantized:
        return lowered
    with lowering.uncollected(), lowering.compiled_once():
        return lowered.to_backend(XnnpackPartitioner())


def _finished(lowered: Any) -> Any:
    from executorch.exir import ExecutorchBackendConfig

    from harness.worker.lowering import uncollected

    with uncollected(), out_variants_explained():
        return lowered.to_executorch(
            ExecutorchBackendConfig(extract_delegate_segments=True, do_quant_fusion_and_const_prop=True)
        )


@contextlib.contextmanager
def out_variants_explained() -> Iterator[None]:
    """Say of an error of missing out variants what registers them."""
    try:
        yield
    except RuntimeError as error:
        if "out variant" in str(error).lower():
            raise RuntimeError(
                f"{error}. A library that registers these operators for ExecuTorch was not loaded before the export: "
                "executorch.kernels.quantized has the quantized ones, executorch.extension.llm.custom_ops llama's"
            ) from None
        raise


def load_float32(checkpoint: str, trust_remote_code: bool) -> tuple[Any, dict[str, Any]]:
    """Load a checkpoint, widen it to float32, which is what XNNPACK computes in, and say what was widened."""
    torch.set_grad_enabled(False)
    model = loading.model(checkpoint, trust_remote_code=trust_remote_code, dtype="auto", attn_implementation="sdpa")
    quantized, layers = parameters.quantized_layers(model)
    kept = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    model = model.to(torch.float32)
    model.requires_grad_(False)
    facts = {
        "checkpoint_dtypes": sorted(kept),
        "widened_to_float32": kept != {"float32"},
        "quantized_layers": quantized,
        "layers": layers,
    }
    return model, facts


def _special_tokens(checkpoint: str, trust_remote_code: bool) -> dict[str, Any]:
    """Return the ids of the first and last tokens of a text as a program's metadata has them."""
    generation = Path(checkpoint) / "generation_config.json"
    found = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=trust_remote_code).get_text_config()
    begin = found.get("bos_token_id", getattr(config, "bos_token_id", None))
    end = found.get("eos_token_id", getattr(config, "eos_token_id", None))
    special: dict[str, Any] = {} if begin is None else {"get_bos_id": begin}
    return special if end is None else {**special, "get_eos_ids": end if isinstance(end, list) else [end]}


def _file_facts(program: Path) -> dict[str, Any]:
    return {"file": program.name, "program_bytes": program.stat().st_size}


class _Clock:
    """Says which step an export is at, and counts what the steps cost in CPU seconds."""

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        self._report = report
        self._start = time.perf_counter()
        self._steps: list[tuple[str, float]] = []

    def step(self, number: int) -> None:
        self._steps.append((STEPS[number], cpu_seconds()))
        self._report({"done": f"{STEPS[number]}: {number}", "of": len(STEPS)})

    def facts(self, facts: dict[str, Any]) -> dict[str, Any]:
        ends = [start for _, start in self._steps[1:]] + [cpu_seconds()]
        steps = {name: end - start for (name, start), end in zip(self._steps, ends, strict=True)}
        return {
            **facts,
            "export_seconds": time.perf_counter() - self._start,
            "export_cpu_seconds": sum(steps.values()),
            "export_steps": steps,
            "export_peak_bytes": peak_resident_bytes(),
        }


def cpu_seconds() -> float:
    """Return the CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


BACKEND = Export
