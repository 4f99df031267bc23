"""A GGUF file is read once however often its reader is asked for, and only where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def gguf() -> Any:
    return pytest.importorskip("gguf")


@pytest.fixture
def file(gguf: Any, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_add_bos_token(True)
    writer.add_token_list(["<s>", "a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_each_file_and_each_table_of_names_is_made_once_within(
    gguf: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.worker.gguf_files import read_once

    made: list[str] = []
    reader, table = gguf.GGUFReader, gguf.get_tensor_name_map

    def reads(path: Any, mode: Any) -> Any:
        made.append("reader")
        return reader(path, mode)

    def names(arch: Any, blocks: int) -> Any:
        made.append("names")
        return table(arch, blocks)

    monkeypatch.setattr(gguf, "GGUFReader", reads)
    monkeypatch.setattr(gguf, "get_tensor_name_map", names)
    with read_once():
        found = [gguf.GGUFReader(path) for path in (file, str(file))]
        assert found[0] is found[1]
        assert found[0].get_field("tokenizer.ggml.tokens").contents() == ["<s>", "a", "b"]
        maps = [gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, blocks) for blocks in (2, 2, 3)]
        assert maps[0] is maps[1]
        assert maps[0].get_name("model.layers.1.mlp.up_proj") == "blk.1.ffn_up"
    assert made == ["reader", "names", "names"]
    assert gguf.GGUFReader is reads
    assert gguf.get_tensor_name_map is names
