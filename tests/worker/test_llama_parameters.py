"""ExecuTorch's model parameters come from the Hugging Face configuration, and what they cannot say is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.worker.llama_parameters import parameters

SMALL: dict[str, Any] = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


def test_llama() -> None:
    found = parameters({**SMALL, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}})
    assert found == {
        "dim": 576,
        "n_layers": 30,
        "n_heads": 9,
        "n_kv_heads": 3,
        "head_dim": 64,
        "hidden_dim": 1536,
        "vocab_size": 49152,
        "norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "partial_rotary_factor": 1.0,
        "attention_qkv_bias": False,
        "use_hf_rope": True,
    }


def test_phi_4_mini(repository: Path) -> None:
    """The published model's own shape: a quarter of each head is not rotated, and long contexts are scaled."""
    shape = json.loads((repository / "suites/shapes/phi-4-mini-instruct.json").read_text(encoding="utf-8"))
    found = parameters(shape)
    assert (found["dim"], found["n_layers"], found["n_heads"], found["n_kv_heads"]) == (3072, 32, 24, 8)
    assert (found["hidden_dim"], found["vocab_size"], found["head_dim"]) == (8192, 200064, 128)
    assert found["partial_rotary_factor"] == 0.75
    assert found["original_max_position_embeddings"] == 4096
    assert found["max_position_embeddings"] == 131072
    assert len(found["rope_scaling_short_factor"]) == len(found["rope_scaling_long_factor"]) == 48


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rotary scaling 'yarn'; use the transformers route"),
        # Llama 3.1 and 3.2: ExecuTorch would leave the scaling out where weights are in Hugging Face's layout.
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 32.0}},
            "rotary scaling 'llama3'; use the transformers route",
        ),
    ],
)
def test_what_the_route_cannot_express(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"{words}.*"):
        parameters({**SMALL, **change})
