"""Why a recipe is slower: the profiles of committed runs in words, in the terminal and on the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.judge import profile
from harness.records.run import Run
from harness.records.schema import Measurement
from harness.report import tables, why
from tests.judge import test_layers
from tests.report.test_tables import measured

H200 = "h200-20261129-155401"


@pytest.fixture
def sides(repository: Path) -> list[why.Side]:
    """What was profiled on the H200 through vLLM."""
    run = Run.open(repository / "results/reference", H200)
    records = [line for line in run.lines() if isinstance(line, Measurement)]
    (subject,) = tables.collect(records)
    found, problems = why.sides(subject, [run])
    assert not problems
    return found


def test_a_recipe_is_told_of_beside_its_baseline(sides: list[why.Side]) -> None:
    (side,) = (it for it in sides if it.phase == profile.BATCH)
    assert [it.recipe for it in side.rows] == ["bf16", "float8dq", "int4wo"]
    float8dq, int4wo = why.sentences(side)
    assert float8dq.startswith("float8dq: 12.33 ms of kernels, 1.12 ms less than bf16: matrix products -2.97 ms")
    assert "quantizing activations +1.77 ms (_kernel_quantize_fp8_row)" in float8dq
    assert "tinygemm" in int4wo
    table = why.table(side)
    for column in (1, 2, 3):
        *parts, whole = (float(row[column]) for row in table.rows)
        assert sum(parts) == pytest.approx(whole, abs=0.05)


def test_the_kernels_of_a_decode_step_take_what_the_clock_says(sides: list[why.Side]) -> None:
    (step,) = (it for it in sides if it.phase == profile.DECODE)
    (row,) = step.rows
    assert row.recipe == "float8dq-int4"
    assert row.measured is not None
    assert row.profile.total == pytest.approx(row.measured, rel=0.1)


def test_the_command_prints_it(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "--runs", str(repository / "results/reference"), H200]) == 0
    told = capsys.readouterr().out
    assert "| matrix products" in told
    assert "- int4wo: " in told


def test_a_profile_that_is_gone_or_another_s_is_named_and_the_rest_told(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / H200
    shutil.copytree(repository / "results/reference" / H200, folder)
    gone, other = (folder / f"attachments/Phi-4-mini-instruct-{it}-h200-vllm-kernels.json" for it in ("bf16", "int4wo"))
    gone.unlink()
    other.write_text(json.dumps({"kernels": [["nvjet", 1.0, 1]]}), encoding="utf-8")
    assert main(["why", str(folder)]) == 0
    told = capsys.readouterr()
    assert "float8dq" in told.out
    assert "bf16" not in told.out
    problems = " ".join(told.err.split())
    assert gone.name in problems
    assert f"{other.name}: not the profile of its record" in problems


def test_a_run_without_profiles_says_what_makes_them(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "--runs", str(repository / "results/reference"), "arm-mobile-20261125-024616"]) == 1
    assert "nothing was profiled" in capsys.readouterr().err


@pytest.mark.programs
def test_the_documented_study_holds_what_the_command_prints(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [repository / "results" / name for name in ("reference", "studies")]
    profiled = [file.parents[1] for folder in kept for file in folder.glob("h[12]00-*/*/*-kernels.json")]
    assert len(set(profiled)) > 3
    for run in sorted(set(profiled)):
        assert main(["why", str(run)]) == 0
    printed = set(capsys.readouterr().out.splitlines())
    study = (repository / "docs/results/float8.md").read_text(encoding="utf-8")
    rows = [line for line in study.splitlines() if line.startswith(("|", "###"))]
    assert len(rows) > 40
    assert set(rows) <= printed


def ordered(layer: list[tuple[str, str]]) -> dict[str, Any]:
    """Return what is kept of a profile of three layers whose order is known."""
    calls, _ = test_layers.ran(layer, 3, 4, wait=1.0)
    seconds: dict[str, float] = {}
    for it in calls:
        seconds[it.name] = seconds.get(it.name, 0.0) + it.own / 1000
    whole = [(name, it, 4) for name, it in seconds.items()]
    prompt = [(name, it / 4, 1) for name, it in seconds.items()]
    return test_layers.written(calls, 3) | {"kernels": whole, "prefill": prompt}


def test_layers_are_told_where_the_order_of_what_ran_was_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prompt and the steps are those of the order; in kinds of kernel the batch stays one."""
    run = Run.create(tmp_path)
    (run.folder / "attachments").mkdir(exist_ok=True)
    for recipe, layer in (("bf16", test_layers.BF16), ("float8dq", test_layers.FLOAT8)):
        kept = ordered(layer)
        name = f"attachments/{recipe}.json"
        (run.folder / name).write_text(json.dumps(kept), encoding="utf-8")
        line = measured("kernel_time", 1000 * sum(it[1] for it in kept["kernels"]), recipe, server="vllm")
        run.append(line.model_copy(update={"attachment": name}))
    assert main(["why", str(run.folder), "--wide"]) == 0
    told = capsys.readouterr().out
    assert "decode step through vllm, batch 1, by layer (ms)" in told
    for layer in (test_layers.ATTENTION, test_layers.MLP, test_layers.NORMS, test_layers.HEAD, "a profiled step"):
        assert f"| {layer}" in told
    assert "; by layer, " in told
    assert main(["report", str(run.folder), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "decode step through vllm, batch 1, by layer: milliseconds by kind of layer and recipe" in page
    assert "norms and residuals" in page
