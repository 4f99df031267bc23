"""Uploads against a hub on the loopback: what is sent, what is sent again, and what is said of each refusal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from harness.publish import hub as uploads
from harness.publish.hub import HubError
from tests.hub_server import TOKEN, Hub, Repository, serving

PART = 1 << 18
REPOSITORY = "me/tiny-int8wo"
# What the command line makes of an upload, in a process of its own.
SCRIPT = """
import sys
from pathlib import Path
from harness.publish.hub import HubError, upload
try:
    print(upload("me/tiny-int8wo", sys.argv[2], sorted(Path(sys.argv[1]).iterdir()), private=False, replace=False))
except HubError as error:
    sys.exit(f"error: {error}")
"""
CARD = "---\ntags:\n- torchao\n---\n\n# A card\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub(tmp_path / "hub", part=PART)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        # Read from the environment when the module is first imported.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
        yield running


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited for, without waiting."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two shards, the larger in three parts, a tokenizer and a configuration."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    chance = random.Random(0)
    sizes = {"model-1.safetensors": 2 * PART + 12345, "model-2.safetensors": 70_001, "tokenizer.json": 5_000}
    for name, size in sizes.items():
        (folder / name).write_bytes(chance.randbytes(size))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return sorted(folder.iterdir())


def upload(files: list[Path], *, card: str = CARD, replace: bool = False, private: bool = False) -> str:
    return uploads.upload(REPOSITORY, card, files, private=private, replace=replace)


def large(files: list[Path]) -> int:
    return sum(path.stat().st_size for path in files if path.name != "config.json")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_everything_arrives_in_one_commit(hub: Hub, files: list[Path]) -> None:
    address = upload(files, private=True)
    repository = hub.repositories[REPOSITORY]
    assert repository.private
    assert {name: hub.content(REPOSITORY, name) for name in repository.files} == {
        **{path.name: path.read_bytes() for path in files},
        "README.md": CARD.encode(),
    }
    assert len(repository.commits) == 1
    assert address == f"{hub.address}/{REPOSITORY}/commit/{repository.commits[0]['oid']}"
    assert len(hub.requests("PUT", f"/storage/{digest(files[1])}/")) == 3
    assert hub.sent() == large(files)
    # The token goes to the hub and not to where large files are stored.
    assert not any("authorization" in map(str.lower, it.headers) for it in hub.requests("PUT", "/storage/"))


def test_private_into_a_public_repository_is_refused_before_anything_is_sent(hub: Hub, files: list[Path]) -> None:
    hub.repositories[REPOSITORY] = Repository(private=False)
    told = f"{REPOSITORY} is there already and is public.*nothing was sent. Make it private.*another name"
    with pytest.raises(HubError, match=told):
        upload(files, private=True)
    assert hub.sent() == 0
    assert not hub.requests("POST", "/(commit|preupload|batch)")
    assert not hub.repositories[REPOSITORY].files


def test_private_into_a_private_repository_stays_private(hub: Hub, files: list[Path]) -> None:
    hub.repositories[REPOSITORY] = Repository(private=True)
    upload(files, private=True)
    assert hub.repositories[REPOSITORY].private
    assert hub.sent() == large(files)


@pytest.mark.programs
def test_again_sends_and_commits_nothing(hub: Hub, files: list[Path]) -> None:
    first = upload(files)
    sent = hub.sent()
    assert upload(files) == first
    assert hub.sent() == sent
    assert len(hub.repositories[REPOSITORY].commits) == 1


def test_a_new_card_does_not_send_the_weights_again(hub: Hub, files: list[Path]) -> None:
    upload(files)
    sent = hub.sent()
    upload(files, card=CARD + "\nMore.\n")
    assert hub.sent() == sent
    assert [commit["paths"] for commit in hub.repositories[REPOSITORY].commits[1:]] == [["README.md"]]


def test_a_cut_connection_sends_one_part_again(hub: Hub, files: list[Path], waits: list[float]) -> None:
    hub.fault("PUT", f"/storage/{digest(files[1])}/2", cut_after=1 << 16)
    upload(files)
    parts = [it.path[-1] for it in hub.requests("PUT", f"/storage/{digest(files[1])}/")]
    assert parts == ["1", "2", "2", "3"]
    assert large(files) < hub.sent() <= large(files) + PART
    assert hub.content(REPOSITORY, files[1].name) == files[1].read_bytes()


@pytest.mark.programs
def test_after_a_kill_what_arrived_is_not_sent_again(hub: Hub, files: list[Path], tmp_path: Path) -> None:
    """A real SIGKILL in the middle of the large shard, when the small one has arrived."""
    environment = os.environ | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", SCRIPT, str(files[0].parent), CARD]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def kill() -> None:
        deadline = time.monotonic() + 20
        while not all(hub.object(digest(path)).exists() for path in files[2:]) and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()

    hub.fault("PUT", f"/storage/{digest(files[1])}/2", call=kill)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert not hub.repositories[REPOSITORY].commits
    before = len(hub.seen)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "/commit/" in done.stdout
    assert sum(it.received for it in hub.seen[before:]) == files[1].stat().st_size
    assert len(hub.repositories[REPOSITORY].commits) == 1


@pytest.mark.parametrize(
    "path", ["/api/repos/create", "/preupload/", "/objects/batch", "/storage/", "/complete/", "/commit/"]
)
@pytest.mark.parametrize(("status", "headers"), [(429, {"Retry-After": "7"}), (503, {})])
@pytest.mark.programs
def test_what_may_pass_is_waited_for(
    hub: Hub, files: list[Path], waits: list[float], path: str, status: int, headers: dict[str, str]
) -> None:
    method = "PUT" if path == "/storage/" else "POST"
    hub.fault(method, path, status=status, headers=headers)
    upload(files)
    assert len(hub.repositories[REPOSITORY].commits) == 1
    long = [wait for wait in waits if wait >= 1]
    # huggingface_hub itself adds a second to what the hub asks for.
    assert long[0] in ((7, 8) if status == 429 else (1,))


@pytest.mark.programs
def test_retry_after_is_really_waited_for(hub: Hub, files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    hub.fault("POST", "/commit/", status=429, headers={"Retry-After": "1"})
    start = time.monotonic()
    upload(files)
    assert time.monotonic() - start >= 1
    assert "the hub answered 429; trying again in 1 s" in capsys.readouterr().err


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub: Hub, files: list[Path], waits: list[float]) -> None:
    hub.fault("POST", "/commit/", lose_answer=True)
    address = upload(files)
    (commit,) = hub.repositories[REPOSITORY].commits
    assert address.endswith(commit["oid"])
    assert hub.sent() == large(files)


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("POST", "/api/repos/create", 401, "hf auth login"),
        ("POST", "/api/repos/create", 402, "wants to be paid"),
        ("POST", "/api/repos/create", 403, "use one with write access to me"),
        ("POST", "/preupload/", 403, "use one with write access to me"),
        ("POST", "/preupload/", 404, "no user or organization"),
        ("PUT", "/storage/", 403, "403"),
        ("POST", "/objects/batch", 413, "does not take files of this size"),
        ("POST", "/commit/", 409, "somebody else changes"),
        ("POST", "/commit/", 412, "somebody else changes"),
        ("POST", "/commit/", 418, "Run the same command again"),
        ("POST", "/api/repos/create", 429, "asks for fewer requests, and to wait 4000 s"),
        ("POST", "/commit/", 503, "a fault of its own"),
        ("PUT", "/storage/", 500, "a fault of its own"),
    ],
)
def test_a_refusal_says_what_to_do(
    hub: Hub, files: list[Path], waits: list[float], method: str, path: str, status: int, said: str
) -> None:
    headers = {"Retry-After": "4000"} if status == 429 else {}
    hub.fault(method, path, status=status, headers=headers, body={"error": "so it is"}, times=99)
    with pytest.raises(HubError) as caught:
        upload(files)
    assert f"{REPOSITORY}: the hub answered {status} (so it is)" in str(caught.value)
    assert said in str(caught.value)
    assert not any(repository.commits for repository in hub.repositories.values())


def test_a_namespace_of_somebody_else(hub: Hub, files: list[Path]) -> None:
    with pytest.raises(HubError, match="may not write to others/name: use one with write access to others"):
        uploads.upload("others/name", CARD, files, private=False, replace=False)


def test_an_answer_that_is_no_hubs(hub: Hub, files: list[Path], waits: list[float]) -> None:
    hub.fault("POST", "/api/validate-yaml", status=502, body="<html>Bad gateway</html>", times=99)
    with pytest.raises(HubError, match=r"connection to the hub broke .*Run the same command again"):
        upload(files)
    hub.faults.clear()
    upload(files)


def test_no_hub_there(hub: Hub, files: list[Path], waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(HubError, match="the connection to the hub broke"):
        upload(files)
    assert waits == [1, 2, 4, 8]


def test_offline(hub: Hub, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        upload(files)


def test_no_token(hub: Hub, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="hf auth login"):
        upload(files)
    assert not hub.seen


def test_other_weights_are_not_overwritten_by_mistake(hub: Hub, files: list[Path]) -> None:
    upload(files)
    # Of the same size, so that only the digest tells them apart.
    files[1].write_bytes(bytes(files[1].stat().st_size))
    with pytest.raises(
        HubError, match=r"has other weights already: model-1.safetensors; choose another name, or say --replace"
    ):
        upload(files)
    upload(files, replace=True)
    assert hub.content(REPOSITORY, files[1].name) == files[1].read_bytes()


def test_weights_of_another_layout_are_not_left_beside(hub: Hub, files: list[Path]) -> None:
    upload(files)
    with pytest.raises(HubError, match=r"would keep model-1.safetensors beside these weights"):
        upload([path for path in files if path != files[1]], replace=True)


def test_what_the_hub_holds_is_checked(hub: Hub, files: list[Path]) -> None:
    hub.fault(
        "GET", "/tree/", status=200, body=[{"type": "file", "path": files[0].name, "size": 1, "oid": "0" * 40}], skip=1
    )
    with pytest.raises(HubError, match=r"does not hold what was sent: .*model-1.safetensors"):
        upload(files)


def test_a_file_that_holds_the_token_stays_here(hub: Hub, files: list[Path]) -> None:
    files[0].write_text(json.dumps({"token": TOKEN}))
    with pytest.raises(HubError, match=r"config.json holds the hub's token itself") as caught:
        upload(files)
    assert TOKEN not in str(caught.value)
    assert not hub.seen


@pytest.mark.parametrize("where", ["/api/repos/create", "/preupload/", "/objects/batch", "/storage/", "/commit/"])
@pytest.mark.parametrize("status", [401, 500])
def test_a_token_that_the_hub_echoes_is_not_shown(
    hub: Hub,
    files: list[Path],
    waits: list[float],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    where: str,
    status: int,
) -> None:
    """In the error, in its chain of causes, and in logs of every library at their most talkative."""
    echo = {"X-Error-Message": f"bad token {TOKEN}", "X-Request-Id": TOKEN, "X-HF-Warning": f"auth; {TOKEN}"}
    method = "PUT" if where == "/storage/" else "POST"
    hub.fault(method, where, status=status, headers=echo, body={"error": f"Bearer {TOKEN} is no good"}, times=99)
    libraries = [logging.getLogger(name) for name in ("huggingface_hub", "httpx2", "httpcore2")]
    before = [(it.level, it.propagate) for it in libraries]
    for it in libraries:
        it.setLevel(logging.DEBUG)
        it.propagate = True
    try:
        with caplog.at_level(logging.DEBUG), pytest.raises(HubError) as caught:
            upload(files)
    finally:
        for it, (level, propagate) in zip(libraries, before, strict=True):
            it.setLevel(level)
            it.propagate = propagate
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "[token removed]" in str(caught.value)
    assert "[token removed]" in caplog.text
    captured = capfd.readouterr()
    for text in (str(caught.value), caplog.text, captured.out, captured.err):
        assert TOKEN not in text


def test_a_token_in_a_warning_is_not_shown(hub: Hub, files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """What the hub warns of in the card's metadata comes as a Python warning."""
    hub.fault("POST", "/api/validate-yaml", status=200, body={"errors": [], "warnings": [{"message": f"odd {TOKEN}"}]})
    upload(files)
    said = capsys.readouterr().err
    assert "odd [token removed]" in said
    assert TOKEN not in said


