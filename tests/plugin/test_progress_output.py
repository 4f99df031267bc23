"""Progress in the output of a real pytest: whole lines between pytest's own, in a log file too, and none with -q."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.plugin import session
from tests.plugin.test_plugin import MATRIX

Run = Callable[..., pytest.RunResult]

SUITE = """
    import pytest

    @pytest.mark.stage("transformers")
    def test_generate(cell, harness_session):
        print("a word of the test itself")
        for number in range(3):
            harness_session.flow.progress(f"round {number} of {cell.recipe.name}: now")
"""
# A session's own lock, so that whoever measures on this machine need not be waited for.
LOCK = """
    from pathlib import Path
    from harness.plugin import session

    session.machine_lock = lambda: Path(__file__).with_name("lock")
"""
LINE = re.compile(r"  \d\d:\d\d:\d\d round \d of (bf16|int8wo): now \[test [12] of 2, .*left.*\]")
PLUGINS = ("-p", "harness.plugin.plugin", "-p", "no:cacheprovider")
CHOSEN = (*PLUGINS, "-m", "cpu", "--model", "small", "--recipe", "int8wo", "--cache", "cache")


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run pytest over a suite whose tests say three things each; the output is no terminal."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(session, "machine_lock", lambda: pytester.path / "lock")
    (pytester.path / "suites").mkdir()
    (pytester.path / "suites" / "matrix.toml").write_text(MATRIX, encoding="utf-8")
    pytester.makepyfile(test_suite=SUITE)
    pytester.makeconftest(LOCK)
    return lambda *arguments: pytester.runpytest_inprocess(*CHOSEN, *arguments)


def progress(lines: list[str]) -> list[str]:
    """Return what was said of rounds, each of which must be a line of its own."""
    said = [line for line in lines if " round " in line]
    assert [line for line in said if not LINE.fullmatch(line)] == []
    return said


def test_lines_stand_between_pytests_own(run: Run) -> None:
    result = run()
    result.assert_outcomes(passed=2)
    assert len(progress(result.outlines)) == 6
    own = [line for line in result.outlines if line and " round " not in line]
    dots = [line for line in own if re.fullmatch(r"(test_suite\.py )?\.*\s*(\[ *\d+%\])?", line)]
    assert "".join(dots).count(".") - "".join(dots).count(".py") == 2
    assert dots[-1].endswith("[100%]")
    assert "a word of the test itself" not in result.stdout.str(), "what a test prints stays captured"


def test_verbose_names_each_test_before_and_with_its_outcome_after(run: Run) -> None:
    result = run("-v")
    assert len(progress(result.outlines)) == 6
    for recipe, share in (("bf16", "50"), ("int8wo", "100")):
        name = f"test_suite.py::test_generate[small-{recipe}-cpu-transformers]"
        before, after = (line for line in result.outlines if line.startswith(name))
        assert before.strip() == name
        assert re.fullmatch(rf"PASSED +\[ *{share}%\]", after.removeprefix(name).strip())
        between = result.outlines[result.outlines.index(before) + 1 : result.outlines.index(after)]
        assert len(progress(between)) == 3


@pytest.mark.parametrize("quiet", [("-q",), ("-qq",), ("-p", "no:terminal")])
def test_quiet_says_nothing(run: Run, quiet: tuple[str, ...]) -> None:
    result = run(*quiet)
    assert result.ret == pytest.ExitCode.OK
    assert " round " not in result.stdout.str() + result.stderr.str()


def test_uncaptured_output_keeps_its_lines(run: Run) -> None:
    result = run("-s")
    assert len(progress(result.outlines)) == 6
    assert sum("a word of the test itself" in line for line in result.outlines) == 2


@pytest.mark.programs
def test_a_log_file_holds_plain_lines_and_junit_none_of_them(run: Run, pytester: pytest.Pytester) -> None:
    """In a process of its own, as a nightly job writes it."""
    log = pytester.path / "session.log"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "pytest", *CHOSEN, "--junitxml=junit.xml"]
    with log.open("wb") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False)
    assert done.returncode == 0, log.read_text()
    data = log.read_bytes()
    assert not set(data) & {*range(9), *range(11, 32), 127}, "no colours, no carriage returns"
    lines = data.decode().splitlines()
    assert len(progress(lines)) == 6
    assert re.search(r"=+ 2 passed", lines[-1])
    suite = ElementTree.parse(pytester.path / "junit.xml").getroot()[0]
    assert suite.get("tests") == "2"
    assert " round " not in Path(pytester.path / "junit.xml").read_text()
