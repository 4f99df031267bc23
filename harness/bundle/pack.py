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
from typing import Any

from harness.bundle import install
from harness.bundle.asked import BundleError

MAX_PARTS = 1000


BLOCK = 16 << 20  # bytes before compression: small enough that a runner's cores share the work, at 2 % more to carry


@dataclass(frozen=True)
class Entry:
    """A file of the bundle: where it goes, and where its bytes are (in ``wheel``, unless ``data`` holds them)."""

    path: str
    size: int
    executable: bool
    wheel: Path
    member: str
    data: bytes | None = None

    @property
    def native(self) -> bool:
        """Whether it is a shared library."""
        return self.path.endswith(".so") or ".so." in self.path


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
        archives = {wheel: stack.enter_context(zipfile.ZipFile(wheel)) for wheel in {entry.wheel for entry in block}}
        tar = stack.enter_context(tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT))
        for entry in block:
            member = tarfile.TarInfo(entry.path)
            member.size, member.mode = entry.size, 0o755 if entry.executable else 0o644
            content = io.BytesIO(entry.data) if entry.data is not None else archives[entry.wheel].open(entry.member)
            with content:
                tar.addfile(member, content)
    return lzma.compress(raw.getbuffer(), preset=9)


def write_parts(folder: Path, entries: Sequence[Entry], part_size: int) -> dict[str, Any]:
    """Compress ``entries`` into equal parts, none above ``part_size``; return what the manifest says of them."""
    sorted_blocks = blocks(entries)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        packed = list(pool.map(pack, sorted_blocks))
    total = sum(map(len, packed))
    count = max(1, -(-total // part_size))
    if count > MAX_PARTS:
        raise BundleError(
            f"--part-size of {part_size} bytes is too small: {total} bytes would be {count} parts, above {MAX_PARTS}; "
            f"give at least {-(-total // MAX_PARTS)}B"
        )
    stream = b"".join(packed)
    size = -(-total // count)
    parts = []
    for number, start in enumerate(range(0, total, size)):
        data = stream[start : start + size]
        name = f"part-{number:02d}.bin"
        (folder / name).write_bytes(data)
        parts.append({"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    offsets = itertools.accumulate(map(len, packed), initial=0)
    return {
        "sha256": hashlib.sha256(stream).hexdigest(),
        "size": total,
        "unpacked_size": sum(entry.size for entry in entries),
        "files": len(entries),
        "parts": parts,
        "blocks": [{"offset": offset, "size": len(data)} for offset, data in zip(offsets, packed, strict=False)],
    }
