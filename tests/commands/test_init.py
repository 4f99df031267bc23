"""A wheel as a user has it: it brings the suites, and `harness init` makes a project that pytest collects."""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from harness import __main__, __version__
from harness.base.errors import HarnessError
from harness.base.files import write_bytes
from harness.commands import init

LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "tests", "runs", "reference", "gates")

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy of its files."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(repository, folder / "source", ignore=LEFT_OUT)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(folder / "source")], check=True, cwd=folder, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Call:
    """Run a command of Python with the wheel and this environment's packages, and no checkout to be found."""
    site = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    for place in (Path(path) for path in sys.path if path.endswith(("site-packages", "dist-packages"))):
        for path in place.iterdir():
            if not path.name.startswith(("torchao_harness", "__editable__")) and not (site / path.name).exists():
                (site / path.name).symlink_to(path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}

    def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", *words]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return call


def test_the_wheel_has_all_that_the_checkout_has(wheel: Path, repository: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {path for path in repository.glob("harness/**/*") if path.is_file() and path.suffix != ".pyc"}
    assert {str(path.relative_to(repository)) for path in ours} <= names
    for folder, inside in (
        ("suites", "suites"),
        ("requirements", "requirements"),
        ("results/documented", "documented"),
    ):
        there = [path for path in (repository / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert {f"harness/{inside}/{path.relative_to(repository / folder)}" for path in there} <= names
    (points,) = (name for name in names if name.endswith("entry_points.txt"))
    told = configparser.ConfigParser()
    told.read_string(zipfile.ZipFile(wheel).read(points).decode())
    assert dict(told["console_scripts"]) == {"harness": "harness.__main__:main"}
    assert dict(told["pytest11"]) == {"harness.plugin": "harness.plugin"}


def test_a_project_of_ones_own_is_collected_from_an_installed_wheel(installed: Call, tmp_path: Path) -> None:
    made = installed(tmp_path, "-m", "harness", "init", "mine")
    assert made.returncode == 0, made.stderr
    project = tmp_path / "mine"
    done = installed(project, "-m", "pytest", "-m", "cpu", "--recipe", "int8wo", "--collect-only", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "suites/test_quantize.py::test_checkpoint[SmolLM2-135M-Instruct-int8wo-cpu]" in done.stdout
    assert "suites/test_server.py::test_server[SmolLM2-135M-Instruct-bf16-cpu-vllm]" in done.stdout
    # Its matrix is its own.
    matrix = project / "suites" / "matrix.toml"
    text = matrix.read_text(encoding="utf-8")
    assert text.startswith(f"# A copy of that of torchao-harness {__version__}.\n")
    matrix.write_text(text.replace("SmolLM2-135M-Instruct", "my-model"), encoding="utf-8")
    done = installed(project, "-m", "pytest", "-m", "cpu", "--recipe", "int8wo", "--collect-only", "-q")
    assert "test_checkpoint[my-model-int8wo-cpu]" in done.stdout, done.stderr


def test_nothing_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["init", str(tmp_path)]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert __main__.main(["init", str(tmp_path)]) == 2
    assert "is there already, and nothing was written" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), HarnessError("the disk is full")])
def test_half_a_project_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Else the same command were refused, by what it had left itself."""
    written = []

    def fills(path: Path, data: bytes) -> None:
        if len(written) == 3:
            raise error
        written.append(path)
        write_bytes(path, data)

    (tmp_path / "mine").write_text("of the user's own")
    with monkeypatch.context() as patch:
        patch.setattr(init, "write_bytes", fills)
        assert __main__.main(["init", str(tmp_path)]) == (2 if isinstance(error, HarnessError) else 130)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]
    assert __main__.main(["init", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("hardware", "installs"),
    [
        ("cpu", "tox run -e cpu -- --junitxml=junit/cpu.xml"),
        ("arm-mobile", "tox run -e arm-mobile -- --junitxml=junit/arm-mobile.xml"),
        ("h100", f"pip install 'torchao-harness[gpu]=={__version__}'"),
        ("gpu", f"pip install 'torchao-harness[gpu]=={__version__}'"),
    ],
)
def test_the_workflow_is_for_the_hardware(
    tmp_path: Path, hardware: str, installs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "requirement", lambda extra="": f"torchao-harness{f'[{extra}]' * bool(extra)}==0.1.0")
    assert __main__.main(["init", str(tmp_path), "--hardware", hardware]) == 0
    text = (tmp_path / ".github" / "workflows" / "benchmarks.yml").read_text(encoding="utf-8")
    (job,) = yaml.safe_load(text)["jobs"].values()
    assert installs in "\n".join(step.get("run", "") for step in job["steps"])
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in written if path.suffix in (".yml", ".ini") and "@HA" in path.read_text()] == []
    if (tmp_path / "tox.ini").is_file():
        deps = configparser.ConfigParser()
        deps.read(tmp_path / "tox.ini")
        needed = [line.removeprefix("-r ") for line in deps[f"testenv:{hardware}"]["deps"].split("\n") if "-r " in line]
        assert all((tmp_path / line).is_file() for line in needed)
        assert needed


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (None, f"torchao-harness=={__version__}"),
        ('{"url": "file:///home/me/checkout", "dir_info": {}}', f"torchao-harness=={__version__}"),
        (
            '{"url": "https://host.example/it.git", "vcs_info": {"vcs": "git", "commit_id": "0a1"}}',
            "torchao-harness @ git+https://host.example/it.git@0a1",
        ),
        ('{"url": "https://host.example/it.whl"}', "torchao-harness @ https://host.example/it.whl"),
    ],
)
def test_ci_installs_the_harness_from_where_it_came(
    told: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Told:
        def read_text(self, name: str) -> str | None:
            return told

    monkeypatch.setattr(init.importlib.metadata, "distribution", lambda name: Told())
    assert init.requirement() == wanted


def test_hardware_that_the_matrix_does_not_know_is_refused(tmp_path: Path) -> None:
    args = __main__.parser().parse_args(["init", str(tmp_path), "--hardware", "h10"])
    with pytest.raises(HarnessError, match=r"--hardware 'h10' is none of matrix.toml; did you mean h100"):
        init.run(args)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("came", "told"),
    [("checkout", "pip wheel --no-deps -w "), ("it.whl", "pip wheel --no-deps -w "), ("no longer here", ""), ("", "")],
)
def test_it_says_how_ci_gets_a_harness_that_no_index_has(
    tmp_path: Path, came: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = tmp_path / came
    if came == "it.whl":
        origin.touch()
    elif came == "checkout":
        origin.mkdir()
    monkeypatch.setattr(init, "_source", lambda: {"url": origin.as_uri()} if came else {})
    project = tmp_path / "a project"
    assert __main__.main(["init", str(project)]) == 0
    said = capsys.readouterr().out
    assert ("CI needs it too" in said) == bool(told)
    assert told in said
    assert (shlex.quote(str(project / "requirements")) in said) == bool(told)
    deps = configparser.ConfigParser()
    deps.read(project / "tox.ini")
    assert "--find-links {tox_root}/requirements" in deps["testenv:cpu"]["install_command"]
