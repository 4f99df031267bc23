"""Publishing that is interrupted: by Ctrl-C or SIGTERM, whatever the hub is asked just then, it ends at once."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from harness.publish.hub import AGAIN
from tests.faults.commands import HUB, Command, prepared
from tests.hub_server import TOKEN, Hub, Repository, serving
from tests.publish import test_publish as publishing

# Far longer than a process needs to end; a file may take an hour.
HANGS = 60.0


@pytest.mark.programs
@pytest.mark.parametrize(
    ("number", "asked"),
    [*((signal.SIGINT, it) for it in (("GET", "api/models/them"), HUB[0], *HUB[-2:])), (signal.SIGTERM, HUB[-1])],
)
def test_it_ends_at_once_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals, asked: tuple[str, str]) -> None:
    store, run = prepared(tmp_path)
    there, over = threading.Event(), threading.Event()
    with serving(Hub(tmp_path / "hub", part=1 << 17)) as hub:
        hub.repositories["them/Tiny"] = Repository(private=False)
        hub.fault(*asked, call=lambda: (there.set(), over.wait(HANGS)))
        words = ["publish", "Tiny:int8wo", "--repo", publishing.REPOSITORY, "--cache", str(store.root)]
        words += ["--runs", str(run.folder.parent)]
        variables = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        command = Command(tmp_path, "-m", "harness", *words, HF_HOME=str(tmp_path / "home"), **variables)
        assert there.wait(60), command.told
        time.sleep(0.1)
        since = time.monotonic()
        assert command.strike(number)
        status = command.end(HANGS)
        took = time.monotonic() - since
        over.set()
        assert (status, command.told.splitlines()[-1]) == (128 + number, f"interrupted. {AGAIN}")
        assert took < HANGS / 3
        assert "Traceback" not in command.told
        assert TOKEN not in command.told
        assert Command(tmp_path, "-m", "harness", *words, HF_HOME=str(tmp_path / "home"), **variables).end() == 0
        assert "model.safetensors" in hub.repositories[publishing.REPOSITORY].files
