from __future__ import annotations

import gc
import json

from harness.worker import lean
from tests.conftest import RunCode


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


def test_garbage_is_looked_for_again_after_the_imports():
    for looking in (False, True):
        (gc.enable if looking else gc.disable)()
        try:
            with lean.imports():
                assert not gc.isenabled()
            assert gc.isenabled() is looking
        finally:
            gc.enable()


def test_other_modules_are_found_by_others():
    for name in ("transformers.generation.utils", "transformers.lossy", "json"):
        assert lean._PassedOver.find_spec(name) is None
