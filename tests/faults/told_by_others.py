"""What a gate, a search, an upload and an export are told by others: hostile names, and servers that fail or lie."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from harness.base.text import visible
from tests.faults import package_index
from tests.faults.campaign import Fault
from tests.faults.commands import HUB, Command
from tests.faults.names import NAMES
from tests.faults.promises import TIMEOUT, afterwards, told
from tests.faults.sessions import TRACEBACK
from tests.faults.tasks import Task
from tests.hub_server import Fault as HubFault

# ---------------------------------------------------------------------------------------------------------------- names


def hostile(fault: Fault, task: Task) -> None:
    """A model, recipe, task, repository, run or file is called what shells, terminals, pages and paths take as theirs.

    It is refused by its name, or is a name like another.
    """
    name = fault.draw.choice([it for it in NAMES if "\0" not in it and len(it.encode()) <= 255])
    if task.name == "export":
        which = "a checkpoint" if task.real else "a run and a file"
        words = _named_export(fault, task, name)
    elif task.name == "publish":
        which = fault.draw.choice(["--repo", "--base-model", "--license", "--records", "a checkpoint"])
        words = task.words(False)
        if which == "a checkpoint":
            words[words.index("Tiny:int8wo")] = f"{name}:int8wo" if fault.draw.random() < 0.5 else name
        else:
            words += [f"{which}={name}"]
    else:
        which = fault.draw.choice(["--model", "--recipe", "--task", "-k", "--margin", "--set", "--workload", "--data"])
        words = [*task.words(False), f"{which}{'' if which == '-k' else '='}{name}"]
    fault.what, fault.hit = f"{task.name}: {which} called {name[:40]!r}", True
    before = set(fault.folder.rglob("*"))
    first = Command(task.folder, *words, cwd=task.cwd, **task.variables)
    task.started.append(first)
    status = first.end(TIMEOUT)
    if TRACEBACK in first.told:
        fault.broken("traceback", first.told[first.told.index(TRACEBACK) :][-500:])
    # 1 is a gate's and a search's word for a regression, 0 and 2 are everybody's.
    if status not in (0, 1, 2) or (status == 1 and task.name in ("publish", "export")):
        fault.broken("other", f"it ended with {status}: {first.told[-300:]}")
    if status == 2 and not first.told.strip():
        fault.broken("other", "it was refused without a word")
    if visible(first.told) != first.told:
        fault.broken("other", f"a terminal was told what a name says: {first.told[-200:]!r}")
    if stray := [it for it in set(fault.folder.rglob("*")) - before if it.name == "pwned" or "evil" in it.parts]:
        fault.broken("other", f"it made {stray}")
    afterwards(fault, task, task.lines(), resumed=False)


def _named_export(fault: Fault, task: Task, name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", "..", ".")] or ["x"]
    words = task.words(False)
    place = fault.folder.joinpath("named", *parts)
    if task.real:
        # A checkpoint whose folder is called so.
        shutil.copytree(words[-1], place)
        return [*words[:-1], str(place)]
    (run,) = task.disks["results"].iterdir()
    shutil.copytree(run, place)
    words[words.index(str(run))] = str(place)
    out = words.index("-o") + 1
    words[out] = str(Path(words[out]).with_name(parts[-1]))
    return words


# -------------------------------------------------------------------------------------------------------------- servers

HUB_FAULTS = ("hangs", "slow", "garbage", "a list", "dead from now on", "half", "500", "cut off")


def server(fault: Fault, task: Task) -> None:
    """The hub, or the package index that it asks, dies, hangs, is slow, or answers wrongly or by half."""
    if task.hub is not None:
        how = fault.draw.choice(HUB_FAULTS)
        method, path = fault.draw.choice(HUB)
        planted = _plant(task, how, method, path)
        before = planted.times
        fault.what = f"{task.name}: a hub that {how} at {method} {path}"
        first = task.start()
        status = first.end(TIMEOUT)
        fault.hit = planted.times < before
        task.hub.faults.clear()
    else:
        assert task.index is not None
        task.index.how = how = fault.draw.choice(package_index.FAULTS[1:])
        task.index.skip = fault.draw.choice([0, 0, 1, 2])
        if how == "half, then right":
            task.index.times = 1
        fault.what = f"{task.name}: a package index that {how} after {task.index.skip} answers"
        # Nothing that was installed is there, or nothing were asked for.
        for made in (task.disks["cache"]).glob("overlay/*"):
            if made.is_dir():
                shutil.rmtree(made)
        first = task.start()
        status = first.end(TIMEOUT)
        fault.hit = task.index.struck > 0
        task.index.how = ""
        if how not in ("slow", "half, then right") and task.due(status, first.told):
            fault.hit = False
    told(fault, task, first, status)
    afterwards(fault, task, task.lines())


def _plant(task: Task, how: str, method: str, path: str) -> HubFault:
    assert task.hub is not None
    if how in ("hangs", "slow"):
        seconds = 12 if how == "hangs" else 1.5
        return task.hub.fault(method, path, call=lambda: time.sleep(seconds), lose_answer=how == "hangs")
    more = {
        "garbage": {"status": 200, "body": "\x00\xff<html>"},
        "a list": {"status": 200, "body": "[1]"},
        "dead from now on": {"lose_answer": True, "times": 10**9},
        "half": {"status": 200, "body": '{"files": [{"pa'},
        "500": {"status": 500, "times": 3},
        "cut off": {"cut_after": 1000},
    }[how]
    if how == "cut off":
        method, path = HUB[-1]
    return task.hub.fault(method, path, **more)
