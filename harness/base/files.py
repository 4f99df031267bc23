"""Files written whole or not at all, their digests, and where the user's cache lies."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import platformdirs

from harness.base.errors import HarnessError


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as :func:`write_bytes` does, whatever it holds."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` in one step: whoever reads the file sees it as it was or as it is, never half.

    A device or a pipe is written to, and stays one. Raises HarnessError that names the path where it cannot be written,
    e.g. since it is a folder or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise HarnessError(f"{path}: cannot be written ({error.strerror or error}); name another file") from error


def is_file(path: Path | str) -> bool:
    """Return whether a path that somebody gave is a file; one that no file can have, a too long one, is none."""
    return os.path.isfile(path)


def is_folder(path: Path | str) -> bool:
    """Return whether a path that somebody gave is a folder, as :func:`is_file` does."""
    return os.path.isdir(path)


def json_finite(value: Any) -> Any:
    """Return JSON data with null for every number that is not finite, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: json_finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_finite(part) for part in value]
    return value


def default_root() -> Path:
    """Return the cache folder that is used unless ``--cache`` names another."""
    return Path(platformdirs.user_cache_dir("torchao-harness"))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
