"""The quantizing worker on the two-layer model: what is quantized, how large it is, and what is refused out loud."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import WorkerError
from harness.base.files import file_digest
from harness.contract.versions import CHECKPOINT_FACTS

LINEAR_LAYERS = 14


def stored(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every tensor of a checkpoint, read by the file format alone."""
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {name: data[8 + length :][slice(*entry["data_offsets"])] for name, entry in header.items()}


# ---------------------------------------------------------------------------------------------- what is quantized


@pytest.mark.parametrize(
    "recipe",
    [
        "int8wo",
        "int8dq",
        "8da4w",
        "Int8WeightOnlyConfig(granularity=PerGroup(32))",
        "FqnToConfig(fqn_to_config={'_default': Int8WeightOnlyConfig(granularity=PerGroup(group_size=32))})",
        "Int8DynamicActivationInt8WeightConfig(granularity=[PerRow(), PerRow()])",
        "IntxWeightOnlyConfig(weight_dtype=torch.int8, mapping_type=MappingType.SYMMETRIC)",
    ],
)
def test_a_recipe_for_linear_layers_quantizes_every_one_and_nothing_else(quantizing, tiny_model, recipe):
    made = quantizing.by(recipe)
    linear = made.layers("linear")
    assert len(linear) == LINEAR_LAYERS
    assert {layer["quantized"] for layer in linear.values()} == {True}
    others = made.layers("embedding") | made.layers("head")
    assert {layer["tensor"] for layer in others.values()} == {"Tensor"}
    assert made.facts["quantization_config"]["quant_method"] == "torchao"
    # The embedding stays in 16 bits; a linear weight takes 8, since int4 is held in int8 on a CPU.
    shapes = [math.prod(layer["shape"]) for layer in linear.values()]
    embedding = math.prod(others["model.embed_tokens"]["shape"]) * 2
    assert embedding + sum(shapes) < made.facts["weight_bytes"] < embedding + 1.2 * sum(shapes)
    assert made.facts["checkpoint_bytes"] == (made.folder / "model.safetensors").stat().st_size
    assert made.facts["checkpoint_bytes"] < 0.75 * (tiny_model.folder / "model.safetensors").stat().st_size


def test_a_recipe_for_embeddings_quantizes_them_too_and_unties_them(quantizing):
    made = quantizing.by("8da4w-int8emb")
    assert len(made.layers("linear")) == LINEAR_LAYERS
    assert [len(made.layers(kind)) for kind in ("embedding", "head")] == [1, 1]
    assert all(layer["quantized"] for kind in ("linear", "embedding", "head") for layer in made.layers(kind).values())
    names = stored(made.folder)
    assert any(name.startswith("lm_head.") for name in names)
    assert any(name.startswith("model.embed_tokens.") for name in names)
    assert not [path for path in made.folder.rglob("*") if path.is_dir()], "the untied copy is gone"


def test_a_tied_weight_counts_once_and_an_untied_one_twice(quantizing, tiny_model):
    shape, lender = str(tiny_model.folder / "config.json"), str(tiny_model.folder)
    tied = quantizing.ask("plain_from_shape", shape=shape, seed=0, tokenizer=lender)
    config = json.loads(Path(shape).read_text())
    untied_shape = tied.folder.parent / "untied.json"
    untied_shape.write_text(json.dumps(config | {"tie_word_embeddings": False}))
    untied = quantizing.ask("plain_from_shape", shape=str(untied_shape), seed=0, tokenizer=lender)
    embedding = config["vocab_size"] * config["hidden_size"] * 2
    # Beside what is stored there are the rotary frequencies: two buffers of head_dim / 2 float32.
    buffers = 2 * 4 * config["hidden_size"] // config["num_attention_heads"] // 2
    assert tied.facts["weight_bytes"] == sum(map(len, stored(tied.folder).values())) + buffers
    assert untied.facts["weight_bytes"] == tied.facts["weight_bytes"] + embedding
    assert untied.facts["parameters"] == tied.facts["parameters"] + embedding // 2


def test_weights_from_a_gguf_file_are_the_plain_ones(quantizing, tiny_model):
    made = quantizing.ask("plain_from_gguf", file=str(tiny_model.gguf))
    assert stored(made.folder) == stored(tiny_model.folder)
    assert "quantization_config" not in json.loads((made.folder / "config.json").read_text())
    template = "chat_template.jinja"
    assert (made.folder / template).read_text() == (tiny_model.folder / template).read_text()


def test_a_plain_checkpoint_that_was_given_has_the_facts_of_one_that_was_made(quantizing, tiny_model):
    made = quantizing.ask(
        "plain_from_shape", shape=str(tiny_model.folder / "config.json"), seed=0, tokenizer=str(tiny_model.folder)
    )
    given = quantizing.worker.ask("facts", 60, checkpoint=str(made.folder), trust_remote_code=False)
    assert given == made.facts


