"""lm-evaluation-harness's index of tasks, made of the files that can tell of those that are asked for.

The index of all tasks takes some eight seconds, since 14,000 files are parsed as YAML, many of them several times. To
look for a name in their texts takes one. What a name stands for is in a file that has it in its text, or includes one
that has; so the entries of what is asked for, and of all that belongs to it, are those of the whole index, and a name
that no text has is none.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

MOST = 150
"""Names beyond which the whole index is made: each is looked for in every text."""
_INCLUDE = re.compile(rb"^include:[ \t]*([^\n#]*(?:\n[ \t]*-[^\n#]*)*)", re.MULTILINE)
_NAMING = re.compile(rb"^[\"']?(?:task|group|tag)[\"']?:[ \t]*([^\n#]*(?:\n[ \t]*-[^\n#]*)*)", re.MULTILINE)


@functools.cache
def whole() -> Any:
    """Return a task manager with the index of all tasks, made once a worker."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@functools.cache
def manager(names: tuple[str, ...]) -> Any:
    """Return a task manager whose index has these names, as far as they are tasks, and what belongs to them."""
    from lm_eval import tasks
    from lm_eval.tasks import _index

    if not hasattr(_index.TaskIndex, "_iter_yaml_files"):
        return whole()
    files = telling_of(names, _texts(), _index.TaskIndex)
    if files is None:
        return whole()
    with patch.object(_index.TaskIndex, "_iter_yaml_files", staticmethod(lambda root: files)):
        return tasks.TaskManager()


def nearest(name: str) -> list[str]:
    """Return up to three names of tasks, groups and tags that are much like one that is none."""
    from lm_eval.tasks import _index

    if not hasattr(_index.TaskIndex, "_iter_yaml_files"):
        return difflib.get_close_matches(name, whole().all_tasks, 3)
    texts = _texts()
    close = difflib.get_close_matches(name, sorted(texts.names()), 9)
    # What a file says of itself stands for nothing where another one includes it under a name of its own.
    known = _entries(texts.telling_of(close), _index.TaskIndex)
    return [one for one in close if one in known][:3]


def _texts() -> Texts:
    from lm_eval import tasks
    from lm_eval.tasks import _index

    return Texts.read(Path(tasks.__file__).parent, _index._IGNORE_DIRS)


def telling_of(names: Iterable[str], texts: Texts, index: Any) -> list[Path] | None:
    """Return the files that tell of tasks and of what belongs to them; None where that would take as long as all."""
    wanted, new, files = set(names), set(names), set[str]()
    while new:
        if len(wanted) > MOST:
            return None
        files |= texts.telling_of(new)
        entries = _entries(files, index)
        new = {name for one in wanted for name in _belonging(entries.get(one))} - wanted
        wanted |= new
    return [Path(file) for file in sorted(files)]


def _entries(files: Iterable[str], index: Any) -> dict[str, Any]:
    """Return the index that only these files give."""
    chosen = [Path(file) for file in sorted(files)]
    with patch.object(index, "_iter_yaml_files", staticmethod(lambda root: chosen)):
        found: dict[str, Any] = index.build([Path()])
    return found


def _belonging(entry: Any) -> Iterator[str]:
    """Yield the names of the tasks and groups that an entry of the index is made of: the tags of a task are not."""
    kind = entry.kind.name if entry else ""
    if kind == "TAG":
        yield from entry.tags
    elif kind == "GROUP":
        yield from _members((entry.cfg or {}).get("task"))


def _members(members: Any) -> Iterator[str]:
    if isinstance(members, str):
        yield members
    elif isinstance(members, list):
        for member in members:
            yield from _members(member)
    elif isinstance(members, dict):
        yield from _members(members.get("group"))
        yield from _members(members.get("task"))


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

    def names(self) -> set[str]:
        """Return what files name as a task, a group, a tag or one of their members."""
        return {name for text in self._texts.values() for match in _NAMING.findall(text) for name in _listed(match)}

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
