"""Whether a task is one of lm-evaluation-harness's: told from its files in the environment of the workers."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from pathlib import Path

from harness.base.errors import HarnessError
from harness.contract.task_texts import Texts
from harness.runtime.environment import Environment


def check(names: Sequence[str], environment: Environment) -> None:
    """Raise HarnessError for a name that none of an environment's tasks has, naming those that are much like it.

    A name that stands in some task's file passes, though it may be none; without the package nothing can be told.
    Reading the files takes a second.
    """
    root = environment.folder("lm_eval")
    if root is None:
        return
    texts = _read(root / "tasks", root.stat().st_mtime_ns)
    for name in names:
        if not texts.telling_of([name]):
            close = difflib.get_close_matches(name, sorted(texts.names), 3)
            meant = f"did you mean {' or '.join(close)}?" if close else "lm-eval ls tasks lists them"
            raise HarnessError(f"--task {name!r} is no task of lm-evaluation-harness; {meant}")


@functools.lru_cache(maxsize=1)
def _read(folder: Path, _changed: int) -> Texts:
    return Texts.read(folder, ())