def test_random_weights_are_those_of_the_seed(quantizing, tiny_model):
    shape, lender = str(tiny_model.folder / "config.json"), str(tiny_model.folder)
    digests = [
        file_digest(
            quantizing.ask("plain_from_shape", shape=shape, seed=seed, tokenizer=lender).folder / "model.safetensors"
        )
        for seed in (1, 1, 2)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_the_padding_token_of_random_weights_is_random_too(quantizing, tiny_model, tmp_path):
    """Transformers makes it zero, and a float8 activation of zeros is no number."""
    config = json.loads((tiny_model.folder / "config.json").read_text()) | {"pad_token_id": 5}
    shape = tmp_path / "padded.json"
    shape.write_text(json.dumps(config))
    made = quantizing.ask("plain_from_shape", shape=str(shape), seed=0, tokenizer=str(tiny_model.folder))
    row = 2 * config["hidden_size"]
    assert any(stored(made.folder)["model.embed_tokens.weight"][5 * row : 6 * row])


def test_a_storage_counts_once_however_many_tensors_show_it(run_code):
    code = """
import torch
from harness.worker import tensors

class Shared(torch.nn.Module):
    def __init__(self):
        super().__init__()
        whole = torch.zeros(8, 4)
        self.rows, self.same = torch.nn.Parameter(whole[:2]), torch.nn.Parameter(whole[2:])
        self.register_buffer("other", torch.zeros(3, dtype=torch.int8))

print(tensors.weight_bytes(Shared()))
"""
    assert run_code(code).stdout.split() == [str(8 * 4 * 4 + 3)]


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_group_size_that_does_not_divide_names_layers_sizes_and_what_does(quantizing):
    """Before anything is loaded; the tiny model's layers have 256 or 1024 inputs."""
    with pytest.raises(WorkerError) as caught:
        quantizing.by("Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(96))")
    words = str(caught.value)
    assert caught.value.kind == "refused"
    assert f"nothing of the model: {LINEAR_LAYERS} weights are meant" in words
    assert "groups of 96 do not divide their inputs (" in words
    assert "q_proj has 256 inputs, for which the nearest is 64" in words
    assert "Groups of 64 divide those of every layer" in words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"transformers_options": {"include_embedding": True}},
            "TorchAoConfig does not know include_embedding.*it knows.*include_input_output_embeddings",
        ),
        ({"config": "Int8WeightOnlyConfi"}, "no config class 'Int8WeightOnlyConfi'.*Int8WeightOnlyConfig"),
        ({"arguments": {"groupsize": 32}}, "has no argument 'groupsize' .*it has: .*granularity"),
        ({"arguments": {"granularity": "PerBlok(32)"}}, "'PerBlok.32.' is not a granularity"),
        ({"arguments": {"version": 1}}, "torchao refuses its arguments .version 1 .* has been removed"),
    ],
)
def test_what_torchao_or_transformers_would_swallow_is_refused(quantizing, suites_matrix, change, words):
    with pytest.raises(WorkerError, match=words) as caught:
        quantizing.ask(**suites_matrix.recipe("int8wo").identity.config | change)
    assert (caught.value.stage, caught.value.kind) == ("quantize", "refused")
    assert "\n" not in str(caught.value)
    assert quantizing.worker.alive, "the next recipe is quantized all the same"


def test_an_embedding_that_the_recipe_means_and_misses_is_refused(quantizing, suites_matrix):
    config = suites_matrix.recipe("int8wo").identity.config | {"quantizes": ["linear", "embedding"]}
    with pytest.raises(
        WorkerError,
        match=r"leave 1 of 15 weights .*, 28\.2% .*embed_tokens: tied to lm_head.*untie_embeddings",
    ):
        quantizing.ask(**config)


@pytest.mark.parametrize("recipe", ["int8wo", "IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))"])
def test_an_embedding_is_quantized_where_it_is_asked_for(quantizing, suites_matrix, recipe):
    """torchao applies a config to linear layers alone, so an embedding is reached by its name."""
    config = suites_matrix.recipe(recipe).identity.config
    made = quantizing.ask(**config | {"quantizes": ["linear", "embedding"], "untie_embeddings": True})
    assert {name for name, layer in made.layers("embedding").items() if layer["quantized"]} == {"model.embed_tokens"}
    assert not any(layer["quantized"] for layer in made.layers("head").values())


def test_a_model_is_turned_before_it_is_quantized(quantizing, suites_matrix):
    """What is written is an ordinary checkpoint, of a model whose head has weights of its own."""
    made = quantizing.by("spinquant-int8dq")
    assert sum(layer["quantized"] for layer in made.layers("linear").values()) == 14
    assert {file.name for file in made.folder.iterdir() if file.is_dir()} == set()
    config = json.loads((made.folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert "rotations" not in suites_matrix.recipe("int8dq").identity.config, "an older recipe keeps its digest"


def test_a_tokenizer_larger_than_the_shape_is_refused(quantizing, tiny_model, tmp_path):
    config = json.loads((tiny_model.folder / "config.json").read_text())
    (tmp_path / "small.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(WorkerError, match=r"has 10240 tokens, the model 100"):
        quantizing.ask("plain_from_shape", shape=str(tmp_path / "small.json"), seed=0, tokenizer=str(tiny_model.folder))


def test_everything_is_said_that_a_cached_checkpoint_must_say(quantizing: Any) -> None:
    assert set(quantizing.by("int8wo").facts) == set(CHECKPOINT_FACTS)
