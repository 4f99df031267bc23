"""Tasks of lm-evaluation-harness over a folder's own documents: which file serves which of a task's splits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from harness.contract.weights import Unusable, shown

_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
# Fields of a document that say which task of a group it belongs to, by that task's `dataset_name`.
_SUBSETS = ("subject", "subset", "category", "config", "task")


@dataclass(frozen=True)
class Leaf:
    """One task that has documents, by its name; ``changes`` are a group's own to its configuration."""

    name: str
    entry: Any
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        return {**(self.entry.cfg or {}), **self.changes}

    @property
    def evaluated(self) -> str:
        """The split whose documents are evaluated, as lm-evaluation-harness chooses it."""
        return str(self.config.get("test_split") or self.config.get("validation_split") or "")

    @property
    def shots_from(self) -> str:
        """The split that examples of a prompt are taken from; an empty string where the task writes them itself."""
        config = self.config
        own = config.get("fewshot_config") or {}
        if "samples" in own and not own.get("split"):
            return ""
        named = own.get("split") or config.get("fewshot_split")
        return str(named or config.get("training_split") or config.get("validation_split") or config.get("test_split"))

    def shots(self, asked: int | None) -> int:
        """Return how many examples a prompt has; a task that sets none itself takes none, whatever is asked for."""
        own = self.config.get("num_fewshot")
        return int(own or 0) if asked is None or own == 0 else asked


def leaves(index: dict[str, Any], name: str, changes: dict[str, Any] | None = None) -> Iterator[Leaf]:
    """Yield the tasks that a name stands for, which may be that of a group, or a tag that tasks have."""
    entry, changes = index[name], changes or {}
    kind = entry.kind.name
    if kind == "TAG":
        for one in sorted(entry.tags):
            yield from leaves(index, one, changes)
    elif kind == "GROUP":
        yield from _members(index, entry.cfg.get("task") or [], changes)
    else:
        yield Leaf(name, entry, changes)


def _members(index: dict[str, Any], members: list[Any], changes: dict[str, Any]) -> Iterator[Leaf]:
    for member in members:
        if isinstance(member, str):
            yield from leaves(index, member, changes)
            continue
        inner = {**changes, **{key: value for key, value in member.items() if key not in ("task", "group")}}
        name = member.get("group") or member["task"]
        if isinstance(name, str) and name in index:
            yield from leaves(index, name, inner)
        elif isinstance(member.get("task"), list):
            yield from _members(index, member["task"], changes)


