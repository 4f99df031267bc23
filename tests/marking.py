"""Tests that load a model are marked ``models``; one that loads torch without the mark fails, so quick stays quick.

The mark comes by itself with every fixture that has a worker or a model; a test that starts one otherwise, e.g. in a
session of the suites, has to say so. Every Python process of the tests notes when it loads torch, and for which test.
What waits for another large program, or for much data, is marked ``programs`` likewise: a test whose processes computed
for long fails without a mark too.

PYTEST_DONT_REWRITE: nothing is asserted here, and tests/conftest.py imports it before pytest does.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import resource
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.noticing import sitecustomize as noticing

MARK, PROGRAMS = "models", "programs"
# Seconds of the processors that what a test starts may take without the mark. Starting Python takes a tenth of one.
LARGE = 10.0
# The folder of the processes that run tests together, and in it what can be read as long as they do.
TOGETHER, ALIVE = "HARNESS_TEST_TOGETHER", "alive"
FAULTS = "faults"
"""The property of a test's report that has its faults of the campaign: of each whether it hit, and its seconds."""
# The files that take longest; where several processes share the tests out, what is short then fills them evenly.
LONGEST = (
    "tests/gate/test_gate.py",
    "tests/plugin/test_reliability.py",
    "tests/worker/test_shelf.py",
    "tests/runtime/test_environment_pair.py",
    "tests/plugin/test_main_job.py",
    "tests/worker/test_vllm.py",
    "tests/worker/test_export.py",
    "tests/devices/test_ssh_and_ios.py",
    "tests/zoo/test_folders.py",
    "tests/runtime/test_stack.py",
    "tests/publish/test_reproduced.py",
    "tests/judge/test_baseline.py",
    "tests/plugin/test_entry_point.py",
    "tests/test_secrets.py",
)
# Files that share what is expensive to have: workers that quantize and that have lm-evaluation-harness, torch in the
# very process that runs the tests, one with ExecuTorch. The tests of such files, by how their names begin, are run by
# one process.
SHARED = {
    "workers": tuple(
        f"tests/worker/test_{name}.py"
        for name in ("evaluate", "generate", "held", "quantize", "sglang", "shelf", "staged", "tasks")
    ),
    "torch": (
        *(
            f"tests/worker/test_{name}.py"
            for name in ("export", "llama_parameters", "loading", "recipe_code", "repeated", "rotated", "texts")
        ),
        "tests/zoo/test_proof.py",
    ),
    "executorch": ("tests/devices/",),
}
FIXTURES = {
    MARK: frozenset({"forks", "standing", "tiny_model", "host", "qemu"}),
    PROGRAMS: frozenset({"bundled", "chromium", "wheels", "wheel", "installed", "run_pages"}),
}
_BEGAN = pytest.StashKey[float]()


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        f"{MARK}: loads a model, or starts a worker or a server that does; left out by tox run -e quick",
        f"{PROGRAMS}: waits for pip, a browser, a compiler, whole sessions, all records; left out by tox run -e quick",
    ):
        config.addinivalue_line("markers", line)
    handle, notes = tempfile.mkstemp(prefix="harness-tests-")
    os.close(handle)
    test = Path(noticing.running(notes))
    test.touch()
    for file in (Path(notes), test):
        config.add_cleanup(file.unlink)
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    patch.setenv(noticing.NOTES, notes)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        _begin(config, patch)
    patch.setenv("PYTHONPATH", str(Path(noticing.__file__).parent), prepend=os.pathsep)


def _begin(config: pytest.Config, patch: pytest.MonkeyPatch) -> None:
    """Make the folder of what stands for all processes that run tests together, and ends when this one does."""
    folder = Path(tempfile.mkdtemp(prefix="harness-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.mkfifo(folder / ALIVE)
    # Who reads it finds its end when nobody writes it any more: nobody else has it open so.
    config.add_cleanup(functools.partial(os.close, os.open(folder / ALIVE, os.O_RDWR | os.O_CLOEXEC)))
    patch.setenv(TOGETHER, str(folder))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark, fixtures in FIXTURES.items():
            if not fixtures.isdisjoint(getattr(item, "fixturenames", ())):
                item.add_marker(mark)
    if "PYTEST_XDIST_WORKER" in os.environ:
        costs = Counter(item.path for item in items if any(map(item.get_closest_marker, (MARK, PROGRAMS))))
        items.sort(key=lambda item: (_rank(item), -costs[item.path], item.path))


def pytest_collection_finish() -> None:
    if _noted():
        raise pytest.UsageError("collecting the tests loads torch: import what needs it in the test itself")
    # What is there now stays to the end, and is gone through for garbage no more; the rest less often.
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Where several processes run the tests each rewrites a part of the files, which the others then find rewritten."""
    # Until all is collected there is none.
    gc.disable()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    number, count = (
        int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")),
        int(os.environ["PYTEST_XDIST_WORKER_COUNT"]),
    )
    folders = [session.startpath / name.partition("::")[0] for name in session.config.args]
    for path in sorted(path for folder in folders for path in folder.rglob("test_*.py"))[number::count]:
        # One that cannot be imported, or skips itself, says so when it is collected.
        with contextlib.suppress(Exception, pytest.skip.Exception):
            importlib.import_module(".".join(path.relative_to(session.config.rootpath).with_suffix("").parts))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    # Over the one before: what a file is truncated to, some file systems write to the disk when it is closed.
    with open(noticing.running(os.environ[noticing.NOTES]), "r+", encoding="utf-8") as running:
        running.write(_name(item) + "\n")
    item.stash[_BEGAN] = _computed()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    # What ends with the last test of a module or session is none of that test's.
    took = _computed() - item.stash[_BEGAN]
    result = yield
    if item.get_closest_marker(MARK):
        return result
    if _name(item) in _noted():
        pytest.fail(f"it loads torch: mark it with @pytest.mark.{MARK}", pytrace=False)
    if took > LARGE and not item.get_closest_marker(PROGRAMS):
        pytest.fail(f"what it starts computed for {took:.1f} s: mark it with @pytest.mark.{PROGRAMS}", pytrace=False)
    return result


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which part of the fault campaign ran among the tests."""
    reports = [it for them in terminalreporter.stats.values() for it in them if isinstance(it, pytest.TestReport)]
    tried = [
        it
        for report in reports
        if report.when == "call"
        for name, value in report.user_properties
        if name == FAULTS
        for it in value
    ]
    if tried:
        seconds, hit = sum(taken for _, taken in tried), sum(hits for hits, _ in tried)
        terminalreporter.write_line(f"faults: {len(tried)} of the campaign, {hit} of which hit, in {seconds:.0f} s")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Sharing(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return next((name for name, files in SHARED.items() if file.startswith(files)), file)

    return Sharing(config, log)


def _rank(item: pytest.Item) -> int:
    file = item.nodeid.partition("::")[0]
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


def _computed() -> float:
    """Return the processors' seconds that all processes took that were started here and have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def _name(item: pytest.Item) -> str:
    """Return a test's name on one line."""
    return item.nodeid.encode("unicode_escape").decode()


def _noted() -> list[str]:
    """Return the name of the test that loaded torch, each time when one did; an empty one while tests are collected."""
    notes = os.environ[noticing.NOTES]
    return Path(notes).read_text(encoding="utf-8").splitlines() if os.path.getsize(notes) else []
