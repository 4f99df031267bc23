"""What planner and worker say to each other, one JSON object a line; needs nothing but pydantic on either side."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

REQUESTS_FD = "HARNESS_REQUESTS_FD"
REPLIES_FD = "HARNESS_REPLIES_FD"
FORKS_FD = "HARNESS_FORKS_FD"

REFUSED = "refused"
"""The kind of an error whose message is all that a user needs; its log adds nothing but a traceback."""


class Job(BaseModel):
    """The first line a worker reads: which backend to open, and with what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: str
    specification: dict[str, Any]


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
