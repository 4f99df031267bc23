"""Wheels as entries of solid compressed blocks, cut into parts that can be carried."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fnmatch
import hashlib
import io
import itertools
import lzma
import os
import re
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from harness.bundle import install
from harness.bundle.asked import BundleError

MAX_PARTS = 1000
_CHUNK = 1 << 22
_FAST = 3  # for data, which may be large: 9 would take ten times as long to make it a fifth smaller
_DENSE = (".safetensors", ".gguf", ".bin", ".pte")


BLOCK = 16 << 20  # bytes before compression: small enough that a runner's cores share the work, at 2 % more to carry


@dataclass(frozen=True)
class Entry:
    """A file of the bundle: where it goes, and where its bytes are: in ``data``, in ``source``, or in ``wheel``."""

    path: str
    size: int
    executable: bool
    wheel: Path = Path()
    member: str = ""
    data: bytes | None = None
    source: Path | None = None

    @property
    def native(self) -> bool:
        """Whether it is a shared library."""
        return self.path.endswith(".so") or ".so." in self.path


@dataclass(frozen=True)
class Raw:
    """A file that is carried as it is: where it goes below the target, and where it is here."""

    path: str
    source: Path

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.source.stat().st_size


def wheel_entries(wheel: Path, left: Mapping[str, str]) -> tuple[list[Entry], dict[str, list[str]]]:
    """Return what of ``wheel`` is carried, as pip would lay it out, and the files that each pattern of ``left`` leaves.

    Raises BundleError for a file that would be written outside the target.
    """
    entries = []
    matched: dict[str, list[str]] = {pattern: [] for pattern in left}
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            patterns = [pattern for pattern in left if fnmatch.fnmatchcase(info.filename, pattern)]
            for pattern in patterns:
                matched[pattern].append(info.filename)
            path = _installed_path(info.filename)
            if patterns or path is None:
                continue
            try:
                install.safe_path(Path(), path)
            except install.InstallError as error:
                raise BundleError(f"{wheel.name}: {error}") from error
            executable = bool(info.external_attr >> 16 & 0o100) or path.startswith("bin/")
            entries.append(Entry(path, info.file_size, executable, wheel, info.filename))
        gone = {name for names in matched.values() for name in names}
        return [_revised(entry, archive, gone) for entry in entries], matched


def _installed_path(member: str) -> str | None:
    """Return where pip would put a wheel's file below its target, None for headers."""
    top, _, rest = member.partition("/")
    if not top.endswith(".data"):
        return member
    scheme, _, path = rest.partition("/")
    return {"purelib": path, "platlib": path, "data": path, "scripts": f"bin/{path}"}.get(scheme)


def _revised(entry: Entry, archive: zipfile.ZipFile, gone: set[str]) -> Entry:
    """Return ``entry`` with a RECORD that no longer names what is gone, or a script that finds its interpreter."""
    data = None
    if gone and re.fullmatch(r"[^/]+\.dist-info/RECORD", entry.path):
        lines = archive.read(entry.member).decode("utf-8").splitlines(keepends=True)
        data = "".join(line for line in lines if next(csv.reader([line]), [""])[0] not in gone).encode()
    elif entry.path.startswith("bin/") and (script := archive.read(entry.member)).startswith(b"#!python"):
        data = b"#!/usr/bin/env python3" + script[script.index(b"\n") :]
    if data is None:
        return entry
    return dataclasses.replace(entry, size=len(data), data=data)


def plain_entries(files: Mapping[str, Path | bytes]) -> tuple[list[Entry], list[Raw]]:
    """Return files that are of no package, by where they go: what is compressed, and the weights, which are not.

    Raises BundleError for a file that would be written outside the target.
    """
    entries, raw = [], []
    for path, content in files.items():
        try:
            install.safe_path(Path(), path)
        except install.InstallError as error:
            raise BundleError(str(error)) from error
        if isinstance(content, bytes):
            entries.append(Entry(path, len(content), False, data=content))
        elif content.suffix in _DENSE:
            raw.append(Raw(path, content))
        else:
            entries.append(Entry(path, content.stat().st_size, False, source=content))
    return entries, raw


def merge(wheels: Iterable[Sequence[Entry]]) -> list[Entry]:
    """Return every file once. Where two wheels hold the same path, the later one's stays, as with pip."""
    return list({entry.path: entry for entries in wheels for entry in entries}.values())


