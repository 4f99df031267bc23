"""Programs that cannot run and tokenizers that do not fit are refused with what is wrong and what to do."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import WorkerError
from harness.contract.program_errors import Meaning, meaning
from harness.contract.warden import descendants
from harness.devices import DeviceError, Host, Request, build
from harness.devices.base import read
from harness.runtime.environment import Environment
from harness.runtime.store import Artifact, Store
from tests import needs
from tests.contract.test_warden import gone, until
from tests.devices.conftest import CONTEXT

pytestmark = needs.package("executorch")

REQUEST = Request([1, 2, 3], 2, 0, 1)
# Runs more rounds than any test waits for.
_FOREVER = """
import sys
from pathlib import Path
from harness import devices
from harness.runtime.store import Store
from harness.runtime.environment import Environment

device = getattr(devices, sys.argv[1])(Store(Path(sys.argv[2])), Environment())
device.run(Path(sys.argv[3]), devices.Request([1, 2, 3], 8, 0, 10**9), None, 600)
"""


def damaged(pte: Path, folder: Path, how: str) -> Path:
    data = bytearray(pte.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "another version":
        # The flatbuffer's file identifier names the schema's version.
        assert data[4:6] == b"ET"
        data[4:8] = b"ET99"
    elif how == "not a program":
        data = bytearray(b"PK\x03\x04" + bytes(4096))
    target = folder / "bad.pte"
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("how", ["truncated", "another version", "not a program"])
def test_a_program_that_is_none(host: Host, pte: Path, how: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"bad\.pte: load: .*export it again"):
        host.run(damaged(pte, tmp_path, how), REQUEST, None, 60)


def test_a_program_with_damaged_tables(host: Host, pte: Path, tmp_path: Path) -> None:
    """It is refused, or the damage lies where nothing is read; never a crash, nor figures of something else."""
    whole = pte.read_bytes()
    # The extended header says how long the tables are; the weights come after them.
    size = int.from_bytes(whole[16:24], "little")
    refused = 0
    for start in range(200, size - 64, size // 8):
        bad = tmp_path / "bad.pte"
        bad.write_bytes(whole[:start] + b"\xff" * 64 + whole[start + 64 :])
        try:
            host.run(bad, REQUEST, None, 60)
        except DeviceError as error:
            assert "export it again" in str(error)  # noqa: PT017
            refused += 1
    assert refused


def test_a_worker_refuses_them_too(
    start_worker: Any, pte: Path, quantized: Artifact, text: str, tmp_path: Path
) -> None:
    """One that is cut off, and then, mended under the worker's eyes, one of another version."""
    bad = damaged(pte, tmp_path, "truncated")
    worker = start_worker("executorch", program=str(bad), checkpoint=str(quantized.folder), trust_remote_code=False)
    refusal = r"bad\.pte is not a whole program that ExecuTorch .* reads"
    lengths = {"text": text, "prompt_tokens": 4, "new_tokens": 2}
    for how in ("truncated", "another version"):
        damaged(pte, tmp_path, how)
        with pytest.raises(WorkerError, match=refusal):
            worker.ask("profile", 60, **lengths)
        with pytest.raises(WorkerError, match=refusal):
            worker.ask("run", 60, **lengths, warmup=0, rounds=1)
    worker.close()


def test_a_prompt_longer_than_the_context(host: Host, pte: Path) -> None:
    with pytest.raises(
        DeviceError, match=f"{CONTEXT} tokens and 4 new ones do not fit the program's context of {CONTEXT}"
    ):
        host.run(pte, Request([1] * CONTEXT, 4, 0, 1), None, 60)


def test_a_token_that_the_program_has_not(host: Host, pte: Path) -> None:
    with pytest.raises(DeviceError, match="token 99999 is outside of the program's vocabulary of 10240"):
        host.run(pte, Request([99999], 2, 0, 1), None, 60)


def test_a_missing_operator_library(host: Host, custom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "operators", lambda _: [])
    with pytest.raises(DeviceError, match=r"an operator of the program is not in the runner .*transformers route"):
        host.run(custom, REQUEST, None, 60)


def test_an_error_with_quotes_in_it(host: Host, custom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "operators", lambda _: ["--operators", '/none/"so\\called".so'])
    with pytest.raises(DeviceError, match=r'operators: /none/"so\\called"\.so: cannot open'):
        host.run(custom, REQUEST, None, 60)


def test_a_runner_of_other_flags_is_another_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_store: Store
) -> None:
    asked: list[dict[str, object]] = []

    class Keys(Store):
        def get(self, kind: str, key: dict[str, Any], *_: Any, **__: Any) -> Artifact:
            asked.append(key)
            return Artifact(tmp_path, f"{kind}/0", made=False)

    for flags in (build._FLAGS, [*build._FLAGS, "-O3"]):
        monkeypatch.setattr(build, "_FLAGS", flags)
        build.runner(Keys(tmp_path), Environment(), platform.machine())
    assert asked[0] != asked[1]


def test_a_runner_that_is_killed(host: Host, pte: Path) -> None:
    with pytest.raises(DeviceError, match=r"did not finish within 0\.01 s") as failed:
        host.run(pte, REQUEST, None, 0.01)
    assert failed.value.kind == "timeout"


