"""A head that does not answer at once: what is asked again, and what is told."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn
from unittest.mock import MagicMock

import pytest

from harness.base.errors import HarnessError
from harness.base.interruption import Signalled
from harness.cluster.engine import RayEngine
from harness.cluster.offer import Offer

ABORTED = ConnectionAbortedError("Initialization failure from server:\n")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Ray, whose head answers as the test says."""
    found = MagicMock()
    found.__version__ = "2.60.0"
    monkeypatch.setitem(sys.modules, "ray", found)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return found


def connect(folder: Path) -> RayEngine:
    return RayEngine.start("ray://head:10001", lambda: Offer(()), folder, lambda _: None)


def test_a_server_for_clients_that_dies_as_it_starts_is_asked_again(ray: MagicMock, tmp_path: Path) -> None:
    ray.init.side_effect = [ABORTED, ABORTED, None]
    assert connect(tmp_path).told
    assert ray.init.call_count == 3


@pytest.mark.parametrize(("error", "times"), [(ABORTED, 3), (ConnectionError("no route to host"), 1)])
def test_a_head_that_stays_away_is_told_of(ray: MagicMock, tmp_path: Path, error: Exception, times: int) -> None:
    ray.init.side_effect = error
    with pytest.raises(HarnessError, match=r"no cluster .* is its head up"):
        connect(tmp_path)
    assert ray.init.call_count == times


def test_rays_own_lines_do_not_stand_between_pytests(ray: MagicMock, tmp_path: Path) -> None:
    connect(tmp_path)
    assert ray.init.call_args.kwargs["log_to_driver"] is False
    assert os.environ["RAY_LOGGER_LEVEL"] == "error"


def test_versions_that_differ_are_both_named(ray: MagicMock, tmp_path: Path) -> None:
    told = "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\nThis process was:\n    Ray: 2.60.0\n"
    ray.init.side_effect = RuntimeError(told)
    with pytest.raises(HarnessError, match=r"started with: Ray: 2\.59\.0 This process was: Ray: 2\.60\.0\)$"):
        connect(tmp_path)


def test_a_session_that_is_ended_while_ray_connects_ends_as_at_any_time(ray: MagicMock, tmp_path: Path) -> None:
    def ours(*_: object) -> NoReturn:
        raise Signalled

    def init(**_: object) -> None:
        # As Ray does.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    ray.init.side_effect = init
    former = signal.signal(signal.SIGTERM, ours)
    try:
        with pytest.raises(Signalled):
            connect(tmp_path)
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, former)
