"""Loads models and tokenizers through Transformers: all weights of the files and no others, or an error."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, modeling_utils
from transformers.models.auto import configuration_auto, modeling_auto

from harness.contract.weights import Unusable, shown
from harness.worker import parameters, products, tensors, texts, unflattened

_CAUSAL = ("ForCausalLM", "LMHeadModel", "LMHead", "ForConditionalGeneration", "Model")


def model(checkpoint: str, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """Return the causal language model of a folder, in evaluation mode, with the weights of its files.

    ``options`` are those of Transformers' ``from_pretrained``; ``dtype`` is bfloat16 unless given. Raises Unusable for
    a model that is no decoder-only one, and naming the tensors where the files lack one of the model's, have one that
    it has no place for, or one of another shape. Weights that the model ties, and names that it declares to be left
    out, are none of these.
    """
    if "gguf_file" not in options:
        configuration(checkpoint, trust_remote_code)
    options = {"dtype": torch.bfloat16, **options}
    try:
        with _conversions(checkpoint), read_as_made(), unflattened.one_by_one():
            found, told = AutoModelForCausalLM.from_pretrained(
                checkpoint,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                # So that all names are told, rather than the first: what does not fit is an error below.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except Unusable:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        if file := options.get("gguf_file"):
            raise Unusable(f"{Path(checkpoint) / file}: Transformers cannot read it: {_reason(error)}") from error
        # Where no model can be made of the configuration alone, that is what is wrong.
        without_data(checkpoint, trust_remote_code)
        raise
    _check(checkpoint, told)
    return found.eval()


def without_data(checkpoint: str, trust_remote_code: bool = False) -> Any:
    """Return a folder's model whose parameters have shapes and names alone.

    Raises Unusable for a configuration that no model can be made of.
    """
    config = configuration(checkpoint, trust_remote_code)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=trust_remote_code)
    except Exception as error:
        path = Path(checkpoint) / "config.json"
        raise Unusable(f"{path}: Transformers can make no model of it: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return in one line what was first wrong, by the class of the error where its words alone say little."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = " ".join(str(error).split())
    return words if " " in words else f"{type(error).__name__} {words}".strip()


def configuration(checkpoint: str, trust_remote_code: bool = False) -> Any:
    """Return a folder's configuration; raises Unusable for a model that is no decoder-only language model."""
    path = Path(checkpoint) / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    kind, own_code = written.get("model_type"), written.get("auto_map") or {}
    known = kind in configuration_auto.CONFIG_MAPPING
    if own_code and not known and not trust_remote_code:
        raise Unusable(
            f"{path}: model type {kind!r} is code of the model's own "
            f"({', '.join(sorted(map(str, own_code.values())))}), which is not run unless it is asked for: read it, "
            "then give --trust-remote-code, or set trust_remote_code = true for the model in matrix.toml"
        )
    if not kind and not own_code:
        raise Unusable(f"{path} names no model_type, so nothing says what model it is of: save the model again")
    if not known and not own_code:
        raise Unusable(
            f"{path}: model type {kind!r} is none that Transformers {transformers.__version__} knows: a newer one may "
            "(--swap transformers==VERSION)"
        )
    try:
        found = AutoConfig.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise Unusable(f"{path}: Transformers cannot read it: {_reason(error)}") from error
    architectures = [str(name) for name in written.get("architectures") or ()]
    named = f"{path}: {', '.join(architectures) or type(found).__name__} (model type {kind})"
    if getattr(found, "is_encoder_decoder", False):
        raise Unusable(f"{named} is an encoder-decoder: what is measured here are decoder-only language models")
    encoder = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(found, "is_decoder", None) is False
    causal = not architectures or any(name.endswith(_CAUSAL) for name in architectures)
    if encoder or not causal:
        what = "an encoder" if encoder else "made for another task"
        raise Unusable(f"{named} is {what} and predicts no next token: what is measured here are language models")
    if not own_code and type(found) not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Unusable(
            f"{named} is no causal language model to Transformers {transformers.__version__}: what is measured here "
            "are language models that it loads by themselves"
        )
    return found


