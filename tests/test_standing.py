"""A fork server whose imports stand elsewhere is as good as one of its own, and ends as that would."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from harness.runtime.environment import Environment
from harness.runtime.process import ForkServer
from harness.runtime.store import Store
from tests.conftest import run_forked
from tests.noticing.standing import STANDING

pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone"),
]

TOLD = """
import json, os, sys, tempfile
names = ("HARNESS_TEST_WORD", "TMPDIR", "HARNESS_FORKS_FD", "HARNESS_TEST_STANDING")
told = {"transformers": "transformers" in sys.modules, "folder": os.getcwd(), "tmp": tempfile.gettempdir()}
print(json.dumps(told | {"environ": {name: os.environ.get(name) for name in names}}))
"""
BeginServer = Callable[..., ForkServer]


@pytest.fixture
def begin(kept_store: Store, repository: Path, standing: Path, tmp_path: Path) -> Iterator[BeginServer]:
    """``begin(before, **variables)``: a fork server with ``before`` first on its path, asked of what stands."""
    servers = []

    def start(before: str = "", **variables: str) -> ForkServer:
        environ = Environment().environ(kept_store) | {STANDING: str(standing)} | variables
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [before, environ["PYTHONPATH"], str(repository)]))
        log = tmp_path / f"imports-{len(servers)}.log"
        servers.append(ForkServer("transformers", python=sys.executable, environ=environ, log=log))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.mark.usefixtures("forks")
def test_it_has_the_environment_and_the_folder_of_whoever_asked(
    begin: BeginServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("one", "other"):
        folder = tmp_path / word
        folder.mkdir()
        server = begin(HARNESS_TEST_WORD=word, TMPDIR=str(folder))
        told = json.loads(run_forked(server, folder, TOLD).stdout)
        assert told["environ"] == {
            "HARNESS_TEST_WORD": word,
            "TMPDIR": str(folder),
            "HARNESS_FORKS_FD": None,
            "HARNESS_TEST_STANDING": None,
        }
        assert (told["transformers"], told["folder"], told["tmp"]) == (True, str(tmp_path), str(folder))
        (process,) = psutil.Process(server.process.pid).children()
        assert process.memory_info().rss < 100e6, "another process has the imports"


@pytest.mark.parametrize("how", ["closed", "killed", "ended"])
@pytest.mark.usefixtures("forks")
def test_it_ends_with_whoever_asked_and_what_it_has_forked_with_it(
    begin: BeginServer, tmp_path: Path, how: str
) -> None:
    server = begin()
    (tmp_path / "code.py").write_text("import time; print('there', flush=True); time.sleep(600)")
    (tmp_path / "argv.json").write_text('["-c"]')
    process = server.start("tests.forked", [str(tmp_path)], log=tmp_path / "log")
    said = tmp_path / "stdout"
    _until(lambda: said.exists() and "there" in said.read_text())
    worker = psutil.Process(process.pid)
    others = worker.parents()[:2]
    if how == "closed":
        server.close()
    else:
        (asker,) = psutil.Process(server.process.pid).children()
        asker.send_signal(signal.SIGKILL if how == "killed" else signal.SIGTERM)
        _until(lambda: not server.alive)
        assert server.process.exit_code() == 128 + (signal.SIGKILL if how == "killed" else signal.SIGTERM)
    _until(lambda: not any(it.is_running() for it in (worker, *others)))
    assert process.wait(10) == 128 + signal.SIGKILL
    process.end()


@pytest.mark.parametrize("where", ["where imports stand", "nowhere"])
def test_what_cannot_be_imported_says_so_in_its_own_words(begin: BeginServer, tmp_path: Path, where: str) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('planted: this torch is broken')\n")
    server = begin(str(tmp_path), **({STANDING: str(tmp_path)} if where == "nowhere" else {}))
    process = server.start("tests.forked", [str(tmp_path)], log=tmp_path / "log")
    assert process.wait(60) == 1
    assert "planted: this torch is broken" in process.log_text()
    process.end()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)
