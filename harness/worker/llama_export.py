"""The published way to a program: weights converted to ExecuTorch's own Llama, then its ``export_llama``."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig

from harness.worker import delegation, loading
from harness.worker.llama_parameters import parameters
from harness.worker.parameters import quantized_layers


@dataclass(frozen=True)
class Converted:
    """Weights under ExecuTorch's names and the parameters of its model, beside each other in a folder."""

    folder: Path

    # ExecuTorch takes a path that holds "int8" or "8da4w" for an older format of weights: these names are relative.
    WEIGHTS = "converted.pth"
    PARAMETERS = "params.json"

    def remove(self) -> None:
        for name in (self.WEIGHTS, self.PARAMETERS):
            (self.folder / name).unlink()


def convert(checkpoint: str, folder: Path, trust_remote_code: bool) -> tuple[Converted, dict[str, Any]]:
    """Write a checkpoint's weights and model parameters as ``export_llama`` reads them.

    Raises ValueError naming the weights for which the published conversion has no place.
    """
    torch.set_grad_enabled(False)
    model = loading.model(checkpoint, trust_remote_code=trust_remote_code, dtype="auto")
    quantized, layers = quantized_layers(model)
    state = dict(model.state_dict())
    kept = sorted({str(value.dtype).removeprefix("torch.") for value in model.parameters()})
    del model
    with _without_torchtune():
        from executorch.examples.models.phi_4_mini.convert_weights import phi_4_hf_to_meta

        try:
            weights = phi_4_hf_to_meta(state)
        except Exception as error:
            raise ValueError(
                f"the published conversion of weights does not know this checkpoint ({error}); "
                "export it by the transformers route"
            ) from None
    weights.setdefault("output.weight", weights["tok_embeddings.weight"])
    torch.save(weights, folder / Converted.WEIGHTS)
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=trust_remote_code).get_text_config()
    (folder / Converted.PARAMETERS).write_text(json.dumps(parameters(config.to_dict())), encoding="utf-8")
    facts = {
        "checkpoint_dtypes": kept,
        "widened_to_float32": kept != ["float32"],
        "quantized_layers": quantized,
        "layers": layers,
    }
    return Converted(folder), facts


# The stages of ``export_llama`` after torch.export, by the methods of its builder that begin them.
_STAGES = ("to_edge_transform_and_lower", "to_executorch", "save_to_pte")


def export(
    model: str,
    converted: Converted,
    program: Path,
    context: int,
    special: dict[str, Any],
    quantized: bool,
    begun: Callable[[int], None],
) -> dict[str, Any]:
    """Run ``export_llama`` with the published options and return what was delegated.

    ``begun`` is told when its stages begin: 0 lowering, 1 making the program, 2 writing it. The published options
    delegate quantized layers alone; a model without any gets ``--xnnpack-extended-ops`` besides.
    """
    from executorch.examples.models.llama import export_llama_lib
    from executorch.extension.llm.export.config.llm_config import LlmConfig

    from harness.worker import lowering

    options = [
        *("--model", model, "--checkpoint", Converted.WEIGHTS, "--params", Converted.PARAMETERS),
        *("-kv", "--use_sdpa_with_kv_cache", "-X", "--metadata", json.dumps(special)),
        *("--max_seq_length", str(context), "--max_context_length", str(context)),
        *("--output-dir", ".", "--output_name", program.name),
        *(() if quantized else ("--xnnpack-extended-ops",)),
    ]
    with (
        _inside(converted.folder),
        _watched(begun),
        lowering.uncollected(),
        lowering.compiled_once(),
        lowering.linear_partitioner(),
    ):
        arguments = export_llama_lib.build_args_parser().parse_args(options)
        builder = export_llama_lib._export_llama(LlmConfig.from_args(arguments))
        saved = Path(builder.get_saved_pte_filename())
        if saved.resolve() != program.resolve():
            saved.rename(program.name)
    return delegation.report(builder.edge_manager.exported_program())


@contextlib.contextmanager
def _watched(begun: Callable[[int], None]) -> Iterator[None]:
    """Tell when a builder's methods of :data:`_STAGES` are called; one command runs them all."""
    from executorch.extension.llm.export.builder import LLMEdgeManager

    def telling(number: int, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def told(*arguments: Any, **named: Any) -> Any:
            begun(number)
            return method(*arguments, **named)

        return told

    with contextlib.ExitStack() as stack:
        for number, name in enumerate(_STAGES):
            stack.enter_context(patch.object(LLMEdgeManager, name, telling(number, getattr(LLMEdgeManager, name))))
        yield


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _without_torchtune() -> Iterator[None]:
    """Let the conversion be imported, whose module wants torchtune for checkpoints of torchtune's own alone."""
    names = ("torchtune", "torchtune.training")
    if any(name in sys.modules for name in names):
        yield
        return
    package, training = types.ModuleType(names[0]), types.ModuleType(names[1])
    training.FullModelHFCheckpointer = None  # type: ignore[attr-defined]
    package.training = training  # type: ignore[attr-defined]
    sys.modules.update(zip(names, (package, training), strict=True))
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
