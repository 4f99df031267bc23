from __future__ import annotations

import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from harness.runtime.environment import Environment
from harness.runtime.process import ForkServer
from harness.runtime.store import Store
from harness.worker import lean
from tests.conftest import RunCode, run_forked
from tests.noticing.standing import STANDING


def test_workers_load_nothing_that_none_of_them_uses_and_tasks_have_it_all_the_same(run_code: RunCode):
    done = run_code(
        "import gc, json, sys\n"
        "before = [name for name in ('sklearn', 'scipy', 'pandas') if name in sys.modules]\n"
        "from sklearn.metrics import f1_score\n"
        "from scipy.optimize import linear_sum_assignment\n"
        "from transformers import utils\n"
        "from transformers.generation import candidate_generator as assisted\n"
        "asked = [utils.is_sklearn_available(), utils.is_scipy_available(), assisted.is_sklearn_available()]\n"
        "print(json.dumps([before, float(f1_score([0, 1], [0, 1])), asked, gc.isenabled()]))\n"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], 1.0, [True, True, False], True]


def test_whole_imports_are_those_of_a_program_but_for_what_cannot_be_imported(run_code: RunCode):
    done = run_code(
        "import gc, json, sys\n"
        "from harness.worker import lean\n"
        "sys.meta_path = [it for it in sys.meta_path if it is not lean._Lean]\n"
        "lean.pass_over_other_builds = lambda: print('passed over')\n"
        "with lean.imports(whole=True):\n"
        "    print(json.dumps([gc.isenabled(), lean._Lean in sys.meta_path]))\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["passed over", "[true, false]", ""]


def test_garbage_is_looked_for_again_after_the_imports_but_not_among_them():
    for looking in (False, True):
        (gc.enable if looking else gc.disable)()
        frozen = gc.get_freeze_count()
        try:
            with lean.imports():
                assert not gc.isenabled()
            assert gc.isenabled() is looking
            assert gc.get_freeze_count() > frozen
        finally:
            gc.enable()


def test_other_modules_are_found_by_others():
    for name in ("transformers.generation.utils", "transformers.lossy", "json"):
        assert lean._Lean.find_spec(name) is None


def test_the_names_that_modules_give_away_are_those_that_transformers_finds(run_code: RunCode):
    """Held against Transformers' own function over all of its models' files."""
    done = run_code(
        "import pathlib, transformers\n"
        "from transformers.utils import import_utils\n"
        "quick = import_utils.fetch__all__\n"
        "(its_own,) = [cell.cell_contents for cell in quick.__closure__]\n"
        "files = list(pathlib.Path(transformers.__file__).parent.rglob('*.py'))\n"
        "texts = [file.read_text(encoding='utf-8') for file in files]\n"
        "texts += ['', '__all__ = []', 'x = 1\\n__all__ = [\"a\", \"b\"]\\n', ' __all__ = [\"a\"]', '# __all__']\n"
        "assert len(texts) > 1000 and its_own.__module__ == import_utils.__name__\n"
        "assert [quick(text) for text in texts] == [its_own(text) for text in texts]\n"
    )
    assert done.returncode == 0, done.stderr


def test_a_package_is_of_the_distributions_that_python_itself_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Here, and where one says nothing of itself, has no list of files, or has one with quotes."""
    alone = tmp_path / "alone.py"
    alone.touch()
    for name, metadata, record in (
        ("plain", "Name: Plain\n\nName: other\n", "plain/__init__.py,,\nplain/a.so,,\nalone.py,,\nplain.libs/a.so,,\n"),
        ("quoted", "Name: quoted\n", '"quoted/a,b.py",,\n'),
        ("declared", "Name: declared\n", "x/a.py,,\n"),
        ("listless", "Name: listless\n", None),
    ):
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\n{metadata}")
        if record is not None:
            (folder / "RECORD").write_text(record)
    (tmp_path / "declared-1.dist-info" / "top_level.txt").write_text("y\nz\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    theirs, ours = importlib.metadata.packages_distributions(), lean.packages_distributions()
    assert ours == theirs
    assert {name: ours.get(name) for name in ("plain", "alone", "quoted", "x", "y", "z")} == {
        "plain": ["Plain"],
        "alone": ["Plain"],
        "quoted": ["quoted"],
        "x": None,
        "y": ["declared"],
        "z": ["declared"],
    }


def test_transformers_is_told_quickly_of_what_is_installed(run_code: RunCode, repository: Path):
    done = run_code(
        "import importlib.metadata, sys, transformers\n"
        # It was imported where the tests' own folder was on no path.
        f"sys.path.remove({str(repository)!r})\n"
        "from transformers.utils import import_utils\n"
        "whole = importlib.metadata.packages_distributions\n"
        "assert whole.__module__ == 'importlib.metadata'\n"
        "assert import_utils.PACKAGE_DISTRIBUTION_MAPPING == whole()\n"
    )
    assert done.returncode == 0, done.stderr


def test_vllm_is_loaded_without_what_is_for_sounds_and_who_asks_has_it(
    kept_store: Store, repository: Path, standing: Path, tmp_path: Path
):
    environ = Environment().environ(kept_store) | {"OMP_NUM_THREADS": "1", STANDING: str(standing)}
    environ["PYTHONPATH"] = os.pathsep.join([environ["PYTHONPATH"], str(repository)])
    vllm = ForkServer("vllm", python=sys.executable, environ=environ, log=tmp_path / "imports.log")
    done = run_forked(
        vllm,
        tmp_path,
        "import sys\n"
        "assert 'vllm.multimodal.audio' in sys.modules and 'scipy.signal' not in sys.modules\n"
        "import scipy.signal\n"
        "assert list(scipy.signal.resample_poly([1.0, 1.0], 2, 1).shape) == [4]\n",
    )
    vllm.close()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("torch", "vision", "found"),
    [("2.13.0+cpu", "0.28.0", False), ("2.13.0+cpu", "0.28.0+cpu", True), ("2.13.0", "0.28.0", True)],
)
def test_packages_of_another_build_than_torchs_are_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str, vision: str, found: bool
):
    """Neither by an import nor by who looks whether it is there; torch's own build decides."""
    for name, version in (("torch", torch), ("torchvision", vision)):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    lean.pass_over_other_builds()
    try:
        assert (importlib.util.find_spec("torchvision") is not None) is found
        with pytest.raises(RuntimeError if found else ModuleNotFoundError):
            importlib.import_module("torchvision")
    finally:
        sys.modules.pop("torchvision", None)
