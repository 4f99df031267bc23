"""Imports leave no garbage, and what they bring stays to the end: nobody looks for any in either."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Look for no garbage in this block, and from then on for none in what is there at its end."""
    looking = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if looking:
            gc.enable()
