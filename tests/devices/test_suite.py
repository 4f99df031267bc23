"""The mobile suite as a user runs it: what is not here is skipped or fails, each with the command that mends it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import needs

pytestmark = [needs.package("executorch"), pytest.mark.usefixtures("imports_stand")]


# Asked of a model of one's own, which a test's is.
LIMIT = "generate_throughput min_ratio=1"


@pytest.fixture
def suite(repository: Path, tiny_model: Any, kept_store: Any, sharegpt_folder: Path, tmp_path: Path) -> Any:
    """``suite(*arguments, path=...)`` runs the suite over the tiny model with another PATH."""

    def run(*arguments: str, path: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "suites", "-m", "arm-mobile", "--model", str(tiny_model.folder)]
        command += [
            "--data",
            str(sharegpt_folder),
            "--cache",
            str(kept_store.root),
            "--results",
            str(tmp_path),
            "--wide",
        ]
        # A temporary folder of its own: the lock of another session on this machine must not hold a test up.
        environ = os.environ | {"PATH": path, "TMPDIR": str(tmp_path)}
        return subprocess.run(
            [*command, *arguments],
            cwd=repository,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run


def test_a_device_that_is_not_here_is_skipped(suite: Any, tmp_path: Path) -> None:
    done = suite("-k", "test_device and bf16 and qemu", path=str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout
    assert "device qemu is not here: no qemu-aarch64-static; on Debian: apt-get install qemu-user-static" in done.stdout


def test_a_device_that_was_asked_for_fails(suite: Any, tmp_path: Path) -> None:
    done = suite("-k", "test_device and bf16", "--device", "adb:none", path=str(tmp_path))
    assert done.returncode == 1, done.stdout
    assert "--device adb:none: no adb; on Debian: apt-get install adb" in done.stdout


@pytest.mark.programs
def test_both_routes_go_to_a_phone(repository: Path) -> None:
    command = [sys.executable, "-m", "pytest", "suites", "-m", "arm-mobile", "--collect-only", "-q"]
    command += ["--device", "adb:one", "-k", "test_device or test_agreement"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False, timeout=60)
    cell = "SmolLM2-135M-Instruct-8da4w-int8emb-arm-mobile-executorch"
    for test in ("test_device", "test_agreement"):
        for route in ("transformers", "llama"):
            assert f"{test}[{cell}-{route}-adb:one]" in done.stdout


def test_an_unknown_device(suite: Any) -> None:
    done = suite("-k", "test_device and bf16", "--device", "phone", path=os.environ["PATH"])
    assert done.returncode == 1, done.stdout
    assert "--device 'phone' is not one of: host" in done.stdout


@pytest.fixture
def metrics(tmp_path: Path) -> Any:
    """``metrics(name, rate)`` writes what XCTest measured on an iPhone."""

    def write(name: str, rate: float) -> Path:
        metric = {"displayName": "Tokens per second", "unitOfMeasurement": "t/s", "measurements": [rate] * 3}
        run = {
            "device": {"deviceName": "Ann's phone", "modelName": "iPhone 15 Pro", "osVersion": "18.1"},
            "metrics": [metric],
        }
        file = tmp_path / name
        file.write_text(json.dumps([{"testIdentifier": "Generate", "testRuns": [run]}]), encoding="utf-8")
        return file

    return write


def test_an_iphones_file_counts_for_one_cell(suite: Any, metrics: Any, kept_store: Any, tmp_path: Path) -> None:
    """It is of the only recipe, not of the baseline too; nothing is exported to read it."""
    programs = [*kept_store.root.glob("program/*/")]
    words = ("-k", "test_device", "--device", f"ios:{metrics('one.json', 17.0)}", "--require", LIMIT)
    done = suite(*words, path=os.environ["PATH"])
    assert done.returncode == 0, done.stdout
    rows = measured(tmp_path)
    assert [(row["cell"]["recipe"]["name"], row["metric"], row["value"]) for row in rows] == [
        ("8da4w-int8emb", "generate_throughput", 17.0)
    ]
    assert rows[0]["parameters"] == {"runner": "ios"}
    assert rows[0]["device"]["name"] == "iPhone 15 Pro"
    assert rows[0]["state_before"] == rows[0]["state_after"] == {}, "this machine's state is not the phone's"
    assert "limits that were not judged" in done.stdout
    assert [*kept_store.root.glob("program/*/")] == programs


def test_two_iphone_files(suite: Any, metrics: Any, tmp_path: Path) -> None:
    """Each is of the recipe that it is named with, and the limits that need a baseline are judged."""
    devices = ("--device", f"ios:bf16={metrics('plain.json', 20.0)}")
    devices += ("--device", f"ios:8da4w-int8emb={metrics('quantized.json', 17.0)}")
    done = suite("-k", "test_device", *devices, "--require", LIMIT, path=os.environ["PATH"])
    assert done.returncode == 1, done.stdout
    assert re.search(r"min_ratio 0\.85( \(by its rounds [^)]*\))?, limit 1\b", " ".join(done.stdout.split()))
    assert {row["cell"]["recipe"]["name"]: row["value"] for row in measured(tmp_path)} == {
        "bf16": 20.0,
        "8da4w-int8emb": 17.0,
    }


def test_an_iphones_file_that_could_be_of_two_recipes(suite: Any, metrics: Any, tmp_path: Path) -> None:
    file = metrics("one.json", 17.0)
    recipes = ("--recipe", "8da4w", "--recipe", "8da4w-int8emb")
    done = suite("-k", "test_device", *recipes, "--device", f"ios:{file}", path=os.environ["PATH"])
    assert done.returncode == 4, done.stdout
    said = " ".join((done.stdout + done.stderr).split())
    assert "the file is of one program on one iPhone, and 2 of the selected cells could be meant" in said
    assert f"--device ios:RECIPE={file}" in said


def measured(folder: Path) -> list[dict[str, Any]]:
    """Return the measurements of the only run below a folder."""
    (records,) = folder.glob("runs/*/records.jsonl")
    lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == "measurement"]
