"""Recipes that are applied in steps: observed on a text, converted, saved or converted anew as they are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import WorkerError
from harness.contract.quantized import AT_LOAD, OBSERVED
from tests.worker.test_quantize import stored

pytestmark = pytest.mark.models

_OPAQUE = "PrototypeInt4WeightOnlyConfig(group_size=64)"
STATIC = "Int8StaticActivationInt8WeightConfig(granularity=[PerTensor(), PerRow()])"
TWIN = "Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32))"
# The classes of their tensors, what each weight keeps for activations, and whether the checkpoint is saved quantized.
RUN = {
    "AWQConfig(base_config=Int8WeightOnlyConfig(), scale_search_space_size=2)": ("Int8Tensor", ["act_pre_scale"], True),
    f"AWQConfig(base_config={_OPAQUE}, scale_search_space_size=2)": ("Int4OpaqueTensor", ["act_pre_scale"], False),
    "smoothquant-int8dq": ("Int8Tensor", ["act_pre_scale"], True),
    "smoothquant-int8sq": ("Int8Tensor", ["act_pre_scale", "act_quant_scale"], False),
    STATIC: ("Int8Tensor", ["act_quant_scale"], False),
    "float8sq": ("PrototypeFloat8Tensor", ["act_quant_scale"], False),
    "qat-8da4w": ("IntxUnpackedToInt8Tensor", [], True),
}
_LOAD = """
import json, sys
import torch
from harness.worker import applied, parameters

ids = torch.arange(8)[None] + 10
for folder in sys.argv[1:]:
    model = applied.model(folder, "cpu", False)
    weight = model.model.layers[0].mlp.down_proj.weight
    kept = [name for name in ("act_pre_scale", "act_quant_scale") if getattr(weight, name, None) is not None]
    scales = [getattr(weight, name).float().sum().item() for name in kept]
    found = sorted({one.tensor for one in parameters.survey(model).values() if one.quantized})
    with torch.inference_mode():
        logits = model(ids).logits
    print(json.dumps([found, kept, scales, bool(logits.isfinite().all()), logits.float().sum().item()]))
"""
# What torchao's own steps give, run one after the other as its examples do.
_BY_HAND = """
import json, sys
from pathlib import Path
import torch
from torchao.prototype.smoothquant import SmoothQuantConfig
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, text = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
words = AutoTokenizer.from_pretrained(folder)
ids = words(Path(text).read_text(), add_special_tokens=False)["input_ids"][:64]
linear = lambda module, name: isinstance(module, torch.nn.Linear) and "lm_head" not in name
base = Int8DynamicActivationInt8WeightConfig()
with torch.no_grad():
    quantize_(model, SmoothQuantConfig(base, step="prepare"), filter_fn=linear)
    for start in (0, 32):
        model(torch.tensor([ids[start : start + 32]]))
    quantize_(model, SmoothQuantConfig(base, step="convert"), filter_fn=linear)
    print(json.dumps(model(torch.arange(8)[None] + 10).logits.float().sum().item()))
