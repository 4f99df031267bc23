"""What quick leaves out is what loads torch or waits for large programs, and nothing can do so unseen."""

from __future__ import annotations

import pytest

from tests import marking

# A torch that costs nothing stands before the real one.
LOADS = """
import subprocess, sys
def test_in_a_process_of_its_own():
    subprocess.run([sys.executable, "-c", {code!r}], check=True)
"""


@pytest.fixture
def run(pytester: pytest.Pytester, repository: object, monkeypatch: pytest.MonkeyPatch):
    """Run a file's tests in another session with the same check."""
    pytester.mkpydir("torch")
    monkeypatch.setenv("PYTHONPATH", str(repository), prepend=":")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return lambda *arguments: pytester.runpytest_subprocess("-p", "tests.marking", "--strict-markers", *arguments)


@pytest.mark.parametrize(
    "code", ["import torch", "import subprocess as s, sys; s.run([sys.executable, '-c', 'import torch'])"]
)
@pytest.mark.programs
def test_a_test_that_loads_torch_unmarked_fails(pytester: pytest.Pytester, run, code: str) -> None:
    pytester.makepyfile(LOADS.format(code=code))
    result = run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*it loads torch: mark it with @pytest.mark.models*"])
    pytester.makepyfile(f"import pytest\npytestmark = pytest.mark.models\n{LOADS.format(code=code)}")
    run().assert_outcomes(passed=1)
    run("-m", "not models").assert_outcomes(deselected=1)


COMPUTES = """
import pytest, subprocess, sys
@pytest.mark.{mark}
def test_in_a_process_of_its_own():
    subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.6: pass"], check=True)
"""


@pytest.mark.programs
def test_a_test_whose_processes_compute_for_long_unmarked_fails(pytester: pytest.Pytester, run) -> None:
    pytester.makeconftest("from tests import marking\nmarking.LARGE = 0.3")
    pytester.makepyfile(COMPUTES.format(mark="usefixtures"))
    result = run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*what it starts computed for [0-9].[0-9] s: mark it with @pytest.mark.programs*"])
    for mark in (marking.MARK, marking.PROGRAMS):
        pytester.makepyfile(COMPUTES.format(mark=mark))
        run().assert_outcomes(passed=1)


@pytest.mark.programs
def test_collecting_loads_no_torch(pytester: pytest.Pytester, run) -> None:
    pytester.makepyfile("import torch\ndef test_one(): pass")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*collecting the tests loads torch*"])


@pytest.mark.programs
def test_to_ask_whether_torch_is_there_loads_nothing(pytester: pytest.Pytester, run) -> None:
    pytester.makepyfile(LOADS.format(code="import importlib.util; assert importlib.util.find_spec('torch')"))
    run().assert_outcomes(passed=1)


@pytest.mark.parametrize("fixture", sorted(marking.FIXTURES[marking.MARK]))
@pytest.mark.programs
def test_a_fixture_that_has_a_model_gives_the_mark(pytester: pytest.Pytester, run, fixture: str) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.fixture
        def {fixture}(): pass

        @pytest.fixture
        def between({fixture}): pass

        def test_one(between): pass

        def test_other(): pass
        """
    )
    run("-m", "not models").assert_outcomes(passed=1, deselected=1)
