"""Writes model folders as people have them: whole ones, and damaged, foreign or unfit ones, each tiny and seeded.

Run in a worker's environment: ``python folders.py FOLDER`` makes FOLDER/NAME for each. Nothing of the harness is
imported.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]
ROWS = 320
CONFIG: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MAKERS: dict[str, Callable[[Path], None]] = {}
Change = Callable[[dict[str, torch.Tensor]], Any]


def folder(make: Callable[[Path], None]) -> Callable[[Path], None]:
    MAKERS[make.__name__] = make
    return make


def tokenizer(tokens: int = ROWS, begins: bool = False, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer of so many tokens, which may begin every text with its BOS."""
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [f"word{number}" for number in range(tokens - len(pieces))]
    made = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    if begins:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    found = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    found.chat_template = template
    return found


def save(to: Path, kind: str = "Llama", words: PreTrainedTokenizerFast | None = None, **changes: Any) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**CONFIG, "tie_word_embeddings": False, **changes})
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(to)
    (words or tokenizer()).save_pretrained(to)


def copy(name: str, to: Path, change: Change | None = None, **config: Any) -> None:
    """Write a folder like another one, with other tensors or other entries in its config.json."""
    if not (to.parent / name).exists():
        MAKERS[name](to.parent / name)
    shutil.copytree(to.parent / name, to)
    if change:
        state = load_file(to / "model.safetensors")
        change(state)
        save_file(state, to / "model.safetensors", metadata={"format": "pt"})
    if config:
        told = json.loads((to / "config.json").read_text())
        (to / "config.json").write_text(json.dumps({**told, **config}))


# ------------------------------------------------------------------------------------------------------------- whole


@folder
def whole(to: Path) -> None:
    save(to)


@folder
def tied(to: Path) -> None:
    save(to, tie_word_embeddings=True)


@folder
def head_alone(to: Path) -> None:
    """Tied, and the file has the tensor under the output head's name."""

    def change(state: dict[str, torch.Tensor]) -> None:
        state["lm_head.weight"] = state.pop("model.embed_tokens.weight")

    copy("tied", to, change)


@folder
def old_rotary(to: Path) -> None:
    """Written by an old Transformers, which saved what the model computes today."""
    copy("whole", to, lambda state: state.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16)}))


@folder
def sharded(to: Path) -> None:
    save(to)
    AutoModelForCausalLM.from_pretrained(to, dtype=torch.bfloat16).save_pretrained(to, max_shard_size="60KB")
    (to / "model.safetensors").unlink()


@folder
def begins(to: Path) -> None:
    save(to, words=tokenizer(begins=True, template="{{ bos_token }}" + TEMPLATE))


@folder
def base_model(to: Path) -> None:
    """No chat template and no padding token."""
    words = tokenizer(template=None)
    words.pad_token = None
    save(to, words=words, pad_token_id=None)


@folder
def experts(to: Path) -> None:
    save(to, "Qwen3Moe", head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)


# ----------------------------------------------------------------------------------------------------------- damaged


@folder
def lacks_a_tensor(to: Path) -> None:
    copy("whole", to, lambda state: state.pop("model.layers.1.self_attn.q_proj.weight"))


@folder
def lacks_what_is_tied(to: Path) -> None:
    copy("tied", to, lambda state: state.pop("model.embed_tokens.weight"))


@folder
def lacks_an_expert(to: Path) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        for name in [name for name in state if ".0.mlp.experts.3." in name]:
            del state[name]

    copy("experts", to, change)


@folder
def lacks_part_of_an_expert(to: Path) -> None:
    copy("experts", to, lambda state: state.pop("model.layers.0.mlp.experts.2.up_proj.weight"))


@folder
def one_layer_more(to: Path) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        for name in [name for name in state if ".layers.1." in name]:
            state[name.replace(".1.", ".2.")] = state[name].clone()

    copy("whole", to, change)


