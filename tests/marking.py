"""Tests that load a model are marked ``models``; one that loads torch without the mark fails, so quick stays quick.

The mark comes by itself with every fixture that has a worker or a model; a test that starts one otherwise, e.g. in a
session of the suites, has to say so. Every Python process of the tests notes when it loads torch, and for which test.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.noticing import sitecustomize as noticing

MARK = "models"
# Tests that share workers stay together where several processes run the tests; all others do so file by file.
TOGETHER = ("tests/devices", "tests/worker")
APART = ("tests/worker/test_vllm.py",)
FIXTURES = frozenset({"forks", "tiny_model", "host", "qemu"})


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        f"{MARK}: loads a model, or starts a worker or a server that does; left out by tox run -e quick",
        "xdist_group(name): one process runs the tests of a group, one after the other",
    ):
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
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(_group(item)))
    if "PYTEST_XDIST_WORKER" in os.environ:
        # What takes longest first: what is short then fills the processes evenly.
        items.sort(key=lambda item: item.get_closest_marker(MARK) is None)


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


def _group(item: pytest.Item) -> str:
    """Return what is run by one process, one test after the other."""
    file = item.nodeid.partition("::")[0]
    shares = item.get_closest_marker(MARK) and file not in APART
    return next((folder for folder in TOGETHER if shares and file.startswith(f"{folder}/")), file)


def _name(item: pytest.Item) -> str:
    """Return a test's name as an environment variable can hold it, on one line."""
    return item.nodeid.encode("unicode_escape").decode()


def _noted() -> list[str]:
    """Return the name of the test that loaded torch, each time when one did; an empty one while tests are collected."""
    return Path(os.environ[noticing.NOTES]).read_text(encoding="utf-8").splitlines()
