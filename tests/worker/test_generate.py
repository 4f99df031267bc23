"""Transformers' worker against what transformers itself says of the same two-layer model."""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from harness.base.errors import WorkerError
from harness.measure.recorder import record_of
from harness.publish import reproduction
from harness.records.schema import Cell, Device, ModelIdentity, RecipeIdentity
from harness.runtime.environment import Environment
from harness.runtime.store import Store

CELL = Cell(
    model=ModelIdentity(name="tiny", source="folder:tiny", revision="1", weights="random"),
    recipe=RecipeIdentity(name="bf16", hash="1", config={}, baseline=True),
    hardware="cpu",
    server="transformers",
)
DEVICE = Device(name="this machine")
WINDOWS, WINDOW_TOKENS = 3, 64


def test_peak_memory_is_the_kernels_and_needs_a_fresh_process(generating):
    peak = generating.peak["peak_bytes"]
    assert peak > generating.worker.info["weight_bytes"]
    # The worker reads its own figure right after generating, this process reads it a moment later.
    assert generating.kernel_peak_bytes - 64e6 < peak <= generating.kernel_peak_bytes
    assert 0 < generating.peak["new_tokens"] <= 8
    with pytest.raises(WorkerError, match="peak memory needs a fresh process") as caught:
        generating.ask("peak_memory", max_new_tokens=8)
    assert caught.value.kind == "exception"
    assert generating.worker.alive, "an exception does not end a worker"


