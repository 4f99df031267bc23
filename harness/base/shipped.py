"""What comes with the harness beside its code: the suites with their matrix, and published figures."""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
MATRIX = "matrix.toml"


def suites() -> Path:
    """Return the folder of the suites."""
    return _folder("suites", "suites")


def documented() -> Path:
    """Return the folder of the published figures."""
    return _folder("documented", "results/documented")


def requirements() -> Path:
    """Return the folder of the locks, and of what installs them."""
    return _folder("requirements", "requirements")


def _folder(installed: str, checkout: str) -> Path:
    """Return a folder that lies in the package once it is installed, and beside it in a checkout."""
    inside = _PACKAGE / installed
    return inside if inside.is_dir() else _PACKAGE.parent / checkout


def installing(text: str) -> str:
    """Return advice on what to install as it is typed where this harness is: in a checkout, or beside an installed one.

    ``text`` is that of a checkout, as the matrix has it: ``pip install -e '.[cpu]', or tox run -e cpu``.
    """
    if (_PACKAGE.parent / "pyproject.toml").is_file():
        return text
    words = re.sub(r"-e '\.\[([\w,-]+)\]'", r"'torchao-harness[\1]'", text)
    # Only an environment that `harness init` has written.
    tox = Path("tox.ini").read_text(encoding="utf-8") if Path("tox.ini").is_file() else ""
    return re.sub(
        r"(?:, or |\nor: )tox run -e ([\w-]+)", lambda it: it[0] if f"[testenv:{it[1]}]" in tox else "", words
    )


def own_matrix(place: Path) -> Path | None:
    """Return the matrix that a file or folder belongs to: in it, in its ``suites``, or the same of a folder above."""
    for folder in (place, *place.parents):
        for path in (folder / MATRIX, folder / "suites" / MATRIX):
            if path.is_file():
                return path
    return None


def matrix(*places: Path) -> Path:
    """Return the first matrix that one of the places belongs to, or else the shipped one."""
    return next(filter(None, map(own_matrix, places)), suites() / MATRIX)
