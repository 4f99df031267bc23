"""The index of the tasks that are asked for says of them what the index of all tasks says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.contract.task_texts import Texts
from tests.conftest import RunCode

FILES = {
    "plain/plain.yaml": "task: plain\ndataset_path: plain\n",
    "plain/plain_more.yaml": "task: plain_more\ninclude: plain.yaml\n",
    # Found by the text of what it includes alone: task and tag.
    "deep/_base_yaml": 'task: inherited\ntag:\n  - many\n  - "quoted tag"\n',
    "deep/_middle": "include: _base_yaml\nnum_fewshot: 2\n",
    "deep/inherited.yaml": "include: _middle\n",
    "deep/other.yaml": "include: [_middle]\ntask: 'other'\n",
    "deep/third.yaml": "include:\n  - ./_middle\n  - ../plain/plain.yaml\ntask: third\n",
    "groups/group.yaml": "group: whole\ntask:\n  - plain\n  - task: {group: inner, task: [other]}\n  - group: half\n"
    "    task:\n      - task: third\n        num_fewshot: 1\n      - many\n",
    "groups/half.yaml": "group: half\ntask: [plain_more]\n",
    "python/code.yaml": "task: code\nclass: !function code.Task\n",
    # The first of two of one name stands, though only its include tells the name.
    "a/_first": "task: twice\n",
    "a/first.yaml": "include: _first\nnum_fewshot: 7\n",
    "b/second.yaml": "task: twice\n",
    "broken.yaml": "task: [broken\n",
    "missing.yaml": "include: nowhere.yaml\ntask: missing\n",
    "number.yaml": "task: 2024\n",
    "__pycache__/ignored.yaml": "task: plain\n",
}
SAME = """
import json, sys
from pathlib import Path
from lm_eval import tasks
from lm_eval.tasks import _index
from harness.contract.task_texts import Texts
from harness.worker import task_index

root, names = json.loads(sys.argv[1])
root = Path(root or tasks.__file__.rpartition("/")[0])
whole = _index.TaskIndex.build([root])
texts = Texts.read(root, _index._IGNORE_DIRS)
names = names or [name for name, entry in whole.items() if entry.kind.name != "TASK"][::25]
seen = 0
for name in names:
    files = task_index.telling_of([name], texts, _index.TaskIndex)
    if files is None:
        continue
    chosen = staticmethod(lambda root: files)
    usual, _index.TaskIndex._iter_yaml_files = _index.TaskIndex.__dict__["_iter_yaml_files"], chosen
    found = _index.TaskIndex.build([root])
    _index.TaskIndex._iter_yaml_files = usual
    left, done = [name], set()
    while left:
        if (one := left.pop()) not in done:
            done.add(one)
            seen += one in whole
            assert found.get(one) == whole.get(one), (name, one, found.get(one), whole.get(one))
            left += task_index._belonging(whole.get(one))
print(seen)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_what_is_found_by_name_is_what_the_whole_index_has(folder: Path, run_code: RunCode) -> None:
    names = [
        "plain",
        "plain_more",
        "inherited",
        "other",
        "third",
        "many",
        "quoted tag",
        "whole",
        "half",
        "code",
        "twice",
    ]
    names += ["missing", "broken", "nothing"]
    done = run_code(SAME, json.dumps([str(folder), names]))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(names), "with what belongs to groups and tags"


@pytest.mark.slow
@pytest.mark.models
def test_it_is_so_of_the_tasks_of_lm_evaluation_harness(run_code: RunCode) -> None:
    done = run_code(SAME, json.dumps(["", []]))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 500


def test_only_files_that_tell_of_a_name_are_parsed(folder: Path) -> None:
    texts = Texts.read(folder, ["__pycache__"])
    told = {Path(path).relative_to(folder).as_posix() for path in texts.telling_of(["plain"])}
    assert told == {
        "plain/plain.yaml",
        "plain/plain_more.yaml",
        "deep/third.yaml",
        "groups/group.yaml",
    }, "not those of longer names"
    assert texts.telling_of(["lain", "nothing"]) == set()


def test_what_files_name_is_read_from_their_texts(folder: Path) -> None:
    names = Texts.read(folder, ["__pycache__"]).names
    assert {"plain", "plain_more", "inherited", "other", "third", "many", "whole", "half", "code", "twice"} <= names
