"""A node's session: what it leaves on the node's disk, and what its planner is told at once."""

from __future__ import annotations

import asyncio
import fcntl
import tempfile
from pathlib import Path

import pytest

from harness.cluster.engine import Mailbox
from harness.cluster.node import session


@pytest.mark.programs
def test_what_a_session_that_was_killed_has_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("dead", "lives", "begins"):
        (tmp_path / f"harness-node-{name}" / "runs").mkdir(parents=True)
    for name in ("dead", "lives"):
        (tmp_path / f"harness-node-{name}" / "lock").touch()
    said: list[str] = []
    payload = {"tests": [], "words": [], "files": {}, "here": True, "folder": str(tmp_path), "program": ["platform"]}
    with (tmp_path / "harness-node-lives" / "lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert session(payload, said.extend) == 0
    assert said
    assert sorted(it.name for it in tmp_path.iterdir()) == ["harness-node-begins", "harness-node-lives"]


def test_what_comes_in_a_moment_is_taken_at_once() -> None:
    async def play() -> list[tuple[str, int, list[str]]]:
        mailbox = Mailbox()
        taking = asyncio.create_task(mailbox.take(5.0))
        await asyncio.sleep(0.01)
        await mailbox.put("one", 1, ["a"])
        await asyncio.sleep(0.01)
        await mailbox.put("other", 1, ["b"])
        return await taking

    assert asyncio.run(play()) == [("one", 1, ["a"]), ("other", 1, ["b"])]


def test_an_empty_mailbox_is_waited_for_no_longer_than_asked() -> None:
    assert asyncio.run(Mailbox().take(0.01)) == []
