"""lm-evaluation-harness's index of tasks, made of the files that can tell of those that are asked for.

The index of all tasks takes some eight seconds, since 14,000 files are parsed as YAML, many of them several times. To
look for a name in their texts takes one. What a name stands for is in a file that has it in its text, or includes one
that has; so the entries of what is asked for, and of all that belongs to it, are those of the whole index, and a name
that no text has is none.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness.contract.task_texts import Texts

MOST = 150
"""Names beyond which the whole index is made: each is looked for in every text."""


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
    close = difflib.get_close_matches(name, sorted(texts.names), 9)
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
