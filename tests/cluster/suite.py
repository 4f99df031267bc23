"""A small suite of its own for clusters: real sessions, records and reports, over tests that only wait."""

from __future__ import annotations

from pathlib import Path

MATRIX = """
schema = 1
[hardware.abacus]
meaning = "beads on wires"
install = "string some"
[hardware.rule]
meaning = "a slide rule"
install = "carve one"
[models.small]
folder = "small"
[recipes.bf16]
baseline = true
servers = ["transformers"]
[recipes.int8wo]
config = "Int8WeightOnlyConfig"
servers = ["transformers"]
[[cells]]
hardware = "abacus"
models = ["small"]
recipes = ["int8wo", "bf16"]
servers = ["transformers"]
[[cells]]
hardware = "rule"
models = ["small"]
recipes = ["bf16"]
servers = ["transformers"]
[measurements.abacus]
memory = { max_new_tokens = 8 }
generate = { max_new_tokens = 8, rounds = 1 }
latency = { batch_sizes = [1, 8], input_len = 8, output_len = 8, rounds = 1 }
serving = { num_prompts = [1, 16], rounds = 1 }
text = { windows = 2, window_tokens = 16 }
engine = { max_model_len = 64 }
time_limits = { prepare = 9, start = 9, measure = 9, evaluate = 9 }
[measurements.rule]
like = "abacus"
[[thresholds]]
metric = "generate_throughput"
min_ratio = 0.9
recipes = ["int8wo"]
every_model = true
origin = "chosen: by the tests"
"""
# The second test of a cell says where it runs, and waits there while the file that FAR_HOLD names is there.
SUITE = """
import os, time
from pathlib import Path

import pytest

from harness.measure.recorder import record_of
from harness.records.schema import Cell, Device, ModelIdentity


def identity(cell):
    model = ModelIdentity(name=cell.model.name, source="folder:m", revision="1", weights="random")
    return Cell(model=model, recipe=cell.recipe.identity, hardware=cell.hardware.name, server=cell.server)


@pytest.mark.stage("transformers")
def test_generate(cell, harness_session, judge):
    recorder = harness_session.measure.recorder
    standing = [it for it in recorder.standing() if it.cell == identity(cell)]
    if standing:
        record = standing[-1]
    else:
        name = f"{cell.model.name}-{cell.recipe.name}"
        attachment = harness_session.run.attach(name, {"process": os.getpid(), "cell": name})
        value = 10.0 if cell.recipe.baseline else 11.0
        device = Device(name="a wooden one")
        more = {"packages": {}, "device": device, "attachment": attachment}
        record = record_of("generate_throughput", value, cell=identity(cell), samples=[value, value], **more)
        harness_session.run.append(record)
    recorder.measurements.append(record)
    # Whatever the session before measured came with what belongs to it.
    assert harness_session.run.attached(record.attachment)["cell"] == f"{cell.model.name}-{cell.recipe.name}"
    judge(cell, record)


@pytest.mark.stage("transformers")
def test_waits(cell, harness_session):
    hold = Path(os.environ.get("FAR_HOLD", "no-hold"))
    if hold.exists() and cell.model.name in hold.read_text():
        Path(f"{hold}.{cell.id}").write_text(str(os.getpid()))
    while hold.exists() and cell.model.name in hold.read_text():
        time.sleep(0.05)


@pytest.mark.stage("transformers")
def test_fails(cell, harness_session):
    assert cell.recipe.baseline, "a failure that is told"


@pytest.mark.stage("transformers")
def test_skips(cell, harness_session):
    pytest.skip("for a reason")


def test_measures_nothing():
    assert True
"""
TESTS = 4
"""Tests of a cell."""


def write(folder: Path) -> None:
    """Write the suite into a folder."""
    (folder / "suites").mkdir()
    (folder / "suites" / "matrix.toml").write_text(MATRIX, encoding="utf-8")
    (folder / "test_far.py").write_text(SUITE, encoding="utf-8")
