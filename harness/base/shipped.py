"""What comes with the harness beside its code: the suites with their matrix, and published figures."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
MATRIX = "matrix.toml"


def suites() -> Path:
    """Return the folder of the suites: in an installed package inside of it, in a checkout beside it."""
    inside = _PACKAGE / "suites"
    return inside if inside.is_dir() else _PACKAGE.parent / "suites"


def documented() -> Path:
    """Return the folder of the published figures."""
    inside = _PACKAGE / "documented"
    return inside if inside.is_dir() else _PACKAGE.parent / "results" / "documented"


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
