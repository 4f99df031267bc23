"""The house holds: imports run as its table says, without circles, and no room grows too large."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LINT = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
MOST_LINES = 400
MOST_CLASS = 300
# What is still to be cut; whatever is short enough by now is an error here.
TOO_LONG: set[str] = set()


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(LINT, cwd=folder, capture_output=True, text=True, check=False)


def table(repository: Path) -> dict[str, tuple[int, set[str]]]:
    """The documented table: floor, and what may be imported, of each folder."""
    text = (repository / "docs" / "guides" / "house.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| `(\w+)/` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    return {name: (int(floor), set(may.split())) for floor, name, may in rows}


@pytest.mark.programs
def test_imports_run_as_the_contracts_say(repository: Path) -> None:
    done = lint(repository)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contracts_are_the_documented_table(repository: Path) -> None:
    rooms = table(repository)
    assert set(rooms) == {path.parent.name for path in (repository / "harness").glob("*/__init__.py")}
    contracts = configparser.ConfigParser()
    contracts.read(repository / ".importlinter", encoding="utf-8")
    for name, (_, may) in rooms.items():
        contract = contracts[f"importlinter:contract:{name}"]
        assert contract["source_modules"].split() == [f"harness.{name}"]
        forbidden = {module.removeprefix("harness.") for module in contract["forbidden_modules"].split()}
        assert forbidden == {*rooms, "__main__"} - may - {name}, name
    layers = contracts["importlinter:contract:floors"]["layers"].strip().splitlines()
    floors = [{word.removeprefix("harness.") for word in layer.split(" | ")} for layer in layers]
    numbers = sorted({floor for floor, _ in rooms.values()}, reverse=True)
    assert floors == [{"__main__"}, *({name for name, (at, _) in rooms.items() if at == floor} for floor in numbers)]


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("base/text.py", "from harness.records import run", "Imports run downwards"),
        (
            "publish/card.py",
            "from harness.judge import stats",
            "publish/ may import",
        ),
        ("records/schema.py", "from harness.records import run", "No circle"),
        ("runtime/store.py", "def late() -> None:\n    import torch", "Only workers import torch"),
    ],
)
@pytest.mark.programs
def test_an_arrow_that_is_not_in_the_table_is_found(
    repository: Path, tmp_path: Path, file: str, line: str, broken: str
) -> None:
    shutil.copytree(repository / "harness", tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / ".importlinter", tmp_path)
    with (tmp_path / "harness" / file).open("a", encoding="utf-8") as changed:
        changed.write(f"\n\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"{broken}[^✓]*? BROKEN", done.stdout), done.stdout


def test_no_module_and_no_class_is_too_large(repository: Path) -> None:
    found = set()
    for path in sorted((repository / "harness").rglob("*.py")):
        name, text = str(path.relative_to(repository / "harness")), path.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        if lines > MOST_LINES:
            found.add(name)
        if lines < MOST_CLASS:
            continue
        for part in ast.walk(ast.parse(text)):
            if isinstance(part, ast.ClassDef) and (part.end_lineno or 0) - part.lineno >= MOST_CLASS:
                found.add(f"{name} {part.name}")
    assert found == TOO_LONG
