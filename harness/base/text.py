"""Texts that leave the process: digests, names of files, one line of many, and nothing secret."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.base.secrets import without_secrets


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# With an ending and a number it stays below the 255 bytes that file systems take.
_LONGEST_NAME = 200


def file_name(text: str) -> str:
    """Return a text as the name of a file: what systems do not take is replaced, and a long one ends in its digest."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", text)
    return plain if len(plain) <= _LONGEST_NAME else f"{plain[: _LONGEST_NAME - 17]}-{digest(text)}"


_ROOT = re.escape(f"{Path(__file__).resolve().parents[2]}/")


_WHERE = re.compile(rf'(?<=File ")(?:[^"\n]*/(?:site|dist)-packages/|{_ROOT})')


def redact(text: str, *secrets: str) -> str:
    """Return ``text`` without credentials and ``secrets``, as every log tail must be (:mod:`harness.base.secrets`).

    The user's home folder becomes ``~``, and a traceback's files are named from where Python finds them: where either
    lies is nobody else's business.
    """
    found = without_secrets(text, *secrets)
    shown = _home().sub("~", _WHERE.sub("", found))
    # What stood apart may be one word now.
    return found if shown == found else without_secrets(shown)


def _home() -> re.Pattern[str]:
    home = os.path.expanduser("~").rstrip("/")
    return re.compile(rf"(?<![\w.~/-]){re.escape(home)}(?![\w.-])" if home.count("/") else r"(?!)")


def one_line(text: str) -> str:
    """Put spaces for line breaks, control and invisible formatting characters (direction overrides among them)."""
    kept = (" " if unicodedata.category(it) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else it for it in text)
    return " ".join("".join(kept).split())


# Controls of a terminal but for tabs and line breaks, and what turns the direction of writing or hides between letters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0d\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
# Joiners and selectors, which other scripts and emoji are written with, where they can only hide.
_HIDDEN = re.compile("(?<=[ -~])[\u200c\u200d\ufe00-\ufe0f]+(?=[ -~])")


def visible(text: str) -> str:
    """Return a text of others for a terminal or a page: U+FFFD for each control and invisible sign in it."""
    found = _UNSEEN.sub("\ufffd", text)
    return found if found.isascii() else _HIDDEN.sub(lambda it: "\ufffd" * len(it[0]), found)


def quoted(word: str) -> str:
    """Return a word as a shell takes it: with an apostrophe in it between double quotes, which people can read."""
    if word.startswith("~/"):
        # Of the user's home folder, which a shell knows where it is not quoted.
        return f"~/{quoted(word[2:])}" if word[2:] else word
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def going_on(words: Sequence[str], run: str) -> str:
    """Return the command that goes on with a run whose session got ``words``, as a shell takes it."""
    pairs = zip(("", *words), words, strict=False)
    kept = [
        word
        for before, word in pairs
        if word.partition("=")[0] != "--resume" and (before != "--resume" or word.startswith("-"))
    ]
    return " ".join(quoted(redact(word)) for word in ("python", "-m", "pytest", *kept, "--resume", run))


def when(seconds: float) -> str:
    """Return seconds since the epoch as people say them: 2026-11-29 15:46 UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def duration(seconds: float) -> str:
    """Return a duration as people say it: 40 s, 12 min, 2 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
