"""What limits a phase: arithmetic, memory or neither."""

from __future__ import annotations

from collections.abc import Mapping

# Below this fraction of the limit neither memory nor arithmetic explains the time.
OVERHEAD_BELOW = 0.5


def limited_by(statistics: Mapping[str, float]) -> str:
    """Return what limits a step by the statistics of its record, a ``limit_fraction``; empty where they do not say."""
    names = ("memory_seconds", "arithmetic_seconds", "measured_seconds")
    memory, arithmetic, measured = (statistics.get(name) for name in names)
    return "" if memory is None or arithmetic is None or measured is None else bound(memory, arithmetic, measured)


def bound(memory_seconds: float, arithmetic_seconds: float, measured_seconds: float) -> str:
    """Return what limits a step: ``memory``, ``arithmetic`` or ``overhead``.

    Overhead is all that is neither: launches and Python, and kernels that use the device badly, which a profile tells
    from each other.
    """
    limit = max(memory_seconds, arithmetic_seconds)
    if measured_seconds <= 0 or limit / measured_seconds < OVERHEAD_BELOW:
        return "overhead"
    return "memory" if memory_seconds >= arithmetic_seconds else "arithmetic"
