"""What an export says of its program: the work of an attention, and operators that nothing registers for ExecuTorch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import needs

pytestmark = [needs.package("torch"), needs.package("transformers"), pytest.mark.models]


def node(name: str, *shapes: tuple[int, ...]) -> Any:
    import torch

    tensors = [SimpleNamespace(meta={"val": torch.empty(shape, device="meta")}) for shape in shapes]
    return SimpleNamespace(target=SimpleNamespace(name=lambda: name), args=tensors, meta=tensors[0].meta)


@pytest.mark.parametrize(
    ("name", "query", "key"),
    [
        ("aten::scaled_dot_product_attention", (1, 8, 3, 64), (1, 8, 100, 64)),
        ("llama::custom_sdpa.out", (1, 3, 8, 64), (1, 100, 2, 64)),
        ("llama::custom_quantized_sdpa", (1, 3, 8, 64), (1, 100, 2, 64)),
    ],
)
def test_an_attentions_work_is_that_of_its_keys(name: str, query: tuple[int, ...], key: tuple[int, ...]) -> None:
    """Two products of 8 heads, 3 queries and 100 keys, whichever way the operator lays them out."""
    from harness.worker.delegation import _multiply_adds

    assert _multiply_adds(node(name, query, key, key)) == 2 * 8 * 3 * 100 * 64


def test_missing_out_variants_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.worker import export, llama_export

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Missing out variants: {'llama::custom_sdpa'}")

    monkeypatch.setattr(llama_export, "convert", lambda *_: (None, {"quantized_layers": 0}))
    monkeypatch.setattr(llama_export, "export", fails)
    monkeypatch.setattr(export, "_special_tokens", lambda *_: {})
    worker = export.Export(lambda _: None)
    explained = r"custom_sdpa.*A library that registers these operators.*was not loaded before the export"
    with pytest.raises(RuntimeError, match=explained):
        worker.llama_route("checkpoint", str(tmp_path), 64, "smollm2", False)
    with pytest.raises(RuntimeError, match=explained), export.out_variants_explained():
        fails()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.5] * 8, "long_factor": [9.0] * 8},
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    ],
    ids=lambda rope: str(rope["rope_type"]),
)
def test_a_rotary_embedding_that_goes_by_length_is_exported_for_short_texts(rope: dict[str, Any]) -> None:
    import torch
    import transformers

    from harness.worker import export

    long = rope["rope_type"] == "longrope"
    config = (transformers.Phi3Config if long else transformers.LlamaConfig)(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=50,
        pad_token_id=0,
        max_position_embeddings=128 if long else 32,
        original_max_position_embeddings=32,
        rope_parameters={**rope, **({"original_max_position_embeddings": 32} if long else {})},
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    ids = torch.randint(1, 50, (1, 9))
    with torch.no_grad():
        eager = model(ids).logits
    with pytest.raises(ValueError, match="for a context of 32 tokens or fewer instead of 64"):
        export.settle_rope(model, 64)
    program = export.traced(model, 32).module()
    with torch.no_grad():
        torch.testing.assert_close(program(input_ids=ids, cache_position=torch.arange(9)), eager, rtol=1e-4, atol=1e-5)
