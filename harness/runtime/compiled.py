"""What compilers leave on the disk of an engine's start, kept as an artifact and given to the next start of the same.

Each start works in a folder of its own, so that nobody reads what another is writing and none that is killed leaves
half a file to the next. What is kept is never written to: a start begins with a copy of it, and where it ends up with
files that are new, copy and new files become the artifact.

Compilers write into their files where these lie (vLLM's index of Inductor's artifacts does), so a copy is of use in no
other folder than the one it was made in. The folder's path is therefore part of what an artifact is of: starts of one
thing take the same one again, and those that go on beside each other another one each.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.base.errors import HarnessError
from harness.base.text import digest
from harness.runtime.store import MANIFEST, Artifact, Store

KIND = "compiled"
_COMMON = "inspected"
_WORK = "compiling"
# What a process holds while it writes, and what it has not finished.
_PASSING = (".lock", ".tmp")


class Compiled:
    """The compilers' folder of one start, which begins with what an earlier start of the same ``key`` left.

    ``label`` says which cell is started, and is among the facts (``cell``). ``variables`` names a compiler's
    environment variable and its place in the folder. ``common`` are places whose files depend on the parts of the key
    named ``of`` alone and may lie anywhere. ``found`` are the facts that were kept with it, None where nothing was. A
    damaged artifact is thrown away and told of, and all is compiled anew.
    """

    def __init__(
        self,
        store: Store,
        key: dict[str, Any],
        variables: Mapping[str, str],
        label: str,
        *,
        common: Sequence[str] = (),
        of: Sequence[str] = (),
    ) -> None:
        self._store, self._label = store, f"compilation of {label}"
        self._common, self._common_key = tuple(common), {name: key[name] for name in of}
        self.found: dict[str, Any] | None = None
        work = store.root.absolute() / _WORK
        with store.writing(self._label):
            work.mkdir(parents=True, exist_ok=True)
            _sweep(work)
            self._folder, self._lock = _own(work, digest(key))
            self._key = {**key, "place": str(self._folder)}
            store.read(KIND, self._key, self._begin, label=self._label)
            if common:
                store.read(_COMMON, self._common_key, lambda it: _copy(it.folder, self._folder), label=self._label)
        self._facts: dict[str, Any] = {"cell": label}
        self._known = set(_files(self._folder))
        self.variables = {name: str(self._folder / part) for name, part in variables.items()}

    def keep(self, facts: Mapping[str, float] | None = None) -> bool:
        """Keep what the start has compiled; returns whether any of it is new.

        ``facts`` are kept of a start that found nothing; those of later ones are not.
        """
        self._facts |= facts or {}
        now = set(_files(self._folder))
        if now <= self._known:
            return False

        def build(folder: Path, before: Artifact | None) -> dict[str, Any]:
            # Another start of the same may have kept something meanwhile.
            if before:
                _copy(before.folder, folder)
            _copy(self._folder, folder)
            return before.facts if before else self._facts

        def build_common(folder: Path, before: Artifact | None) -> dict[str, Any]:
            if before:
                _copy(before.folder, folder)
            for part in self._common:
                _copy(self._folder / part, folder / part)
            return {}

        self._store.replace(KIND, self._key, build, label=self._label)
        if any(it.startswith(f"{part}/") for it in now - self._known for part in self._common):
            self._store.replace(_COMMON, self._common_key, build_common, label=self._label)
        self._known = now
        return True

    def forget(self) -> bool:
        """Throw away what an earlier start had left to this one; returns whether there was any."""
        if self.found is None:
            return False
        self._store.discard(KIND, self._key, label=self._label)
        self.found = None
        return True

    def _begin(self, kept: Artifact) -> None:
        _copy(kept.folder, self._folder)
        self.found = dict(kept.facts)

    def close(self, *, whole: bool) -> None:
        """Throw the start's own folder away; where it was ``whole``, what was compiled since is kept first."""
        if not self._lock.is_locked:
            return
        try:
            if whole:
                # A figure was measured already, and is not lost for a disk that is full now.
                with contextlib.suppress(HarnessError):
                    self.keep()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.release()


def _own(work: Path, name: str) -> tuple[Path, FileLock]:
    """Return the first empty folder of this name that no other start holds, and its lock, held.

    The lock's file stays: one that is unlinked could be held twice.
    """
    for number in itertools.count():
        folder = work / f"{name}-{number}"
        lock = FileLock(f"{folder}.lock")
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            return folder, lock
    raise AssertionError


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.suffix not in _PASSING and path.name != MANIFEST:
            yield str(path.relative_to(folder))


def _copy(source: Path, target: Path) -> None:
    for name in _files(source):
        to = target / name
        to.parent.mkdir(parents=True, exist_ok=True)
        # What a compiler renames or throws away meanwhile is none of what it left.
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(source / name, to)


def _sweep(work: Path) -> None:
    """Throw away the folders of planners that were killed."""
    for folder in work.iterdir():
        if folder.is_dir():
            with contextlib.suppress(Timeout), FileLock(f"{folder}.lock", timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