def test_peak_memory_is_that_of_the_cards_script_by_hand(generating, tiny_model, tmp_path: Path):
    """Within 4 %: the worker has what speaks to the planner besides, and the kernel counts pages as they come."""
    peak = record_of("peak_memory", 1.0, parameters={"max_new_tokens": 8}, cell=CELL, packages={}, device=DEVICE)
    (script,) = reproduction.peak_memory([peak], str(tiny_model.folder), "base")
    # Of an environment like the worker's: no imports but the script's, and none of the tests' own. By a shell, as a
    # user starts it: to a program the kernel counts the memory of the process that it was forked from.
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, script],
        env=Environment().environ(Store(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    by_hand = float(re.findall(r"Peak Memory Usage: ([\d.]+) GB", done.stdout)[-1])
    assert generating.peak["peak_bytes"] / 1e9 == pytest.approx(by_hand, rel=0.04, abs=0.006)


def test_generate_gives_as_many_tokens_as_asked_and_those_of_transformers(generating, tiny_model):
    prompt = "Name three colours."
    answer = generating.ask("generate", prompt=prompt, max_new_tokens=16)
    assert answer["tokens"] == tiny_model.reference["greedy"]
    assert answer["seconds"] > 0
    assert len(generating.ask("generate", prompt=prompt, max_new_tokens=3)["tokens"]) == 3


def test_a_model_agrees_with_itself(generating, tiny_model):
    found = generating.ask(
        "text_quality",
        text=tiny_model.reference["text"],
        windows=WINDOWS,
        window_tokens=WINDOW_TOKENS,
        baseline=str(tiny_model.folder),
    )
    windows = found["windows"]
    assert found["tokens"] == WINDOWS * WINDOW_TOKENS
    assert windows["nll"] == pytest.approx(tiny_model.reference["nll"], rel=1e-4)
    perplexity = math.exp(statistics.fmean(windows["nll"]))
    assert perplexity == pytest.approx(math.prod(math.exp(value) for value in windows["nll"]) ** (1 / WINDOWS))
    assert windows["kl"] == pytest.approx([0.0] * WINDOWS, abs=1e-6)
    assert windows["top1"] == [1.0] * WINDOWS
    assert windows["flips"] == [0.0] * WINDOWS


def test_a_quantized_model_differs_from_its_baseline(generating, tiny_model, quantizing):
    windows = generating.ask(
        "text_quality",
        text=tiny_model.reference["text"],
        windows=WINDOWS,
        window_tokens=WINDOW_TOKENS,
        baseline=str(quantizing.by("8da4w").folder),
    )["windows"]
    assert all(value > 0.001 for value in windows["kl"])
    assert statistics.fmean(windows["top1"]) < 1
    # A flip needs a disagreement.
    assert all(flips <= 1 - top1 + 1e-6 for flips, top1 in zip(windows["flips"], windows["top1"], strict=True))


def test_a_kept_reference_gives_the_same_numbers_bit_by_bit(generating, tiny_model, quantizing, tmp_path: Path):
    asked = {"text": tiny_model.reference["text"], "windows": WINDOWS, "window_tokens": WINDOW_TOKENS}
    other = str(quantizing.by("8da4w").folder)
    for checkpoint in (other, str(tiny_model.folder)):
        kept = str(tmp_path / f"{len(checkpoint)}.safetensors")
        generating.ask("reference", checkpoint=checkpoint, output=kept, **asked)
        anew = generating.ask("text_quality", baseline=checkpoint, **asked)
        assert generating.ask("text_quality", baseline=checkpoint, kept=kept, **asked) == anew
    # Of the baseline itself: what it predicts is not computed twice.
    assert generating.ask("text_quality", baseline=None, kept=kept, **asked) == generating.ask(
        "text_quality", baseline=None, **asked
    )
    with pytest.raises(WorkerError, match="holds no predictions of this window"):
        generating.ask("text_quality", baseline=other, kept=kept, **(asked | {"window_tokens": 32}))


@pytest.mark.parametrize("recipe", ["int8wo", "8da4w"])
@pytest.mark.parametrize("at_once", [3, 64])
def test_windows_in_one_pass_are_windows_one_by_one(
    generating, tiny_model, quantizing, tmp_path: Path, recipe: str, at_once: int
):
    asked = {"text": tiny_model.reference["text"], "windows": WINDOWS, "window_tokens": WINDOW_TOKENS}
    other, kept = str(quantizing.by(recipe).folder), str(tmp_path / "kept.safetensors")
    one_by_one = generating.ask("text_quality", baseline=other, **asked)
    together = generating.ask("text_quality", baseline=other, at_once=at_once, **asked)
    assert together.keys() == one_by_one.keys()
    for column, values in one_by_one["windows"].items():
        assert together["windows"][column] == pytest.approx(values, rel=1e-5, abs=1e-6)
    generating.ask("reference", checkpoint=other, output=kept, at_once=at_once, **asked)
    assert generating.ask("text_quality", baseline=other, kept=kept, at_once=at_once, **asked) == together


def test_predictions_that_are_not_finite_are_an_error(generating, tiny_model):
    with pytest.raises(WorkerError, match="not finite"):
        generating.ask(
            "text_quality",
            text=tiny_model.reference["text"],
            windows=1,
            window_tokens=WINDOW_TOKENS,
            baseline=str(tiny_model.broken),
        )


def test_a_text_too_short_is_an_error_that_says_by_how_much(generating, tmp_path: Path):
    (tmp_path / "short.txt").write_text("Ten bytes.", encoding="utf-8")
    with pytest.raises(WorkerError, match=r"has 10 tokens; 2 windows of 8 need 16"):
        generating.ask("text_quality", text=str(tmp_path / "short.txt"), windows=2, window_tokens=8, baseline=None)


def test_a_profile_has_a_product_of_the_recipes_own_for_each_call_of_a_quantized_layer(
    generating, quantizing, start_worker
):
    sizes = {"batch_size": 1, "input_len": 16, "output_len": 4}
    plain = generating.ask("kernels", **sizes)
    assert plain["due"] == 0
    assert sum(calls for name, _, calls in plain["kernels"] if name == "aten::_int_mm") == 0
    worker = start_worker(
        "generate", checkpoint=str(quantizing.by("int8dq").folder), device="cpu", trust_remote_code=False
    )
    found = worker.ask("kernels", 60, **sizes)
    # Two layers of seven linear ones, and the prompt's step with three further ones.
    assert found["due"] == 2 * 7 * 4
    assert sum(calls for name, _, calls in found["kernels"] if name == "aten::_int_mm") == found["due"]