@folder
def other_shape(to: Path) -> None:
    copy("whole", to, lambda state: state.update({"model.norm.weight": torch.ones(32, dtype=torch.bfloat16)}))


@folder
def other_names(to: Path) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        for name in list(state):
            state[f"module.{name}"] = state.pop(name)

    copy("whole", to, change)


@folder
def not_a_number(to: Path) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        state["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")

    copy("whole", to, change)


@folder
def overflows(to: Path) -> None:
    """Finite weights whose predictions are not."""

    def change(state: dict[str, torch.Tensor]) -> None:
        state["model.norm.weight"].fill_(3e38)
        state["lm_head.weight"].fill_(3e38)

    copy("whole", to, change)


@folder
def shard_missing(to: Path) -> None:
    copy("sharded", to)
    sorted(to.glob("model-*.safetensors"))[1].unlink()


@folder
def pointer(to: Path) -> None:
    copy("whole", to)
    (to / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


@folder
def cut_off(to: Path) -> None:
    copy("whole", to)
    file = to / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


# ----------------------------------------------------------------------------------------------------------- foreign


@folder
def adapter(to: Path) -> None:
    to.mkdir()
    (to / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base", "peft_type": "LORA"}))
    save_file({"a": torch.zeros(2)}, to / "adapter_model.safetensors")


@folder
def adapter_beside(to: Path) -> None:
    copy("whole", to)
    (to / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base", "peft_type": "LORA"}))


def lora(to: Path, change: Change | None = None, **config: Any) -> None:
    """A model and beside it a low-rank adapter of one layer's product, as PEFT writes it."""
    copy("whole", to)
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    told |= {"base_model_name_or_path": "owner/base", "layers_to_transform": [0], **config}
    (to / "adapter_config.json").write_text(json.dumps(told))
    torch.manual_seed(1)
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    state = {f"{layer}.lora_A.weight": torch.randn(2, 64) / 4, f"{layer}.lora_B.weight": torch.randn(64, 2) / 4}
    if change:
        change(state)
    save_file(state, to / "adapter_model.safetensors", metadata={"format": "pt"})


@folder
def adapter_fits(to: Path) -> None:
    lora(to)


def without_its_model(to: Path, base: str | None) -> None:
    lora(to, base_model_name_or_path=base)
    for file in to.iterdir():
        if not file.name.startswith("adapter_"):
            file.unlink()


@folder
def adapter_alone(to: Path) -> None:
    without_its_model(to, "../whole")


@folder
def adapter_of_no_base(to: Path) -> None:
    without_its_model(to, None)


@folder
def adapter_of_a_base_elsewhere(to: Path) -> None:
    without_its_model(to, "/no/such/base")


@folder
def adapter_lacks_a_tensor(to: Path) -> None:
    lora(to, lambda state: state.pop(sorted(state)[0]))


@folder
def adapter_of_another_shape(to: Path) -> None:
    lora(to, lambda state: state.update({sorted(state)[0]: torch.zeros(2, 32)}))


@folder
def adapter_of_other_layers(to: Path) -> None:
    lora(to, target_modules=["c_attn"])


@folder
def adapter_not_a_number(to: Path) -> None:
    lora(to, lambda state: state[sorted(state)[1]].fill_(float("nan")))


@folder
def adapter_of_prompts(to: Path) -> None:
    copy("whole", to)
    told = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2, "token_dim": 64}
    told |= {"num_layers": 2, "num_attention_heads": 2, "num_transformer_submodules": 1}
    (to / "adapter_config.json").write_text(json.dumps(told))
    save_file({"prompt_embeddings": torch.zeros(2, 64)}, to / "adapter_model.safetensors", metadata={"format": "pt"})


@folder
def pickle(to: Path) -> None:
    """A pickle that Transformers would open, since the safetensors beside it has another name than it looks for."""
    copy("whole", to)
    (to / "model.safetensors").rename(to / "consolidated.safetensors")
    torch.save({"a": torch.zeros(2)}, to / "pytorch_model.bin")


@folder
def bare_integers(to: Path) -> None:
    """Quantized by hand: the numbers are there, and neither their scales nor a word of them."""

    def change(state: dict[str, torch.Tensor]) -> None:
        state.update({name: value.to(torch.int8) for name, value in state.items() if "proj" in name})

    copy("whole", to, change)


@folder
def of_onnx(to: Path) -> None:
    copy("whole", to)
    (to / "model.safetensors").rename(to / "model.onnx")


@folder
def of_a_training(to: Path) -> None:
    copy("whole", to.parent / f"{to.name}-step")
    to.mkdir()
    (to.parent / f"{to.name}-step").rename(to / "checkpoint-500")


@folder
def of_another_format(to: Path) -> None:
    to.mkdir()
    (to / "params.json").write_text("{}")
    save_file({"tok_embeddings.weight": torch.zeros(4, 4)}, to / "consolidated.safetensors")


@folder
def compressed(to: Path) -> None:
    copy("whole", to, compression_config={"config_groups": {"group_0": {"targets": ["Linear"]}}})


@folder
def encoder_decoder(to: Path) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=ROWS, d_model=64, d_ff=96, d_kv=32, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(to)
    tokenizer().save_pretrained(to)


@folder
def encoder(to: Path) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=ROWS, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.BertForMaskedLM(config).save_pretrained(to)
    tokenizer().save_pretrained(to)


@folder
def classifier(to: Path) -> None:
    torch.manual_seed(0)
    transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**CONFIG)).save_pretrained(to)
    tokenizer().save_pretrained(to)


