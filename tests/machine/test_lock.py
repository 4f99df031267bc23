"""One measuring session a machine, or one a GPU."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from harness.machine.lock import Held, only_session

# Seconds after it said that it waits.
WAIT = 0.05


@pytest.mark.parametrize(
    ("first", "second", "waits"),
    [("", "", True), ("", "GPU-a", True), ("GPU-a", "", True), ("GPU-a", "GPU-a", True), ("GPU-a", "GPU-b", False)],
)
def test_who_would_measure_the_other_waits_until_it_is_done(
    tmp_path: Path, first: str, second: str, waits: bool
) -> None:
    path = tmp_path / "machine.lock"
    said: list[str] = []
    told = threading.Event()
    found: list[Held] = []

    def say(line: str) -> None:
        said.append(line)
        told.set()

    held = only_session(path, said.append, first)
    assert said == []
    thread = threading.Thread(target=lambda: found.append(only_session(path, say, second)))
    thread.start()
    if waits:
        assert told.wait(20)
    thread.join(WAIT if waits else 10)
    assert bool(found) is not waits
    if waits:
        assert len(said) == 1
        assert said[0].startswith("waiting: another session measures on this machine (process ")
        held.release()
        thread.join(10)
    assert found
    found[0].release()
    held.release()


def test_what_is_released_is_free_again(tmp_path: Path) -> None:
    said: list[str] = []
    for gpu in ("", "GPU-a", ""):
        only_session(tmp_path / "machine.lock", said.append, gpu).release()
    assert said == []
