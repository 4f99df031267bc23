"""Writes tiny models of many architectures with seeded random weights, each with a byte-level tokenizer.

Run in a worker's environment: ``python models.py FOLDER [NAME ...]`` makes FOLDER/NAME for each name, all of them by
default. Nothing of the harness is imported. A maker is a function under ``@architecture``; what it returns is a
configuration, or a model.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]
TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)

MAKERS: dict[str, Callable[[], Any]] = {}


def architecture(make: Callable[[], Any]) -> Callable[[], Any]:
    MAKERS[make.__name__] = make
    return make


def text(kind: str, **changes: Any) -> Any:
    return getattr(transformers, f"{kind}Config")(**{**TEXT, **changes})


@architecture
def dense() -> Any:
    return text("Llama")


@architecture
def tied() -> Any:
    return text("Qwen3", tie_word_embeddings=True)


@architecture
def with_biases() -> Any:
    return text("Qwen2")


@architecture
def odd_sizes() -> Any:
    """Of which 32 divides neither the hidden nor the intermediate size."""
    return text("Llama", hidden_size=72, intermediate_size=100)


@architecture
def qwen3_moe() -> Any:
    return text("Qwen3Moe", **EXPERTS, decoder_sparse_step=1, mlp_only_layers=[])


@architecture
def olmoe() -> Any:
    return text("Olmoe", num_experts=4, num_experts_per_tok=2, num_key_value_heads=2)


@architecture
def mixtral() -> Any:
    return text("Mixtral", num_local_experts=4, num_experts_per_tok=2)


@architecture
def shared_expert() -> Any:
    """Whose shared expert has a gate of its own: a linear layer with one output."""
    return text("Qwen2Moe", **EXPERTS, shared_expert_intermediate_size=64, decoder_sparse_step=1, mlp_only_layers=[])


@architecture
def deepseek_v3() -> Any:
    """Whose first layer has no experts, and the second a shared one."""
    heads = {
        "head_dim": 16,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 32,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
    }
    routed = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
    return text("DeepseekV3", **heads, **routed, num_experts_per_tok=2, moe_intermediate_size=32, num_key_value_heads=2)


@architecture
def transposed_experts() -> Any:
    """Whose experts are held as (experts, in, out)."""
    return text("GptOss", num_local_experts=4, num_experts_per_tok=2, sliding_window=128)


@architecture
def own_product() -> Any:
    """Whose linear layers multiply in their own way, by the transposed weight as NumPy has it."""
    return transformers.FalconConfig(
        vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, bos_token_id=1, eos_token_id=2
    )


@architecture
def recurrent() -> Any:
    """Whose gates are matrices of no linear layer."""
    return text("RecurrentGemma", lru_width=64, attention_window_size=128, num_key_value_heads=2)


@architecture
def conv1d() -> Any:
    """Whose layers are transformers' Conv1D: matrices of (in, out)."""
    return transformers.GPT2Config(
        vocab_size=320, n_embd=64, n_layer=2, n_head=2, n_positions=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )


@architecture
def mamba() -> Any:
    return transformers.MambaConfig(
        vocab_size=320,
        hidden_size=64,
        state_size=8,
        num_hidden_layers=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


@architecture
def hybrid() -> Any:
    """With attention and a state space in each layer."""
    space = {"mamba_d_ssm": 64, "mamba_n_heads": 2, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}
    return text("FalconH1", **space, mamba_chunk_size=32)


@architecture
def vision() -> Any:
    """A language model with a vision tower and a projector."""
    text_config = {**TEXT, "sliding_window": 128, "query_pre_attn_scalar": 32, "tie_word_embeddings": True}
    tower = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"image_size": 28, "patch_size": 14, "vision_use_head": False}
    return transformers.Gemma3Config(
        text_config=text_config, vision_config=tower, mm_tokens_per_image=4, image_token_index=3
    )


@architecture
def float32() -> Any:
    return AutoModelForCausalLM.from_config(text("Llama"), dtype=torch.float32)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token a byte."""
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    names = {"pad_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=CHAT_TEMPLATE, **names)


def write(folder: Path, name: str) -> None:
    """Write a model by its maker's name, and its tokenizer."""
    torch.manual_seed(0)
    made = MAKERS[name]()
    model = made if isinstance(made, torch.nn.Module) else AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    model.save_pretrained(folder / name)
    tokenizer().save_pretrained(folder / name)


if __name__ == "__main__":
    for chosen in sys.argv[2:] or MAKERS:
        write(Path(sys.argv[1]), chosen)
