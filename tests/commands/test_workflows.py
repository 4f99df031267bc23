"""The GitHub Actions workflows: whole, without a secret in a command, and every harness command in them is one."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.__main__ import parser

WORKFLOWS = sorted((Path(__file__).parents[2] / ".github" / "workflows").glob("*.yml"))


def loaded(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in loaded(path)["jobs"].values() for step in job["steps"]]


def test_there_is_one_for_each_job() -> None:
    assert {path.stem for path in WORKFLOWS} == {"nightly-gpu", "nightly-mobile", "pull-request", "upgrade-gate"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_whole(path: Path) -> None:
    workflow = loaded(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert True in workflow  # the key `on`, as YAML 1.1 reads it
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 240
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
        assert all("@" in step["uses"] for step in job["steps"] if "uses" in step)
    text = "\n".join(step.get("run", "") for step in steps(path))
    assert "GITHUB_STEP_SUMMARY" in text
    # What others may write (inputs, branch names) reaches a shell through the environment only.
    assert "${{" not in text


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_harness_command_is_one(path: Path) -> None:
    commands = [
        shlex.split(re.sub(r">>.*", "", line.split("-m harness ", 1)[1]))
        for step in steps(path)
        for line in step.get("run", "").replace("\\\n", " ").splitlines()
        if "-m harness " in line
    ]
    assert commands
    for command in commands:
        values = {"$OLD": "torchao==0.17.0", "$NEW": "torchao==0.18.0", "$BUDGET": "30m"}
        parser().parse_args([values.get(word, word) for word in command])


def test_exports_to_the_benchmark_database_know_the_job_that_github_does_not_name() -> None:
    exporting = [step for path in WORKFLOWS for step in steps(path) if "pytorch-v3" in step.get("run", "")]
    assert len(exporting) == 3
    for step in exporting:
        assert step["env"]["JOB_ID"] == "${{ job.check_run_id }}"


def test_the_nights_run_the_phones_suite_and_what_is_slow() -> None:
    """A device that is named and missing fails, so that no night goes by without the emulator that is installed."""
    (path,) = (path for path in WORKFLOWS if path.stem == "nightly-mobile")
    assert loaded(path)[True]["schedule"]
    commands = "\n".join(step.get("run", "") for step in steps(path))
    assert "tox run -e mobile -- --device host --device qemu --task arc_easy " in commands
    assert "tox run -e test -- -m slow " in commands
    installed = commands.split("--no-install-recommends ", 1)[1].splitlines()[0].split()
    known = (WORKFLOWS[0].parents[2] / ".ci" / "run").read_text(encoding="utf-8")
    (packages,) = re.findall(r'^packages="(.*)"$', known, re.MULTILINE)
    assert {"g++", "g++-aarch64-linux-gnu", "qemu-user-static"} == {*installed} <= {*packages.split()}


def gate_job(folder: Path, old: str) -> tuple[list[int], str]:
    """Run the gate's own steps as a runner does, in a checkout that holds committed gates.

    Returns the steps' exit statuses and the summary of the run.
    """
    repository = WORKFLOWS[0].parents[2]
    shutil.copytree(repository / "results" / "gates", folder / "results" / "gates")
    shutil.copytree(repository / "suites", folder / "suites")
    (folder / ".tox" / "cpu" / "bin").mkdir(parents=True)
    (folder / ".tox" / "cpu" / "bin" / "activate").write_text("")
    (workflow,) = (path for path in WORKFLOWS if path.stem == "upgrade-gate")
    environment = os.environ | {
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(repository),
        "TMPDIR": str(folder),
        **{"OLD": old, "NEW": "torchao==0.18.0", "BUDGET": "30m", "XDG_CACHE_HOME": str(folder / "cache")},
    }
    statuses = []
    for step in steps(workflow):
        if "-m harness " in step.get("run", "") and (not any(statuses) or step.get("if") == "always()"):
            command = ["bash", "-e", "-c", step["run"]]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            statuses.append(done.returncode)
    summary = folder / "summary.md"
    return statuses, summary.read_text(encoding="utf-8") if summary.exists() else ""


@pytest.mark.programs
def test_a_gate_that_never_began_shows_no_committed_one_as_its_own(tmp_path: Path) -> None:
    assert list((WORKFLOWS[0].parents[2] / "results" / "gates").glob("*/gate.json")), "a gate is committed"
    statuses, summary = gate_job(tmp_path, old="torchao==")
    assert statuses == [2, 0]
    assert summary == "The gate gave no verdicts: see the log of its step.\n"
    assert not (tmp_path / "junit").exists()
    assert not list(tmp_path.glob("out/**/*.json")) + list(tmp_path.glob("out/**/*.html"))


@pytest.mark.programs
def test_a_gates_page_is_of_what_it_wrote(tmp_path: Path) -> None:
    """That of a gate that gave verdicts, here a committed one where the gate's step would have put its own."""
    (gate,) = sorted((WORKFLOWS[0].parents[2] / "results" / "gates").glob("*/gate.json"))[-1:]
    (tmp_path / "out" / "gate").mkdir(parents=True)
    shutil.copy(gate, tmp_path / "out" / "gate")
    statuses, summary = gate_job(tmp_path, old="torchao==")
    assert statuses == [2, 0]
    assert summary == "", "a gate writes its own"
    page = (tmp_path / "out" / "gate.html").read_text(encoding="utf-8")
    reasons = [verdict["reason"] for verdict in json.loads(gate.read_text(encoding="utf-8"))["verdicts"]]
    assert len(reasons) > 30
    assert all(page.count(f"<td>{reason}</td>") == reasons.count(reason) for reason in reasons)
