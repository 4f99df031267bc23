"""A small program, exported once and kept, what runs it here, and a phone that adb takes for one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.base.files import file_digest
from harness.devices import Host, Qemu
from harness.runtime.environment import Environment
from harness.runtime.store import Artifact, Store
from tests.devices.adb_server import AdbServer

_CUSTOM = """
import sys, torch
import executorch.extension.llm.custom_ops.custom_ops
from executorch.exir import EdgeCompileConfig, to_edge

class Custom(torch.nn.Module):
    def forward(self, ids, position):
        value = ids.float().reshape(1, -1, 1, 1).expand(1, -1, 2, 4).contiguous()
        last = torch.ops.llama.custom_sdpa(value, value, value, 0)[:, -1].reshape(1, 8)
        return last + 1e4 * (torch.arange(8) == position % 8)

length = torch.export.Dim("n", max=64)
example = (torch.zeros((1, 3), dtype=torch.long), torch.zeros(1, dtype=torch.long))
exported = torch.export.export(Custom(), example, dynamic_shapes=({1: length}, None))
to_edge(exported, compile_config=EdgeCompileConfig(_check_ir_validity=False)).to_executorch().save(sys.argv[1])
"""
CONTEXT = 96
TIMEOUT = 600
WORKERS = Path(__file__).resolve().parents[2] / "harness" / "worker"


@pytest.fixture(scope="session")
def quantized(kept_store: Store, start_worker: Any, tiny_model: Any, suites_matrix: Any) -> Artifact:
    """The tiny model with an int8 embedding and int4 linears, embeddings untied."""
    recipe = suites_matrix.recipe("8da4w-int8emb").identity

    def build(folder: Path) -> Any:
        worker = start_worker("quantize", device="cpu")
        arguments = {"checkpoint": str(tiny_model.folder), "trust_remote_code": False, **recipe.config}
        return worker.ask("quantize", TIMEOUT, output=str(folder), **arguments)

    key = {"recipe": recipe.hash, "code": _code("quantize.py", "recipe.py"), "packages": Environment().decisive()}
    return kept_store.get("test-checkpoint", key, build, label="the tests' quantized model")


@pytest.fixture(scope="session")
def program(kept_store: Store, start_worker: Any, quantized: Artifact) -> Artifact:
    """The program of the quantized tiny model, by the transformers route."""

    def build(folder: Path) -> Any:
        arguments = {"checkpoint": str(quantized.folder), "context": CONTEXT, "trust_remote_code": False}
        return start_worker("export").ask("transformers_route", TIMEOUT, output=str(folder), **arguments)

    key = {
        "of": quantized.key,
        "code": _code("export.py", "lowering.py", "delegation.py"),
        "packages": Environment().decisive(),
    }
    return kept_store.get("test-program", key, build, label="the tests' program")


@pytest.fixture(scope="session")
def pte(program: Artifact) -> Path:
    return program.folder / program.facts["file"]


@pytest.fixture(scope="session")
def custom(kept_store: Store, run_code: Any) -> Path:
    """A program of the shape of the llama route's: custom SDPA, the first position alone, the last logits alone.

    Of its 8 tokens the most likely one is its first position modulo 8.
    """

    def build(folder: Path) -> None:
        done = run_code(_CUSTOM, str(folder / "custom.pte"))
        assert done.returncode == 0, done.stderr[-2000:]

    key = {"code": _CUSTOM, "packages": Environment().decisive()}
    return kept_store.get("test-custom", key, build, label="the tests' custom SDPA").folder / "custom.pte"


@pytest.fixture(scope="session")
def executorch(start_worker: Any, pte: Path, quantized: Artifact) -> Any:
    """``executorch(command, **arguments)`` asks a worker that has the program and its checkpoint."""
    worker = start_worker("executorch", program=str(pte), checkpoint=str(quantized.folder), trust_remote_code=False)
    return lambda command, **arguments: worker.ask(command, TIMEOUT, **arguments)


@pytest.fixture(scope="session")
def host(kept_store: Store) -> Host:
    found = Host(kept_store, Environment())
    if problem := found.missing():
        pytest.skip(problem)
    return found


@pytest.fixture(scope="session")
def qemu(kept_store: Store) -> Qemu:
    found = Qemu(kept_store, Environment())
    if problem := found.missing():
        pytest.skip(problem)
    return found


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdbServer]:
    """A phone in a folder, which the real adb binary talks to."""
    server = AdbServer(tmp_path / "phone")
    server.folder.mkdir()
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server.port))
    yield server
    server.close()


@pytest.fixture
def phone_runner(tmp_path: Path, host: Host) -> Path:
    """What the phone executes: a script around this machine's runner, since the phone is a folder of this machine.

    It is given the custom SDPA, as a runner that has it linked.
    """
    file = tmp_path / "phone-runner"
    words = shlex.join(host.operators())
    file.write_text(f'#!/bin/sh\nexec {host.command()[0]} "$@" {words}\n', encoding="utf-8")
    file.chmod(0o755)
    return file


@pytest.fixture(scope="session")
def text(tiny_model: Any) -> str:
    return str(tiny_model.reference["text"])


def _code(*names: str) -> str:
    return " ".join(file_digest(WORKERS / name) for name in names)
