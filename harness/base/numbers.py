"""Numbers as tables show them."""

from __future__ import annotations

from collections.abc import Callable


def decimal(value: float) -> str:
    """Return two decimals, or three significant digits where those would say nothing."""
    return f"{value:.2f}" if value == 0 or 0.1 <= abs(value) < 1e7 else f"{value:.3g}"


def whole(value: float) -> str:
    """Return a number without decimals, its thousands apart."""
    return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3g}"


def size(value: float) -> str:
    """Return bytes in the decimal unit that suits them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{decimal(value / scale)} {unit}"
    return f"{whole(value)} B"


def places(count: int) -> Callable[[float], str]:
    """Return what shows a number with so many decimals."""
    return lambda value: f"{value:.{count}f}"


def significant(value: float) -> str:
    """Return two significant digits."""
    return f"{value:.2g}"


def percent(share: float) -> str:
    """Return a share in percent with a decimal; one that is there and rounds to none is said to be less."""
    return "less than 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"
