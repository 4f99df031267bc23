"""Makes plain checkpoints out of any source, and quantized checkpoints out of plain ones, and proves the latter."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, TorchAoConfig

from harness.contract import quantized
from harness.worker import loading, tensors
from harness.worker import recipe as recipes
from harness.worker.backend import Backend


class Quantize(Backend):
    """Writes checkpoints with ``save_pretrained``."""

    commands: ClassVar[tuple[str, ...]] = ("plain_from_gguf", "plain_from_shape", "facts", "quantize")

    def open(self, device: str) -> dict[str, Any]:
        self.device = device
        return {}

    def plain_from_gguf(self, file: str, output: str) -> dict[str, Any]:
        """Rebuild a plain bf16 model from a GGUF file.

        Transformers marks a model loaded from GGUF as quantized and refuses to save it, so its state goes into a
        model made from the configuration alone.
        """
        path = Path(file)
        source: dict[str, Any] = {"gguf_file": path.name}
        loaded = loading.model(str(path.parent), **source)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.dtype = torch.bfloat16
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        missing, unexpected = model.load_state_dict(loaded.state_dict(), strict=False)
        if unexpected or [name for name in missing if "lm_head" not in name]:
            raise ValueError(f"{path.name}: tensors do not fit: missing {missing}, unexpected {unexpected}")
        model.tie_weights()
        model.generation_config = loaded.generation_config
        model.save_pretrained(output)
        words = loading.tokenizer(str(path.parent), **source)
        # Transformers reads the tokens of a GGUF file, and not whether every text begins with one.
        if (begins := _adds_bos(path)) is not None:
            words.add_bos_token = begins
        words.save_pretrained(output)
        return _facts(model, output, words=words)

    def plain_from_shape(self, shape: str, seed: int, tokenizer: str, output: str) -> dict[str, Any]:
        """Write random bf16 weights of the shape of a config.json, with another model's tokenizer."""
        config = AutoConfig.for_model(**json.loads(Path(shape).read_text(encoding="utf-8")))
        torch.manual_seed(seed)
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        _randomize_padding(model)
        model.save_pretrained(output)
        loaded = loading.tokenizer(tokenizer)
        if len(loaded) > config.vocab_size:
            raise ValueError(f"tokenizer of {tokenizer} has {len(loaded)} tokens, the model {config.vocab_size}")
        loaded.save_pretrained(output)
        return _facts(model, output, words=loaded)

    def facts(
        self,
        checkpoint: str,
        trust_remote_code: bool,
        config: str = "",
        arguments: dict[str, Any] | None = None,
        quantizes: list[str] | None = None,
    ) -> dict[str, Any]:
        """Return of a checkpoint that somebody else made what the other commands return of theirs.

        ``config`` and ``arguments`` are the recipe that it is taken for, if it is quantized already. Raises ValueError
        if it was made by another, for quantized layers of other kinds than ``quantizes``, and, as ``quantize`` does,
        for plain layers of these kinds.
        """
        if config:
            other = recipes.differences(config, arguments or {}, quantized.quant_type(Path(checkpoint)))
            if other:
                raise ValueError(
                    f"the checkpoint was quantized with another {config}: {'; '.join(other)}. Measure it by a recipe "
                    "with the same arguments"
                )
        model = loading.model(checkpoint, device_map=self.device, trust_remote_code=trust_remote_code)
        found = _facts(model, checkpoint, trust_remote_code)
        if more := tensors.quantized_besides(found["layers"], quantizes or []) if config else []:
            raise ValueError(
                f"the checkpoint holds {len(more)} quantized layers that the recipe leaves plain: "
                f"{', '.join(more[:6])}. Measure it by a recipe of the matrix whose `quantizes` has these kinds too"
            )
        if plain := tensors.unquantized(found["layers"], quantizes or []):
            raise ValueError(_silent_skip(config, arguments or {}, plain, found["layers"]))
        return found

    def quantize(
        self,
        checkpoint: str,
        config: str,
        arguments: dict[str, Any],
        quantizes: list[str],
        transformers_options: dict[str, Any],
        untie_embeddings: bool,
        trust_remote_code: bool,
        output: str,
    ) -> dict[str, Any]:
        """Quantize through TorchAoConfig at load, save, and prove that every layer that was meant is quantized.

        Raises ValueError naming the layers that stayed as they were, and the options that transformers would
        swallow in silence.
        """
        options = dict(transformers_options)
        if "embedding" in quantizes or "head" in quantizes:
            options.setdefault("include_input_output_embeddings", True)
            options.setdefault("modules_to_not_convert", [])
        accepted = [name for name in inspect.signature(TorchAoConfig.__init__).parameters if name not in _NOT_OPTIONS]
        swallowed = [name for name in options if name not in accepted]
        if swallowed:
            raise ValueError(
                f"TorchAoConfig does not know {', '.join(swallowed)} and would ignore it in silence; "
                f"it knows {', '.join(accepted)}"
            )
        torchao_config = recipes.build(config, arguments)
        source = checkpoint
        if untie_embeddings:
            source = str(Path(output) / "untied")
            _untie(checkpoint, source, trust_remote_code)
        model = loading.model(
            source,
            device_map=self.device,
            quantization_config=TorchAoConfig(torchao_config, **options),
            trust_remote_code=trust_remote_code,
        )
        found = tensors.layers(model)
        skipped = tensors.unquantized(found, quantizes)
        if skipped:
            raise ValueError(_silent_skip(config, arguments, skipped, found))
        model.save_pretrained(output)
        loading.tokenizer(source, trust_remote_code=trust_remote_code).save_pretrained(output)
        if untie_embeddings:
            shutil.rmtree(source)
        return _facts(model, output, trust_remote_code)