"""
# A model of two layers that is trained with fake quantization, and one that is trained alike without.
_TRAINED = """
import json, sys
from pathlib import Path
import torch
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup, quantize_
from torchao.quantization.qat import QATConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, text, output = sys.argv[1:]
words = AutoTokenizer.from_pretrained(folder)
ids = torch.tensor(words(Path(text).read_text(), add_special_tokens=False)["input_ids"][:128]).view(2, 64)
base = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32))
losses = {}
for name in ("qat", "plain"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    linear = lambda module, name: isinstance(module, torch.nn.Linear) and "lm_head" not in name
    if name == "qat":
        quantize_(model, QATConfig(base, step="prepare"), filter_fn=linear)
    for _ in range(3):
        loss = model(ids, labels=ids).loss
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 2e-3 * weight.grad.sign()
                weight.grad = None
    losses[name] = loss.item()
    if name == "qat":
        quantize_(model, QATConfig(step="convert"), filter_fn=linear)
    model.to(torch.bfloat16).save_pretrained(Path(output, name))
    words.save_pretrained(Path(output, name))
print(json.dumps(losses))
"""


def loaded(run_code: Any, *folders: Path) -> list[Any]:
    done = run_code(_LOAD, *map(str, folders))
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.strip().splitlines() if line.startswith("[")]


@pytest.mark.parametrize("recipe", RUN)
def test_a_recipe_in_steps_is_proved_and_has_the_size_of_its_bits(quantizing: Any, recipe: str) -> None:
    tensor, _, saved = RUN[recipe]
    made = quantizing.by(recipe)
    assert {one["tensor"] for one in made.layers("linear").values()} == {tensor}
    assert {one["tensor"] for one in (made.layers("embedding") | made.layers("head")).values()} == {"Tensor"}
    assert made.facts["weight_bytes"] == made.facts["predicted_weight_bytes"]
    assert made.facts["finite"] is True
    assert (made.folder / AT_LOAD).is_file() is not saved
    assert (made.folder / OBSERVED).is_file() is not saved
    if saved:
        assert made.facts["checkpoint_bytes"] == made.facts["predicted_checkpoint_bytes"]


def test_what_was_observed_comes_back_each_time_a_checkpoint_is_loaded(quantizing: Any, run_code: Any) -> None:
    """From a file of its own where torchao cannot save the weights, or Transformers cannot read them back."""
    folders = [quantizing.by(recipe).folder for recipe in RUN]
    told = loaded(run_code, *folders, folders[1], folders[3])
    for (tensor, kept, _), (found, held, _, finite, _) in zip(RUN.values(), told, strict=False):
        assert (found, held, finite) == ([tensor], kept, True)
    assert [told[1], told[3]] == told[-2:], "each time it is loaded it is the same"


def test_the_steps_are_torchaos_own(quantizing: Any, run_code: Any, tiny_model: Any) -> None:
    made = quantizing.by("smoothquant-int8dq")
    done = run_code(_BY_HAND, str(tiny_model.folder), str(tiny_model.reference["text"]))
    assert done.returncode == 0, done.stderr[-2000:]
    assert loaded(run_code, made.folder)[0][-1] == json.loads(done.stdout.strip().splitlines()[-1])


def test_another_text_gives_other_scales(quantizing: Any, run_code: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("0123456789 " * 40)
    config = quantizing._with_text(quantizing._matrix.recipe(STATIC).identity.config)
    made = quantizing.ask(**config | {"calibration_text": str(other)})
    (_, kept, scales, *_), (_, _, same, *_) = loaded(run_code, made.folder, quantizing.by(STATIC).folder)
    assert kept == ["act_quant_scale"]
    assert scales != same


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("GPTQConfig(base_config=Int8WeightOnlyConfig())", r"torchao's GPTQ runs on CUDA GPUs alone"),
        ("GPTQConfig(base_config=Int4WeightOnlyConfig())", r"mslk is not installed"),
        ("AWQConfig(base_config=IntxWeightOnlyConfig())", r"must support activation scaling"),
        ("AWQConfig(base_config=Int8WeightOnlyConfig(), step='convert')", r"leave `step` out"),
        ("Int8StaticActivationInt8WeightConfig()", r"give granularity = PerTensor\(\)"),
        ("SmoothQuantConfig(base_config=Int8StaticActivationInt8WeightConfig())", r"give granularity = PerTensor\(\)"),
        (
            "FqnToConfig(fqn_to_config={'_default': AWQConfig(base_config=Int8WeightOnlyConfig())})",
            r"AWQConfig is applied in steps, to a whole model: it can be no part of FqnToConfig",
        ),
        ("QATConfig()", r"is a config for training"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_a_line(quantizing: Any, recipe: str, words: str) -> None:
    with pytest.raises(WorkerError, match=words) as caught:
        quantizing.by(recipe)
    assert caught.value.kind == "refused"
    assert "\n" not in str(caught.value)


def test_what_was_calibrated_on_is_not_evaluated(
    generating: Any, documents: Path, tmp_path: Path, tiny_model: Any
) -> None:
    """Neither a text nor a task's documents, whatever their case and punctuation."""
    seen = tmp_path / "calibration.txt"
    seen.write_text(Path(tiny_model.reference["text"]).read_text().upper().replace(".", ";"))
    asked = {"text": tiny_model.reference["text"], "windows": 3, "window_tokens": 64, "baseline": None}
    with pytest.raises(WorkerError, match=r"1 of the evaluated texts are in the text that .*--calibration FILE"):
        generating.ask("text_quality", **asked, calibrated_on=str(seen))
    line = json.loads((documents / "lambada_openai.jsonl").read_text().splitlines()[1])
    others = tmp_path / "documents.txt"
    others.write_text(f"Something else.\n\nSo it went: {line['text']} And on.")
    task = {"names": ["lambada_openai"], "data": str(documents), "limit": None, "batch_size": 4}
    with pytest.raises(WorkerError, match=r"1 of lambada_openai's documents are .* \(the first is number 1\)"):
        generating.ask("tasks", **task, calibrated_on=str(others))
    others.write_text("Something else entirely.")
    assert generating.ask("tasks", **task, calibrated_on=str(others))["lambada_openai"]["documents"]


def test_a_text_that_is_too_short_says_what_would_do(quantizing: Any) -> None:
    config = quantizing._with_text(quantizing._matrix.recipe("smoothquant-int8dq").identity.config)
    with pytest.raises(WorkerError, match=r"calibration text is too short.*--calibration-sequences"):
        quantizing.ask(**config | {"calibration": {"sequences": 10_000, "tokens": 64}})


def test_a_model_trained_with_fake_quantization_is_converted_and_beats_its_twin(
    quantizing: Any, run_code: Any, tiny_model: Any, tmp_path: Path
) -> None:
    """Real steps: of two models trained alike, that which was trained for its quantization loses less by it."""
    done = run_code(_TRAINED, str(tiny_model.folder), str(tiny_model.reference["text"]), str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    qat, ptq = map(quantizing._matrix.recipe, ("qat-8da4w", TWIN))
    made = {
        name: quantizing.ask(checkpoint=str(tmp_path / name), **recipe.identity.config)
        for name, recipe in (("qat", qat), ("plain", ptq))
    }
    twin = quantizing.ask(checkpoint=str(tmp_path / "qat"), **ptq.identity.config)
    assert stored(made["qat"].folder) == stored(twin.folder), "it is what its own config makes of them"
    code = """
import json, sys
from pathlib import Path
import torch
from harness.worker import applied, loading

ids = None
for folder in sys.argv[2:]:
    words = loading.tokenizer(folder)
    ids = torch.tensor([words(Path(sys.argv[1]).read_text(), add_special_tokens=False)["input_ids"][:128]]).view(2, 64)
    with torch.inference_mode():
        print(json.dumps(applied.model(folder, "cpu", False)(ids, labels=ids).loss.item()))
"""
    told = run_code(code, str(tiny_model.reference["text"]), *(str(made[name].folder) for name in ("qat", "plain")))
    assert told.returncode == 0, told.stderr[-2000:]
    trained, not_trained = [json.loads(line) for line in told.stdout.strip().splitlines()[-2:]]
    assert trained < not_trained, done.stdout
