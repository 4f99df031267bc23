"""Artifacts between machines: a store that all of them reach, by fsspec (a folder, S3, GCS, ...), by content address.

An artifact is a folder of its own that nobody writes to again, and a small pointer to it, which exists from the moment
it is whole. Whoever would make one holds the lock of its key, so that each is made once. Nothing is used before its
digests were checked.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from harness.base.errors import ArtifactError
from harness.base.reading import json_file, json_value
from harness.base.text import digest, redact

KINDS = frozenset(
    {"calibration", "checkpoint", "facts", "package", "plain", "program", "prompt", "reference", "sharegpt"}
)
"""What is the same on every machine. Environments hold paths of theirs, and evaluations are measurements."""
LEASE = 60.0
"""Seconds after which a lock whose holder has said nothing is taken over: its machine died."""
_LOOK = 1.0
_MANIFEST = "artifact.json"


def address(given: str) -> str:
    """Return an address as sessions in another folder find it: that of a folder is absolute."""
    return given if "://" in given or not given else str(Path(given).absolute())


class Unusable(Exception):
    """What the shared store has of a key cannot be used; the message says why."""


@dataclass
class Shared:
    """A shared store below ``root`` of a file system ``files``.

    Of a store that does not answer ``say`` is told once; this machine then makes its artifacts for itself.
    """

    files: Any
    root: str
    say: Callable[[str], None] = lambda _: None
    lease: float = LEASE
    look: float = _LOOK
    gone: str = ""
    _owner: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def at(cls, url: str, say: Callable[[str], None]) -> Shared:
        """Return the store at an address of fsspec's, as ``/mnt/artifacts``, ``s3://bucket/artifacts``.

        Raises ArtifactError where fsspec, or what it needs for that kind of address, is not installed.
        """
        try:
            import fsspec

            # What others write meanwhile is to be seen.
            files, root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise ArtifactError(
                f"--share {redact(url)}: {error}; pip install 'torchao-harness[ray]', and for S3 s3fs, for GCS gcsfs"
            ) from error
        except ValueError as error:
            raise ArtifactError(f"--share {redact(url)}: {error}; give a folder, or an address of fsspec's") from error
        return cls(files, root.rstrip("/"), say)

    def fetch(self, name: str, folder: Path, check: Callable[[Path], str | None]) -> bool:
        """Bring an artifact (``KIND/DIGEST``) into a folder that is not there; returns whether it is there now.

        The manifest has its own digest, and ``check`` says what is wrong with the files; one that is not as it was made
        is taken out of the store, and told of.
        """
        if self.gone:
            return False
        with self._asked():
            pointer = self._read(self._pointer(name))
            if pointer is None:
                return False
            try:
                self._download(name, pointer, folder)
                if wrong := check(folder):
                    raise Unusable(wrong)
                return True
            except (Unusable, FileNotFoundError) as error:
                shutil.rmtree(folder, ignore_errors=True)
                self.say(f"{name}: what the shared store has cannot be used ({error}); it is made again")
                if self._read(self._pointer(name)) == pointer:
                    self.files.rm_file(self._pointer(name))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return False

    def publish(self, name: str, folder: Path) -> None:
        """Put a whole artifact into the store, unless it is there, or another machine has done so meanwhile."""
        if self.gone:
            return
        with self._asked():
            if self._read(self._pointer(name)) is not None:
                return
            inside = uuid.uuid4().hex
            manifest = json_file(folder / _MANIFEST, once=True)
            for file in [*manifest["files"], _MANIFEST]:
                target = f"{self.root}/{name}/{inside}/{file}"
                self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
                self.files.put_file(str(folder / file), target)
            pointer = {"folder": inside, "digest": manifest["digest"]}
            try:
                self._create(self._pointer(name), json.dumps(pointer).encode())
            except FileExistsError:
                self.files.rm(f"{self.root}/{name}/{inside}", recursive=True)

    @contextlib.contextmanager
    def making(self, name: str, there: Callable[[], bool]) -> Iterator[bool]:
        """Hold the lock of a key; gives whether it is held, rather than that the artifact is ``there`` meanwhile.

        A holder writes into its lock again and again. One that has not for ``lease`` seconds of this machine's clock
        is dead; two that find that in the same moment may both make it, and the first that is whole counts.
        """
        lock, done = f"{self.root}/{name}.lock", threading.Event()
        held = self._lock(lock, name, there)
        if not held:
            yield self.gone != ""
            return
        beat = threading.Thread(target=self._beat, args=(lock, done), name=f"lock of {name}", daemon=True)
        beat.start()
        try:
            yield True
        finally:
            done.set()
            beat.join()
            with self._asked():
                if not self.gone and (self._read(lock) or {}).get("owner") == self._owner:
                    self.files.rm_file(lock)

    def _lock(self, lock: str, name: str, there: Callable[[], bool]) -> bool:
        seen, since, told = None, time.monotonic(), False
        while not self.gone:
            with self._asked():
                try:
                    self._create(lock, self._mark(0))
                    if there():
                        self.files.rm_file(lock)
                        return False
                    return True
                except FileExistsError:
                    pass
                if there():
                    return False
                if (now := self._read(lock)) != seen:
                    seen, since = now, time.monotonic()
                elif now is not None and time.monotonic() - since > self.lease:
                    self.say(f"{name}: whoever was making it has said nothing for {self.lease:.0f} s; taken over")
                    self.files.rm_file(lock)
                    continue
                if not told:
                    self.say(f"{name}: another machine makes it; waiting")
                    told = True
            time.sleep(self.look)
        return False

    def _beat(self, lock: str, done: threading.Event) -> None:
        number = 0
        while not done.wait(self.lease / 6):
            number += 1
            with self._asked():
                if (self._read(lock) or {}).get("owner") != self._owner:
                    return
                self.files.pipe_file(lock, self._mark(number))

    def _mark(self, number: int) -> bytes:
        return json.dumps({"owner": self._owner, "beat": number}).encode()

    def _create(self, path: str, data: bytes) -> None:
        """Write a file that must not be there; raises FileExistsError."""
        self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
        if not hasattr(self.files, "link"):
            self.files.pipe_file(path, data, mode="create")
            return
        # Of a folder: it is there with all of its contents, or not.
        whole = f"{path}.{uuid.uuid4().hex}"
        self.files.pipe_file(whole, data)
        try:
            self.files.link(whole, path)
        finally:
            self.files.rm_file(whole)

    def _pointer(self, name: str) -> str:
        return f"{self.root}/{name}.json"

    def _read(self, path: str) -> dict[str, Any] | None:
        try:
            found = json_value(self.files.cat_file(path))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _download(self, name: str, pointer: dict[str, Any], folder: Path) -> None:
        inside = pointer.get("folder")
        if not isinstance(inside, str) or not inside.isalnum():
            raise Unusable("its pointer names no folder")
        manifest = self._read(f"{self.root}/{name}/{inside}/{_MANIFEST}")
        stated = dict(manifest or {})
        if stated.pop("digest", None) != digest(stated) or (manifest or {}).get("digest") != pointer.get("digest"):
            raise Unusable("its manifest has other contents than when it was made")
        if name.rpartition("/")[2] != digest(stated["key"]):
            raise Unusable("its manifest is of another artifact")
        for file in [*stated["files"], _MANIFEST]:
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                raise Unusable(f"{file!r} lies outside of it")
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            self.files.get_file(f"{self.root}/{name}/{inside}/{file}", str(target))

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """Go on without the store where it does not answer: its libraries raise errors of their own."""
        try:
            yield
        except ArtifactError:
            raise
        except Exception as error:
            self.gone = redact(f"{type(error).__name__}: {error}")
            self.say(f"the shared store does not answer ({self.gone}); this machine makes artifacts for itself")
