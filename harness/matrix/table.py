"""What every table of matrix.toml is."""

from __future__ import annotations

from pydantic import BaseModel

from harness.matrix.hardware import STRICT


class Table(BaseModel):
    """A table whose keys and types are exactly those that are declared."""

    model_config = STRICT
