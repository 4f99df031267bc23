"""Where a session's time goes, as records."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from harness.matrix.plan import Cell
from harness.records.run import Run
from harness.records.schema import Cell as CellIdentity
from harness.records.schema import Timing

# Seconds below which a stage is not worth a record.
_LEAST = 0.01


class Clock:
    """Records the time of stages; that of a stage inside another counts to the inner one only.

    ``known`` returns a cell as records name it, or None while its weights are not known. One clock is of one thread.
    """

    def __init__(self, run: Run, known: Callable[[Cell], CellIdentity | None]) -> None:
        self._run = run
        self._known = known
        self._inner: list[float] = []

    @contextlib.contextmanager
    def timed(self, stage: str, cell: Cell | None = None) -> Iterator[None]:
        """Record how long what stands within takes, less the stages inside."""
        self._inner.append(0.0)
        start = time.monotonic()
        try:
            yield
        finally:
            whole = time.monotonic() - start
            own = whole - self._inner.pop()
            if self._inner:
                self._inner[-1] += whole
            self._note(stage, own, cell)

    def inside(self, stage: str, seconds: float, cell: Cell) -> None:
        """Count seconds of the stage that is being timed to a stage of their own."""
        self._inner[-1] += seconds
        self._note(stage, seconds, cell)

    def _note(self, stage: str, seconds: float, cell: Cell | None) -> None:
        if seconds > _LEAST:
            self._run.append(Timing(stage=stage, cell=self._known(cell) if cell else None, seconds=seconds))
