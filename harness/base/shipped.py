"""What comes with the harness beside its code: the suites with their matrix, and published figures."""

from __future__ import annotations

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
