"""What ExecuTorch's errors mean, as its C++ (names) and its Python bindings (numbers) write them.

Read by the planner too, so it imports nothing of ExecuTorch. Source: runtime/core/error.h.
"""

from __future__ import annotations

import re
from enum import Enum


class Meaning(Enum):
    """Why a program cannot be loaded or run, with the words that say so."""

    NO_OPERATOR = r"OperatorMissing|Missing operator|\b0x14\b"
    NO_LIBRARY = r"\bNotFound\b|\b0x20\b"
    NO_MEMORY = r"MemoryAllocationFailed|\b0x(21|31)\b"
    DAMAGED = r"InvalidProgram|InvalidExternalData|DelegateInvalidCompatibility|\b0x(23|24|30)\b"


def meaning(words: str) -> Meaning | None:
    """Return what an error says, or None where its words must do. Python's bindings write 0x:14, C++ writes 0x14."""
    plain = words.replace("0x:", "0x")
    return next((one for one in Meaning if re.search(one.value, plain)), None)
