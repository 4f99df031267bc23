#!/usr/bin/env python3
"""Installs a bundle on a runner without a network: checks the parts, unpacks them, compiles the Python files.

    python3 install.py PARTS TARGET

``python -m harness bundle`` copies this file beside the parts as ``install.py``. It needs nothing but the Python
that the bundle was made for. PARTS is a folder into which the parts may arrive one by one; until all are there, and
whenever one is damaged, it names those that are wanting and exits with status 2. The last line it prints is the
``export`` that puts TARGET before the runner's own packages.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import importlib.metadata
import io
import json
import lzma
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

FORMAT = "harness-bundle"
VERSION = 2
MARK = ".bundle.json"  # written last: a target that holds it is whole
_CHUNK = 1 << 20


_KEYS: dict[str, type] = {
    "python": str,
    "machine": str,
    "sha256": str,
    "size": int,
    "unpacked_size": int,
    "files": int,
    "parts": list,
    "blocks": list,
    "raw": list,
    "packages": list,
}
_LISTS: dict[str, dict[str, type]] = {
    "parts": {"name": str, "size": int, "sha256": str},
    "blocks": {"offset": int, "size": int},
    "raw": {"path": str, "offset": int, "size": int},
}


class InstallError(Exception):
    """What is wrong, and what to do next."""


class _Slice(io.RawIOBase):
    """A read-only stream over bytes ``start`` to ``start + size`` of the parts laid end to end."""

    def __init__(self, parts: list[tuple[Path, int]], start: int, size: int) -> None:
        super().__init__()
        self._ranges: list[tuple[Path, int, int]] = []
        for path, length in parts:
            if start < length and size > 0:
                taken = min(length - start, size)
                self._ranges.append((path, start, taken))
                size -= taken
            start = max(0, start - length)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._ranges:
            return 0
        path, offset, length = self._ranges[0]
        with path.open("rb") as part:
            part.seek(offset)
            data = part.read(min(length, len(buffer)))
        if not data:
            raise InstallError(f"{path} became shorter while it was read")
        buffer[: len(data)] = data
        left = (path, offset + len(data), length - len(data))
        self._ranges[:1] = [left] if left[2] else []
        return len(data)


def safe_path(target: Path, name: str) -> Path:
    """Return where the archive member ``name`` goes below ``target``; InstallError if that would be outside it."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise InstallError(f"the bundle holds {name!r}, which would be written outside the target; do not use it")
    return target / path


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest among the parts, or beside this script; InstallError if it is none that is known here."""
    for path in (folder / "manifest.json", Path(__file__).resolve().with_name("manifest.json")):
        if path.is_file():
            break
    else:
        raise InstallError(f"no manifest.json in {folder}: carry it along with the parts")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = manifest["format"], manifest["version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InstallError(f"{path} is damaged ({error!r}): carry it again") from error
    if kind != (FORMAT, VERSION):
        raise InstallError(f"{path} is of {kind}, this script reads {(FORMAT, VERSION)}: use the one made with it")
    if wrong := _wrong(manifest):
        raise InstallError(f"{path} is damaged ({wrong}): carry it again")
    return manifest


def _wrong(manifest: dict[str, Any]) -> str:
    """Return what of a manifest is not as it must be, or an empty string."""
    for name, kind in _KEYS.items():
        if not isinstance(manifest.get(name), kind) or isinstance(manifest.get(name), bool):
            return f"{name} is {manifest.get(name)!r:.80}"
    for name, keys in _LISTS.items():
        for number, entry in enumerate(manifest[name]):
            for key, due in keys.items():
                value: Any = entry.get(key) if isinstance(entry, dict) else None
                if not isinstance(value, due) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
                    return f"{name}.{number}.{key} is {value!r:.80}"
            if name == "parts" and entry["name"] != PurePosixPath(entry["name"]).name:
                return f"{name}.{number}.name is {entry['name']!r:.80}, which is no name of a file"
    return ""


def check_python(manifest: dict[str, Any]) -> None:
    """Raise InstallError unless this interpreter and machine are what the bundle was made for."""
    here = (f"{sys.version_info.major}.{sys.version_info.minor}", sys.platform, platform.machine())
    meant = (manifest["python"], "linux", manifest["machine"])
    if here != meant:
        raise InstallError(
            f"the bundle is for Python {' '.join(meant)}, this is Python {' '.join(here)}: "
            "run install.py with the Python that will use the packages"
        )


def check_parts(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise InstallError that names every missing and every damaged part, by size first and SHA-256 then."""

    def fault(part: dict[str, Any]) -> str | None:
        path = folder / part["name"]
        if not path.is_file():
            return f"{part['name']}: missing"
        if path.stat().st_size != part["size"]:
            return f"{part['name']}: damaged ({path.stat().st_size} bytes instead of {part['size']})"
        return None if _sha256(path) == part["sha256"] else f"{part['name']}: damaged (its SHA-256 differs)"

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        faults = [found for found in pool.map(fault, manifest["parts"]) if found]
    if faults:
        total = len(manifest["parts"])
        raise InstallError(
            f"{len(faults)} of {total} parts wanting in {folder}; carry them (again):\n  " + "\n  ".join(faults)
        )
    whole = hashlib.sha256()
    for part in manifest["parts"]:
        with (folder / part["name"]).open("rb") as file:
            while data := file.read(_CHUNK):
                whole.update(data)
    if whole.hexdigest() != manifest["sha256"]:
        raise InstallError(f"the parts in {folder} are whole but not of one bundle: carry all of them again")


