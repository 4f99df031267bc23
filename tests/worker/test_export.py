"""What an export says of its program: the work of an attention, and operators that nothing registers for ExecuTorch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")


def node(name: str, *shapes: tuple[int, ...]) -> Any:
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
    pytest.importorskip("transformers")
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