@folder
def own_code(to: Path) -> None:
    names = {"AutoConfig": "configuration_mine.MyConfig", "AutoModelForCausalLM": "modeling_mine.MyForCausalLM"}
    copy("whole", to, model_type="mine", architectures=["MyForCausalLM"], auto_map=names)
    (to / "configuration_mine.py").write_text("raise SystemExit('the code was run')\n")


@folder
def unknown_type(to: Path) -> None:
    copy("whole", to, model_type="llama99", architectures=["Llama99ForCausalLM"])


@folder
def no_type(to: Path) -> None:
    copy("whole", to)
    told = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({name: value for name, value in told.items() if name != "model_type"}))


@folder
def sizes_that_do_not_fit(to: Path) -> None:
    copy("whole", to, hidden_size=65)


@folder
def size_in_words(to: Path) -> None:
    copy("whole", to, hidden_size="many")


@folder
def unknown_activation(to: Path) -> None:
    copy("whole", to, hidden_act="superact")


@folder
def broken_gguf(to: Path) -> None:
    copy("whole", to)
    (to / "model.safetensors").unlink()
    (to / "model.gguf").write_bytes(b"GGUF" + bytes(100))


@folder
def empty_file(to: Path) -> None:
    copy("whole", to)
    (to / "model.safetensors").write_bytes(b"")


@folder
def no_config(to: Path) -> None:
    copy("whole", to)
    (to / "config.json").unlink()


@folder
def unknown_method(to: Path) -> None:
    copy("whole", to, quantization_config={"quant_method": "superquant", "bits": 3})


@folder
def vision_language(to: Path) -> None:
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower |= {"image_size": 28, "patch_size": 14, "model_type": "clip_vision_model"}
    config = transformers.LlavaConfig(text_config={"model_type": "llama", **CONFIG}, vision_config=tower)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(to)
    tokenizer().save_pretrained(to)


@folder
def other_tokenizer(to: Path) -> None:
    save(to, words=tokenizer(tokens=ROWS + 8))


@folder
def no_tokenizer(to: Path) -> None:
    copy("whole", to)
    for file in [*to.glob("token*"), *to.glob("*.jinja")]:
        file.unlink()


def main() -> None:
    root = Path(sys.argv[1])
    for name, make in MAKERS.items():
        if not (root / name).exists():
            make(root / name)


if __name__ == "__main__":
    main()