def unpack(folder: Path, manifest: dict[str, Any], target: Path, jobs: int) -> None:
    """Unpack every block into ``target``, ``jobs`` at a time: a block is an xz stream of its own."""
    parts = [(folder / part["name"], part["size"]) for part in manifest["parts"]]
    with ProcessPoolExecutor(max_workers=max(1, min(jobs, len(manifest["blocks"])))) as pool:
        waiting = [
            pool.submit(_unpack_block, parts, block["offset"], block["size"], target, manifest["unpacked_size"])
            for block in manifest["blocks"]
        ]
        for done in waiting:
            done.result()
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as threads:
        list(threads.map(lambda file: _unpack_file(parts, file, target), manifest["raw"]))


def _unpack_file(parts: list[tuple[Path, int]], file: dict[str, Any], target: Path) -> None:
    """Write one file that lies in the parts as it is: weights, which compression makes little smaller."""
    path = safe_path(target, file["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.BufferedReader(_Slice(parts, file["offset"], file["size"]), _CHUNK) as stream, path.open("wb") as written:
        shutil.copyfileobj(stream, written, _CHUNK)


def _unpack_block(parts: list[tuple[Path, int]], offset: int, size: int, target: Path, most: int) -> None:
    """Unpack one block's files, ``most`` bytes at most. Only plain files: a link could point outside the target."""
    made: set[Path] = set()
    stream = io.BufferedReader(_Slice(parts, offset, size), _CHUNK)
    with lzma.open(stream) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
        for member in archive:
            path = safe_path(target, member.name)
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                raise InstallError(f"the bundle holds {member.name!r}, which is not a plain file; do not use it")
            most -= member.size
            if most < 0:
                raise InstallError("the bundle unpacks to more bytes than its manifest says; do not use it")
            if path.parent not in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            with path.open("wb") as file:
                shutil.copyfileobj(content, file, _CHUNK)
                os.fchmod(file.fileno(), 0o755 if member.mode & 0o100 else 0o644)


def write_scripts(target: Path) -> int:
    """Write ``bin/NAME`` for every console script of the packages in ``target``; return how many."""
    folder = target / "bin"
    folder.mkdir(exist_ok=True)
    count = 0
    for package in importlib.metadata.distributions(path=[str(target)]):
        for entry in package.entry_points.select(group="console_scripts"):
            if "/" in entry.name or not entry.attr:
                continue
            top = entry.attr.partition(".")[0]
            path = folder / entry.name
            path.write_text(
                f"#!{sys.executable}\nimport sys\n\nfrom {entry.module} import {top}\n\n"
                f'if __name__ == "__main__":\n    sys.exit({entry.attr}())\n',
                encoding="utf-8",
            )
            path.chmod(0o755)
            count += 1
    return count


def compile_all(folder: Path, final: Path, jobs: int) -> bool:
    """Compile the Python files of ``folder``, which will stand at ``final``; return whether all of them could be.

    Packages hold templates and files for other Pythons, so a file that does not compile is no failure.
    """
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "compileall",
        "-qq",
        "-j",
        str(jobs),
        "-s",
        str(folder),
        "-p",
        str(final),
    ]
    return subprocess.run([*command, str(folder)], check=False).returncode == 0


def install(folder: Path, target: Path, jobs: int) -> None:
    """Install the bundle whose parts are in ``folder`` as ``target``, or find it there already.

    The work is done in a folder beside ``target`` that takes its place at the end, so that a target is whole or not
    there. Raises InstallError, and OSError for what the system refuses.
    """
    manifest = read_manifest(folder)
    check_python(manifest)
    installed, name = _installed(target), manifest["sha256"][:12]
    if installed == manifest["sha256"]:
        print(f"{target} already holds this bundle ({name}): used as it is")
        return
    if installed is None and target.is_dir() and any(target.iterdir()):
        raise InstallError(f"{target} holds something that is no bundle: name another folder, or empty it")
    with _timed() as step:
        check_parts(folder, manifest)
        step(f"{len(manifest['parts'])} parts, {_mb(manifest['size'])}, checked")
    target.parent.mkdir(parents=True, exist_ok=True)
    files = sum(file["size"] for file in manifest["raw"])
    wanted, free = 2 * manifest["unpacked_size"] + files, shutil.disk_usage(target.parent).free
    if free < wanted:
        raise InstallError(f"{target.parent} has {_mb(free)} free, {_mb(wanted)} are needed: name another folder")
    fresh = target.with_name(f".{target.name}.new-{os.getpid()}")
    try:
        fresh.mkdir()
        with _timed() as step:
            unpack(folder, manifest, fresh, jobs)
            scripts = write_scripts(fresh)
            size = _mb(manifest["unpacked_size"] + files)
            step(f"{manifest['files'] + len(manifest['raw'])} files, {size}, and {scripts} scripts unpacked")
        with _timed() as step:
            whole = compile_all(fresh, target, jobs)
            step("Python files compiled" + ("" if whole else " (some cannot be: no harm)"))
        (fresh / MARK).write_text(json.dumps({"sha256": manifest["sha256"]}), encoding="utf-8")
        _replace(fresh, target, manifest["sha256"])
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    print(f"{target}: {len(manifest['packages'])} packages, bundle {name}")


def _replace(fresh: Path, target: Path, sha256: str) -> None:
    """Put ``fresh`` in the place of ``target``; content with one that another process has put there meanwhile."""
    if _installed(target) not in (None, sha256):
        old = target.with_name(f".{target.name}.old-{os.getpid()}")
        os.replace(target, old)
        shutil.rmtree(old, ignore_errors=True)
    try:
        os.replace(fresh, target)
    except OSError:
        if _installed(target) != sha256:
            raise


def _installed(target: Path) -> str | None:
    """Return the SHA-256 of the bundle that ``target`` holds, or None."""
    try:
        return str(json.loads((target / MARK).read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


@contextlib.contextmanager
def _timed() -> Iterator[Any]:
    """Yield a function that prints what was done and the seconds since the start."""
    start = time.perf_counter()
    yield lambda what: print(f"{what} in {time.perf_counter() - start:.1f} s", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the script; return 0, or 2 where the parts, the Python, the target or the disk are not as they must be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", type=Path, help="the folder that the parts are brought to, one by one if need be")
    parser.add_argument("target", type=Path, help="the folder to install into; it goes on PYTHONPATH")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes to use (default: all cores)")
    args = parser.parse_args(argv)
    target = args.target.resolve()
    try:
        install(args.parts, target, max(1, args.jobs))
    except (InstallError, lzma.LZMAError, tarfile.TarError, EOFError, OverflowError) as error:
        print(f"install: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        hint = ": free some space or name another folder" if error.errno == errno.ENOSPC else ""
        print(f"install: {error}{hint}", file=sys.stderr)
        return 2
    place = shlex.quote(str(target))
    print(f"export PYTHONPATH={place}${{PYTHONPATH:+:$PYTHONPATH}} PATH={shlex.quote(str(target / 'bin'))}:$PATH")
    return 0


if __name__ == "__main__":
    sys.exit(main())
