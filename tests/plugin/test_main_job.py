"""The main job on its real model: SmolLM2-135M-Instruct quantized, run and judged as a newcomer would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records.run import Run
from harness.records.schema import Judgement, Measurement
from harness.runtime.store import Store

pytestmark = [pytest.mark.models, pytest.mark.usefixtures("imports_stand")]


@pytest.fixture(scope="module")
def job(repository: Path, kept_store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One recipe and its baseline through Transformers: the results folder and what was printed.

    It generates fewer tokens and reads fewer texts: of a model of this size tokens add little to its memory, and each
    takes long in bf16.
    """
    results = tmp_path_factory.mktemp("main-job")
    command = [sys.executable, "-m", "pytest", "suites", "-m", "cpu", "--recipe", "int8wo", "--server", "transformers"]
    command += ["--set", "memory.max_new_tokens=4", "--set", "generate.max_new_tokens=2"]
    command += ["--set", "text.windows=8"]
    command += ["--cache", str(kept_store.root), "--results", str(results)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return results, done.stdout


def test_a_trained_model_keeps_its_quality_in_eight_bits(job: tuple[Path, str]) -> None:
    (run,) = (job[0] / "runs").iterdir()
    lines = list(Run(run).lines())
    figures = {(line.cell.recipe.name, line.metric): line.value for line in lines if isinstance(line, Measurement)}
    assert 5 < figures["bf16", "perplexity"] < 20, "random weights would be at tens of thousands"
    assert figures["int8wo", "perplexity"] == pytest.approx(figures["bf16", "perplexity"], rel=0.02)
    assert 0 < figures["int8wo", "kl_divergence"] < 0.02
    assert figures["int8wo", "quantized_layers"] == 210
    judged = [line for line in lines if isinstance(line, Judgement)]
    assert {"perplexity", "weight_size", "peak_memory"} <= {line.metric for line in judged}
    assert all(line.passed for line in judged)


def test_the_tables_are_in_the_published_layout(job: tuple[Path, str]) -> None:
    results, printed = job
    table = (results / "latest" / "tables" / "cpu.md").read_text(encoding="utf-8")
    assert "| Benchmark        | SmolLM2-135M-Instruct | SmolLM2-135M-Instruct-int8wo |" in table
    assert "weights from a 4-bit GGUF" in table
    assert "| Weight Size      | 269.03 MB             | 163.64 MB (39% reduction)    |" in table
    assert re.search(r"limits held: (\d\d) of \1\b", printed)
    whole = (results / "latest" / "summary.txt").read_text(encoding="utf-8")
    assert re.search(r"\| Weight Size +\| 269\.03 MB +\| 163\.64 MB \(39% reduction\) +\|", whole)
    assert re.search(r"\| Benchmark +\| SmolLM2-135M-Instruct +\| int8wo +\|", whole), "the model's name once"
    assert "of which the planner's own CPU time" in whole
