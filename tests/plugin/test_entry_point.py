"""The plugin as pytest finds it by itself: in real processes, from several folders, beside other projects' options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugin.test_plugin import MATRIX, SUITES
from tests.plugin.test_progress_output import LOCK

pytestmark = pytest.mark.programs

Pytest = Callable[..., subprocess.CompletedProcess[str]]
# What only the project's own tests need: not there for whoever installs '.[cpu]' or '.[h100]'.
TEST_ALONE = ("hypothesis", "_hypothesis", "xdist", "execnet", "playwright", "mypy", "ruff", "importlinter", "grimp")


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that tells pytest of the plugin as an installation does, whatever is installed here."""
    folder = tmp_path_factory.mktemp("site")
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    told = folder / "torchao_harness-0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao-harness\nVersion: 0\n", encoding="utf-8")
    points = "".join(f"{name} = {module}\n" for name, module in project["entry-points"]["pytest11"].items())
    (told / "entry_points.txt").write_text(f"[pytest11]\n{points}", encoding="utf-8")
    (folder / "harness").symlink_to(repository / "harness")
    return folder


@pytest.fixture
def run(site: Path, monkeypatch: pytest.MonkeyPatch) -> Pytest:
    """Run ``python -m pytest`` as a user does: nothing named with -p, in a folder of choice."""
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    def call(folder: Path, *words: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *python, "-m", "pytest", "-p", "no:cacheprovider", *words]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model, outside of every checkout."""
    folder = tmp_path_factory.mktemp("models") / "my-model"
    folder.mkdir()
    return folder


# ------------------------------------------------------------------------------------------------- other projects


def test_a_run_elsewhere_pays_nothing(run: Pytest, tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(
        "import sys\n\ndef test_loaded():\n"
        "    loaded = {name for name in sys.modules if name.split('.')[0] == 'harness'}\n"
        "    assert loaded == {'harness', 'harness.base', 'harness.base.shipped', 'harness.plugin',"
        " 'harness.plugin.options'}\n",
        encoding="utf-8",
    )
    done = run(tmp_path, "-q")
    assert done.returncode == 0, done.stdout
    code = (
        "import json, sys, time, pytest\nbefore, start = set(sys.modules), time.process_time()\nimport harness.plugin\n"
        "print(json.dumps([time.process_time() - start, sorted(set(sys.modules) - before)]))"
    )
    tries = [json.loads(subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path)) for _ in range(5)]
    assert min(seconds for seconds, _ in tries) < 0.02
    assert {name.split(".")[0] for name in tries[0][1]} == {"harness"}


def test_another_project_may_have_options_of_the_same_names(run: Pytest, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--model')\n    parser.addoption('--limit')\n",
        encoding="utf-8",
    )
    (tmp_path / "test_theirs.py").write_text(
        "def test_model(pytestconfig):\n    assert pytestconfig.getoption('--model') == 'theirs'\n", encoding="utf-8"
    )
    done = run(tmp_path, "-q", "--model", "theirs")
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_option_without_suites_says_what_is_missing(run: Pytest, tmp_path: Path, model: Path) -> None:
    done = run(tmp_path, "-m", "cpu", "--model", str(model))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--model is an option of the harness's suites, and there are none in " in done.stderr
    assert "harness init" in done.stderr


# ------------------------------------------------------------------------------------------- from several folders


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (".", []),
        ("suites", []),
        ("docs", ["../suites"]),
        ("/", ["{repository}/suites/test_quantize.py::test_checkpoint"]),
    ],
)
def test_folders_outside_of_the_checkout_are_values_of_options_from_anywhere(
    run: Pytest,
    repository: Path,
    tmp_path: Path,
    model: Path,
    where: str,
    what: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``--model FOLDER`` and its like: pytest takes none of them for what it is to collect, or for its root."""
    for name in ("data", "cache", "results"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "piqa.jsonl").write_text("", encoding="utf-8")
    monkeypatch.setenv("PYTEST_ADDOPTS", f"--python {sys.executable}")
    given = ["--model", str(model), "--recipe", "int8wo"]
    given += [word for name in ("data", "cache", "results") for word in (f"--{name}", str(tmp_path / name))]
    words = [word.format(repository=repository) for word in what]
    done = run(repository / where, "-m", "cpu", "--co", "-q", *given, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [line for line in done.stdout.splitlines() if "::" in line]
    assert any(line.endswith("suites/test_quantize.py::test_checkpoint[my-model-int8wo-cpu]") for line in names) or (
        where == "suites" and "test_quantize.py::test_checkpoint[my-model-int8wo-cpu]" in names
    )
    assert any("test_task[my-model-int8wo-cpu-transformers-piqa]" in line for line in names) or "::" in "".join(words)
    assert not list(model.iterdir()), "nothing is written into the model's folder"


@pytest.mark.parametrize("more", [["-n", "1"], ["-p", "harness.plugin.plugin"]])
def test_a_run_outside_of_a_checkout_writes_where_it_is_told(
    run: Pytest, tmp_path: Path, model: Path, more: list[str]
) -> None:
    suites = tmp_path / "project" / "suites"
    suites.mkdir(parents=True)
    (suites / "matrix.toml").write_text(MATRIX, encoding="utf-8")
    (suites / "conftest.py").write_text(textwrap.dedent(LOCK), encoding="utf-8")
    (suites / "test_mine.py").write_text(
        'import pytest\n\n@pytest.mark.stage("quantize")\ndef test_checkpoint(cell, measure):\n    pass\n',
        encoding="utf-8",
    )
    out = tmp_path / "out"
    out.mkdir()
    given = ["-m", "cpu", "--model", str(model), "--recipe", "int8wo", "--results", str(out), "--cache", str(out / "c")]
    done = run(suites.parent, *given, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    (record,) = out.glob("runs/*/records.jsonl")
    assert f"--model={model}" in record.read_text(encoding="utf-8")
    assert not (suites.parent / "results").exists()


def test_a_mistyped_model_is_one_clear_error(run: Pytest, tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "matrix.toml").write_text(MATRIX, encoding="utf-8")
    for name, text in SUITES.items():
        (tmp_path / "suites" / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    done = run(tmp_path, "-m", "cpu", "--model", "smal", "--co")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.count("ERROR: --model 'smal' is neither a model of matrix.toml") == 1
    assert "NOTSET" not in done.stdout
    assert "::" not in done.stdout


# --------------------------------------------------------------------------------------------- without test extras


@pytest.fixture(scope="module")
def without_extras(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of this environment but for those that only the project's own tests need."""
    folder = tmp_path_factory.mktemp("packages")
    here = [Path(path) for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    for path in (path for place in (site, *here) for path in place.iterdir()):
        if not path.name.lower().startswith((*TEST_ALONE, "pytest_xdist")) and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "-m h100 --server sglang --server vllm --recipe float8dq --environment sglang=.venv-sglang",
        "-m cpu --model {model} --recipe int8wo",
    ],
)
def test_the_suites_need_nothing_of_the_projects_own_tests(
    run: Pytest, repository: Path, without_extras: Path, model: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(without_extras)]))
    missing = subprocess.run([sys.executable, "-S", "-c", "import hypothesis"], capture_output=True, check=False)
    assert missing.returncode == 1
    done = run(repository, *words.format(model=model).split(), "--co", "-q", python=("-S",))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "suites/test_quantize.py::test_checkpoint[" in done.stdout
    assert "Warning" not in done.stdout + done.stderr
