"""``--on``: pytest's reports, order and exit status are those of one machine, and so are the records."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from harness.plugin import far
from harness.records.run import Run
from harness.records.schema import Judgement, Line, Measurement, Outcome
from tests.cluster import suite
from tests.cluster.threads import Threads

pytestmark = pytest.mark.programs
NAMED = ("-m", "abacus")


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a suite of its own."""
    suite.write(pytester.path)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return pytester.path


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run the suite here, in this process."""
    cache = f"--cache={pytester.path / 'cache'}"
    given = ("-p", "no:cacheprovider", "-p", "no:randomly", "-v", cache, *arguments, "test_far.py")
    return pytester.runpytest_inprocess(*given)


def on(engine: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``--on`` mean an engine."""
    monkeypatch.setattr(far, "on_ray", lambda _: engine)


def outcomes(result: pytest.RunResult) -> list[tuple[str, str]]:
    """Return each test with how it ended, as they were printed."""
    return re.findall(r"^(test_far.py::\S+) (\w+)", "\n".join(result.outlines), re.MULTILINE)


def lines(folder: Path, name: str = "last") -> list[Line]:
    found, problems = Run.open(folder / "results" / "runs", name).read()
    assert problems == []
    return found


def figures(folder: Path) -> list[tuple[str, str, float]]:
    return sorted(
        (it.cell.model.name, it.cell.recipe.name, it.value)
        for it in lines(folder)
        if isinstance(it, Measurement) and it.cell.hardware == "abacus"
    )


def test_reports_order_and_status_are_those_of_one_machine(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run(pytester, *NAMED)
    there_first = figures(folder)
    engine = Threads(["abacus"], dies=[("small-int8wo-abacus-transformers", 1)])
    on(engine, monkeypatch)
    there = run(pytester, *NAMED, "--on", "local")
    assert (there.ret, outcomes(there)) == (here.ret, outcomes(here))
    assert outcomes(here)
    assert there.parseoutcomes() == here.parseoutcomes() == {"passed": 5, "skipped": 2, "failed": 1, "deselected": 5}
    there.stdout.fnmatch_lines(["*AssertionError: a failure that is told", "failed: 5 passed, 1 failed, 2 skipped*"])
    # What the node that died had measured is not measured again, and what the limits need came along.
    assert figures(folder) == there_first
    first, again = engine.payloads["small-int8wo-abacus-transformers"]
    assert (len(first["tests"]), len(again["tests"])) == (suite.TESTS, suite.TESTS - 1)
    known = [json.loads(line) for line in again["files"]["records.jsonl"].splitlines()[1:]]
    assert [it["cell"]["recipe"]["name"] for it in known] == ["bf16", "int8wo"]
    judged = [it for it in lines(folder) if isinstance(it, Judgement)]
    assert [it.passed for it in judged] == [True]
    kept = Run.open(folder / "results" / "runs", "last")
    for record in kept.lines():
        if isinstance(record, Measurement):
            assert kept.attached(record.attachment)["cell"] == f"{record.cell.model.name}-{record.cell.recipe.name}"
    assert {it.outcome for it in lines(folder) if isinstance(it, Outcome)} == {"passed", "failed", "skipped"}


def test_what_no_node_offers_is_missing_and_measured_when_resumed(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(Threads(["abacus"]), monkeypatch)
    selected = ("-m", "abacus or rule", "--model", "small", "--recipe", "bf16", "-k", "generate or nothing")
    some = run(pytester, *selected, "--on", "ray://head", "--wait-for-nodes", "2")
    assert some.ret == pytest.ExitCode.TESTS_FAILED
    assert some.parseoutcomes()["errors"] == 1
    told = " ".join(some.stdout.str().split())
    assert "missing: small-bf16-rule-transformers was not measured: no node offers 1 of rule" in told
    (missing,) = [it for it in lines(folder) if isinstance(it, Outcome) and it.outcome == "error"]
    assert missing.test == "test_far.py::test_generate[small-bf16-rule-transformers]"
    whole = run(pytester, *selected, "--resume=last")
    assert whole.ret == 0
    measured = [it.cell.hardware for it in lines(folder) if isinstance(it, Measurement)]
    assert sorted(measured) == ["abacus", "rule"]


@pytest.mark.parametrize("off", [7200.0, -7200.0])
def test_a_node_whose_clock_is_off_is_told_of_and_its_records_are_dated_here(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    on(Threads(["abacus"], off=off), monkeypatch)
    began = time.time()
    done = run(pytester, *NAMED, "--recipe", "bf16", "-k", "generate", "--on", "ray://head")
    assert done.ret == 0
    done.stdout.fnmatch_lines([f"*the clock of node a-node is 7200 s {'fast' if off > 0 else 'slow'}: its records*"])
    (measured,) = [it for it in lines(folder) if isinstance(it, Measurement)]
    assert began <= measured.time <= time.time()


def test_a_cluster_is_not_asked_for_what_measures_nothing(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far, "on_ray", lambda _: pytest.fail("a cluster was asked for"))
    assert run(pytester, "--on", "local", "-k", "nothing").parseoutcomes()["passed"] == 1
    assert run(pytester, "--on", "local", "--collect-only").ret == 0


def test_a_baseline_of_one_machine_is_not_held_against_a_cluster(pytester: pytest.Pytester, folder: Path) -> None:
    refused = run(pytester, "--on", "local", "--against", "cpu")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*--on with --against: *"])