@pytest.mark.parametrize("name", ["host", "qemu"])
def test_nothing_goes_on_when_the_session_is_killed(
    name: str, request: pytest.FixtureRequest, kept_store: Store, pte: Path
) -> None:
    """The runner, here or emulated, ends with the process that asked for it, which has no time to end it."""
    device = request.getfixturevalue(name)
    asking = subprocess.Popen([sys.executable, "-c", _FOREVER, type(device).__name__, str(kept_store.root), str(pte)])
    try:
        assert until(lambda: runners(asking.pid), 60)
        (runner,) = runners(asking.pid)
        # By then it has loaded the program and writes nothing, so that no broken pipe ends it.
        assert until(lambda: cpu_seconds(runner) > 2, 60)
        asking.kill()
        asking.wait()
        assert until(lambda: gone(runner))
    finally:
        asking.kill()


def runners(pid: int) -> list[int]:
    """Return those of a process's descendants that run a program."""
    return [one for one in descendants(pid) if b"--program" in command(one) and b"warden" not in command(one)]


def cpu_seconds(pid: int) -> float:
    user = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11]
    return int(user) / os.sysconf("SC_CLK_TCK")


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_tokenizer_of_another_model(
    start_worker: Any, pte: Path, quantized: Artifact, text: str, documents: Path, tmp_path: Path
) -> None:
    """The vocabularies are compared before anything runs."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(quantized.folder, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"].append({"id": 10240, "content": "<|one too many|>", **special})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    worker = start_worker("executorch", program=str(pte), checkpoint=str(folder), trust_remote_code=False)
    lengths: dict[str, Any] = {"text": text, "prompt_tokens": 4, "new_tokens": 2, "warmup": 0, "rounds": 1}
    task: dict[str, Any] = {"names": ["lambada_openai"], "data": str(documents), "limit": 1, "eager": False}
    windows: dict[str, Any] = {"text": text, "windows": 1, "window_tokens": 8}
    profile = {name: lengths[name] for name in ("text", "prompt_tokens", "new_tokens")}
    for command, arguments in (
        ("run", lengths),
        ("windows", windows),
        ("agreement", windows | {"logits": None}),
        ("profile", profile),
        ("tasks", task),
        ("tasks", task | {"eager": True}),
    ):
        with pytest.raises(WorkerError, match="10241 tokens, the program 10240: it belongs to another model"):
            worker.ask(command, 120, **arguments)
    worker.close()


def test_logits_of_another_program(executorch: Any, text: str, tmp_path: Path) -> None:
    short = tmp_path / "logits"
    short.write_bytes(bytes(400))
    with pytest.raises(WorkerError, match=r"has 400 bytes of logits, .* are due"):
        executorch("agreement", text=text, windows=1, window_tokens=16, logits=str(short))


@pytest.mark.parametrize(
    ("words", "advice", "kind"),
    [
        ("Error::InvalidProgram", "damaged.*export it again", "exception"),
        ("Error::InvalidExternalData", "damaged.*export it again", "exception"),
        ("Error::DelegateInvalidCompatibility", "made by another ExecuTorch version.*export it again", "exception"),
        ("Error::NotFound", "the runner lacks a backend or operator library", "exception"),
        ("Error::MemoryAllocationFailed", "too little free memory", "out_of_memory"),
        ("Error::DelegateMemoryAllocationFailed", "too little free memory", "out_of_memory"),
        ("Error::AccessFailed", "load: Error::AccessFailed$", "exception"),
        ("the logits are not float32", "load: the logits are not float32$", "exception"),
    ],
)
def test_what_a_runners_error_means(words: str, advice: str, kind: str) -> None:
    """Only a damaged program is to be exported again."""
    with pytest.raises(DeviceError, match=advice) as failed:
        read(json.dumps({"error": words, "stage": "load"}), "", 1, "host model.pte")
    assert failed.value.kind == kind
    assert ("export it again" in str(failed.value)) == ("export it again" in advice)


@pytest.mark.parametrize(
    ("words", "means"),
    [
        ("loading failed with error 0x:14", Meaning.NO_OPERATOR),
        ("Failed to load method forward, error: 0x:20", Meaning.NO_LIBRARY),
        ("error 0x:21", Meaning.NO_MEMORY),
        ("error 0x:31", Meaning.NO_MEMORY),
        ("error 0x:23", Meaning.DAMAGED),
        ("error 0x24", Meaning.DAMAGED),
        ("error 0x:30", Meaning.DAMAGED),
        ("error 0x:22", None),
        ("tensor at 0x2012 is too large", None),
    ],
)
def test_what_the_bindings_numbers_mean(words: str, means: Meaning | None) -> None:
    assert meaning(words) is means


@pytest.mark.parametrize(("status", "says"), [(139, "status 139 (signal 11) and"), (255, "status 255 and")])
def test_an_exit_status_names_a_signal_only_if_it_is_one(status: int, says: str) -> None:
    with pytest.raises(DeviceError, match=re.escape(says)):
        read("", "", status, "host model.pte")
