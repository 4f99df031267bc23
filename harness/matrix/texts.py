"""The texts of matrix.toml that must have a form, and what each is in words."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

_REQUIREMENT = r"^[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+$"
_SHA256 = r"^[0-9a-f]{64}$"
_LICENSE = r"^[a-z0-9][a-z0-9.-]*$"
_CLASS = r"^[A-Za-z_][A-Za-z0-9_]*$"
PATTERNS = {
    _REQUIREMENT: "a pinned requirement such as torchao==0.18.0",
    _SHA256: "a SHA-256 in 64 hex digits, in lower case",
    _LICENSE: "a licence as the hub names it, such as apache-2.0",
    _CLASS: "the name of a torchao config class alone: its arguments are a table of their own, as in "
    'arguments = { granularity = "PerGroup(32)" }',
}
"""What texts that match a pattern are, in words."""

Requirement = Annotated[str, Field(pattern=_REQUIREMENT)]
Sha256 = Annotated[str, Field(pattern=_SHA256)]
License = Annotated[str, Field(pattern=_LICENSE)]
ConfigClass = Annotated[str, Field(pattern=_CLASS)]
