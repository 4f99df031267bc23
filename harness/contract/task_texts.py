"""The texts of lm-evaluation-harness's tasks, which tell of a name without an import and without parsing YAML."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

_INCLUDE = re.compile(rb"^include:[ \t]*([^\n#]*(?:\n[ \t]*-[^\n#]*)*)", re.MULTILINE)
_NAMING = re.compile(rb"^[\"']?(?:task|group|tag)[\"']?:[ \t]*([^\n#]*(?:\n[ \t]*-[^\n#]*)*)", re.MULTILINE)


def _as_a_word(name: bytes) -> re.Pattern[bytes]:
    """Return what finds a name where YAML may have it as a whole text, and not as a part of a longer word."""
    return re.compile(rb"(?<![^\s\"'\[,{:])" + re.escape(name) + rb"(?![^\s\"'\],}:#])")


def _listed(value: bytes) -> list[str]:
    """Return the words of a value in YAML that is a word or a list of words."""
    words = re.split(rb"[\s,\[\]]+|^-|\s-\s", value)
    return [word.strip(b"\"'").decode(errors="replace") for word in words if word.strip(b"\"'-")]


class Texts:
    """The texts of all tasks' files, and of those that they include, by path."""

    def __init__(self, texts: dict[str, bytes]) -> None:
        self._texts = texts
        self._tasks = list(texts)
        self._included = {path: self._includes(path) for path in self._tasks}
        # What is included may include others, and has any name.
        waiting = [path for paths in self._included.values() for path in paths]
        while waiting:
            path = waiting.pop()
            if path not in self._included:
                if path not in texts:
                    texts[path] = Path(path).read_bytes() if os.path.isfile(path) else b""
                self._included[path] = self._includes(path)
                waiting += self._included[path]

    @classmethod
    def read(cls, root: Path, ignored: Iterable[str]) -> Texts:
        """Read all YAML files of a folder, but for folders of some names."""
        found: dict[str, bytes] = {}
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if name not in ignored]
            for name in files:
                if name.endswith(".yaml"):
                    path = os.path.join(folder, name)
                    with open(path, "rb") as file:
                        found[path] = file.read()
        return cls(found)

    def _includes(self, path: str) -> tuple[str, ...]:
        text = self._texts[path]
        told = _INCLUDE.findall(text) if b"include:" in text else []
        names = (name for match in told for name in _listed(match))
        return tuple(os.path.normpath(os.path.join(os.path.dirname(path), name)) for name in names)

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """What files name as a task, a group, a tag or one of their members."""
        told = (match for text in self._texts.values() for match in _NAMING.findall(text))
        return frozenset(name for match in told for name in _listed(match))

    def telling_of(self, names: Iterable[str]) -> set[str]:
        """Return the tasks' files that have one of the names in their text or in that of a file they include."""
        looked_for = [(name.encode(), _as_a_word(name.encode())) for name in names]
        having = {
            path
            for path, text in self._texts.items()
            if any(name in text and word.search(text) for name, word in looked_for)
        }
        return {path for path in self._tasks if self._reaches(path, having, set())}

    def _reaches(self, path: str, having: set[str], seen: set[str]) -> bool:
        if path in having:
            return True
        seen.add(path)
        return any(self._reaches(it, having, seen) for it in self._included[path] if it not in seen)
