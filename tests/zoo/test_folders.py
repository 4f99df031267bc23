"""Model folders as people have them: whole ones load, and others are refused in one line that says what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import WorkerError
from harness.base.files import file_digest
from harness.runtime.environment import Environment
from harness.runtime.job import Worker
from harness.runtime.store import Store

_MAKE = Path(__file__).with_name("folders.py")
pytestmark = [pytest.mark.models, pytest.mark.usefixtures("imports_stand")]

WHOLE = ("whole", "tied", "head_alone", "old_rotary", "sharded", "begins", "base_model", "experts")

# By the worker, which asks Transformers: what is said of a folder.
REFUSED = {
    "lacks_a_tensor": r"that its files lack \(1\): model\.layers\.1\.self_attn\.q_proj\.weight\. Transformers would "
    "make up",
    "lacks_what_is_tied": r"that its files lack \(2\): lm_head\.weight, model\.embed_tokens\.weight\.",
    "lacks_an_expert": r"another shape .*layers\.0\.mlp\.experts\.gate_up_proj \(3, 64, 64\) in place of \(4, 64, 64\)",
    "lacks_part_of_an_expert": r"could not be made .*model\.layers\.0\.mlp\.experts\.gate_up_proj",
    "one_layer_more": r"has no place for \(9\): model\.layers\.2\..* and 3 more\. Transformers would pass over them",
    "other_shape": r"model\.norm\.weight \(32,\) in place of \(64,\)",
    "other_names": r"files lack \(21\): lm_head.*; tensors of the files that the model has no place for \(21\): "
    r"module\.lm_h",
    "not_a_number": r"predictions are not finite, .*: model\.layers\.1\.mlp\.up_proj\.weight \(1 values\)",
    "overflows": r"predictions are not finite \(NaN or infinity\) on ordinary text",
    "encoder_decoder": r"T5ForConditionalGeneration \(model type t5\) is an encoder-decoder",
    "encoder": r"BertForMaskedLM \(model type bert\) is an encoder and predicts no next token",
    "classifier": r"LlamaForSequenceClassification \(model type llama\) is made for another task",
    "own_code": r"'mine' is code of the model's own \(configuration_mine\.MyConfig, .*give --trust-remote-code",
    "unknown_type": r"model type 'llama99' is none that Transformers [\d.]+ knows",
    "no_type": r"config\.json names no model_type, so nothing says what model it is of",
    "sizes_that_do_not_fit": r"config\.json: Transformers .*The hidden size \(65\) is not a multiple of",
    "size_in_words": r"config\.json: Transformers cannot read it: .*'hidden_size' expected int, got str",
    "unknown_activation": r"config\.json: Transformers can make no model of it: KeyError 'superact'",
    "vision_language": r"LlavaForConditionalGeneration \(model type llava\) is no causal language model to",
    "other_tokenizer": r"has 328 tokens and the model 320: it has no row for 'word60' \(320\)",
    "no_tokenizer": r"has no tokenizer that Transformers can read",
}

# By the planner, before anything is started.
REFUSED_AT_ONCE = {
    "shard_missing": r"names \d+ files, of which 1 cannot be found: model-00002",
    "pointer": r"model\.safetensors is a pointer of git-lfs",
    "cut_off": r"model\.safetensors is cut off: its header tells of \d+ bytes",
    "adapter": r"adapter of owner/base and no model: give --merge-adapter to have it merged .*--model owner/base",
    "adapter_of_no_base": r"and no model, and adapter_config\.json does not name its base model",
    "adapter_beside": r"holds an adapter of owner/base \(adapter_config\.json\) beside a model",
    "pickle": r"are pickles \(pytorch_model\.bin\), and consolidated\.safetensors is not what Transformers loads",
    "empty_file": r"model\.safetensors is no safetensors file, or is cut off \(0 bytes\)",
    "no_config": r"no_config has no config\.json, so nothing says what model it holds",
    "unknown_method": r"is quantized with superquant, which is not torchao",
    "bare_integers": r"holds 14 weights as I8 \(.*its config\.json names no quantization, so nothing says",
    "of_onnx": r"holds neither \.safetensors nor \.gguf weights, but those of ONNX",
    "of_a_training": r"has no config\.json, .*: give one of the folders in it, checkpoint-500",
    "of_another_format": r"has no config\.json, .*: params\.json is of Mistral's or Meta's own format",
    "compressed": r"is quantized with compressed-tensors, which is not torchao: give the plain model",
}


# Of an adapter that is asked to be merged into the model beside it.
NOT_MERGED = {
    "adapter_lacks_a_tensor": r"0 of its tensors have no place in it, and 1 are missing: .*q_proj\.lora_A\.weight",
    "adapter_of_another_shape": r"does not fit the model beside it: .*size mismatch for .*lora_A",
    "adapter_of_other_layers": r"does not fit the model beside it: Target modules \{'c_attn'\} not found",
    "adapter_not_a_number": r"cannot be merged: NaNs detected",
    "adapter_of_prompts": r"\(PROMPT_TUNING\) has no weights that could be merged",
}


@pytest.fixture(scope="module")
def folders(kept_store: Store) -> Path:
    """A folder of all the model folders."""

    def build(folder: Path) -> None:
        subprocess.run([sys.executable, str(_MAKE), str(folder)], check=True, capture_output=True)

    key = {"script": file_digest(_MAKE), "packages": Environment().decisive()}
    return kept_store.get("zoo-folders", key, build, label="the tests' model folders").folder


@pytest.fixture(scope="module")
def worker(start_worker: Callable[..., Worker]) -> Worker:
    return start_worker("quantize", device="cpu")


def ask(worker: Worker, folder: Path) -> dict[str, Any]:
    return worker.ask("facts", 300, checkpoint=str(folder), trust_remote_code=False)


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_folder_loads(worker: Worker, folders: Path, name: str) -> None:
    found = ask(worker, folders / name)
    assert found["finite"] is True
    assert found["parameters"] > 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_model_is_refused_by_what_it_lacks(worker: Worker, folders: Path, name: str) -> None:
    with pytest.raises(WorkerError, match=REFUSED[name]) as caught:
        ask(worker, folders / name)
    assert caught.value.kind == "refused"
    assert "\n" not in str(caught.value)
    assert worker.alive


def test_an_adapter_is_merged_into_the_model_beside_it(worker: Worker, folders: Path, tmp_path: Path) -> None:
    """Its product, scaled, is added to the weights of its layer; all others are the model's."""
    import torch
    from safetensors.torch import load_file

    asked = {"checkpoint": str(folders / "adapter_fits"), "output": str(tmp_path), "trust_remote_code": False}
    made = worker.ask("merge_adapter", 300, **asked)
    assert (made["adapter"], made["finite"]) == ("LORA of owner/base", True)
    before, after = (load_file(folder / "model.safetensors") for folder in (folders / "adapter_fits", tmp_path))
    adapter = load_file(folders / "adapter_fits" / "adapter_model.safetensors")
    first, second = (adapter[name].float() for name in sorted(adapter))
    (changed,) = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(after[changed].float(), before[changed].float() + 2 * second @ first, atol=0.01)
    assert not list(tmp_path.glob("adapter*"))


