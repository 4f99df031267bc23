"""Planted noise through a real session: a test that is neither passed nor failed, and says so where it is seen."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.measure.launches import Launches
from harness.plugin.plugin import NOISY_STATUS
from harness.records.run import Run
from harness.records.schema import Judgement, Outcome
from tests.plugin.test_plugin import MATRIX, only_a_processor

THRESHOLDS = """
[[thresholds]]
metric = "latency"
recipes = ["int8wo"]
max_ratio = 1.5
origin = "chosen: for this test"
"""
# The rounds of both sides come from a file; what is judged, recorded and told is as in any session.
SUITE = """
import json
from pathlib import Path

import pytest

from harness.measure.recorder import record_of
from harness.records.schema import Cell, Device, ModelIdentity

pytestmark = pytest.mark.stage("engine")
ROUNDS = json.loads(Path(__file__).with_name("rounds.json").read_text())


def test_latency(cell, batch_size, measure, judge):
    samples = ROUNDS[cell.recipe.name]
    model = ModelIdentity(name=cell.model.name, source="folder:small", revision="1", weights="pretrained")
    identity = Cell(model=model, recipe=cell.recipe.identity, hardware=cell.hardware.name, server=cell.server)
    record = record_of(
        "latency", sum(samples) / len(samples), samples=samples, cell=identity, packages={}, device=Device(name="d"),
        parameters={"batch_size": batch_size, "input_len": 8, "output_len": 8}, disturbed=ROUNDS.get("disturbed", ""),
    )
    measure.recorder.run.append(record)
    measure.recorder.measurements.append(record)
    judge(cell, record)
"""
QUIET = [0.30, 0.31, 0.30]
NOISY = [0.53, 8.84, 11.27]
Go = Callable[..., pytest.RunResult]


@pytest.fixture
def go(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Go:
    """Run the suite over rounds of the baseline and of the recipe."""
    (pytester.path / "suites").mkdir()
    (pytester.path / "suites" / "matrix.toml").write_text(MATRIX + THRESHOLDS, encoding="utf-8")
    pytester.makepyfile(test_engine=SUITE)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    only_a_processor(monkeypatch)
    # Its rounds come from a file: nothing is served, and no imports of a server are begun for it.
    monkeypatch.setattr(Launches, "import_ahead", lambda *_: None)

    def run(old: list[float], new: list[float], *arguments: str, disturbed: str = "") -> pytest.RunResult:
        told = {"bf16": old, "int8wo": new, "disturbed": disturbed}
        (pytester.path / "rounds.json").write_text(json.dumps(told), encoding="utf-8")
        return pytester.runpytest_inprocess(
            *("-p", "harness.plugin.plugin", "-m", "cpu", "--model", "small", "--recipe", "int8wo", "--results", "out"),
            *("--cache", "cache", "--wide", "-k", "cpu-vllm-1]", *arguments),
        )

    return run


def judged(folder: Path) -> tuple[Judgement, Outcome]:
    lines = list(Run((folder / "out" / "latest").resolve()).lines())
    (judgement,) = (line for line in lines if isinstance(line, Judgement))
    return judgement, [line for line in lines if isinstance(line, Outcome)][-1]


def test_rounds_that_are_far_apart_neither_hold_a_limit_nor_fail_it(go: Go, pytester: pytest.Pytester) -> None:
    result = go(QUIET, NOISY, "-v", "--junit-xml=junit.xml")
    said = result.stdout.str()
    assert result.ret == NOISY_STATUS
    result.stdout.fnmatch_lines(["*test_latency*int8wo*TOO NOISY*", "*= 1 passed, * 1 noisy *"])
    result.stdout.fnmatch_lines(["*= too noisy to say =*", "latency (batch_size=1*limit 1.5: too noisy to say"])
    result.stdout.fnmatch_lines(
        ["too noisy to say: 1 passed, 1 noisy; limits held: 0 of 1; of 1 it is too noisy to say"]
    )
    assert "slowdown" not in said
    assert "6.88s ± 5.6 (too noisy to say)" in said
    judgement, outcome = judged(pytester.path)
    assert (judgement.passed, judgement.noisy, outcome.outcome) == (False, True, "noisy")
    assert judgement.low is not None
    assert judgement.high is not None
    assert judgement.low < judgement.limit < judgement.measured < judgement.high
    assert outcome.reason.startswith("latency (batch_size=1")
    assert "too noisy to say" in outcome.reason
    (case,) = ElementTree.parse(pytester.path / "junit.xml").getroot().iter("skipped")
    assert "too noisy to say" in case.attrib["message"]


def test_a_noisy_figure_that_holds_by_luck_is_no_pass_either(go: Go) -> None:
    result = go(QUIET, [0.20, 0.05, 1.10])
    assert result.ret == NOISY_STATUS
    result.stdout.fnmatch_lines(["*= 1 passed, * 1 noisy *"])


def test_a_session_that_may_be_noisy_ends_with_0_and_says_it_all_the_same(go: Go) -> None:
    result = go(QUIET, NOISY, "--allow-noisy")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["too noisy to say:", "*= 1 passed, * 1 noisy *"])


@pytest.mark.parametrize(("new", "status"), [([0.31, 0.32, 0.30], 0), ([0.71, 0.72, 0.70], 1)])
def test_a_quiet_machine_says_yes_or_no(go: Go, new: list[float], status: int) -> None:
    result = go(QUIET, new)
    assert result.ret == status
    assert "too noisy" not in result.stdout.str().lower()


def test_a_clear_failure_stays_one_however_wide_its_rounds_are(go: Go) -> None:
    result = go(QUIET, [*[9.0, 14.0, 8.0, 12.0] * 3])
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*limits that do not hold*"])


def test_a_noisy_figure_without_a_limit_is_told_of_and_its_test_passes(go: Go) -> None:
    result = go(NOISY, [7.0, 7.1, 7.2])
    result.stdout.fnmatch_lines(["latency (batch_size=1*: 6.88s, its rounds from 0.53s to 11.27s: too noisy to say"])


def test_a_machine_that_was_not_quiet_is_marked(go: Go) -> None:
    result = go(QUIET, QUIET, disturbed="shared: other processes used 1.3 of 2 processors")
    assert result.ret == 0
    said = result.stdout.str()
    not_quiet = "on a machine that was not quiet: shared: other processes used 1.3 of 2 processors"
    assert f"†: 2 of 2 figures were measured {not_quiet}" in said
    assert "0.30s ± 0.0058 †" in said