def tokenizer(checkpoint: str, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """Return the tokenizer of a folder; raises Unusable where there is none that can be read."""
    try:
        return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        words = str(error).strip().splitlines()
        raise Unusable(
            f"{checkpoint} has no tokenizer that Transformers can read "
            f"({words[0] if words else type(error).__name__}): copy the tokenizer files of the model that it was made "
            "of into it"
        ) from error


_SENTENCE = "The quick brown fox jumps over the lazy dog, and a language model says how likely that is."


@tensors.inferring
def check_sound(found: Any, checkpoint: str, trust_remote_code: bool = False, words: Any = None) -> bool | None:
    """Return whether a model's weights and predictions are finite; None where this device cannot compute predictions.

    ``words`` is the checkpoint's tokenizer, where it was loaded already, which takes seconds of a large one. Raises
    Unusable where they are not, so that no figure of such a model is given, for a tokenizer with tokens that the model
    does not have, and for a model whose code does with a quantized weight what no quantized one can do.
    """
    if wrong := tensors.not_finite(found):
        raise Unusable(
            f"{checkpoint}: its predictions are not finite, since its weights have NaN or infinite values: "
            f"{shown(f'{name} ({count} values)' for name, count in wrong.items())}"
        )
    words = words or tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    texts.check_fits(words, rows(found))
    ids = torch.tensor([[*texts.begin(words), *words(_SENTENCE, add_special_tokens=False)["input_ids"]]])
    try:
        logits = found(ids.to(found.device), use_cache=False).logits
    except RuntimeError as error:
        if isinstance(error, NotImplementedError):
            _check_taken(found, error)
        print(f"{checkpoint}: its predictions cannot be computed here: {error}", file=sys.stderr)
        return None
    if not bool(torch.isfinite(logits).all()):
        raise Unusable(f"{checkpoint}: the model's predictions are not finite (NaN or infinity) on ordinary text")
    return True


def _check_taken(model: torch.nn.Module, error: NotImplementedError) -> None:
    """Raise Unusable naming the layers at fault, if a quantized weight has no operator for what their code does."""
    names = {id(module): name for name, module in model.named_modules()}
    at_fault = None
    trace = error.__traceback__
    while trace is not None:
        own = trace.tb_frame.f_locals.get("self")
        at_fault = own if id(own) in names else at_fault
        trace = trace.tb_next
    alike = [names[id(module)] for module in model.modules() if type(module) is type(at_fault)]
    found = parameters.survey(model)
    inside = tuple(f"{name}." for name in alike)
    taken = [one.name for one in found.values() if one.quantized and one.name.startswith(inside)]
    if not taken:
        return
    others = any(one.quantized and one.name not in taken for one in found.values())
    raise Unusable(
        f"the quantized {type(model).__name__} cannot run: {type(at_fault).__name__} ({parameters.named(alike)}) does "
        f"with its weights what {found[taken[0]].tensor} has no operator for ({products.words(error)}). "
        + (parameters.leave_plain(found, taken) if others else "Measure another model by this recipe")
    )


def rows(found: Any) -> int:
    """Return how many tokens a model has embeddings of."""
    return int(found.get_input_embeddings().weight.shape[0])


def _check(checkpoint: str, told: dict[str, Any]) -> None:
    """Raise Unusable naming the tensors that loading made up, passed over or found of another shape."""
    missing, unexpected, mismatched = (
        sorted(told[name], key=str) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
    )
    shapes = [f"{name} {tuple(held)} in place of {tuple(due)}" for name, held, due in mismatched]
    wrong = [
        f"{what} ({len(names)}): {shown(names)}"
        for what, names in (
            ("tensors of the model that its files lack", missing),
            ("tensors of the files that the model has no place for", unexpected),
            ("tensors of another shape than the model's", shapes),
        )
        if names
    ]
    if wrong:
        done = "make up random weights for them" if missing or shapes else "pass over them"
        raise Unusable(
            f"{checkpoint}: {'; '.join(wrong)}. Transformers would {done}: the files are incomplete, or of another "
            "model than config.json says"
        )


@contextlib.contextmanager
def _conversions(checkpoint: str) -> Iterator[None]:
    """Name the tensors that could not be put together from those of the files, as Transformers' report alone does."""
    failed: dict[str, str] = {}
    report = modeling_utils.log_state_dict_report

    def noted(*arguments: Any, **named: Any) -> Any:
        failed.update(getattr(named.get("loading_info"), "conversion_errors", None) or {})
        return report(*arguments, **named)

    with patch.object(modeling_utils, "log_state_dict_report", noted):
        try:
            yield
        except RuntimeError:
            if not failed:
                raise
            raise conversion_error(checkpoint, failed) from None
        except ValueError as error:
            if "torchao safetensors metadata" not in str(error):
                raise
            raise Unusable(
                f"{checkpoint}: config.json says that it is quantized with torchao, and its files tell of no quantized "
                "tensors: take `quantization_config` out of config.json if the weights are plain, or save the "
                "quantized model again with save_pretrained"
            ) from None


@contextlib.contextmanager
def read_as_made() -> Iterator[None]:
    """Have what was read as a quantized tensor count as made; Transformers 5.8, which SGLang pins, would make it anew.

    It then asks torchao for random numbers in an integer tensor, which there are none of.
    """
    make = modeling_utils.PreTrainedModel._initialize_weights

    def kept(self: Any, module: torch.nn.Module, *more: Any, **named: Any) -> None:
        if any(tensors.tensor_class(parameter) != "Tensor" for parameter in module.parameters(recurse=False)):
            module._is_hf_initialized = True
        make(self, module, *more, **named)

    with patch.object(modeling_utils.PreTrainedModel, "_initialize_weights", kept):
        yield


def conversion_error(checkpoint: str, failed: Mapping[str, str]) -> Exception:
    """Return the error for tensors that Transformers could not make, by what it wrote down of each: a traceback.

    An Unusable where those of the files do not make up the model's. While a recipe is applied it is a RuntimeError: any
    error at all can be the cause, such as want of memory, and its log tells more.
    """
    name, words = next(iter(failed.items()))
    causes = re.findall(r"^[A-Za-z_][\w.]*(?:Error|Exception)(?=: |$).*$", words.rpartition("\nError")[0], re.MULTILINE)
    cause = causes[-1] if causes else words.strip().rpartition("\n")[2]
    what = f"({len(failed)}): {shown(sorted(failed))} ({name}: {cause})"
    if "Quantize" in words.rpartition("\n")[2]:
        return RuntimeError(f"{checkpoint}: tensors that could not be quantized {what}")
    return Unusable(f"{checkpoint}: tensors that could not be made of those of its files {what}")