def blocks(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Sort files into blocks of about BLOCK bytes, alike beside alike; a larger file is a block of its own."""
    result: list[list[Entry]] = []
    room = 0
    for entry in sorted(entries, key=lambda e: (not e.native, PurePosixPath(e.path).suffix, e.path)):
        if not result or entry.size > room:
            result.append([])
            room = BLOCK
        result[-1].append(entry)
        room -= entry.size
    return result


def pack(block: Sequence[Entry]) -> bytes:
    """Return the files of one block as a compressed tar archive, the same bytes for the same files every time."""
    raw = io.BytesIO()
    with contextlib.ExitStack() as stack:
        wheels = {entry.wheel for entry in block if entry.member}
        archives = {wheel: stack.enter_context(zipfile.ZipFile(wheel)) for wheel in wheels}
        tar = stack.enter_context(tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT))
        for entry in block:
            member = tarfile.TarInfo(entry.path)
            member.size, member.mode = entry.size, 0o755 if entry.executable else 0o644
            with _content(entry, archives) as content:
                tar.addfile(member, content)
    return lzma.compress(raw.getbuffer(), preset=_FAST if any(entry.source for entry in block) else 9)


def _content(entry: Entry, archives: Mapping[Path, zipfile.ZipFile]) -> IO[bytes]:
    if entry.data is not None:
        return io.BytesIO(entry.data)
    return entry.source.open("rb") if entry.source else archives[entry.wheel].open(entry.member)


class _Cut:
    """A stream that is written as parts of a size, the last one shorter, and the digests of each and of the whole."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size = folder, size
        self._room = 0
        self._digest = hashlib.sha256()
        self.whole = hashlib.sha256()
        self.parts: list[dict[str, Any]] = []

    def write(self, data: memoryview) -> None:
        """Append ``data``, to this part and as many more as it takes."""
        while data:
            if not self._room:
                name = f"part-{len(self.parts):02d}.bin"
                self.parts.append({"name": name, "size": 0, "sha256": ""})
                self._room, self._digest = self._size, hashlib.sha256()
            now, data = data[: self._room], data[self._room :]
            with (self._folder / self.parts[-1]["name"]).open("ab") as file:
                file.write(now)
            self._digest.update(now)
            self.whole.update(now)
            self._room -= len(now)
            self.parts[-1].update(size=self.parts[-1]["size"] + len(now), sha256=self._digest.hexdigest())


def write_parts(folder: Path, entries: Sequence[Entry], part_size: int, raw: Sequence[Raw] = ()) -> dict[str, Any]:
    """Compress ``entries`` and lay them and ``raw`` into equal parts, none above ``part_size``; return the manifest's.

    Raises BundleError where that would be too many parts, or a file is shorter than it was.
    """
    sorted_blocks = blocks(entries)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        packed = list(pool.map(pack, sorted_blocks))
    sizes = [*map(len, packed), *(file.size for file in raw)]
    total = sum(sizes)
    count = max(1, -(-total // part_size))
    if count > MAX_PARTS:
        raise BundleError(
            f"--part-size of {part_size} bytes is too small: {total} bytes would be {count} parts, above {MAX_PARTS}; "
            f"give at least {-(-total // MAX_PARTS)}B"
        )
    cut = _Cut(folder, max(1, -(-total // count)))
    for data in packed:
        cut.write(memoryview(data))
    for file in raw:
        left = file.size
        with file.source.open("rb") as content:
            while left and (chunk := content.read(min(left, _CHUNK))):
                cut.write(memoryview(chunk))
                left -= len(chunk)
        if left:
            raise BundleError(f"{file.source} became shorter while it was read: make the bundle again")
    offsets = list(itertools.accumulate(sizes, initial=0))
    return {
        "sha256": cut.whole.hexdigest(),
        "size": total,
        "unpacked_size": sum(entry.size for entry in entries),
        "files": len(entries),
        "parts": cut.parts,
        "blocks": [{"offset": offset, "size": len(data)} for offset, data in zip(offsets, packed, strict=False)],
        "raw": [
            {"path": file.path, "offset": offset, "size": file.size}
            for file, offset in zip(raw, offsets[len(packed) :], strict=False)
        ],
    }
