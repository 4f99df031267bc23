"""A content-addressed store of folders: built once under a lock, renamed into place whole, checked before reuse."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.base.errors import ArtifactError, WorkerError
from harness.base.files import file_digest
from harness.base.reading import json_file
from harness.base.text import digest
from harness.runtime.shared import KINDS, Shared

MANIFEST = "artifact.json"


_PARTS = ("key", "facts", "files")


@dataclass(frozen=True)
class Artifact:
    """A finished folder and what its maker said of it."""

    folder: Path
    key: str
    made: bool = field(compare=False)
    facts: dict[str, Any] = field(compare=False, default_factory=dict)

    @property
    def kept_from(self) -> str:
        """When it was made, as 2026-11-29 15:46 in this machine's time."""
        made = datetime.datetime.fromtimestamp((self.folder / MANIFEST).stat().st_mtime).astimezone()
        return f"{made:%Y-%m-%d %H:%M}"


class Store:
    """Artifacts under one root folder, shared by every session of this user; by ``shared`` also with other machines."""

    def __init__(self, root: Path, say: Callable[[str], None] = lambda _: None, shared: Shared | None = None) -> None:
        self.root = root
        self.shared = shared
        self._say = say
        self._trusted: dict[str, Artifact] = {}

    def get(
        self,
        kind: str,
        key: dict[str, Any],
        build: Callable[[Path], dict[str, Any] | None],
        *,
        label: str,
        verify: bool = True,
        facts: Sequence[str] = (),
    ) -> Artifact:
        """Return the artifact of ``kind`` for ``key``, building it if it is not there or does not check out.

        ``build`` fills an empty folder and may return facts (JSON) to keep with it. The folder becomes visible
        only when it is complete and on the disk. A stored artifact is verified once a session: every file's size
        and SHA-256 (``verify=False`` checks sizes only, for folders that may gain files); a damaged one, or one that
        lacks one of ``facts``, is thrown away and rebuilt. Raises ArtifactError when the cache
        cannot be written, since its disk is full, say.
        """
        name = f"{kind}/{digest(key)}"
        if name in self._trusted:
            return self._trusted[name]
        folder = self.root / name
        with self.writing(label):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, label, self.writing):
            sound = self._sound(name, label, verify=verify, facts=facts)
            shared = self.shared if kind in KINDS else None
            made = False
            if not sound:
                with self.writing(label):
                    if folder.exists():
                        # It is not to be found out once another is made that it cannot be laid here.
                        shutil.rmtree(folder)

                def there() -> bool:
                    return shared is not None and self._fetched(shared, name, folder, label, facts)

                if not there():
                    with shared.making(name, there) if shared else contextlib.nullcontext(True) as made:
                        if made:
                            self._build(folder, key, build, label)
                            if shared:
                                # Before the lock is let go: whoever waits for that finds it there.
                                with self.writing(label):
                                    shared.publish(name, folder)
            if shared and not made:
                with self.writing(label):
                    shared.publish(name, folder)
            with self.writing(label):
                manifest = json_file(folder / MANIFEST, once=True)
        artifact = Artifact(folder=folder, key=name, made=made, facts=manifest["facts"])
        self._trusted[name] = artifact
        return artifact

    def read(self, kind: str, key: dict[str, Any], use: Callable[[Artifact], None], *, label: str) -> bool:
        """Have ``use`` read the artifact of ``kind`` for ``key``, which nobody replaces meanwhile, if it is there.

        Returns whether it was; a damaged one is thrown away, and told of.
        """
        name = f"{kind}/{digest(key)}"
        if not (self.root / name).exists():
            return False
        with _locked(self.root / name, label, self.writing):
            found = self._sound(name, label)
            if found:
                use(found)
        return found is not None

    def replace(
        self, kind: str, key: dict[str, Any], build: Callable[[Path, Artifact | None], dict[str, Any]], *, label: str
    ) -> None:
        """Make the artifact of ``kind`` for ``key`` in place of the one that may be there, which ``build`` is given.

        That stays until the new one is whole; ``build`` is otherwise as that of :meth:`get`.
        """
        name = f"{kind}/{digest(key)}"
        folder = self.root / name
        with self.writing(label):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, label, self.writing):
            before = self._sound(name, label) if folder.exists() else None
            self._build(folder, key, lambda it: build(it, before), label)

    def discard(self, kind: str, key: dict[str, Any], *, label: str) -> None:
        """Throw the artifact of ``kind`` for ``key`` away, if it is there."""
        folder = self.root / f"{kind}/{digest(key)}"
        if folder.exists():
            with _locked(folder, label, self.writing), self.writing(label):
                shutil.rmtree(folder, ignore_errors=True)

    def _sound(self, name: str, label: str, *, verify: bool = True, facts: Sequence[str] = ()) -> Artifact | None:
        """Return a stored artifact; one that cannot be used is told of and thrown away."""
        folder = self.root / name
        damage = problem(folder, verify=verify)
        with self.writing(label):
            if wrong := damage or _lacking(folder, facts):
                if folder.exists():
                    what = "damaged" if damage else "of an older version"
                    self._say(f"{label}: the stored artifact is {what} ({wrong}); building it again")
                    shutil.rmtree(folder, ignore_errors=True)
                return None
            return Artifact(folder=folder, key=name, made=False, facts=json_file(folder / MANIFEST, once=True)["facts"])

    def holds(self, kind: str, key: dict[str, Any]) -> bool:
        """Return whether an artifact for ``key`` is there, without checking its contents."""
        return (self.root / kind / digest(key) / MANIFEST).is_file()

    def manifests(self, kind: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield folder and manifest (key, facts, and the files with size and SHA-256) of each artifact of ``kind``."""
        for path in sorted(self.root.glob(f"{kind}/*/{MANIFEST}")):
            if found := manifest(path.parent):
                yield path.parent, found

    def unreadable(self, kind: str) -> list[Path]:
        """Return the manifests of ``kind`` that say nothing of their artifacts, since they are damaged."""
        return [path for path in sorted(self.root.glob(f"{kind}/*/{MANIFEST}")) if manifest(path.parent) is None]

    def _fetched(self, shared: Shared, name: str, folder: Path, label: str, facts: Sequence[str]) -> bool:
        """Bring an artifact from the shared store, as sound as if it had been made here, if it is there."""
        temporary = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}"
        try:
            with self.writing(label):
                if not shared.fetch(name, temporary, lambda it: problem(it) or _lacking(it, facts)):
                    return False
                _sync(temporary)
                os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._say(f"{label}: fetched from the shared store")
        return True

    def _build(
        self, folder: Path, key: dict[str, Any], build: Callable[[Path], dict[str, Any] | None], label: str
    ) -> None:
        for stale in folder.parent.glob(f".{folder.name}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}"
        try:
            with self.writing(label):
                temporary.mkdir()
                facts = build(temporary) or {}
                inventory = _inventory(temporary)
                manifest = json.loads(json.dumps({"key": key, "facts": facts, "files": inventory}, default=str))
                manifest["digest"] = digest(manifest)
                (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
                _sync(temporary)
                if folder.exists():
                    shutil.rmtree(folder)
                os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextlib.contextmanager
    def writing(self, label: str) -> Iterator[None]:
        """Name the cache, and the option that names another, where its disk is full or does not let itself be written.

        A worker writes too: of what it raised only the words have come back.
        """
        try:
            yield
        except OSError as error:
            if words := _REFUSED_BY_DISK.get(error.errno or -1, ""):
                raise ArtifactError(f"{label}: {self._refused(words)}") from error
            if error.errno is None:
                # Of a library, such as what a hub answered.
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise ArtifactError(f"{label}: {where}{error.strerror} (the cache is {self.root})") from error
        except WorkerError as error:
            full = any(os.strerror(number) in error.message + error.log_tail for number in (errno.ENOSPC, errno.EDQUOT))
            if not full or str(self.root) in error.message:
                raise
            message = f"{error.message}; {self._refused(_REFUSED_BY_DISK[errno.ENOSPC])}"
            raise WorkerError(
                message, stage=error.stage, kind=error.kind, log_tail=error.log_tail, worker=error.worker
            ) from error

    def _refused(self, words: str) -> str:
        return f"the disk of the cache {self.root} {words} or name another with --cache"


_FULL = "is full; free some space"
_REFUSED_BY_DISK = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "takes no file as large as this one; raise the limit (ulimit -f)",
    errno.EROFS: "is read-only; make it writable",
    errno.EACCES: "refuses to be written by you; make it writable",
    errno.EPERM: "refuses to be written by you; make it writable",
    **dict.fromkeys(
        # Of a disk that fails, and of one across a network; not every system has each of them.
        (getattr(errno, it, 0) for it in ("EIO", "ESTALE", "ENXIO", "ENODEV", "EREMOTEIO", "EHOSTDOWN", "ENOTCONN")),
        "does not do what it is asked; look after it, and start again,",
    ),
}


@contextlib.contextmanager
def _locked(
    folder: Path, label: str, writing: Callable[[str], contextlib.AbstractContextManager[None]]
) -> Iterator[None]:
    """Hold the lock of an artifact's folder, which other sessions build it under too."""
    lock = FileLock(f"{folder}.lock")
    with writing(label):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def manifest(folder: Path) -> dict[str, Any] | None:
    """Return what the store has written down of an artifact's folder, or None where there is nothing readable."""
    try:
        found = json_file(folder / MANIFEST, once=True)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and all(isinstance(found.get(it), dict) for it in _PARTS) else None


def _lacking(folder: Path, facts: Sequence[str]) -> str | None:
    """Return which facts a sound artifact lacks, as one that was made by an older version may, or None."""
    told = json_file(folder / MANIFEST, once=True)["facts"]
    lacking = ", ".join(name for name in facts if name not in told)
    return f"its facts lack: {lacking}" if lacking else None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _inventory(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": file_digest(path)}
        for path in _files(folder)
    }


def problem(folder: Path, *, verify: bool = True) -> str | None:
    """Return what is wrong with a stored artifact, or None if it can be used; ``verify=False`` checks sizes only."""
    try:
        manifest = json_file(folder / MANIFEST, once=True)
        # Manifests of before the digest was kept have none.
        stated = manifest.pop("digest", None)
        files = manifest["files"].items()
        manifest["facts"]
    except FileNotFoundError:
        return "it is not complete"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read: {error}"
    if stated not in (None, digest(manifest)):
        return "its manifest has other contents than when it was made"
    for name, expected in files:
        path = folder / name
        try:
            if path.stat().st_size != expected["size"]:
                return f"{name} has another size than when it was made"
            if verify and file_digest(path) != expected["sha256"]:
                return f"{name} has other contents than when it was made"
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        except (ValueError, KeyError, TypeError) as error:
            return f"its manifest cannot be read: {name!r}: {error}"
    return None


def _sync(folder: Path) -> None:
    for path in [*_files(folder), folder]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
