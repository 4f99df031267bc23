"""Turns a model by torchao's SpinQuant before it is quantized, so that outliers are spread over all features.

R1 turns what runs from layer to layer, R2 the values of each attention head (Liu et al., SpinQuant, arXiv:2405.16406):
both are taken into the weights, by random Hadamard matrices of torchao's seed. R4, which turns the MLP's inner features
as they are computed, is no part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from harness.contract.weights import Unusable
from harness.worker import loading, tensors

# Logits are some tens, and the rotations of a float32 model are computed in float64.
_SAME = 1e-2
_TOKENS = 32


def save(checkpoint: str, output: str, rotations: Sequence[str], device: str, trust_remote_code: bool) -> None:
    """Write a checkpoint turned, in bfloat16. Its output head is not its embedding. See :func:`rotate`."""
    model = loading.model(checkpoint, device_map=device, trust_remote_code=trust_remote_code)
    kind = model.dtype
    rotate(model.float(), rotations)
    model.to(kind).save_pretrained(output)
    loading.tokenizer(checkpoint, trust_remote_code=trust_remote_code).save_pretrained(output)


@tensors.without_gradients
def rotate(model: Any, rotations: Sequence[str]) -> None:
    """Turn a float32 model in place, by R1 and R2 of torchao's own.

    Raises Unusable for a model that has not a Llama's layers, or that predicts otherwise when it is turned.
    """
    from torchao.prototype.spinquant import spinquant

    view, embedding = _by_torchaos_names(model), model.get_input_embeddings().weight
    ids = torch.arange(1, _TOKENS + 1, device=model.device)[None] % len(embedding)
    before = model(ids, use_cache=False).logits
    try:
        if "R1" in rotations:
            mean = embedding.mean(dim=-1, keepdim=True)
            spinquant.fuse_layernorm_into_linear(view, qkv_split=True)
            # torchao takes each token's mean away, which a layer norm does as well; an RMS norm does not.
            embedding.data += mean
            spinquant.apply_spinquant_r1(view, model.device, qkv_split=True)
        if "R2" in rotations:
            spinquant.apply_spinquant_r2(view, model.device, qkv_split=True)
    except AssertionError as error:
        raise Unusable(f"SpinQuant: torchao has no Hadamard matrix of the model's width: {error}") from error
    apart = (model(ids, use_cache=False).logits - before).abs().max().item()
    if not apart <= _SAME:
        raise Unusable(
            f"SpinQuant: {type(model).__name__} turned by {' and '.join(rotations)} predicts otherwise (a logit is "
            f"{apart:.3g} apart): the rotations are for models of Llama's layers and RMS norms"
        )


def _by_torchaos_names(model: Any) -> SimpleNamespace:
    """Return a model's parts by the names of torchao's own Llama, which its functions know alone."""
    config = model.config.get_text_config()
    try:
        layers = [
            SimpleNamespace(
                attention_norm=it.input_layernorm,
                ffn_norm=it.post_attention_layernorm,
                attention=SimpleNamespace(
                    wq=it.self_attn.q_proj, wk=it.self_attn.k_proj, wv=it.self_attn.v_proj, wo=it.self_attn.o_proj
                ),
                feed_forward=SimpleNamespace(w1=it.mlp.gate_proj, w2=it.mlp.down_proj, w3=it.mlp.up_proj),
            )
            for it in model.model.layers
        ]
        heads = layers[0].attention.wo.in_features // config.num_attention_heads
        return SimpleNamespace(
            tok_embeddings=model.model.embed_tokens,
            output=model.lm_head,
            norm=model.model.norm,
            layers=layers,
            config=SimpleNamespace(dim=config.hidden_size, head_dim=heads),
        )
    except AttributeError as error:
        raise Unusable(f"SpinQuant: {type(model).__name__} has not a Llama's layers: {error}") from error
