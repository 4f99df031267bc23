"""Writes wheels by hand, so that pip can be tried without a network."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from harness.base.files import file_digest
from harness.runtime import stack
from harness.runtime.environment import Environment, Left, no_limit


def write_wheel(folder: Path, name: str, version: str, files: Mapping[str, str], requires: Sequence[str] = ()) -> Path:
    """Write a pure-Python wheel that holds ``files`` (path in the wheel -> text) and return its path."""
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    info = f"{name}-{version}.dist-info"
    members = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    members[f"{info}/RECORD"] = "".join(f"{member},,\n" for member in [*members, f"{info}/RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members.items():
            # Of no date of its own: the same files are the same wheel.
            archive.writestr(zipfile.ZipInfo(member), text)
    return path


def only_from(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Have pip find packages in a folder and nowhere else, however this machine sets it up."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        patch.delenv(name)
    patch.setenv("PIP_CONFIG_FILE", os.devnull)
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(folder))


@pytest.fixture(scope="module")
def resolved_once() -> Iterator[None]:
    """Pip answers a question of the tests of a module once, as long as it would find the same wheels for it."""
    ask = stack.pip
    answers: dict[tuple[str, ...], tuple[str, str]] = {}

    def pip(
        base: Environment, arguments: Sequence[str], what: str, left: Left = no_limit, python: Path | None = None
    ) -> str:
        if "--dry-run" not in arguments or "-r" in arguments:
            return ask(base, arguments, what, left, python)
        at = arguments.index("--report") + 1
        report, folder = arguments[at], Path(os.environ["PIP_FIND_LINKS"])
        found = [f"{it.relative_to(folder)} {file_digest(it)}" for it in sorted(folder.rglob("*.whl"))]
        question = (base.python, str(python), *arguments[:at], *arguments[at + 1 :], *found)
        if question not in answers:
            said = ask(base, arguments, what, left, python)
            answers[question] = said, "" if report == "-" else Path(report).read_text(encoding="utf-8")
        said, written = answers[question]
        if written:
            Path(report).write_text(written, encoding="utf-8")
        return said

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "pip", pip)
        yield
