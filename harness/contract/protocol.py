"""What planner and worker say to each other, one JSON object a line; needs nothing but pydantic on either side."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticSerializationError

REQUESTS_FD = "HARNESS_REQUESTS_FD"
REPLIES_FD = "HARNESS_REPLIES_FD"
FORKS_FD = "HARNESS_FORKS_FD"

REFUSED = "refused"
"""The kind of an error whose message is all that a user needs; its log adds nothing but a traceback."""


class Job(BaseModel):
    """The first line a worker reads: which backend to open, and with what.

    A ``whole`` worker imports all that a user's process does, since the memory of such a process is what is asked of
    it; others do without what they have no use for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: str
    specification: dict[str, Any]
    whole: bool = False


class Request(BaseModel):
    """One command to an open backend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    arguments: dict[str, Any] = {}


class Reply(BaseModel):
    """One line of a worker: it is ready, it makes progress, or it has the result or the error of a request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ready", "progress", "result", "error"]
    value: dict[str, Any] = {}


def written(message: Job | Request | Reply) -> bytes:
    """Return a message as the line that it is sent as.

    What is asked says where something lies: for a name that is no Unicode, as of a folder on a disk of other bytes,
    ValueError is raised that names it. What is answered has it with question marks.
    """
    try:
        return message.model_dump_json().encode() + b"\n"
    except PydanticSerializationError:
        told = message.model_dump()
        bad = next((word for word in _texts(told) if not _is_unicode(word)), None)
        if bad is None:
            raise
        if isinstance(message, Reply):
            return json.dumps(told, ensure_ascii=False).encode(errors="replace") + b"\n"
        raise ValueError(f"{bad!r} is no Unicode, and workers are asked in nothing else; rename it") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (word for pair in value.items() for part in pair for word in _texts(part))
    elif isinstance(value, list | tuple):
        yield from (word for part in value for word in _texts(part))


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= sign <= "\udfff" for sign in text)