class Local:
    """Writes what has lm-evaluation-harness read a folder's documents instead of those of the hub.

    A task's documents are in ``TASK.SPLIT.jsonl``, SPLIT being lm-evaluation-harness's own name of it; those of the
    split that is evaluated may also be in ``TASK.jsonl``. The examples of a prompt come from the file of their own
    split: never from the documents that are evaluated, unless the task itself takes them from there, when
    lm-evaluation-harness leaves out the document in question. A group's documents may be in one file, each naming its
    task's subset.
    """

    def __init__(self, index: dict[str, Any], data: Path, folder: Path, num_fewshot: int | None) -> None:
        self._index = index
        self._data = data
        self._folder = folder
        self._num_fewshot = num_fewshot
        self.entries: dict[str, Any] = {}

    def specification(self, name: str) -> list[str]:
        """Return what lm-evaluation-harness is to load in place of a name: files of a task each, or a group's name.

        A group is then found in ``entries``. Raises Unusable naming the file that is missing.
        """
        found = list(leaves(self._index, name))
        if len(found) == 1 and found[0].name == name:
            return [self._written(found[0], self._files(found[0]))]
        whole = self._by_subset(name, found)
        here = [leaf for leaf in found if leaf.name in whole or self._has_own(leaf)]
        if not here:
            raise Unusable(
                f"task {name} stands for {len(found)} tasks ({shown((leaf.name for leaf in found), 3)}), and "
                f"{self._data} has documents of none: put them into TASK.jsonl each, or all into {name}.jsonl with the "
                f"`dataset_name` of their task as `subject`; the folder has {self._there()}"
            )
        members = [(leaf, self._files(leaf, whole.get(leaf.name, {}))) for leaf in here]
        entry = self._index[name]
        if entry.kind.name == "TAG":
            return [self._written(leaf, files) for leaf, files in members]
        told = {key: entry.cfg[key] for key in ("aggregate_metric_list", "group_alias", "metadata") if key in entry.cfg}
        tasks = [{"task": leaf.name, **leaf.changes, **_over(files)} for leaf, files in members]
        written = self._write(name, {"group": name, "task": tasks, **told})
        self.entries[name] = replace(entry, yaml_path=Path(written), cfg=None)
        return [name]

    def _has_own(self, leaf: Leaf) -> bool:
        names = (f"{leaf.name}.jsonl", f"{leaf.name}.{leaf.evaluated}.jsonl")
        return any((self._data / name).is_file() for name in names)

    def _files(self, leaf: Leaf, given: dict[str, Path] | None = None) -> dict[str, Path]:
        """Return the file of each of a task's splits. Raises Unusable for one that is needed and not there."""
        if leaf.entry.kind.name == "PY_TASK" or not leaf.evaluated:
            raise Unusable(
                f"task {leaf.name} is code that fetches its own documents: it cannot be given others by --data"
            )
        files = dict(given or {})
        splits = {str(leaf.config[split]) for split in _SPLITS if leaf.config.get(split)}
        for split in splits | ({leaf.shots_from} if leaf.shots_from else set()):
            path = self._data / f"{leaf.name}.{split}.jsonl"
            if split not in files and path.is_file():
                files[split] = path
        single = self._data / f"{leaf.name}.jsonl"
        if leaf.evaluated not in files and single.is_file():
            files[leaf.evaluated] = single
        if leaf.evaluated not in files:
            raise Unusable(
                f"task {leaf.name}: {single} is not there; the folder has {self._there()} (the documents may also be "
                f"in {leaf.name}.{leaf.evaluated}.jsonl)"
            )
        shots = leaf.shots(self._num_fewshot)
        if shots and leaf.shots_from and leaf.shots_from not in files:
            raise Unusable(
                f"task {leaf.name} shows {shots} solved examples of its split {leaf.shots_from}: put them into "
                f"{leaf.name}.{leaf.shots_from}.jsonl in {self._data}, since those of {files[leaf.evaluated].name} are "
                "what is asked; or ask without examples (--num-fewshot 0), where the task allows it"
            )
        # A split that nothing is taken from must be there nevertheless.
        return {split: files.get(split, files[leaf.evaluated]) for split in splits | {leaf.evaluated} | set(files)}

    def _written(self, leaf: Leaf, files: dict[str, Path]) -> str:
        """Write a task file that includes the task's own and reads local documents; return its path."""
        table = {"include": str(leaf.entry.yaml_path), "task": leaf.name, **leaf.changes, **_over(files)}
        return self._write(leaf.name, table)

    def _write(self, name: str, table: dict[str, Any]) -> str:
        written = self._folder / f"{name}.yaml"
        written.write_text(yaml.safe_dump(table), encoding="utf-8")
        return str(written)

    def _by_subset(self, group: str, found: list[Leaf]) -> dict[str, dict[str, Path]]:
        """Cut a group's own files, ``GROUP.jsonl`` and ``GROUP.SPLIT.jsonl``, into those of its tasks."""
        files: dict[str, dict[str, Path]] = {}
        of = {str(leaf.config.get("dataset_name")): leaf for leaf in found}
        for path in sorted(self._data.glob(f"{group}.*")):
            parts = path.name.removeprefix(f"{group}.").split(".")
            if path.suffix != ".jsonl" or len(parts) > 2:
                continue
            lines: dict[str, list[str]] = {}
            for line in filter(str.strip, path.read_text(encoding="utf-8").splitlines()):
                document = json.loads(line)
                subset = next((str(document[key]) for key in _SUBSETS if str(document.get(key)) in of), None)
                if subset is None:
                    raise Unusable(f"{path} has a document that names no task of {group} as its `subject`: {line[:80]}")
                lines.setdefault(subset, []).append(line)
            for subset, documents in lines.items():
                leaf = of[subset]
                split = parts[0] if len(parts) == 2 else leaf.evaluated
                cut = self._folder / f"{leaf.name}.{split}.jsonl"
                cut.write_text("\n".join(documents), encoding="utf-8")
                files.setdefault(leaf.name, {})[split] = cut
        return files

    def _there(self) -> str:
        return shown(sorted(path.stem for path in self._data.glob("*.jsonl"))) or "no .jsonl files"


def _over(files: dict[str, Path]) -> dict[str, Any]:
    """Return what of a task's configuration is another with local files."""
    splits = {split: str(file.resolve()) for split, file in sorted(files.items())}
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": splits}}
