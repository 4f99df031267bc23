"""Imports leave no garbage, and what they bring stays to the end: nobody looks for any in either."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def imports(module: str) -> Iterator[None]:
    """Look for no garbage while a module is imported in this block, and from then on for none in what is there then.

    Nothing is done where it is loaded already: of several commands or sessions in one process the first imports it, and
    what the others leave behind is not to be kept.
    """
    if module in sys.modules:
        yield
        return
    looking = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if looking:
            gc.enable()
