"""The GitHub Actions workflows: whole, without a secret in a command, and every harness command in them is one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.__main__ import parser

WORKFLOWS = sorted((Path(__file__).parents[1] / ".github" / "workflows").glob("*.yml"))


def loaded(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in loaded(path)["jobs"].values() for step in job["steps"]]


def test_there_is_one_for_each_job() -> None:
    assert {path.stem for path in WORKFLOWS} == {"nightly-gpu", "pull-request", "upgrade-gate"}


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
        for line in step.get("run", "").splitlines()
        if "-m harness " in line
    ]
    assert commands
    for command in commands:
        values = {"$OLD": "torchao==0.17.0", "$NEW": "torchao==0.18.0", "$BUDGET": "30m", "$gate": "results/gates/1"}
        parser().parse_args([values.get(word, word) for word in command])
