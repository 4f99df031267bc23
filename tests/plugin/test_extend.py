"""What docs/guides/extend.md says of servers and hardware, tried: one entry of a registry, and the rest follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.base.errors import MatrixError
from harness.commands import doctor
from harness.machine import probe
from harness.matrix.load import load
from harness.records.published import Documented
from harness.report import pytorch_v3
from harness.runtime import environment
from harness.runtime.environment import Environment
from harness.servers.registry import SERVERS, distributions
from harness.servers.registry import names as server_names
from harness.servers.vllm import VLLM
from tests.plugin.test_plugin import MATRIX, collected, of
from tests.report.test_tables import measured

Run = Callable[..., pytest.RunResult]


class Twin(VLLM):
    """A server whose packages are two that are always there."""

    distributions = ("filelock", "twin-cpu")
    repository = "someone/twin"


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(
        test_suite="""
        import pytest

        @pytest.mark.stage("engine")
        def test_latency(cell): pass

        @pytest.mark.stage("quantize")
        def test_checkpoint(cell): pass
        """
    )
    (pytester.path / "suites").mkdir()
    return lambda *given: pytester.runpytest_inprocess("-p", "harness.plugin.plugin", "--strict-markers", *given)


def matrix(folder: Path, text: str) -> Path:
    path = folder / "suites" / "matrix.toml"
    path.write_text(text, encoding="utf-8")
    return path


WITH_TWIN = MATRIX.replace('servers = ["transformers", "vllm"]', 'servers = ["transformers", "vllm", "twin"]')


def test_a_server_is_one_entry_of_the_registry(
    run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = matrix(pytester.path, WITH_TWIN)
    with pytest.raises(
        MatrixError, match=r"servers.2: 'twin' is not defined; known: executorch, sglang, transformers, vllm"
    ):
        load(path, server_names())
    monkeypatch.setitem(SERVERS, "twin", Twin())
    names = collected(run("-v", "-m", "cpu", "--model", "small", "--recipe", "int8wo", "--server", "twin"))
    assert of(names, "test_latency") == ["test_latency[small-bf16-cpu-twin]", "test_latency[small-int8wo-cpu-twin]"]
    refused = run("-rs", "-m", "cpu", "-k", "latency and int8emb and small and twin")
    refused.stdout.fnmatch_lines(["SKIPPED*recipe int8emb does not run through twin: *"])
    given = run("-m", "cpu", "--server", "twin", "--environment", "twin=/no/such")
    given.stderr.fnmatch_lines(["*/no/such is neither an interpreter nor a folder of packages*"])


def test_a_servers_packages_decide_results_and_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester, run: Run
) -> None:
    monkeypatch.setattr(environment, "_packages", lambda python, overlay: {"twin_cpu": "1.2", "torch": "2"})
    assert "twin-cpu" not in Environment().decisive(*distributions())
    monkeypatch.setitem(SERVERS, "twin", Twin())
    assert Environment().decisive(*distributions()) == {"torch": "2", "twin-cpu": "1.2"}
    row = measured("latency", 1.0).model_copy(update={"packages": {"twin-cpu": "1.2"}})
    (record,) = pytorch_v3.records([row], Documented(), {})
    assert record.dependencies["twin-cpu"].repo == "someone/twin"
    monkeypatch.setattr(Twin, "distributions", ("no-such-twin", "nor-such"))
    found = doctor.summary(doctor.packages(imported=False), load(matrix(pytester.path, WITH_TWIN)))
    (told,) = [it for it in found if it.name == "cpu through twin"]
    assert told.problem == "no-such-twin or nor-such: not installed"
    skipped = run("-rs", "-m", "cpu", "--model", "small", "--recipe", "int8wo", "-k", "latency and twin")
    skipped.stdout.fnmatch_lines(["SKIPPED*no-such-twin or nor-such is not installed in *"])


def test_hardware_is_one_table_of_the_matrix(
    run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MATRIX.replace("[measurements.cpu]", "[measurements.abacus]", 1)
    text = text.replace('hardware = "cpu"', 'hardware = "abacus"', 1)
    path = matrix(pytester.path, text)
    with pytest.raises(MatrixError, match=r"cells.0.hardware: 'abacus' is not defined; .*known: amd, arm-mobile, cpu"):
        load(path)
    path = matrix(pytester.path, text + '[hardware.abacus]\nmeaning = "beads on wires"\ninstall = "string some"\n')
    missing = {"abacus": "no beads", "cpu": ""}
    monkeypatch.setattr(probe, "missing", lambda it: missing.get(it.name, "not here"))
    run("--markers").stdout.fnmatch_lines(["@pytest.mark.abacus: beads on wires"])
    names = collected(run("--collect-only", "-q", "-m", "abacus", "--model", "small", "--recipe", "int8wo"))
    assert of(names, "test_checkpoint") == [
        "test_checkpoint[small-bf16-abacus]",
        "test_checkpoint[small-int8wo-abacus]",
    ]
    failed = run("-m", "abacus")
    assert failed.ret == pytest.ExitCode.USAGE_ERROR
    failed.stderr.fnmatch_lines(["*-m selects * for abacus, which is not here: no beads. *"])
    (told,) = [it for it in doctor.devices(load(path)) if it.name == "abacus"]
    assert (told.problem, told.fix) == ("no beads", "string some")


def test_the_page_names_what_there_is(repository: Path) -> None:
    """Every file, class and function of this project that the page names in code is there."""
    page = (repository / "docs" / "guides" / "extend.md").read_text(encoding="utf-8")
    files = {word for word in page.split("`") if word.startswith(("harness/", "tests/", "suites/")) and " " not in word}
    assert len(files) > 8
    assert [name for name in files if not (repository / name).exists()] == []


HOOKS = """
from pathlib import Path

