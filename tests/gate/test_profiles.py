"""What a gate says of kernels: records of both sides to milliseconds by kind, and to a sentence of its report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.gate.profiles import Profiles
from harness.judge.gatefile import ProfileChange, parse
from harness.judge.profile import BATCH, DECODE, PREFILL
from harness.judge.verdict import Verdict
from harness.records.run import Run
from harness.records.schema import Measurement
from harness.report import gate_report
from tests.judge import test_layers
from tests.report.test_gate_report import gate_file, place, speed
from tests.report.test_tables import measured
from tests.report.test_why import ordered

OLD = {"kernels": [["nvjet_tst_128x8", 0.010, 4], ["attention_kernel", 0.002, 4]]}
NEW = {"kernels": [["nvjet_tst_128x8", 0.009, 4], ["quantize_row", 0.004, 4], ["attention_kernel", 0.002, 4]]}
STEPS = {
    "kernels": [["nvjet_tst_128x8", 0.030, 12]],
    "prefill": [["nvjet_tst_128x8", 0.010, 4]],
}


def heard(run: Run, profiles: Profiles, side: str, kept: Any) -> Measurement:
    name = f"{side}.json"
    (run.folder / "attachments").mkdir(exist_ok=True)
    (run.folder / "attachments" / name).write_text(json.dumps(kept), encoding="utf-8")
    line = measured("kernel_time", 12.0, "int8wo", server="vllm")
    line = line.model_copy(update={"attachment": f"attachments/{name}", "flags": {"side": side}})
    profiles.add(line)
    return line


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path)


def test_both_sides_are_told_by_kind_and_in_words(run: Run) -> None:
    profiles = Profiles(run, "torchao==0.17.0")
    heard(run, profiles, "old", OLD)
    assert profiles.changes == [], "one side is no difference"
    heard(run, profiles, "new", NEW)
    (change,) = profiles.changes
    assert (change.place.server, change.phase) == ("vllm", BATCH)
    assert sum(change.new.values()) - sum(change.old.values()) == pytest.approx(3.0)
    assert "15.00 ms of kernels, 3.00 ms more than torchao==0.17.0" in change.words
    assert "quantizing activations +4.00 ms (quantize_row)" in change.words
    assert "matrix products -1.00 ms (nvjet_tst_128x8)" in change.words


def test_the_prompt_and_a_step_are_told_apart_and_the_newest_block_counts(run: Run) -> None:
    profiles = Profiles(run, "old")
    heard(run, profiles, "old", STEPS)
    heard(run, profiles, "new", STEPS)
    assert [it.phase for it in profiles.changes] == [PREFILL, DECODE]
    assert all("every kind as before" in it.words for it in profiles.changes)
    heard(run, profiles, "new", {"kernels": "none"})
    assert len(profiles.changes) == 2, "what is no profile tells nothing"
    line = heard(run, profiles, "new", STEPS)
    (run.folder / line.attachment).unlink()
    profiles.add(line)
    assert len(profiles.changes) == 2, "nor does one that is gone"


def test_both_sides_are_told_by_layer_where_the_order_was_kept(run: Run) -> None:
    profiles = Profiles(run, "torchao==0.17.0")
    heard(run, profiles, "old", ordered(test_layers.BF16))
    heard(run, profiles, "new", ordered(test_layers.FLOAT8))
    assert [it.phase for it in profiles.changes] == [PREFILL, DECODE]
    assert all("; by layer, " in it.words and "norms and residuals +" in it.words for it in profiles.changes)
    heard(run, profiles, "new", STEPS)
    assert not any("by layer" in it.words for it in profiles.changes)


def test_a_regression_of_speed_says_what_its_kernels_did() -> None:
    slower: Verdict = replace(
        speed(0.7), place=place("latency", server="vllm", batch_size=1), unit="s", direction="lower"
    )
    cell = slower.place.named.cell
    change = ProfileChange(cell, BATCH, {"matrix products": 10.0}, {"matrix products": 13.0}, "batch: 3.00 ms more")
    other = replace(change, place=cell.at("x").cell.without("server"), words="of another server")
    found = gate_file([slower], profiles=[change, other])
    text = gate_report.text(parse(json.loads(found.text()), "here"))
    assert "kernels: batch: 3.00 ms more" in text
    assert "of another server" not in text
