"""A content-addressed store of folders: built once under a lock, renamed into place whole, checked before reuse."""

from __future__ import annotations

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

from harness.base.errors import ArtifactError
from harness.base.files import file_digest
from harness.base.reading import json_file
from harness.base.text import digest

MANIFEST = "artifact.json"


_PARTS = ("key", "facts", "files")


@dataclass(frozen=True)
class Artifact:
    """A finished folder and what its maker said of it."""

    folder: Path
    key: str
    made: bool = field(compare=False)
    facts: dict[str, Any] = field(compare=False, default_factory=dict)


class Store:
    """Artifacts under one root folder, shared by every session of this user."""

    def __init__(self, root: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self.root = root
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
        lacks one of ``facts``, is thrown away and rebuilt. Raises ArtifactError when the disk is full.
        """
        name = f"{kind}/{digest(key)}"
        if name in self._trusted:
            return self._trusted[name]
        folder = self.root / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            damage = problem(folder, verify=verify)
            wrong = damage or _lacking(folder, facts)
            made = wrong is not None
            if wrong:
                if folder.exists():
                    what = "damaged" if damage else "of an older version"
                    self._say(f"{label}: the stored artifact is {what} ({wrong}); building it again")
                    shutil.rmtree(folder)
                self._build(folder, key, build, label)
            manifest = json_file(folder / MANIFEST)
        artifact = Artifact(folder=folder, key=name, made=made, facts=manifest["facts"])
        self._trusted[name] = artifact
        return artifact

    def holds(self, kind: str, key: dict[str, Any]) -> bool:
        """Return whether an artifact for ``key`` is there, without checking its contents."""
        return (self.root / kind / digest(key) / MANIFEST).is_file()

    def manifests(self, kind: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield folder and manifest (key, facts, and the files with size and SHA-256) of each artifact of ``kind``."""
        for path in sorted(self.root.glob(f"{kind}/*/{MANIFEST}")):
            if found := manifest(path.parent):
                yield path.parent, found

    def _build(
        self, folder: Path, key: dict[str, Any], build: Callable[[Path], dict[str, Any] | None], label: str
    ) -> None:
        for stale in folder.parent.glob(f".{folder.name}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}"
        temporary.mkdir()
        try:
            facts = build(temporary) or {}
            manifest = json.loads(json.dumps({"key": key, "facts": facts, "files": _inventory(temporary)}, default=str))
            manifest["digest"] = digest(manifest)
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            _sync(temporary)
            os.replace(temporary, folder)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ArtifactError(
                    f"{label}: the disk of the cache {self.root} is full; free some space or name another with --cache"
                ) from error
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def manifest(folder: Path) -> dict[str, Any] | None:
    """Return what the store has written down of an artifact's folder, or None where there is nothing readable."""
    try:
        found = json_file(folder / MANIFEST)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and all(isinstance(found.get(it), dict) for it in _PARTS) else None


def _lacking(folder: Path, facts: Sequence[str]) -> str | None:
    """Return which facts a sound artifact lacks, as one that was made by an older version may, or None."""
    told = json_file(folder / MANIFEST)["facts"]
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
        manifest = json_file(folder / MANIFEST)
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
        except OSError:
            return f"{name} is missing"
    return None


def _sync(folder: Path) -> None:
    for path in [*_files(folder), folder]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