from harness.matrix.schema import Recipe
from harness.servers.vllm import VLLM

class Twin(VLLM):
    distributions = ("filelock",)

def pytest_harness_servers():
    return {"twin": Twin()}

def pytest_harness_recipe(name):
    if name == "ours":
        return Recipe(name=name, config="Int8WeightOnlyConfig", servers=["transformers", "twin"])
"""


@pytest.fixture
def own_servers() -> Iterator[None]:
    """Takes out again what a test has put into the registry."""
    before = dict(SERVERS)
    yield
    for name in SERVERS.keys() - before.keys():
        del SERVERS[name]


@pytest.mark.usefixtures("own_servers")
def test_a_conftest_brings_a_server_and_a_recipe(run: Run, pytester: pytest.Pytester) -> None:
    matrix(pytester.path, MATRIX)
    pytester.makeconftest(HOOKS)
    names = collected(run("--collect-only", "-q", "-m", "cpu", "--model", "small", "--recipe", "ours"))
    assert "test_checkpoint[small-ours-cpu]" in names
    twin = collected(
        run("--collect-only", "-q", "-m", "cpu", "--model", "small", "--recipe", "ours", "--server", "twin")
    )
    assert "test_latency[small-ours-cpu-twin]" not in twin, "no cell of the matrix names it"
    missing = run("--collect-only", "-q", "--recipe", "theirs")
    missing.stderr.fnmatch_lines(["*--recipe 'theirs' is neither a recipe*"])


def test_whoever_takes_records_is_told_of_them_once_they_are_written_and_breaks_nothing(
    pytester: pytest.Pytester, tmp_path: Path
) -> None:
    pytester.makeconftest(
        """
        told = []

        def pytest_harness_record(line, run):
            told.append((line.stage, run.path.read_text().count(line.stage)))
            if line.stage == "two":
                raise KeyError("no such dashboard")
        """
    )
    pytester.makepyfile(
        f"""
        from pathlib import Path

        from conftest import told
        from harness.plugin.fixtures import hand_on
        from harness.records.run import Run
        from harness.records.schema import Timing

        def test_sink(pytestconfig):
            run = Run(Path({str(tmp_path)!r}))
            run.written = lambda line: hand_on(pytestconfig, line, run)
            for stage in ("one", "two", "three"):
                run.append(Timing(stage=stage, seconds=1.0))
            assert told == [("one", 1), ("two", 1), ("three", 1)]
        """
    )
    result = pytester.runpytest_inprocess("-p", "harness.plugin.plugin", "--wide")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*pytest_harness_record: KeyError: 'no such dashboard'*"])
