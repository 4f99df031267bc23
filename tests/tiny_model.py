"""Writes a two-layer Llama with random weights and a byte-level tokenizer, and what transformers itself says of it.

Run in a worker's environment: ``python tiny_model.py FOLDER`` with the text to judge on its standard input. It writes
``model`` (tied embeddings, bf16), ``gguf/tiny.gguf`` (the same as llama.cpp would have it), ``broken`` (the same with
NaN in its last norm) and ``reference.json``: the mean negative log-likelihood of each window of the text, as the
model's own loss gives it, and the greedy continuation of a prompt. Nothing of the harness is imported, so that the
reference stands on its own.
"""

import json
import sys
from pathlib import Path

import gguf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WINDOWS, WINDOW_TOKENS = 3, 64
PROMPT, NEW_TOKENS = "Name three colours.", 16
# vLLM's latency benchmark draws token ids below 10,000.
VOCABULARY = 10240
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGE = ("h", "e")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "".join(MERGE)]
    pieces += [f"word{number}" for number in range(VOCABULARY - len(pieces))]
    tokenizer = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[MERGE]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        chat_template=CHAT_TEMPLATE,
    )


def make_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        # So wide that eight bits a linear weight take the checkpoint below the suites' limit in spite of the embedding.
        intermediate_size=4096,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


@torch.inference_mode()
def refer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str) -> dict[str, list[float] | list[int]]:
    ids = torch.tensor(tokenizer(text)["input_ids"][: WINDOWS * WINDOW_TOKENS]).view(WINDOWS, WINDOW_TOKENS)
    losses = [model(window[None], labels=window[None]).loss.item() for window in ids]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
    return {"nll": losses, "greedy": output[0, prompt["input_ids"].shape[1] :].tolist()}


def write_gguf(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, file: Path) -> None:
    """Write the model as llama.cpp's converter does, but in float32, so that every bf16 weight comes back as it was."""
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(config.vocab_size)))
    writer.add_token_types(
        [gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (VOCABULARY - len(SPECIAL))
    )
    writer.add_token_merges([" ".join(MERGE)])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = tensor.float()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                # llama.cpp pairs neighbouring rows for its rotary embedding.
                rows, columns = array.shape
                array = array.view(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    folder, text = Path(sys.argv[1]), sys.stdin.read()
    tokenizer, model = make_tokenizer(), make_model()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    # Loaded again, since a cast to bf16 has cast the rotary frequencies too.
    loaded = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16).eval()
    (folder / "reference.json").write_text(json.dumps(refer(loaded, tokenizer, text)), encoding="utf-8")
    (folder / "gguf").mkdir()
    write_gguf(model, tokenizer, folder / "gguf" / "tiny.gguf")
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(folder / "broken")
    tokenizer.save_pretrained(folder / "broken")


if __name__ == "__main__":
    main()
