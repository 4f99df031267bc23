"""The client of the serving benchmark: what recipes of one model share, it reads once."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.worker.client import Client, vocabulary


def tokenizer(folder: Path, **more: Any) -> str:
    folder.mkdir()
    files = {"tokenizer.json": {"words": 3}, "tokenizer_config.json": {}, "config.json": {"model_type": "llama"}} | more
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


def test_tokenizers_of_a_models_recipes_are_one_and_others_are_not(tmp_path: Path) -> None:
    plain = tokenizer(tmp_path / "bf16")
    quantized = {"model_type": "llama", "quantization_config": {}}
    saved = {"is_local": True, "local_files_only": True}
    recipe = tokenizer(tmp_path / "int8wo", **{"config.json": quantized, "tokenizer_config.json": saved})
    assert vocabulary(plain) == vocabulary(recipe)
    for name, content in (
        ("tokenizer.json", {"words": 4}),
        ("chat_template.jinja", "another"),
        ("config.json", {"model_type": "phi3"}),
    ):
        assert vocabulary(tokenizer(tmp_path / name, **{name: content})) != vocabulary(plain)
    code = tokenizer(tmp_path / "code")
    (tmp_path / "code" / "tokenization_own.py").write_text("", encoding="utf-8")
    assert vocabulary(code) == code, "what its own code makes of it is not known by its files"
    (tmp_path / "none").mkdir()
    assert vocabulary(str(tmp_path / "none")) == str(tmp_path / "none")
    assert vocabulary("gpt2") == "gpt2"


def test_prompts_are_read_and_tokenized_once_for_all_recipes_of_a_model(tmp_path: Path) -> None:
    recipes = [tokenizer(tmp_path / "bf16"), tokenizer(tmp_path / "int8wo")]
    other = tokenizer(tmp_path / "other", **{"tokenizer.json": {"words": 4}})
    client = Client(print)
    client.load_run, client.samples, client.kept = None, {}, {}
    read: list[str] = []

    def samples(arguments: Any, _: Any) -> list[dict[str, int]]:
        read.append(arguments.tokenizer)
        return [{"tokens": len(read)}]

    def loaded(folder: str, **_: Any) -> str:
        read.append(f"tokenizer {folder}")
        return folder

    client.read_samples = samples

    def asked(folder: str, prompts: int) -> Any:
        held = client._kept_tokenizer(loaded, folder, trust_remote_code=False)
        more = {"dataset_path": "d", "num_prompts": prompts, "sharegpt_output_len": None, "seed": 0}
        return client._samples(SimpleNamespace(tokenizer=folder, **more), held)

    for folder in (*recipes, *recipes):
        found = asked(folder, 1000)
        assert found == [{"tokens": 2}]
        found[0]["tokens"] = 0  # Of a run that changes what it was given.
    assert read == [f"tokenizer {recipes[0]}", recipes[0]]
    asked(recipes[0], 1)
    assert read[2:] == [recipes[0]]
    asked(other, 1)
    assert read[3:] == [f"tokenizer {other}", other]
    assert client._kept_tokenizer(loaded, recipes[1], trust_remote_code=True) == recipes[1], "told otherwise"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_was_changed_meanwhile_is_another(tmp_path: Path, name: str) -> None:
    folder = tokenizer(tmp_path / "model")
    before = vocabulary(folder)
    (tmp_path / "model" / name).write_text('{"changed": 1}', encoding="utf-8")
    assert vocabulary(folder) != before
