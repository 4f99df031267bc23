"""Import a module though a full disk cut off what Python had compiled of it."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from types import ModuleType


def imported(name: str) -> ModuleType:
    """Import a module, removing files of Python's own that are cut off, of it and of what it imports.

    Python writes compiled files beside a checkout's sources and takes a short write for a whole one (importlib's
    ``_write_atomic``, seen in 3.11 to 3.13), as a disk gives it that becomes full: every later start failed.
    Raises what the import raises otherwise.
    """
    removed: set[Path] = set()
    while True:
        try:
            return importlib.import_module(name)
        # A cut is told by marshal as an EOFError, ValueError, TypeError or SystemError, as it happens to fall.
        except Exception as error:
            cut = _cut_off(error)
            if cut is None or cut in removed:
                raise
            removed.add(cut)
            with contextlib.suppress(OSError):
                cut.unlink()


def _cut_off(error: Exception) -> Path | None:
    """Return the compiled file that could not be read, as importlib itself names it; None for other errors."""
    step = error.__traceback__
    while step and step.tb_next:
        step = step.tb_next
    if step is None or step.tb_frame.f_code.co_name != "_compile_bytecode":
        return None
    found = step.tb_frame.f_locals.get("bytecode_path")
    return Path(found) if found else None