@pytest.mark.programs
def test_the_hubs_own_rate_limit_is_waited_for(hub: Hub, files: list[Path], waits: list[float]) -> None:
    hub.fault("POST", "/commit/", status=429, headers={"ratelimit": '"api";r=0;t=55'})
    upload(files)
    assert 55 in waits


def test_the_log_factory_is_put_back(hub: Hub, files: list[Path]) -> None:
    before = logging.getLogRecordFactory()
    hub.fault("POST", "/api/repos/create", status=403)
    with contextlib.suppress(HubError):
        upload(files)
    assert logging.getLogRecordFactory() is before


def _through_xet(home: Path, hub: Hub, files: list[Path]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(home)}
    environment |= {"RUST_LOG": "debug", "HF_DEBUG": "1"}
    command = [sys.executable, "-c", SCRIPT, str(files[0].parent), CARD]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.programs
def test_through_xet_storage(tmp_path: Path, files: list[Path]) -> None:
    """The hub's own storage protocol, through hf_xet with a store on this disk: sent once, and no token in its logs."""
    store = tmp_path / "cas"
    store.mkdir()
    with serving(Hub(tmp_path / "hub", xet=f"local://{store}")) as hub:
        held = []
        for _ in range(2):
            done = _through_xet(tmp_path / "home", hub, files)
            assert done.returncode == 0, done.stderr
            assert TOKEN not in done.stdout + done.stderr
            held.append(sorted(path.name for path in store.rglob("xorbs/*") if path.is_file()))
        assert hub.sent() == 0
        remote = hub.repositories[REPOSITORY].files
        assert all(remote[path.name]["oid"] == digest(path) for path in files if path.name != "config.json")
        assert len(hub.repositories[REPOSITORY].commits) == 1
        assert held[0] == held[1]
    assert sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) >= large(files)
    logs = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert logs
    assert not any(TOKEN.encode() in path.read_bytes() for path in logs)


@pytest.mark.parametrize(
    ("status", "said"), [(401, "does not know this token"), (403, "may not write to me/tiny-int8wo")]
)
@pytest.mark.programs
def test_a_refusal_through_xet_says_what_to_do(tmp_path: Path, files: list[Path], status: int, said: str) -> None:
    with serving(Hub(tmp_path / "hub", xet=f"local://{tmp_path / 'cas'}")) as hub:
        hub.fault(
            "GET",
            "/xet-write-token",
            status=status,
            body={"error": TOKEN},
            headers={"X-Error-Message": TOKEN},
            times=99,
        )
        done = _through_xet(tmp_path / "home", hub, files)
        assert not hub.repositories[REPOSITORY].commits
    assert done.returncode == 1
    assert f"error: {REPOSITORY}: the hub answered {status}" in done.stderr
    assert said in done.stderr
    assert TOKEN not in done.stdout + done.stderr
