"""Tests that load a model are marked ``models``; one that loads torch without the mark fails, so quick stays quick.

The mark comes by itself with every fixture that has a worker or a model; a test that starts one otherwise, e.g. in a
session of the suites, has to say so. Every Python process of the tests notes when it loads torch, and for which test.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.noticing import sitecustomize as noticing

MARK = "models"
FIXTURES = frozenset({"forks", "tiny_model", "host", "qemu"})


def pytest_configure(config: pytest.Config) -> None:
    line = f"{MARK}: loads a model, or starts a worker or a server that does; left out by tox run -e quick"
    config.addinivalue_line("markers", line)
    handle, notes = tempfile.mkstemp(prefix="harness-tests-")
    os.close(handle)
    config.add_cleanup(Path(notes).unlink)
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    patch.setenv(noticing.NOTES, notes)
    patch.setenv("PYTHONPATH", str(Path(noticing.__file__).parent), prepend=os.pathsep)
    patch.setenv(noticing.TEST, "")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(MARK)
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The files that take longest first: what is short then fills the processes evenly.
        costs = Counter(item.path for item in items if item.get_closest_marker(MARK))
        items.sort(key=lambda item: (-costs[item.path], item.path))


def pytest_collection_finish() -> None:
    if _noted():
        raise pytest.UsageError("collecting the tests loads torch: import what needs it in the test itself")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    os.environ[noticing.TEST] = _name(item)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    result = yield
    if _name(item) in _noted() and not item.get_closest_marker(MARK):
        pytest.fail(f"it loads torch: mark it with @pytest.mark.{MARK}", pytrace=False)
    return result


def _name(item: pytest.Item) -> str:
    """Return a test's name as an environment variable can hold it, on one line."""
    return item.nodeid.encode("unicode_escape").decode()


def _noted() -> list[str]:
    """Return the name of the test that loaded torch, each time when one did; an empty one while tests are collected."""
    return Path(os.environ[noticing.NOTES]).read_text(encoding="utf-8").splitlines()
