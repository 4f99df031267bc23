"""What a full disk leaves of Python's compiled files is made anew."""

import importlib
import py_compile
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.base import compiled


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "cut_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "inner.py").write_text("value = 7\n")
    (folder / "outer.py").write_text("from cut_package.inner import value\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield folder
    for name in [it for it in sys.modules if it.split(".")[0] == folder.name]:
        del sys.modules[name]


@pytest.mark.parametrize("kept", range(16, 150, 7))
def test_a_cut_off_file_of_what_is_imported_is_made_anew(package: Path, kept: int) -> None:
    files = [Path(str(py_compile.compile(str(package / f"{name}.py")))) for name in ("inner", "outer")]
    for file in files:
        file.write_bytes(file.read_bytes()[:kept])
    assert compiled.imported("cut_package.outer").value == 7


def test_python_itself_takes_a_cut_off_file_for_a_whole_one(package: Path) -> None:
    file = Path(str(py_compile.compile(str(package / "inner.py"))))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(EOFError, match="marshal data too short"):
        importlib.import_module("cut_package.inner")


def test_an_error_of_the_module_itself_stays(package: Path) -> None:
    (package / "inner.py").write_text("raise EOFError('of its own')\n")
    with pytest.raises(EOFError, match="of its own"):
        compiled.imported("cut_package.outer")
