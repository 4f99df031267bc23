"""pytest's -m and -k expressions: which names they select by."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable

_MOST = 12


def selects(expression: str, names: Iterable[str]) -> bool:
    """Return whether an expression of -m holds where exactly these names do. Raises SyntaxError where it is none."""
    there = frozenset(names)
    return _holds(expression, there.__contains__)


def finds(expression: str, text: str) -> bool:
    """Return whether an expression of -k holds of a text, by the words that are in it. Raises SyntaxError likewise."""
    there = text.lower()
    return _holds(expression, lambda word: word.lower() in there)


def _holds(expression: str, true: Callable[[str], bool]) -> bool:
    from _pytest.mark.expression import Expression

    def matches(name: str, /, **_: str | int | bool | None) -> bool:
        return true(name)

    try:
        return bool(Expression.compile(expression).evaluate(matches))
    except RecursionError:
        raise SyntaxError("nested too deeply") from None


def unmatched(expression: str, texts: Iterable[str]) -> list[str]:
    """Return the words that -k asks for and that none of the texts has in it; what it leaves out may be in none."""
    there = "\n".join(texts).lower()
    words = asked_for(expression, re.findall(r"[^\s()]+", expression))
    return sorted(word for word in words if word.lower() not in there)


def asked_for(expression: str, names: Iterable[str]) -> set[str]:
    """Return those of some names that an expression asks for: with the name something is selected that was not without.

    ``not gpu`` names gpu and does not ask for it; ``cpu or not (slow or not gpu)`` does.
    """
    words = set(re.findall(r"[^\s()]+", expression)) - {"and", "or", "not"}
    found = set()
    for name in set(names) & words:
        others = sorted(words - {name})[:_MOST]
        sets = (set(them) for count in range(len(others) + 1) for them in itertools.combinations(others, count))
        if any(selects(expression, them | {name}) and not selects(expression, them) for them in sets):
            found.add(name)
    return found
