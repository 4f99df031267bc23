"""Imports what workers need of large packages in less time and memory: without what no worker uses.

Transformers imports scikit-learn, and with it SciPy, pandas and pyarrow, for one threshold of assisted generation, and
SciPy's optimizers for losses of object detection. Together that is a third of a worker's imports. What imports these
packages by itself, as tasks of lm_eval do, has them as ever.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from unittest import mock

PASSED_OVER = {
    "transformers.generation.candidate_generator": "is_sklearn_available",
    "transformers.loss.loss_": "is_scipy_available",
}
"""By how names of modules begin: what of ``transformers.utils`` they ask before they import what has no use here."""


class _PassedOver:
    """A finder that lets those modules be imported as if what they ask for were not installed."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        asked = next((it for beginning, it in PASSED_OVER.items() if name.startswith(beginning)), None)
        if asked is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        utils = sys.modules.get("transformers.utils")
        # Another release may ask in another way: then it imports what it likes.
        if spec is not None and spec.loader is not None and hasattr(utils, asked):
            execute = spec.loader.exec_module

            def without(module: ModuleType) -> None:
                with mock.patch.object(utils, asked, return_value=False):
                    execute(module)

            spec.loader.exec_module = without  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Pass over what no worker uses from now on; in this block look for no garbage, since imports leave none."""
    if _PassedOver not in sys.meta_path:
        sys.meta_path.insert(0, _PassedOver)
    looking = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looking:
            gc.enable()
