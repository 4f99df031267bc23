"""Models as JSON files, whatever the names in them are made of."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from harness.base.files import write_text
from harness.base.secrets import cleaned


def write(path: Path, model: BaseModel) -> Path:
    """Write a model to ``path`` in one step, and return that; HarnessError where it cannot be written.

    What of its texts is no Unicode, as of the name of a run on a disk of other bytes, stands there by its number.
    """
    try:
        text = model.model_dump_json(indent=1, by_alias=True)
    except PydanticSerializationError:
        text = json.dumps(cleaned(model.model_dump(mode="json", by_alias=True)), indent=1, ensure_ascii=False)
    write_text(path, f"{text}\n")
    return path
