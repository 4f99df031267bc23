"""``--on``: pytest's reports, order and exit status are those of one machine, and so are the records."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from harness.base.interruption import Signalled
from harness.cluster.campaign import Ended, Event, Lost
from harness.cluster.units import Unit
from harness.plugin import far, far_words
from harness.plugin.command_line import CommandLine
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


def test_what_a_cluster_exposes_is_told_of_to_the_quiet_too(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine_on(on: str, matrix: object, root: Path, say: Callable[[str], None]) -> Threads:
        say("whoever reaches it can run code there")
        return Threads(["abacus"])

    monkeypatch.setattr(far, "engine_on", engine_on)
    asked = ("-m", "abacus", "--recipe", "bf16", "-k", "generate", "--on", "ray://head", "test_far.py")
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-qq", f"--cache={folder / 'cache'}", *asked)
    assert done.ret == 0
    done.stdout.fnmatch_lines(["*whoever reaches it can run code there"])


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


def test_after_the_failure_that_ends_a_session_nothing_is_told(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured beside it stands in the records, as on one machine it would not."""
    here = run(pytester, *NAMED, "-x")
    on(Threads(["abacus"]), monkeypatch)
    there = run(pytester, *NAMED, "-x", "--on", "ray://head")
    assert (there.ret, outcomes(there)) == (here.ret, outcomes(here))
    assert outcomes(there)[-1] == ("test_far.py::test_fails[small-int8wo-abacus-transformers]", "FAILED")


def test_a_test_that_runs_here_and_fails_ends_a_session_too(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "test_here.py").write_text("def test_one(): assert False\ndef test_two(): pass\n")
    engine = Threads(["abacus"])
    on(engine, monkeypatch)
    done = run(pytester, "-x", "--on", "ray://head", "-k", "one or two or generate", "test_here.py")
    assert done.parseoutcomes() == {"failed": 1, "deselected": done.parseoutcomes()["deselected"]}
    assert not engine.payloads


def test_what_has_ended_is_told_of_when_a_session_is_interrupted(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(Threads):
        """One whose abacus never begins; the session is interrupted when the rule is done."""

        def submit(self, unit: Unit, *more: Any) -> None:
            if unit.hardware == "rule":
                super().submit(unit, *more)

        def poll(self, seconds: float) -> tuple[list[tuple[str, int, Event]], list[Ended]]:
            events, over = super().poll(seconds)
            if over:
                raise Signalled
            return events, over

    on(Cut(["abacus", "rule"]), monkeypatch)
    done = run(pytester, "-m", "abacus or rule", "--recipe", "bf16", "-k", "generate", "--on", "ray://head")
    assert done.ret == pytest.ExitCode.INTERRUPTED
    assert outcomes(done) == [("test_far.py::test_generate[small-bf16-rule-transformers]", "PASSED")]
    assert [it.cell.hardware for it in lines(folder) if isinstance(it, Measurement)] == ["rule"]


def test_of_a_cluster_that_is_gone_before_it_is_looked_at_all_is_missing(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> NoReturn:
        raise Lost("its head has not answered for 45 s")

    engine = Threads(["abacus"])
    monkeypatch.setattr(engine, "devices", gone)
    on(engine, monkeypatch)
    done = run(pytester, *NAMED, "--recipe", "bf16", "--on", "ray://head")
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    assert done.parseoutcomes()["errors"] == suite.TESTS
    assert "the cluster is gone: its head has not answered for 45 s" in " ".join(done.stdout.str().split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--on", "local", "-n", "1"], "--on with -n: cells are side by side by themselves"),
        (["--on", "ray://head", "--share", "nothing://there"], "--share nothing://there: Protocol not known"),
        (["--on", "ray://head", "--resume", "never"], "no run 'never'"),
        (["--on", "ray://head", "--wait-for-nodes", "nan"], "--wait-for-nodes nan: seconds, from 0 on"),
    ],
)
def test_what_cannot_be_is_refused_before_a_cluster_is_asked(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.setattr(far, "on_ray", lambda _: pytest.fail("a cluster was asked for"))
    refused = run(pytester, *NAMED, *words)
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    assert told in " ".join((refused.stdout.str() + refused.stderr.str()).split())


@pytest.mark.parametrize("word", ["--on=", "--against=", "--resume=", "--model="])
def test_an_option_whose_value_is_empty_is_not_taken_for_none(
    pytester: pytest.Pytester, folder: Path, word: str
) -> None:
    with pytest.raises(pytest.UsageError, match=f"{word[:-1]} is given, and empty"):
        CommandLine.of(pytester.parseconfig(word, "test_far.py"))


def test_what_a_node_reports_reads_as_it_would_here(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-W ignore::UserWarning")
    config = pytester.parseconfig(
        "-vv", "--tb=short", "--showlocals", "--on=local", "--recipe=bf16", "-x", "test_far.py"
    )
    words = " ".join(far_words.words(config, here=True))
    assert words == "--rootdir=. --wide -vv --tb=short --showlocals --recipe=bf16 -W ignore::UserWarning"
