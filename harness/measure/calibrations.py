"""The text that each recipe observes a model on, made once and kept from what is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.matrix.plan import Cell
from harness.runtime import calibration
from harness.runtime.store import Artifact, Store

# Of SmolLM2's 269 MB of weights 0.2 MB a token, and of wider models less.
_OBSERVED_A_TOKEN = 1e-3


class Calibrations:
    """``data`` is the session's folder of texts, ``evaluated`` tells the text that is evaluated."""

    def __init__(
        self, store: Store, data: Path | None, evaluated: Callable[[], Artifact], progress: Callable[[str], None]
    ) -> None:
        self._store = store
        self._data = data
        self._evaluated = evaluated
        self._progress = progress
        self._made: dict[tuple[str, int, int], Artifact] = {}

    def of(self, cell: Cell) -> Artifact | None:
        """Return the text of a cell's recipe, without what is evaluated; None for one that observes nothing."""
        wanted = cell.recipe.calibration
        if wanted is None:
            return None
        key = (wanted.sha256, wanted.sequences, wanted.tokens)
        if key not in self._made:
            asked = {**wanted.model_dump(), "file": wanted.file}
            found = self._made[key] = calibration.text(self._store, self._data, asked, self._evaluated())
            if dropped := found.facts["dropped"]:
                kept = found.facts["documents"]
                self._progress(f"calibration: {dropped} documents are evaluated and left out; {kept} are kept")
        return self._made[key]

    def key(self, cell: Cell) -> dict[str, str]:
        """Return what of a cell's text is part of the key of its checkpoint."""
        text = self.of(cell)
        return {"calibration": text.key} if text else {}

    def given(self, cell: Cell) -> dict[str, str]:
        """Return what the worker that quantizes is given of a cell's text."""
        file = self.file(cell)
        return {"calibration_text": file} if file else {}

    def file(self, cell: Cell) -> str | None:
        """Return the file of the text that no document may be of which is evaluated with the cell."""
        text = self.of(cell)
        return str(text.folder / calibration.TEXT) if text else None


def observed(cell: Cell) -> float:
    """Return how many times a model's weights the inputs of its layers take that a recipe keeps to observe them."""
    wanted = cell.recipe.calibration
    return wanted.sequences * wanted.tokens * _OBSERVED_A_TOKEN if wanted else 0.0
