"""What a wheel says of itself: read from it where pip would say the same, which takes pip a second."""

from __future__ import annotations

import email
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

from harness.runtime.environment import Environment

_ANY = "py3-none-any"
_LARGEST = 1 << 20


def metadata(file: Path, base: Environment) -> Mapping[str, Any] | None:
    """Return a wheel's name, version and requires_dist; None where pip has to say whether it can be installed.

    That is so of what is for some platforms alone, is for other versions of Python, or is not as a wheel should be.
    """
    try:
        name, version, _, tags = parse_wheel_filename(file.name)
        with zipfile.ZipFile(file) as wheel:
            (path,) = (it for it in wheel.infolist() if it.filename.endswith(".dist-info/METADATA"))
            if path.filename.count("/") != 1 or path.file_size > _LARGEST:
                return None
            said = email.message_from_string(wheel.read(path).decode())
        python = SpecifierSet(said["Requires-Python"] or "")
        needs = said.get_all("Requires-Dist") or []
        for line in needs:
            Requirement(line)
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None
    if {str(tag) for tag in tags} != {_ANY} or not python.contains(base.python_version, prereleases=True):
        return None
    if canonicalize_name(said["Name"] or "") != name or said["Version"] != str(version):
        return None
    return {"name": said["Name"], "version": said["Version"], "requires_dist": needs}