@pytest.mark.parametrize("name", NOT_MERGED)
def test_an_adapter_that_does_not_fit_is_refused(worker: Worker, folders: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(WorkerError, match=NOT_MERGED[name]) as caught:
        worker.ask("merge_adapter", 300, checkpoint=str(folders / name), output=str(tmp_path), trust_remote_code=False)
    assert caught.value.kind == "refused"
    assert "\n" not in str(caught.value)


@pytest.fixture
def session(repository: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``session(*arguments)`` runs the suites' checkpoint tests, as a user would, with options."""
    command = [sys.executable, "-m", "pytest", "suites", "-m", "cpu", "-k", "checkpoint", "-p", "no:cacheprovider"]
    command += ["--recipe=int8wo", "--wide", "--cache", str(tmp_path / "cache"), "--results", str(tmp_path / "results")]
    asked = {"cwd": repository, "capture_output": True, "text": True, "timeout": 600, "check": False}
    return lambda *arguments: subprocess.run([*command, *arguments], **asked)


def test_a_session_says_of_each_folder_in_one_line_what_is_wrong(folders: Path, session: Any) -> None:
    """Every test of it fails, with status 1, and no traceback is shown."""
    words = {
        **REFUSED_AT_ONCE,
        **{name: REFUSED[name] for name in ("lacks_a_tensor", "not_a_number", "encoder_decoder", "unknown_activation")},
        "broken_gguf": r"model\.gguf: Transformers cannot read it: .*GGUF v0",
    }
    done = session(*(f"--model={folders / name}" for name in words))
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{2 * len(words)} failed" in done.stdout, "baseline and recipe, and nothing else"
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for name, wrong in words.items():
        assert [line for line in lines if f"/{name}" in line and re.search(wrong, line)], f"nothing is said of {name}"


def test_a_session_merges_an_adapter_if_it_is_asked_to_and_says_so(folders: Path, session: Any) -> None:
    done = session(f"--model={folders / 'adapter_fits'}", "--merge-adapter")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "  the model: the adapter beside it (LORA of owner/base) is merged into its weights" in done.stdout


def test_an_adapter_alone_is_merged_into_the_base_model_that_it_names(
    folders: Path, session: Any, tmp_path: Path
) -> None:
    """To the bytes that it gives beside that model; one whose base is nowhere says where it was looked for.

    One without a base, and a model without an adapter, say so too.
    """
    names = ("adapter_fits", "adapter_alone", "adapter_of_a_base_elsewhere", "adapter_of_no_base", "whole")
    done = session(*(f"--model={folders / name}" for name in names), "--merge-adapter")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    (said,) = (tmp_path / "results").rglob("summary.txt")
    assert "the adapter (LORA of ../whole) is merged into its base model ../whole" in said.read_text()
    assert "is an adapter of /no/such/base, and no model is there: name the base model's folder" in done.stdout
    assert "does not name its base model (base_model_name_or_path)" in done.stdout
    assert "holds no adapter (adapter_config.json) that could be merged" in done.stdout
    beside, alone = (tmp_path / "cache").glob("plain/*/model.safetensors")
    assert beside.read_bytes() == alone.read_bytes()


def test_verbosely_a_refusal_shows_its_log(folders: Path, session: Any) -> None:
    done = session("-v", f"--model={folders / 'unknown_type'}")
    assert done.returncode == 1
    assert re.search(REFUSED["unknown_type"], done.stdout)
    assert "Traceback" in done.stdout
