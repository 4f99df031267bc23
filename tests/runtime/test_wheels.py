"""A wheel is read instead of pip being asked only where pip would say the same."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.runtime import environment_pair, wheels
from harness.runtime.environment import Environment
from tests.runtime.test_environment_pair import base as base
from tests.wheels import only_from, write_wheel

HERE = Environment(python=sys.executable)
NEEDS = ["back>=1,<2", "spare; python_version < '3'", "more; extra == 'all'"]


def edited(path: Path, edit: Callable[[str], str]) -> Path:
    """Return a wheel whose metadata is edited."""
    with zipfile.ZipFile(path) as wheel:
        members = {it.filename: wheel.read(it) for it in wheel.infolist()}
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in members.items():
            wheel.writestr(name, edit(data.decode()) if name.endswith("/METADATA") else data)
    return path


@pytest.mark.programs
def test_it_says_of_itself_what_pip_says_of_it(
    base: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_from(tmp_path, monkeypatch)
    path = write_wheel(tmp_path, "tiny_pkg", "1.0+slower.10", {"tiny_pkg.py": ""}, requires=NEEDS)
    assert wheels.metadata(path, base) is not None
    read = environment_pair.resolve(str(path), base)
    monkeypatch.setattr(wheels, "metadata", lambda *_: None)
    assert read == environment_pair.resolve(str(path), base)
    assert (read.name, read.version, read.dependencies) == ("tiny_pkg", "1.0+slower.10", ("back>=1,<2",))


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text + "Requires-Python: >=3.99\n",
        lambda text: text + "Requires-Python: soon\n",
        lambda text: text + "Requires-Dist: no requirement\n",
        lambda text: text.replace("Name: tiny_pkg", "Name: other"),
        lambda text: text.replace("Version: 1.0", "Version: 2.0"),
        lambda text: "",
    ],
)
def test_what_pip_would_refuse_is_left_to_pip(tmp_path: Path, edit: Callable[[str], str]) -> None:
    path = write_wheel(tmp_path, "tiny_pkg", "1.0", {"tiny_pkg.py": ""})
    assert wheels.metadata(path, HERE) == {"name": "tiny_pkg", "version": "1.0", "requires_dist": []}
    assert wheels.metadata(edited(path, edit), HERE) is None


def test_so_is_what_is_of_one_platform_or_no_wheel(tmp_path: Path) -> None:
    path = write_wheel(tmp_path, "tiny_pkg", "1.0", {"tiny_pkg.py": "", "other-1.0.dist-info/METADATA": ""})
    assert wheels.metadata(path, HERE) is None, "whose metadata that is"
    path = write_wheel(tmp_path, "tiny_pkg", "1.0", {"tiny_pkg.py": ""})
    moved = path.rename(tmp_path / "tiny_pkg-1.0-cp311-cp311-manylinux_2_28_x86_64.whl")
    assert wheels.metadata(moved, HERE) is None
    whole = moved.read_bytes()
    for data in (b"", b"PK", whole[: len(whole) // 2], whole.replace(b"METADATA", b"METADATB")):
        path.write_bytes(data)
        assert wheels.metadata(path, HERE) is None
    assert wheels.metadata(tmp_path / "tiny_pkg-9.0-py3-none-any.whl", HERE) is None
