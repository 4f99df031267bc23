"""A Hugging Face configuration -> the parameters of ExecuTorch's own Llama."""

from __future__ import annotations

from typing import Any


def parameters(config: dict[str, Any]) -> dict[str, Any]:
    """Return ExecuTorch's model parameters for a Hugging Face text configuration, its longrope scaling included.

    Raises ValueError for what ExecuTorch's model cannot express. Llama 3's rotary scaling is of that: ExecuTorch knows
    it for its own layout of weights alone (``Rope`` of its examples/models/llama/rope.py), and leaves it out, without a
    word, for Hugging Face's.
    """
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found: dict[str, Any] = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "hidden_dim": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "norm_eps": config["rms_norm_eps"],
        "rope_theta": rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
        "partial_rotary_factor": rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0,
        "attention_qkv_bias": bool(config.get("attention_bias")),
        # The weights are in Hugging Face's layout, whose rotary embedding pairs halves, not neighbours.
        "use_hf_rope": True,
    }
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ValueError(f"hidden_act {activation!r} is not one that the llama route exports: use the other")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "longrope":
        found |= {
            "rope_scaling_short_factor": rope["short_factor"],
            "rope_scaling_long_factor": rope["long_factor"],
            "rope_scaling_attention_factor": rope.get("attention_factor"),
            "original_max_position_embeddings": rope.get("original_max_position_embeddings")
            or config["original_max_position_embeddings"],
            "max_position_embeddings": config["max_position_embeddings"],
        }
    elif kind != "default":
        raise ValueError(f"the llama route exports no rotary scaling {kind!r}; use the transformers route")
    return found
