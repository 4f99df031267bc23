"""One layer for all: its names, what it says of the whole, and how an engine's loader reads it for each layer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from harness.base.errors import MatrixError
from harness.contract import repeated as in_config
from harness.matrix.load import load
from harness.matrix.plan import Matrix
from harness.servers.registry import partial
from tests import needs
from tests.matrix.test_matrix import TEXT, written

SHAPE = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64}


def test_a_config_says_what_an_engine_takes_otherwise() -> None:
    assert in_config.overrides(SHAPE) == ""
    assert in_config.whole(SHAPE) == SHAPE
    one = {**SHAPE, "num_hidden_layers": 1, in_config.LAYERS: 4}
    assert json.loads(in_config.overrides(one)) == {"num_hidden_layers": 4}
    assert in_config.whole(one)["num_hidden_layers"] == 4


def test_such_a_model_has_no_other_source_and_goes_through_vllm_alone(tmp_path: Path, suites_matrix: Matrix) -> None:
    text = TEXT.replace('tokenizer = "small" }', 'tokenizer = "small", one_layer = true }')
    with pytest.raises(MatrixError, match=r"models\.big: random\.one_layer is for a model without another source"):
        load(written(tmp_path, text))
    cells = suites_matrix.cells(["Llama-3.3-70B-shape"])
    asked = {(cell.recipe.name, cell.gpus) for cell in cells if cell.hardware.name == "h200"}
    assert asked == {("bf16", 2), ("float8dq", 2), ("int4wo", 2), ("float8dq", 1), ("int4wo", 1)}
    (cell,) = [it for it in cells if it.hardware.name == "h200" and it.recipe.name == "bf16"]
    assert partial("vllm", cell.model) == ""
    for server in ("transformers", "sglang"):
        assert "one layer lies in files, which vllm alone reads for each" in partial(server, cell.model)


@pytest.mark.models
@needs.package("torch")
def test_a_loader_reads_the_layer_for_each_and_all_else_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.worker import repeated

    class Loader:
        def get_all_weights(self, config: Any, model: Any) -> Any:
            yield from (
                ("model.embed_tokens.weight", 1),
                ("model.layers.0.mlp.up_proj.weight", 2),
                ("lm_head.weight", 3),
            )

    module = ModuleType("vllm.model_executor.model_loader.default_loader")
    module.DefaultModelLoader = Loader  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.model_loader"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    repeated.install()
    repeated.install()

    def read(**config: int) -> list[tuple[str, int]]:
        return list(Loader().get_all_weights(SimpleNamespace(hf_config=SimpleNamespace(**config)), None))

    assert len(read()) == 3
    assert read(repeated_layers=3) == [
        ("model.embed_tokens.weight", 1),
        *((f"model.layers.{number}.mlp.up_proj.weight", 2) for number in range(3)),
        ("lm_head.weight", 3),
    ]


@pytest.mark.models
@needs.package("torchao")
def test_what_one_layer_says_of_the_whole_is_what_the_whole_says(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.contract.weights import Unusable
    from harness.worker import parameters, proof, repeated, tensors

    def facts(layers: int) -> dict[str, Any]:
        config = LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=300,
            tie_word_embeddings=False,
        )
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        found = parameters.survey(model)
        predicted, _ = proof.predicted_bytes(model, found, {})
        told = {
            "weight_bytes": tensors.weight_bytes(model),
            "predicted_weight_bytes": predicted,
            "parameters": sum(one.size for one in found.values()),
            "weights": proof.table(found, {}),
            "linear": parameters.multiplied(model),
        }
        return repeated.whole_facts(told, model, found, {}, 5) if layers == 1 else told

    one, whole = facts(1), facts(5)
    assert {name: one[name] for name in whole} == whole
    assert one["checkpoint_bytes"] is None
    assert repeated.one_layer(SHAPE) == {**SHAPE, "num_hidden_layers": 1, "repeated_layers": 4}
    with pytest.raises(Unusable, match="of several kinds"):
        repeated.one_layer({**SHAPE, "layer_types": ["full_attention"] * 4})
