"""``init``: write the suites, their matrix and a CI workflow into a folder of one's own."""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from harness import __version__
from harness.base import shipped
from harness.base.errors import HarnessError, nearest
from harness.base.files import write_bytes
from harness.base.reading import json_value
from harness.matrix.load import load
from harness.servers.registry import names as server_names

_DISTRIBUTION = "torchao-harness"
_TEMPLATES = Path(__file__).with_name("templates")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``harness init``."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="made if it is not there; nothing in it is replaced")
    parser.add_argument(
        "--hardware", metavar="NAME", default="cpu", help="what the workflow runs on: a marker of the matrix"
    )


def run(args: argparse.Namespace) -> int:
    """Write the project and say what to do with it. Raises HarnessError where a file is there already."""
    files = dict(_files(args.hardware))
    if there := [path for path in files if (args.folder / path).exists()]:
        raise HarnessError(
            f"{args.folder / there[0]} is there already, and nothing was written; name another folder, or move it away"
        )
    if not (args.folder / ".gitignore").exists():
        files[".gitignore"] = (_TEMPLATES / "gitignore").read_bytes()
    _write(args.folder, files)
    print(f"{args.folder}: {len(files)} files")
    for path in ("suites/matrix.toml", "suites", ".github/workflows/benchmarks.yml"):
        print(f"  {path:<34} {_MEANING[path]}")
    if origin := _origin():
        print(f"{requirement()} came from this machine, and CI needs it too; commit a wheel of it:")
        place = shlex.quote(str(args.folder / "requirements"))
        print(f"next: pip wheel --no-deps -w {place} {shlex.quote(str(origin))}")
    print(f"Next: cd {shlex.quote(str(args.folder))} && pytest -m {args.hardware} --collect-only")
    return 0


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write all files or none: with a half of them there, the same command would be refused."""
    try:
        for path, data in files.items():
            write_bytes(folder / path, data)
    except BaseException:
        for path in files:
            (folder / path).unlink(missing_ok=True)
        raise


_MEANING = {
    "suites/matrix.toml": "which models, recipes, limits: yours to edit",
    "suites": "the claims: a test each",
    ".github/workflows/benchmarks.yml": "the same in CI",
}


def _files(hardware: str) -> Iterator[tuple[str, bytes]]:
    """Yield what a project consists of, as (path in it, content)."""
    suites = shipped.suites()
    for path in sorted(suites.rglob("*")):
        name = path.relative_to(suites)
        if path.is_file() and "__pycache__" not in name.parts and path.name != "__init__.py":
            head = f"# A copy of that of {_DISTRIBUTION} {__version__}.\n" if path.name == shipped.MATRIX else ""
            yield f"suites/{name}", head.encode() + path.read_bytes()
    extra = _extra(hardware, suites / shipped.MATRIX)
    locked = (shipped.requirements() / f"{extra}.lock").is_file()
    locks = list(dict.fromkeys(["cpu.lock", f"{extra}.lock"]))
    values = {
        "HARDWARE": hardware,
        "HARNESS": requirement(),
        "EXTRA": requirement(extra),
        "LOCKS": "\n".join(f"    -r requirements/{name}" for name in locks),
    }
    yield "pytest.ini", _filled("pytest.ini", values)
    yield ".github/workflows/benchmarks.yml", _filled("locked.yml" if locked else "runner.yml", values)
    if locked:
        yield "tox.ini", _filled("tox.ini", values)
        for needed in (*locks, "install.lock", "install.py"):
            yield f"requirements/{needed}", (shipped.requirements() / needed).read_bytes()


def _extra(hardware: str, matrix: Path) -> str:
    """Return the extra that brings what the workers need for a hardware, or for the first of a group."""
    known = load(matrix, server_names())
    if hardware not in known.markers or not known.members(hardware):
        raise HarnessError(f"--hardware {hardware!r} is none of {matrix.name}; {nearest(hardware, known.markers)}")
    found = re.search(r"\[([\w-]+)\]", known.members(hardware)[0].install)
    return found[1] if found else hardware


def requirement(extra: str = "") -> str:
    """Return how pip is to find the harness that is installed here; one from a folder is asked for by its version."""
    name = f"{_DISTRIBUTION}[{extra}]" if extra else _DISTRIBUTION
    source = _source()
    if version := source.get("vcs_info"):
        return f"{name} @ {version['vcs']}+{source['url']}@{version['commit_id']}"
    if source.get("url", "").startswith("https:"):
        return f"{name} @ {source['url']}"
    return f"{name}=={__version__}"


def _source() -> dict[str, Any]:
    """Return what pip noted of where the harness came from; nothing of one from an index."""
    try:
        told = importlib.metadata.distribution(_DISTRIBUTION).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        told = None
    return json_value(told) if told else {}


def _origin() -> Path | None:
    """Return the folder or the wheel of this machine that the harness was installed from."""
    url = urlparse(_source().get("url", ""))
    path = Path(unquote(url.path))
    return path if url.scheme == "file" and path.exists() else None


def _filled(template: str, values: dict[str, str]) -> bytes:
    text = (_TEMPLATES / template).read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text.encode()
