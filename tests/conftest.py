"""What the tests share: where artifacts are kept, a tiny model that no network is needed for, and workers."""

from __future__ import annotations

import functools
import gettext
import importlib.util
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from harness.base.files import default_root, file_digest
from harness.contract import warden
from harness.contract.protocol import Job
from harness.matrix.load import load
from harness.matrix.plan import Matrix
from harness.runtime.environment import Environment
from harness.runtime.job import Worker
from harness.runtime.process import ForkServer
from harness.runtime.sources import SHAREGPT_FILE
from harness.runtime.store import Store
from tests import marking
from tests.noticing import standing as noticing_standing
from tests.noticing.standing import STANDING

pytest_plugins = ["pytester", "tests.marking"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what takes many minutes unless it is asked for by its marker."""
    if "slow" not in config.getoption("markexpr", ""):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes many minutes; run it with -m slow"))


# pytest reads this file for the suites too, where the tests' own packages need not be installed.
if importlib.util.find_spec("hypothesis"):
    from tests import laws

    laws.register()

# A shell's background jobs ignore interruption, what nohup starts ignores the end of its terminal, and what they start
# inherits that: nothing here could be ended so.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

REPOSITORY = Path(__file__).resolve().parents[1]
_TINY_MODEL = Path(__file__).with_name("tiny_model.py")
# Long enough for the CPU's share of the suites: 16 windows of 256 tokens, a token a byte.
_ANSWER = "A language model gives every next word a probability, and says one of the likely ones. "
CONVERSATIONS = [
    {
        "id": f"conversation-{number}",
        "conversations": [
            {"from": "human", "value": f"Question {number}: what does a language model do, in one sentence?"},
            {"from": "gpt", "value": f"Answer {number}. {_ANSWER * 3}"},
        ],
    }
    for number in range(24)
]

STORIES = [
    ("Baking", "A woman pours flour into a bowl.", "she"),
    ("Rowing", "Two men sit in a boat on a lake.", "they"),
    ("Painting", "A boy holds a brush before a wall.", "he"),
]
ENDINGS = ["adds an egg and stirs.", "pulls at the oars.", "paints it blue.", "sings."]


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint folder, the same as a GGUF file and with NaN in it, and what transformers itself says of it."""

    folder: Path
    gguf: Path
    broken: Path
    reference: dict[str, Any]


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Temporary files of what the tests start lie in a folder of this session's own, the machine's lock among them.

    No test waits for what else measures on this machine, be it the other half of the tests, and none holds it up.
    """
    folder = tmp_path_factory.mktemp("tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        # A pytest that a test starts is nobody's xdist worker.
        for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
            patch.delenv(name)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def found_once() -> Iterator[None]:
    """Sessions in this process look for plugins in all packages, parsers for translations, and all read the matrix:
    what they find is kept.
    """
    found = Distribution.entry_points.fget
    read = functools.cache(lambda path: found(PathDistribution(path)))
    # A copy for each, which may write into it.
    tables = functools.cache(lambda text, loads=tomllib.loads: pickle.dumps(loads(text)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tomllib, "loads", lambda text, /: pickle.loads(tables(text)))
        patch.setattr(PathDistribution, "entry_points", property(lambda it: read(it._path)))
        patch.setattr(gettext, "find", functools.cache(gettext.find))
        yield


@pytest.fixture(scope="session", autouse=True)
def power_stays_on() -> Iterator[None]:
    """What this process writes is for tests that run in it: nobody waits for a disk, and a wrong file still fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def suites_matrix() -> Matrix:
    """The matrix that the suites run."""
    return load(REPOSITORY / "suites" / "matrix.toml")


@pytest.fixture(scope="session")
def kept_store() -> Store:
    """A store that outlives the test session: in $HARNESS_TEST_CACHE, or in the user's cache folder."""
    return Store(Path(os.environ.get("HARNESS_TEST_CACHE") or default_root()).resolve())


@pytest.fixture(scope="session")
def sharegpt_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``--data`` with a small ShareGPT file of the published layout."""
    folder = tmp_path_factory.mktemp("data")
    (folder / SHAREGPT_FILE).write_text(json.dumps(CONVERSATIONS), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory, sharegpt_folder: Path) -> Path:
    """A folder for ``--data`` with HellaSwag, LAMBADA and ShareGPT.

    HellaSwag has three stories, each once under every of its four labels: whatever a model chooses, it is right
    about a quarter of the documents.
    """
    folder = tmp_path_factory.mktemp("documents")
    hellaswag = [
        {"activity_label": label, "ctx_a": context, "ctx_b": subject, "endings": ENDINGS, "label": str(right)}
        for label, context, subject in STORIES
        for right in range(4)
    ]
    lambada = [{"text": f"{context} {subject} {ENDINGS[0]}".rstrip(".")} for _, context, subject in STORIES]
    for name, found in (("hellaswag", hellaswag), ("lambada_openai", lambada)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(one) for one in found), encoding="utf-8")
    shutil.copytree(sharegpt_folder, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny_model(kept_store: Store, sharegpt_folder: Path) -> TinyModel:
    """Two layers of random weights with a byte-level tokenizer, made by transformers in a process of its own."""
    text = _ANSWER * 10

    def build(folder: Path) -> None:
        command = [sys.executable, str(_TINY_MODEL), str(folder)]
        subprocess.run(command, input=text, check=True, text=True, stdout=subprocess.DEVNULL)
        (folder / "text.txt").write_text(text, encoding="utf-8")

    key = {"script": file_digest(_TINY_MODEL), "text": text, "packages": Environment().decisive()}
    folder = kept_store.get("tiny-model", key, build, label="the tests' tiny model").folder
    reference = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
    return TinyModel(
        folder / "model",
        folder / "gguf" / "tiny.gguf",
        folder / "broken",
        {**reference, "text": str(folder / "text.txt")},
    )


@pytest.fixture(scope="session")
def standing() -> Path:
    """The folder in which fork servers that have their imports are asked for, of all processes that run tests."""
    folder = Path(os.environ[marking.TOGETHER])
    with FileLock(folder / "lock"):
        if not (folder / "keeper").exists():
            control = os.open(folder / marking.ALIVE, os.O_RDONLY | os.O_NONBLOCK)
            command = [sys.executable, "-I", "-S", warden.__file__, str(control), ""]
            command += [sys.executable, noticing_standing.__file__, str(folder)]
            with (folder / "keeper.log").open("wb") as log:
                subprocess.Popen(command, pass_fds=(control,), stdout=log, stderr=log, start_new_session=True)
            os.close(control)
            deadline = time.monotonic() + 30
            while not (folder / "keeper").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
    return folder


@pytest.fixture(scope="module")
def imports_stand(standing: Path) -> Iterator[None]:
    """What the tests of a module start is forked with its imports from what stands (see noticing/standing.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STANDING, str(standing))
        yield


@pytest.fixture(scope="session")
def forks(
    kept_store: Store, repository: Path, standing: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ForkServer]:
    """What the tests' workers are forked from: torch, torchao and Transformers are loaded once for all tests."""
    environ = Environment().environ(kept_store) | {STANDING: str(standing)}
    environ["PYTHONPATH"] = os.pathsep.join([environ["PYTHONPATH"], str(repository)])
    log = tmp_path_factory.mktemp("forks") / "imports.log"
    server = ForkServer("transformers", python=sys.executable, environ=environ, log=log)
    yield server
    server.close()


RunCode = Callable[..., "subprocess.CompletedProcess[str]"]


def run_forked(forks: ForkServer, folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code as ``python -c`` does, in a process that has all loaded that a fork server has; ``folder`` is empty."""
    (folder / "code.py").write_text(code, encoding="utf-8")
    (folder / "argv.json").write_text(json.dumps(["-c", *arguments]), encoding="utf-8")
    process = forks.start("tests.forked", [str(folder)], log=folder / "log")
    status = process.wait(600)
    process.end()
    assert status is not None, "the code did not end"
    said = [(folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(code, status, *said)


@pytest.fixture(scope="session")
def run_code(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> RunCode:
    """``run_code(code, *arguments)``, as ``python -c`` does, in a process that has torch loaded already."""

    def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_forked(forks, tmp_path_factory.mktemp("code"), code, *arguments)

    return run


StartWorker = Callable[..., Worker]


@pytest.fixture(scope="session")
def start_worker(
    kept_store: Store, forks: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartWorker]:
    """``start_worker(backend, **specification)`` returns a ready worker, which ends with the test session.

    It is forked with what others need loaded, or, where ``whole``, a process of its own from the beginning.
    """
    logs = tmp_path_factory.mktemp("logs")
    started: list[Worker] = []

    def start(backend: str, *, whole: bool = False, **specification: Any) -> Worker:
        worker = Worker(
            Job(backend=backend, specification=specification, whole=whole),
            environment=Environment(),
            store=kept_store,
            log=logs / f"{len(started)}-{backend}.log",
            label=backend,
            forks=None if whole else forks,
        )
        started.append(worker)
        worker.wait_ready(300)
        return worker

    yield start
    for worker in started:
        worker.close()
