"""What is printed: how wide it may be, and how a line that is longer goes on below."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

WIDTH = 100
"""The most columns that are printed unless asked."""

_NARROWEST = 40
_WIDEST = 2
"""Columns of the widest character."""
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PARTS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\n\r]|[^\S\n\r]+|(?:(?!\x1b\[)\S)+")

_COMMAND = re.compile(
    r"\s*(?:\d+ s\s+)?(?:"
    r"(?:->|(?P<whole>go on with:)|(?:find it|accept it|next|Next):)\s+(?:[A-Z_]+=\S+\s+)*"
    r"(?:python3?|harness|pytest|pip|uv|tox|apt-get|vllm|cd|ray\s+start)"
    # What argparse says of a command begins as one.
    r"|python3?\s+-m\s+(?:harness|pytest)(?!(?:\s+[\w-]+)*:)"
    r"|ray\s+start"
    r")"
)
"""How a line begins that is a command to be pasted: it goes on below as a shell reads it, or stays whole."""
_SHELL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\n\r]|[^\S\n\r]+|(?:\"[^\"\n]*\"|'[^'\n]*'|\\.|(?!\x1b\[)\S)+")
"""As _PARTS, what is quoted being one word."""
_GOES_ON = " \\"
_LONGEST_BEGINNING = 60


def columns() -> int:
    """Return how wide lines may be: as wide as the terminal, or as $COLUMNS says, and never over WIDTH."""
    return max(_NARROWEST, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def width(text: str) -> int:
    """Return the columns that a text takes on a terminal: two for wide characters, none for what is put over others."""
    if text.isascii():
        return len(_SEQUENCE.sub("", text)) if "\x1b" in text else len(text)
    return sum(map(_columns_of, _SEQUENCE.sub("", text)))


def _columns_of(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fold(text: str, wide: int, *, hang: int = 2) -> list[str]:
    """Return a text as lines of at most ``wide`` columns; what goes on below is ``hang`` further in."""
    return [line.rstrip() for line in Folding(wide, hang)(text).split("\n")]


class Folding:
    """Breaks lines that are longer than ``wide`` columns, at a space where there is one; texts may come in pieces.

    What goes on below stands ``hang`` columns further in than its line begins. Control sequences take no room. A line
    that is a command to be pasted is broken as a shell reads it, and not at all if it says how to go on.
    """

    def __init__(self, wide: int, hang: int = 2) -> None:
        self._wide = wide
        self._hang = hang
        self._begin()

    def _begin(self) -> None:
        self.column = 0
        self._indent = self._hang
        self._blank = True
        self._line = ""
        self._command = self._whole = False

    def __call__(self, text: str) -> str:
        found: list[str] = []
        at = 0
        while matched := (_SHELL if self._command else _PARTS).match(text, at):
            part, at = matched.group(), matched.end()
            if part in "\n\r":
                found.append(part)
                self._begin()
            elif part.startswith("\x1b["):
                found.append(part)
            elif part.isspace():
                found.append(self._space(part))
            else:
                found.append(self._word(part))
        return "".join(found)

    def _space(self, part: str) -> str:
        part = part.replace("\t", "    ")
        if self._blank and not self.column:
            part = part[: self._wide // 2]
            self._indent = min(len(part), self._wide // 3) + self._hang
        elif not self._command and self.column + len(part) > self._wide:
            part = part[: max(0, self._wide - self.column)]
        self.column += len(part)
        self._line += part
        return part

    def _word(self, word: str) -> str:
        lead = ""
        size = width(word)
        if self._command:
            # A backslash by itself ends a line that was broken before, and needs no room for another.
            room = self._wide - size - (0 if word == "\\" else len(_GOES_ON))
            if not self._whole and self._indent < self.column > room:
                lead = _GOES_ON[1:] + self._next()
            self.column += size
            return lead + word
        if len(self._line) <= _LONGEST_BEGINNING:
            self._line += word
            if begins := _COMMAND.fullmatch(self._line):
                self._command, self._whole = True, bool(begins["whole"])
        # What no line has room for is broken where it stands.
        if self.column + size > self._wide and size <= self._wide - self._indent:
            lead = self._next()
        self._blank = False
        while width(word) > self._wide - self.column:
            if self._wide - self.column < _WIDEST and self.column > self._indent:
                lead += self._next()
                continue
            head = self._head(word)
            lead += head + self._next()
            word = word[len(head) :]
        self.column += width(word)
        return lead + word

    def _next(self) -> str:
        self.column = self._indent
        return "\n" + " " * self._indent

    def _head(self, word: str) -> str:
        """Return as much of a word as fits; a path is broken behind a slash, if one stands in the second half."""
        room, head = self._wide - self.column, ""
        for character in word:
            if width(head + character) > room:
                break
            head += character
        head = head or word[:1]
        cut = head.rfind("/") + 1
        return head[:cut] if cut > len(head) // 2 else head


class Folded:
    """A text stream that no line of more than ``wide`` columns is written to; all else is as of the stream itself."""

    def __init__(self, stream: TextIO, wide: int) -> None:
        self.stream = stream
        self.before: Callable[[], None] = lambda: None
        """Called before anything is written."""
        self._folding = Folding(wide)

    @property
    def column(self) -> int:
        """Where the next character would stand, from 0."""
        return self._folding.column

    def write(self, text: str) -> int:
        self.before()
        self.stream.write(self._folding(text))
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def unfolded(stream: Any) -> TextIO:
    """Return the stream itself: data that other programs read is no text for people, and keeps its lines."""
    return cast(TextIO, stream.stream if isinstance(stream, Folded) else stream)