def _adds_bos(file: Path) -> bool | None:
    """Return whether a GGUF file's tokenizer begins every text with its BOS; None where the file does not say."""
    from gguf import GGUFReader

    told = GGUFReader(file).get_field("tokenizer.ggml.add_bos_token")
    return None if told is None else bool(told.contents())


def _randomize_padding(model: Any) -> None:
    """Give the padding token's embedding, which transformers makes zero, random values like every other's.

    Sampled from random weights it comes up like every other token. Then a float8 activation of zeros is scaled by
    zero, and the probabilities after it are no numbers, at which an engine may end.
    """
    embedding = model.get_input_embeddings()
    if embedding.padding_idx is not None:
        with torch.no_grad():
            embedding.weight[embedding.padding_idx].normal_(std=model.config.get_text_config().initializer_range)


_NOT_OPTIONS = ("self", "quant_type", "kwargs")


def _silent_skip(config: str, arguments: dict[str, Any], skipped: list[str], found: dict[str, dict[str, Any]]) -> str:
    shapes = sorted({str(tuple(found[name]["shape"])) for name in skipped})
    shown = ", ".join(skipped[:6]) + (f" and {len(skipped) - 6} more" if len(skipped) > 6 else "")
    total = sum(layer["kind"] in ("linear", "embedding", "head") for layer in found.values())
    return (
        f"{config} left {len(skipped)} of {total} layers unquantized without a word: {shown} (weight shapes "
        f"{', '.join(shapes)}; arguments {arguments}). Likely causes: a group size that does not divide the last "
        "dimension, tied embeddings, or an option that does not reach these layers."
    )


def _untie(checkpoint: str, output: str, trust_remote_code: bool) -> None:
    """Save a copy whose output head has a weight of its own, since tied weights cannot be quantized apart."""
    model = loading.model(checkpoint, trust_remote_code=trust_remote_code)
    text_config = model.config.get_text_config(decoder=True)
    text_config.tie_word_embeddings = False
    model.config.tie_word_embeddings = False
    model._tied_weights_keys = None
    model.all_tied_weights_keys = {}
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.save_pretrained(output)
    loading.tokenizer(checkpoint, trust_remote_code=trust_remote_code).save_pretrained(output)


def _facts(model: Any, output: str, trust_remote_code: bool = False, words: Any = None) -> dict[str, Any]:
    """Return what is said of every checkpoint; raises Unusable for one that holds, or predicts, what is no number."""
    found = tensors.layers(model)
    files = sorted(Path(output).glob("*.safetensors"))
    if not files:
        raise ValueError(f"there is no safetensors file in {output}")
    saved = json.loads((Path(output) / "config.json").read_text(encoding="utf-8"))
    return {
        "checkpoint_bytes": sum(file.stat().st_size for file in files),
        "weight_bytes": tensors.weight_bytes(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": found,
        "linear": tensors.linear_weights(model),
        "quantization_config": saved.get("quantization_config", {}),
        "architecture": type(model).__name__,
        "finite": loading.check_sound(model, output, trust_remote_code, words),
    }


BACKEND = Quantize
