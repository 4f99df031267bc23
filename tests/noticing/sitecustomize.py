"""In every Python process that a test starts: notes when torch is loaded, and for which test (see tests/marking.py).

Sessions that tests start are without Hypothesis's plugin, as users' are: it imports all of Hypothesis each time.
"""

import importlib.machinery
import os
import sys
from types import ModuleType
from typing import Any

NOTES, TEST = "HARNESS_TEST_TORCH_NOTES", "HARNESS_TEST_NAME"


class NotesTorch:
    """Finds torch as Python does, and notes when it is executed; to look for it alone is no news."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "torch" or NOTES not in os.environ:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def noting(module: ModuleType) -> None:
                with open(os.environ[NOTES], "a", encoding="utf-8") as notes:
                    notes.write(os.environ.get(TEST, "") + "\n")
                execute(module)

            spec.loader.exec_module = noting  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, NotesTorch)  # type: ignore[arg-type]

if os.environ.get(TEST):
    sys.modules["_hypothesis_pytestplugin"] = ModuleType("_hypothesis_pytestplugin")
