"""Real gates and searches of a tiny model: what they need is made once, and kept in build/faults.

Releases come from a package index, are installed, imported, and quantize the model in workers; what is judged is
whether they can, and how large their checkpoints are, which needs no quiet machine.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from harness.base.files import write_text
from harness.runtime.sources import SHAREGPT_FILE
from tests.conftest import CONVERSATIONS
from tests.faults import package_index
from tests.faults.engines import KEPT, REPOSITORY, tiny_program
from tests.faults.package_index import Index

ASKED = ("-m", "cpu", "--recipe", "int8wo", "--server", "transformers")
# Faults run one at a time in a place, whose path environments and imports are known by.
_PLACES = 8


@dataclass
class Place:
    """Where one fault's gates run: a cache that has what works, and no results. What does not is quantized anew."""

    folder: Path
    model: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def words(self, which: str) -> list[str]:
        given = {
            "gate": ["gate", f"torchao=={package_index.GOOD[0]}", f"torchao=={package_index.BAD[-1]}"],
            "bisect": ["bisect", "torchao", f"{package_index.GOOD[0]}..{package_index.BAD[-1]}"],
        }[which]
        given += ["--metric", "checkpoint_size"] if which == "bisect" else ["-k", "checkpoint_size"]
        given += [*ASKED, "--model", str(self.model), "--blocks", "1", "--wide"]
        given += ["--data", str(conversations())]
        return [*given, "--cache", str(self.cache), "--results", str(self.results)]

    def due(self, which: str, status: int, told: str) -> bool:
        """Return whether a gate or a search came to its end, and said what it should."""
        if which == "bisect":
            return (
                status == 1
                and f"first bad release: {package_index.BAD[0]} (last good: {package_index.GOOD[1]})" in told
            )
        return status == 1 and bool(re.search(r"^\| regressed +\|.*\| works: quantize and save ", told, re.MULTILINE))


def variables(index: Index) -> dict[str, str]:
    """Return what has pip ask the index and nothing else."""
    given = {name: "" for name in os.environ if name.startswith(("PIP_", "UV_"))}
    given |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index.address, "PIP_NO_CACHE_DIR": "1"}
    return given | {"PIP_RETRIES": "1", "PIP_DEFAULT_TIMEOUT": "4", "OMP_NUM_THREADS": "1"}


@functools.cache
def conversations() -> Path:
    """Return a folder for ``--data``, so that nothing is asked of an index but the releases."""
    folder = KEPT / "data"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SHAREGPT_FILE, json.dumps(CONVERSATIONS))
    return folder


@functools.cache
def wheels() -> list[Path]:
    folder = KEPT / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        return package_index.wheels(folder)


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """Yield a place that no other process has now; its cache is as it was made once, its results are none."""
    root = KEPT.parent / "places"
    root.mkdir(parents=True, exist_ok=True)
    for number in range(_PLACES):
        lock = FileLock(root / f"{number}.lock")
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            try:
                yield _restored(root / str(number))
            finally:
                lock.release()
            return
    raise RuntimeError(f"all {_PLACES} places are taken")


def _restored(folder: Path) -> Place:
    from tests.faults.commands import Command

    model, _ = tiny_program()
    found = Place(folder, model)
    kept = folder.with_name(f"{folder.name}.kept")
    if not kept.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with package_index.serving(Index(wheels())) as index:
            made = Command(folder, "-m", "harness", *found.words("bisect"), cwd=REPOSITORY, **variables(index))
            status = made.end(600)
            if not found.due("bisect", status, made.told):
                raise RuntimeError(f"an undisturbed search ended with {status}: {made.told[-900:]}")
        shutil.copytree(found.cache, kept.with_suffix(".part"), symlinks=True)
        kept.with_suffix(".part").rename(kept)
    for path in folder.iterdir():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    shutil.copytree(kept, found.cache, symlinks=True)
    return found


@functools.cache
def quantized() -> Path:
    """Return a folder with the tiny model's weights as the first release quantizes them."""
    with place() as found:
        kept = KEPT / "quantized"
        if not kept.exists():
            made = sorted(found.cache.glob("checkpoint/*/model.safetensors"))[0]
            shutil.copytree(made.parent, kept.with_suffix(".part"))
            kept.with_suffix(".part").rename(kept)
    return kept
