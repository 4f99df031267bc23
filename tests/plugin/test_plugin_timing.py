"""Timing under a real pytest: pytest-benchmark's own options, without it, and beside other workers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugin.test_plugin import MATRIX

Run = Callable[..., pytest.RunResult]

ROUNDS, WARMUP = 3, 2
SUITE = f"""
    import json, pathlib, time
    import pytest

    @pytest.mark.stage("transformers")
    def test_generate(cell, timed):
        calls = []

        def once():
            time.sleep(0.002)
            calls.append(1)

        timed(once, {ROUNDS}, {WARMUP})
        timed(once, {ROUNDS}, {WARMUP})  # a second block, the first one being discarded
        with pathlib.Path("calls.jsonl").open("a") as file:
            print(json.dumps([cell.recipe.name, len(calls)]), file=file)
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run pytest with the plugins of timing and distribution, in a process of its own where that has workers."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    (pytester.path / "suites").mkdir()
    (pytester.path / "suites" / "matrix.toml").write_text(MATRIX, encoding="utf-8")
    pytester.makepyfile(test_suite=SUITE, test_other="def test_other(): pass")
    plugins = [
        word for name in ("harness.plugin.plugin", "pytest_benchmark.plugin", "xdist.plugin") for word in ("-p", name)
    ]
    chosen = ("-m", "cpu", "--model", "small", "--recipe", "int8wo")

    def start(*arguments: str) -> pytest.RunResult:
        go = pytester.runpytest_subprocess if "-n" in arguments else pytester.runpytest_inprocess
        return go(*plugins, *chosen, "--wide", *arguments)

    return start


def calls(folder: Path) -> list[list[object]]:
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


EVERY_ROUND = [["bf16", 2 * (ROUNDS + WARMUP)], ["int8wo", 2 * (ROUNDS + WARMUP)]]


def test_benchmark_json_holds_each_round_and_what_was_measured(run: Run, pytester: pytest.Pytester) -> None:
    result = run("--benchmark-json=times.json")
    result.assert_outcomes(passed=2)
    found = json.loads((pytester.path / "times.json").read_text())["benchmarks"]
    assert [entry["extra_info"] for entry in found] == [
        {"model": "small", "recipe": recipe, "hardware": "cpu", "server": "transformers"}
        for recipe in ("bf16", "int8wo")
    ]
    assert {entry["group"] for entry in found} == {"small on cpu"}
    for entry in found:
        assert entry["stats"]["rounds"] == len(entry["stats"]["data"]) == ROUNDS
        assert entry["stats"]["min"] >= 0.002
    assert calls(pytester.path) == EVERY_ROUND


@pytest.mark.programs
def test_benchmark_autosave_keeps_a_session_that_compare_holds_the_next_one_against(
    run: Run, pytester: pytest.Pytester
) -> None:
    run("--benchmark-autosave").assert_outcomes(passed=2)
    (saved,) = pytester.path.glob(".benchmarks/*/0001_*.json")
    assert len(json.loads(saved.read_text())["benchmarks"]) == 2
    result = run("--benchmark-compare")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*benchmark 'small on cpu': 4 tests*"])
    for recipe in ("bf16", "int8wo"):
        result.stdout.fnmatch_lines_random([f"test_generate*{recipe}*(NOW)*", f"test_generate*{recipe}*(0001_*"])


@pytest.mark.parametrize("options", [("--benchmark-disable",), ("-n", "1")])
@pytest.mark.programs
def test_every_round_runs_where_pytest_benchmark_is_disabled(
    run: Run, pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    result = run(*options)
    result.assert_outcomes(passed=2)
    assert calls(pytester.path) == EVERY_ROUND


@pytest.mark.programs
def test_several_workers_measure_nothing_say_so_once_and_run_the_rest(run: Run, pytester: pytest.Pytester) -> None:
    result = run("-n", "2", "-m", "not h100")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.assert_outcomes(passed=1)
    assert [line for line in result.outlines if "ERROR" in line] == [
        "ERROR: -n 2: 2 tests measure, and would measure each other where 2 workers run at once. Nothing was measured: "
        "leave out -n, or give -n 1."
    ]
    assert "INTERNALERROR" not in result.stderr.str()
    assert calls(pytester.path) == []
    assert not (pytester.path / "results").exists()
    alone = run("-n", "2", "-m", "not h100", "test_other.py")
    assert alone.ret == pytest.ExitCode.OK
    assert "measure each other" not in alone.stdout.str()
