"""The mobile suite as a user runs it: what is not here is skipped or fails, each with the command that mends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("executorch")


@pytest.fixture
def suite(repository: Path, tiny_model: Any, kept_store: Any, sharegpt_folder: Path, tmp_path: Path) -> Any:
    """``suite(*arguments, path=...)`` runs the suite over the tiny model with another PATH."""

    def run(*arguments: str, path: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "suites", "-m", "arm-mobile", "--model", str(tiny_model.folder)]
        command += ["--data", str(sharegpt_folder), "--cache", str(kept_store.root), "--results", str(tmp_path)]
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


def test_an_unknown_device(suite: Any) -> None:
    done = suite("-k", "test_device and bf16", "--device", "phone", path=os.environ["PATH"])
    assert done.returncode == 1, done.stdout
    assert "--device 'phone' is not one of: host" in done.stdout
