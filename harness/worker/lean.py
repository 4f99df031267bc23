"""Imports what workers need of large packages in less time and memory: without what no worker uses.

Transformers imports scikit-learn, and with it SciPy, pandas and pyarrow, for one threshold of assisted generation, and
SciPy's optimizers for losses of object detection. Together that is a third of a worker's imports. What imports these
packages by itself, as tasks of lm_eval do, has them as ever. And it reads the names that each of its 3,000 files gives
away, of which the last lines tell, which are then all that is split into lines.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from unittest import mock

PASSED_OVER = {
    "transformers.generation.candidate_generator": "is_sklearn_available",
    "transformers.loss.loss_": "is_scipy_available",
}
"""By how names of modules begin: what of ``transformers.utils`` they ask before they import what has no use here."""


NAMES = "transformers.utils.import_utils"


class _Lean:
    """A finder that lets some modules be imported as if what they ask for were not there, and makes one quicker."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        asked = next((it for beginning, it in PASSED_OVER.items() if name.startswith(beginning)), None)
        if asked is None and name != NAMES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def lean(module: ModuleType) -> None:
                utils = sys.modules.get("transformers.utils")
                # Another release may ask in another way: then it imports what it likes.
                if asked is not None and hasattr(utils, asked):
                    with mock.patch.object(utils, asked, return_value=False):
                        execute(module)
                else:
                    execute(module)
                if fetch := vars(module).get("fetch__all__"):
                    vars(module)["fetch__all__"] = _of_the_last_lines(fetch)

            spec.loader.exec_module = lean  # type: ignore[method-assign]
        return spec


def _of_the_last_lines(fetch: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """Return what finds the same in a module's text as ``fetch``, which goes by the last line that sets ``__all__``."""
    return lambda text: fetch(text[max(text.rfind("\n__all__") + 1, 0) :])


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Pass over what no worker uses from now on; in this block look for no garbage, since imports leave none."""
    if _Lean not in sys.meta_path:
        sys.meta_path.insert(0, _Lean)
    looking = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looking:
            gc.enable()
