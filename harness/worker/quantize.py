"""Makes plain checkpoints out of any source, and quantized checkpoints out of plain ones, and proves the latter."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, TorchAoConfig

from harness.contract import flattened, quantized
from harness.contract import repeated as in_config
from harness.contract.weights import Unusable, files
from harness.worker import (
    adapters,
    applied,
    gguf_files,
    loading,
    parameters,
    products,
    proof,
    repeated,
    rotated,
    tensors,
    texts,
)
from harness.worker import recipe as recipes
from harness.worker.backend import Backend
from harness.worker.plan import Plan


class Quantize(Backend):
    """Writes checkpoints with ``save_pretrained``."""

    commands: ClassVar[tuple[str, ...]] = (
        "plain_from_gguf",
        "plain_from_shape",
        "merge_adapter",
        "facts",
        "quantize",
    )

    def open(self, device: str, threads: int = 0) -> dict[str, Any]:
        """Compute with so many threads, where others work beside; 0: as many as are set."""
        self.device = device
        if threads:
            torch.set_num_threads(threads)
        return {}

    @gguf_files.read_once()
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
        return _facts(model, output, {}, words=words)

    def plain_from_shape(
        self, shape: str, seed: int, tokenizer: str, output: str, one_layer: bool = False
    ) -> dict[str, Any]:
        """Write random bf16 weights of the shape of a config.json, with another model's tokenizer.

        With ``one_layer`` they are of one of its layers, which stands for all (:mod:`harness.worker.repeated`).
        """
        told = json.loads(Path(shape).read_text(encoding="utf-8"))
        config = AutoConfig.for_model(**(repeated.one_layer(told) if one_layer else told))
        torch.manual_seed(seed)
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        _randomize_padding(model)
        model.save_pretrained(output)
        loaded = loading.tokenizer(tokenizer)
        if len(loaded) > config.vocab_size:
            raise ValueError(f"tokenizer of {tokenizer} has {len(loaded)} tokens, the model {config.vocab_size}")
        loaded.save_pretrained(output)
        return _facts(model, output, {}, words=loaded)

    def merge_adapter(self, checkpoint: str, output: str, trust_remote_code: bool, adapter: str = "") -> dict[str, Any]:
        """Write a model with an adapter merged into its weights; what is returned as ``adapter`` says what it is.

        ``adapter`` is its folder where it does not stand beside the model; its tokenizer is taken, if it has one.
        Raises Unusable for an adapter that cannot be merged, or that does not fit the model.
        """
        place = Path(adapter or checkpoint)
        model, words = adapters.merged(Path(checkpoint), place, trust_remote_code)
        model.save_pretrained(output)
        own = adapter and (place / "tokenizer_config.json").is_file()
        tokenizer = loading.tokenizer(adapter if own else checkpoint, trust_remote_code=trust_remote_code)
        tokenizer.save_pretrained(output)
        return {**_facts(model, output, {}, trust_remote_code, words=tokenizer), "adapter": words}

    def facts(
        self,
        checkpoint: str,
        trust_remote_code: bool,
        config: str = "",
        arguments: dict[str, Any] | None = None,
        quantizes: list[str] | None = None,
        plain: list[str] | None = None,
        transformers_options: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return of a checkpoint that somebody else made what the other commands return of theirs.

        ``config`` and the rest are the recipe that it is taken for, if it is quantized already. Raises Unusable if it
        was made by another, and as :func:`harness.worker.proof.check` does where not exactly that is quantized which
        the recipe means.
        """
        stored = quantized.quant_type(Path(checkpoint)) if config else None
        if config and (other := recipes.differences(config, arguments or {}, stored)):
            raise Unusable(
                f"the checkpoint was quantized with another {config}: {'; '.join(other)}. Measure it by a recipe "
                "with the same arguments"
            )
        model = loading.model(checkpoint, device_map=self.device, trust_remote_code=trust_remote_code)
        plan: Plan = {}
        if config:
            asked = applied.Asked(config, arguments or {}, quantizes or [], transformers_options or {}, plain or [])
            found, plan = asked.plan(model)
            missed = any(choice.config is not None and not found[name].quantized for name, choice in plan.items())
            if missed and any(one.quantized for one in found.values()):
                found, plan = replace(asked, own=products.rules(model, found)).plan(model)
            proof.check(found, plan, config, f"the checkpoint {Path(checkpoint).name}")
        return _facts(model, checkpoint, plan, trust_remote_code, given=True)

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
        plain: list[str] | None = None,
        calibration: dict[str, Any] | None = None,
        calibration_text: str = "",
        kv_cache_dtype: str = "",
        rotations: list[str] | None = None,
    ) -> dict[str, Any]:
        """Quantize through TorchAoConfig at load, save, and prove that exactly what the recipe means is quantized.

        ``kv_cache_dtype`` is for servers, which nothing here depends on. By ``rotations`` the model is turned before.
        A recipe that observes a model first does so on ``sequences`` of ``tokens`` of the calibration text. Raises
        Unusable naming the weights that cannot be quantized or stayed as they were, and the options that Transformers
        would swallow in silence.
        """
        accepted = [name for name in inspect.signature(TorchAoConfig.__init__).parameters if name not in _NOT_OPTIONS]
        swallowed = [name for name in transformers_options if name not in accepted]
        if swallowed:
            raise Unusable(
                f"TorchAoConfig does not know {', '.join(swallowed)} and would ignore it in silence; "
                f"it knows {', '.join(accepted)}"
            )
        recipes.build(config, arguments)
        source = checkpoint
        if (untie_embeddings or rotations) and _ties(checkpoint, trust_remote_code):
            source = str(Path(output) / "untied")
            _untie(checkpoint, source, trust_remote_code)
        if rotations:
            plainly, source = source, str(Path(output) / "turned")
            rotated.save(plainly, source, rotations, self.device, trust_remote_code)
            if plainly != checkpoint:
                shutil.rmtree(plainly)
        asked = applied.Asked(config, arguments, quantizes, transformers_options, plain or [])
        tokenizer = loading.tokenizer(source, trust_remote_code=trust_remote_code)
        ids = _sequences(tokenizer, calibration, calibration_text) if calibration else []
        told = applied.Calibration(ids, report=self.report)
        made = applied.running(source, asked, self.device, trust_remote_code, told)
        try:
            made.model.save_pretrained(output)
        except Exception as error:
            if not applied.unsaved(error):
                raise
            saved = False
        else:
            saved = not applied.unread(made.model, Path(output))
        if not saved:
            applied.keep_plain(source, made, Path(output))
            return _facts(made.model, output, made.plan, trust_remote_code, words=tokenizer)
        for file in files(Path(output)):
            flattened.name_what_is_held(file)
        if made.by_experts:
            _run_experts_one_by_one(Path(output) / "config.json")
        tokenizer.save_pretrained(output)
        if source != checkpoint:
            shutil.rmtree(source)
        return _facts(made.model, output, made.plan, trust_remote_code, words=tokenizer)


