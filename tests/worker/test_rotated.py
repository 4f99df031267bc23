"""torchao's SpinQuant on models of Transformers: the same model in other directions, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from harness.contract.weights import Unusable

pytestmark = pytest.mark.models

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


def turned(model: Any, *rotations: str) -> Any:
    # Not at the top: it imports torch.
    from harness.worker.rotated import rotate

    rotate(model, rotations)
    return model


def llama(**changes: int) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 2)
        # A feature that is far larger than others, and tokens whose mean is not zero.
        model.model.embed_tokens.weight[:, 3] += 4
    return model


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.arange(5, 60)[None]).logits


@pytest.mark.parametrize("rotations", [["R1"], ["R2"], ["R1", "R2"]])
def test_a_turned_model_predicts_the_same_from_other_weights(rotations: list[str]) -> None:
    model = llama()
    plain, before = {name: it.clone() for name, it in model.state_dict().items()}, logits(model)
    assert (logits(turned(model, *rotations)) - before).abs().max() < 1e-4
    same = {name.split(".")[-2] for name, it in model.state_dict().items() if bool((it == plain[name]).all())}
    apart = {"v_proj", "o_proj"} if "R2" in rotations else set()
    apart |= {"embed_tokens", "lm_head", "q_proj", "down_proj", "norm", "o_proj"} if "R1" in rotations else set()
    assert not apart & same
    assert ("R1" in rotations) == ("q_proj" not in same)


def test_what_one_feature_holds_is_spread_over_all() -> None:
    weights = [it.model.embed_tokens.weight.detach() for it in (llama(), turned(llama(), "R1"))]
    plain, spread = (float(it.abs().max() / it.std()) for it in weights)
    assert spread < plain / 1.5


def test_a_model_that_is_no_llama_is_refused() -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(Unusable, match="SpinQuant: GPT2LMHeadModel has not a Llama's layers"):
        turned(transformers.GPT2LMHeadModel(config), "R1")


def test_a_width_without_a_hadamard_matrix_is_refused() -> None:
    with pytest.raises(Unusable, match="no Hadamard matrix"):
        turned(llama(hidden_size=136), "R1")


def test_norms_of_another_kind_make_another_model() -> None:
    """Gemma adds one to each weight of its norms, which torchao's function does not."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.GemmaForCausalLM(transformers.GemmaConfig(**SIZES, head_dim=16)).eval()
    with pytest.raises(Unusable, match="GemmaForCausalLM turned by R1 and R2 predicts otherwise"):
        turned(model, "R1", "R2")
