"""In every Python process that a test starts: notes when torch is loaded, and for which test (see tests/marking.py).

Sessions that tests start are without Hypothesis's plugin, as users' are: it imports all of Hypothesis each time.
"""

import importlib.machinery
import os
import sys
from types import ModuleType
from typing import Any

NOTES = "HARNESS_TEST_TORCH_NOTES"


def running(notes: str) -> str:
    """Return the file that has the name of the test that runs.

    It is no environment variable: what is kept for all processes of one environment, as fork servers are, would then be
    another one for every test.
    """
    return notes + ".test"


def test() -> str:
    """Return the test that runs, or an empty text before the first and where the tests have ended."""
    try:
        with open(running(os.environ[NOTES]), encoding="utf-8") as file:
            # What stands below is of longer names of tests before.
            return file.readline().rstrip("\n")
    except OSError:
        return ""


# A process is that test's in which it was started; the one that runs the tests is the current one's.
STARTED = test() if NOTES in os.environ else ""


def note() -> None:
    """Note that torch is there, for the test that has it."""
    with open(os.environ[NOTES], "a", encoding="utf-8") as notes:
        notes.write((STARTED or test()) + "\n")


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
                note()
                execute(module)

            spec.loader.exec_module = noting  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, NotesTorch)  # type: ignore[arg-type]

if STARTED:
    sys.modules["_hypothesis_pytestplugin"] = ModuleType("_hypothesis_pytestplugin")

if "HARNESS_TEST_STANDING" in os.environ:
    import standing

    if standing.asked_for():
        standing.join(note)