def _sequences(tokenizer: Any, wanted: dict[str, Any], text: str) -> list[list[int]]:
    """Return the token ids of a calibration text's sequences; Unusable for a text that is too short."""
    try:
        return texts.windows(tokenizer, Path(text), wanted["sequences"], wanted["tokens"]).ids
    except ValueError as error:
        raise Unusable(
            f"the calibration text is too short: {error}. Give a longer one (--calibration FILE), or ask for less "
            "(--calibration-sequences, --calibration-tokens)"
        ) from error


def _run_experts_one_by_one(file: Path) -> None:
    """Have whoever loads a checkpoint with quantized experts run them in the only way that takes them."""
    saved = json.loads(file.read_text(encoding="utf-8"))
    saved["experts_implementation"] = "eager"
    file.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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


def _ties(checkpoint: str, trust_remote_code: bool) -> bool:
    """Return whether a model's output head is its embedding."""
    config = loading.configuration(checkpoint, trust_remote_code)
    return any(bool(one.tie_word_embeddings) for one in (config, config.get_text_config(decoder=True)))


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


def _facts(
    model: Any, output: str, plan: Plan, trust_remote_code: bool = False, given: bool = False, words: Any = None
) -> dict[str, Any]:
    """Return what is said of every checkpoint; of one that was ``given``, the tensors count that are loaded from it.

    One that cannot be saved quantized has no size of its own.
    Raises Unusable for one that holds, or predicts, what is no number.
    """
    found = parameters.survey(model)
    at_load = (Path(output) / quantized.AT_LOAD).is_file()
    loaded = files(Path(applied.place(output)))
    headers = sum(map(_header_bytes, loaded))
    saved = json.loads((Path(applied.place(output)) / "config.json").read_text(encoding="utf-8"))
    held = sum(parameter.bytes for parameter in found.values())
    predicted, unpredicted = proof.predicted_bytes(model, found, plan)
    kept = proof.buffer_bytes(model, persistent=True)
    buffers = proof.buffer_bytes(model, persistent=False)
    written = held + kept + headers if given else sum(file.stat().st_size for file in loaded)
    facts = {
        "checkpoint_bytes": None if at_load else written,
        "weight_bytes": tensors.weight_bytes(model),
        "predicted_checkpoint_bytes": None if predicted is None or at_load else predicted + kept + headers,
        "predicted_weight_bytes": None if predicted is None else predicted + buffers,
        "unpredicted": unpredicted,
        "parameters": sum(parameter.size for parameter in found.values()),
        "weights": proof.table(found, plan),
        "linear": parameters.multiplied(model),
        "quantization_config": saved.get("quantization_config", {}),
        "architecture": type(model).__name__,
        "finite": loading.check_sound(model, output, trust_remote_code, words),
    }
    layers = in_config.layers(saved)
    return repeated.whole_facts(facts, model, found, plan, layers) if layers else facts


def _header_bytes(file: Path) -> int:
    with file.open("rb") as opened:
        return 8 + int.from_bytes(opened.read(8), "little")


BACKEND = Quantize
