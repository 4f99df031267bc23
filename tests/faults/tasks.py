"""A gate, a search, an upload and an export as tasks: how each is started, gone on with, and told to have come right.

A small one is all real but what a gate measures (tests.fake_gate). A real one has a tiny model: gates and searches
quantize it in workers with releases of a package index, an upload is of its quantized weights, an export makes a
program of it in a worker.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from harness.records.run import read
from tests.faults import package_index, real_gates
from tests.faults.campaign import Fault
from tests.faults.commands import EXPORTS, Command, prepared
from tests.faults.engines import REPOSITORY, tiny_program
from tests.faults.package_index import Index
from tests.hub_server import TOKEN, Hub, Repository, serving
from tests.publish import test_publish as publishing


def _nothing() -> list[Path]:
    return []


@dataclass
class Task:
    """One command in a folder.

    ``words(again)`` is its command line, to go on with what there is if ``again``; ``due(status, told)`` whether it
    came to the end that it should come to; ``passes`` the statuses that say that all is well; ``disks`` the folders
    that it writes; ``stored()`` what it keeps and reads again; ``hub`` and ``index`` the server that it asks.
    """

    name: str
    folder: Path
    words: Callable[[bool], list[str]]
    due: Callable[[int, str], bool]
    disks: dict[str, Path]
    real: bool = False
    cwd: Path | None = None
    passes: tuple[int, ...] = (0,)
    variables: dict[str, str] = field(default_factory=dict)
    stored: Callable[[], list[Path]] = _nothing
    hub: Hub | None = None
    index: Index | None = None
    seconds: float = 3.0
    """About how long it takes, by which a moment in its midst is drawn."""
    begun: str = ""
    """What it says once it is at work, if it says something."""
    started: list[Command] = field(default_factory=list)

    def start(
        self,
        *,
        again: bool = False,
        memory: int = 0,
        streams: Mapping[str, IO[bytes]] | None = None,
        **variables: str,
    ) -> Command:
        words, variables = self.words(again), {**self.variables, **variables}
        made = Command(self.folder, *words, memory=memory, cwd=self.cwd, streams=streams, **variables)
        self.started.append(made)
        return made

    def lines(self) -> dict[Path, set[bytes]]:
        """Return the whole lines of all records."""
        found = {}
        for path in self.folder.rglob("records.jsonl"):
            if not path.is_relative_to(self.folder / "cache") and path.is_file():
                found[path] = {it for it in path.read_bytes().split(b"\n")[:-1] if it}
        return found


def broken(path: Path) -> list[str]:
    return read(path)[1]


def _gates(folder: Path) -> list[Path]:
    return [it for it in (folder / "results").rglob("*") if it.is_file() and it.suffix in (".json", ".jsonl")]


def _judged(status: int, told: str, metric: str) -> bool:
    return status == 1 and bool(re.search(rf"^\| regressed +\|.*\| {metric} ", told, re.MULTILINE))


def _resumed(folder: Path, again: bool) -> list[str]:
    return ["--resume", "last"] if again and [*(folder / "results" / "gates").glob("*/gate.json")] else []


@contextlib.contextmanager
def gate(fault: Fault, real: bool) -> Iterator[Task]:
    with _gate_or_search(fault, "gate", real) as task:
        yield task


@contextlib.contextmanager
def bisect(fault: Fault, real: bool) -> Iterator[Task]:
    with _gate_or_search(fault, "bisect", real) as task:
        yield task


@contextlib.contextmanager
def _gate_or_search(fault: Fault, which: str, real: bool) -> Iterator[Task]:
    if not real:
        folder = fault.folder
        bad = "first bad release: 1.3 (last good: 1.2)"

        def words(again: bool) -> list[str]:
            resume = _resumed(folder, again and which == "gate")
            return ["-m", "tests.faults.small_gates", str(folder), which, *resume]

        def due(status: int, told: str) -> bool:
            return _judged(status, told, "generate_throughput") if which == "gate" else status == 1 and bad in told

        disks = {"results": folder / "results"}
        yield Task(which, folder, words, due, disks, stored=lambda: _gates(folder), seconds=2, begun="started")
        return
    with real_gates.place() as place, package_index.serving(Index(real_gates.wheels())) as index:

        def asked(again: bool) -> list[str]:
            return ["-m", "harness", *place.words(which), *_resumed(place.folder, again and which == "gate")]

        def ended(status: int, told: str) -> bool:
            return place.due(which, status, told)

        def stored() -> list[Path]:
            return [it for it in place.cache.rglob("*") if it.is_file() and not it.name.endswith(".lock")]

        yield Task(
            which, place.folder, asked, ended, {"cache": place.cache, "results": place.results}, real=True,
            cwd=REPOSITORY, variables=real_gates.variables(index), stored=stored, index=index,
            seconds=40 if which == "gate" else 80, begun="making the environments",
        )  # fmt: skip


@contextlib.contextmanager
def publish(fault: Fault, real: bool) -> Iterator[Task]:
    store, run = prepared(fault.folder, real_gates.quantized() if real else None)
    with serving(Hub(fault.folder / "hub", part=1 << 20)) as hub:
        hub.repositories["them/Tiny"] = Repository(private=False)
        (weights,) = store.root.glob("checkpoint/*/model.safetensors")
        data = weights.read_bytes()

        def words(again: bool) -> list[str]:
            given = ["-m", "harness", "publish", "Tiny:int8wo", "--repo", publishing.REPOSITORY]
            return [*given, "--cache", str(store.root), "--runs", str(run.folder.parent)]

        def due(status: int, told: str) -> bool:
            sent = hub.repositories.get(publishing.REPOSITORY)
            whole = sent is not None and {"model.safetensors", "README.md"} <= set(sent.files)
            return status == 0 and whole and hub.content(publishing.REPOSITORY, "model.safetensors") == data

        variables = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        variables |= {"HF_HOME": str(fault.folder / "home"), "HOME": str(fault.folder / "home")}
        yield Task(
            "publish", fault.folder, words, due, {"cache": store.root, "results": run.folder.parent}, real=real,
            variables=variables, stored=lambda: [it for it in weights.parent.iterdir() if it.is_file()], hub=hub,
        )  # fmt: skip


@contextlib.contextmanager
def export(fault: Fault, real: bool) -> Iterator[Task]:
    folder = fault.folder
    if real:
        model, _ = tiny_program()

        def asked(again: bool) -> list[str]:
            return ["-m", "tests.faults.small_program", str(folder), str(model)]

        cache = folder / "cache"
        yield Task(
            "export", folder, asked, lambda status, told: status == 0 and "exported" in told, {"cache": cache},
            real=True, cwd=REPOSITORY, begun="started", seconds=40,
            stored=lambda: [it for it in cache.rglob("*") if it.is_file() and not it.name.endswith(".lock")],
        )  # fmt: skip
        return
    _, run = prepared(folder)
    name = fault.draw.choice(["csv", "parquet", "database"])
    out = folder / "out" / f"export.{name}"
    out.parent.mkdir()
    words = ["-m", "harness", *(it.format(run=run.folder, out=out) for it in EXPORTS[name])]
    undisturbed = Command(folder, *words)
    if undisturbed.end() != 0:
        raise RuntimeError(undisturbed.told)
    due = out.read_bytes()
    out.write_text("as it was")

    def right(status: int, told: str) -> bool:
        return status == 0 and out.is_file() and out.read_bytes() == due

    copies = folder / "xdg"
    yield Task(
        "export", folder, lambda again: list(words), right, {"out": out.parent, "results": run.folder.parent},
        stored=lambda: [it for it in copies.rglob("*.parquet") if it.is_file()],
    )  # fmt: skip


TASKS: dict[str, Callable[[Fault, bool], contextlib.AbstractContextManager[Task]]] = {
    "gate": gate,
    "bisect": bisect,
    "publish": publish,
    "export": export,
}
ALL = tuple(TASKS)
