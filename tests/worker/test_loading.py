"""What is said where Transformers could not make a model's tensors: the cause itself, and by whom it can be mended."""

from __future__ import annotations

import pytest

from harness.contract.weights import Unusable

pytestmark = pytest.mark.models

TRACE = 'Traceback (most recent call last):\n  File "a.py", line 1, in convert\n    quantize()\n'
MERGED = (
    f"{TRACE}RuntimeError: stack expects a non-empty list\nstack expects a non-empty list\n"
    "Error: MergeModulelist on tensors destined for a.weight. Ckpt contains: 1"
)


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 MiB"),
        ("AssertionError", ""),
        ("ImportError", "Requires mslk >= 1.0.0"),
    ],
)
def test_whatever_stopped_a_recipe_is_named_and_is_no_refusal(cause: str, message: str) -> None:
    from harness.worker.loading import conversion_error

    line = f"{cause}: {message}" if message else cause
    words = f"{TRACE}{line}\n{message}\nError: TorchAoQuantize on tensors destined for a.weight. Ckpt contains: 1"
    found = conversion_error("model", {"a.weight": words, "b.weight": words})
    assert type(found) is RuntimeError
    assert str(found) == f"model: tensors that could not be quantized (2): a.weight, b.weight (a.weight: {line})"


def test_tensors_that_the_files_do_not_make_up_are_a_refusal() -> None:
    from harness.worker.loading import conversion_error

    found = conversion_error("model", {"a.weight": MERGED})
    assert isinstance(found, Unusable)
    assert "(a.weight: RuntimeError: stack expects a non-empty list)" in str(found)


def test_what_was_read_as_a_quantized_tensor_is_not_made_anew() -> None:
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.worker.loading import read_as_made

    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1, num_key_value_heads=1))
    layer = model.model.layers[0].mlp.up_proj
    quantize_(layer, Int8WeightOnlyConfig())
    before = layer.weight.dequantize()
    layer._is_hf_initialized = False  # as Transformers 5.8 leaves it
    with read_as_made():
        model._initialize_weights(layer)
    assert torch.equal(layer.weight.dequantize(), before)
    plain = torch.nn.Linear(8, 8)
    first = plain.weight.clone()
    with read_as_made():
        model._initialize_weights(plain)
    assert not torch.equal(plain.weight, first), "a plain one that no file has is still made"
