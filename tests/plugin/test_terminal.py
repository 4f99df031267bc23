"""What a run of the suites prints: no line wider than 100 columns, and a summary of 40 lines at its end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base.terminal import width
from harness.plugin import session
from tests.matrices import HARDWARE
from tests.plugin.test_plugin import MEASUREMENTS

RECIPES = 18
MATRIX = f"""
schema = 1
{HARDWARE}
[models.small]
folder = "small"
[recipes.bf16]
baseline = true
servers = ["transformers"]
"""
RECIPE = """
[recipes.a-recipe-with-a-rather-long-name-{number}]
config = "Int8WeightOnlyConfig"
servers = ["transformers"]
"""
REST = """
[[cells]]
hardware = "cpu"
models = ["small"]
recipes = [{recipes}]
servers = ["transformers"]
[[thresholds]]
metric = "generate_throughput"
min = 100.0
unit = "tok/s"
origin = "chosen: {words}"
[[thresholds]]
metric = "peak_memory"
max = 0.5
unit = "GB"
origin = "chosen: {words}"
known_failure = "its cache is large: {words}"
[measurements.cpu]
{measurements}
"""
SUITE = """
    import pytest
    from harness.measure.recorder import record_of
    from harness.records.schema import Cell, Device, ModelIdentity

    MODEL = ModelIdentity(name="small", source="folder:small", revision="r", weights="pretrained")

    def figure(cell, session, metric, value):
        of = Cell(model=MODEL, recipe=cell.recipe.identity, hardware="cpu", server=cell.server)
        made = record_of(metric, value, cell=of, parameters={}, packages={}, device=Device(name="a processor"))
        session.run.append(made)
        return made

    @pytest.mark.stage("transformers")
    def test_generate(cell, harness_session, judge, timed):
        timed(lambda: None, 2, 0)
        judge(cell, figure(cell, harness_session, "generate_throughput", 1.0))

    @pytest.mark.stage("transformers")
    def test_memory(cell, harness_session, judge):
        judge(cell, figure(cell, harness_session, "peak_memory", 1.0))

    @pytest.mark.stage("transformers")
    def test_tasks(cell, harness_session):
        pytest.skip(f"a reason of {cell.recipe.name} that is long: " + "word " * 30)
"""
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a suite of many recipes of which each fails twice; the output is a pipe."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setattr(session, "machine_lock", lambda: pytester.path / "lock")
    names = [f"a-recipe-with-a-rather-long-name-{number}" for number in range(RECIPES)]
    rest = REST.format(
        recipes=", ".join(f'"{name}"' for name in ("bf16", *names)), words="word " * 40, measurements=MEASUREMENTS
    )
    text = MATRIX + "".join(RECIPE.format(number=number) for number in range(RECIPES)) + rest
    (pytester.path / "suites").mkdir()
    (pytester.path / "suites" / "matrix.toml").write_text(text, encoding="utf-8")
    (pytester.path / "suites" / "conftest.py").write_text("", encoding="utf-8")
    (pytester.path / "pytest.ini").write_text("[pytest]\naddopts = -ra\n", encoding="utf-8")
    pytester.makepyfile(test_suite=SUITE)
    given = ("-p", "pytest_benchmark.plugin", "-p", "harness.plugin.plugin", "-p", "no:cacheprovider")
    return lambda *more: pytester.runpytest_inprocess(*given, "-m", "cpu", "--cache=cache", *more)


def summary(result: pytest.RunResult) -> list[str]:
    """Return the lines from the summary's heading to the end."""
    (at,) = (at for at, line in enumerate(result.outlines) if line.strip("= ") == "summary")
    return result.outlines[at:]


@pytest.mark.programs
def test_a_run_with_many_failures_and_many_recipes_ends_on_one_screen(run: Run, pytester: pytest.Pytester) -> None:
    result = run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert max(width(line) for line in result.outlines + result.errlines) <= 100
    shown = summary(result)
    assert len(shown) <= 40
    assert shown[1].startswith(
        f"failed: {RECIPES + 1} failed, {RECIPES + 1} xfailed, {RECIPES + 1} skipped; limits held: 0"
    )
    text = "\n".join(shown)
    order = [
        "limits that do not hold:",
        "generate_throughput of small-bf16-cpu-transformers: measured 1 tok/s, min 1, limit 100",
        "limits that are known not to hold:",
        "small on cpu (a processor)",
        "where the time went:",
        "records: results/runs/",
        "all of this summary: results/runs/",
    ]
    assert [words for words in order if words not in text] == []
    assert sorted(order, key=text.index) == order
    (whole,) = Path(pytester.path, "results", "runs").glob("*/summary.txt")
    written = whole.read_text(encoding="utf-8")
    assert written.count("limit 100") == RECIPES + 1, "all of them stand in the file"
    assert max(map(width, written.splitlines())) <= 100
    assert "its cache is large" in written


@pytest.mark.programs
def test_pytest_benchmarks_block_and_the_list_of_tests_come_where_asked(run: Run) -> None:
    one = ("-k", "generate and bf16")
    plain, asked = run(*one).stdout.str(), run(*one, "--benchmark-sort=mean", "-rf").stdout.str()
    for words in ("Legend:", "short test summary"):
        assert words not in plain
        assert words in asked


def test_wide_lets_lines_be_as_wide_as_they_are(run: Run) -> None:
    result = run("-k", "generate and bf16", "--wide")
    assert max(width(line) for line in result.outlines) > 100


def test_verbose_shows_every_section_before(run: Run) -> None:
    result = run("-k", "generate and bf16", "-v")
    assert max(width(line) for line in result.outlines) <= 100
    result.stdout.fnmatch_lines(["*= results =*", "### Performance", "*= where the time went =*", "*= summary =*"])
    assert len(summary(result)) <= 40


@pytest.mark.programs
def test_a_terminal_shows_at_its_foot_what_runs(run: Run, pytester: pytest.Pytester) -> None:
    """The line is gone before pytest writes on, where it was: a test's dot stands behind its file's name."""
    run("--co", "-q")
    suite = pytester.path / "test_suite.py"
    suite.write_text(suite.read_text().replace("timed(lambda: None, 2, 0)", "__import__('time').sleep(0.7)"))
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
    environ = {name: it for name, it in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm-256color"}
    given = ["-p", "pytest_benchmark.plugin", "-p", "harness.plugin.plugin", "-p", "no:cacheprovider", "-m", "cpu"]
    command = [sys.executable, "-m", "pytest", *given, "--cache=cache", "-k", "generate and bf16"]
    with subprocess.Popen(command, cwd=pytester.path, env=environ, stdout=follower, stderr=follower) as process:
        os.close(follower)
        shown = b"".join(iter(lambda: read(leader), b""))
    assert process.returncode == pytest.ExitCode.TESTS_FAILED
    text = shown.decode()
    foot = text.index("[test 1 of 1, time left unknown]")
    assert "test_suite.py::test_generate[small-bf16" in text[:foot]
    begun = text.index("test_suite.py \r\n")
    assert begun < foot
    back = text.index(f"\x1b[{len('test_suite.py ') + 1}G", foot)
    assert "\x1b[1A" in text[foot:back], "one line up, and behind the file's name"
    assert "F" in text[back : back + 40]
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text[text.rindex("summary") :])
    assert max(map(width, plain.splitlines())) <= 100, "also where the terminal is wider"


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""  # the other side was closed
