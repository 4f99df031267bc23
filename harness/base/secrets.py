"""Credentials in texts: what looks like one, or stands in the environment as one, is taken out of all that leaves."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from harness.base.credential_forms import FORMS, KEYS_END, REMOVED, Form
from harness.base.credential_words import AFTER

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
"""Variables that hold the hub's token."""

_SECRET_NAME = re.compile(
    r"(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY)(?:_?\d+)?$|(?:^|_)(?:PAT|AUTH|PASS|JWT|DSN)$|"
    r"_(?:PWD|COOKIE|CONNECTION_STRING|WEBHOOK(?:_URL)?)$|(?<!CACHE)(?<!SORT)(?<!PUBLIC)_KEY$|"
    r"(?:^|_)(?:SECRET|PASSWORD|CREDENTIALS?|API_KEY|ACCESS_KEY)_|"
    r"(?:^|_)(?:ACCESS|SECRET|PRIVATE|SIGNING|ENCRYPTION|ACCOUNT|STORAGE|MASTER)_KEY$",
    re.IGNORECASE,
)
# What is shorter may be a word, and what is a path names a secret rather than being one.
_SHORTEST = 8
_NO_TEXT = frozenset({float, int, bool, type(None)})
# Texts up to so many characters are remembered with what became of them.
_SHORT = 256

# What a pattern that heeds no case takes for a letter, and no change of case makes one.
_LIKE = (("\u0130", "i"), ("\u0131", "i"), ("\u017f", "s"), ("\u212a", "k"))


@functools.lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Return whether an environment variable of that name holds a credential, by its name."""
    return name in TOKENS or bool(_SECRET_NAME.search(name))


def _values() -> Iterator[str]:
    # Of most variables the name is enough, and no value is read.
    for name in filter(is_secret, os.environ):
        value = os.environ.get(name)
        if value and (name in TOKENS or (len(value) >= _SHORTEST and not value.startswith(("/", "~")))):
            yield value


def without_secrets(text: str, *secrets: str) -> str:
    """Return ``text`` with ``secrets``, the environment's credentials and whatever looks like one replaced.

    Those are tokens of hubs, forges, clouds and package indexes by their forms, what follows ``Bearer`` or stands under
    a name such as ``password``, and names with passwords in addresses; upper or lower case.
    """
    return _without(text, [value for value in (*secrets, *_values()) if value])


def _without(text: str, secrets: Iterable[str]) -> str:
    for value in secrets:
        text = text.replace(value, REMOVED)
    return _remembered(text) if len(text) <= _SHORT else _by_form(text)


def _by_form(text: str) -> str:
    text = _taken_out(text, FORMS)
    if "-----END " in text:
        text = KEYS_END.sub(REMOVED[::-1], text[::-1])[::-1]
    return _taken_out(text, AFTER)


# Of records, names and units nearly all texts come again and again.
_remembered = functools.lru_cache(maxsize=8192)(_by_form)


def _taken_out(text: str, forms: Iterable[Form]) -> str:
    lower = _lower(text)
    for form in forms:
        if any(hint in lower for hint in form.hints):
            text, times = form.removed(text)
            if times:
                lower = _lower(text)
    return text


def _lower(text: str) -> str:
    """Return a text in lower case, with what a pattern takes for an i, k or s that heeds no case as that letter."""
    if not text.isascii():
        for letter, plain in _LIKE:
            text = text.replace(letter, plain)
    return text.lower()


def cleaned(value: Any) -> Any:
    """Return JSON data with :func:`without_secrets` of each of its texts; the very same where nothing is taken out.

    What of a text is no Unicode, as of a folder's name of other bytes, is replaced by its number.
    """
    # The environment is looked through once, not for each of the texts.
    return _cleaned(value, list(_values()))


def _cleaned(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        whole = value if value.isascii() else value.encode(errors="backslashreplace").decode()
        found = _without(whole, secrets)
        return value if found == value else found
    if isinstance(value, dict):
        parts = {
            _cleaned(name, secrets): part if type(part) in _NO_TEXT else _cleaned(part, secrets)
            for name, part in value.items()
        }
        same = parts.keys() == value.keys() and all(parts[name] is value[name] for name in parts)
        return value if same else parts
    if isinstance(value, (list, tuple)):
        if all(isinstance(part, (int, float)) for part in value):
            return value
        items = [_cleaned(part, secrets) for part in value]
        return items if any(now is not then for now, then in zip(items, value, strict=True)) else value
    return value
