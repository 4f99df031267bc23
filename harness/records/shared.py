"""Records that are held together share what is the same in them, so that they take no more memory than what differs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from harness.records.schema import Line

# Of a hundred records of a session these are mostly the same few; a record is frozen, so none of them is changed.
_PARTS = ("cell", "device", "packages", "flags", "state_before", "state_after", "parameters", "command")


class Parts:
    """The parts of the records seen so far, each once."""

    def __init__(self) -> None:
        self._seen: dict[str, Any] = {}

    def shared(self, line: Line) -> Line:
        """Return the line, with parts that one before had as well being that one's."""
        held = vars(line)
        for name in _PARTS:
            if (part := held.get(name)) is not None:
                # Not by equality, of which 1, 1.0 and true are one.
                key = part.model_dump_json() if isinstance(part, BaseModel) else repr(part)
                held[name] = self._seen.setdefault(f"{name} {key}", part)
        return line
