"""Names of signs that hide, turn the direction of writing, look like others, end strings or are half of a character.

Each stands in records, is a folder's, or an argument of a command, a real process that prints to a terminal of some
encoding.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.base.text import visible
from harness.records.run import Run
from harness.records.schema import Failure, Header, Measurement
from tests.faults.campaign import Fault, Scenario
from tests.faults.commands import Command
from tests.faults.names import COMMANDS
from tests.faults.sessions import STUCK, TRACEBACK
from tests.faults.small_session import CELL, DEVICE, measurement

MODEL = "Llama"
SIGNS = {
    "NUL": ("\0", "a\0b", "Llama\0", "\0model.safetensors"),
    "of direction": tuple(
        f"a{it}b" for it in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
    ),
    "hidden": tuple(f"Lla{it}ma" for it in "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u180e\u3164\U000e0041\ufe0f"),
    "alike": (
        "Ll\u0430ma",
        "L\u0406ama",
        "\uff2clama",
        "\u2113lama",
        "Llam\u0251",
        "Llama\u0307",
        "Lla\u0336ma",
        "LIama",
    ),
    "half": ("\ud800", "a\udfff", "\udcff", "m\udc80\udcfe", "Llama\udce9", "\ud83d\ud83d"),
}
# As Python has them of a terminal that is set so; the last of each makes it no UTF-8 all the same.
TERMINALS = {
    "UTF-8": {"LC_ALL": "C.UTF-8"},
    "ASCII": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "Latin-1": {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
}
# Which refuse a name that they do not know, and begin nothing.
ASKED = {
    "table": ("table", "{name}"),
    "report": ("report", "{name}", "-o", "{out}/page.html"),
    "export": ("export", "{name}", "--format", "csv"),
    "why": ("why", "{name}"),
    "cost": ("cost", "{name}"),
    "baseline": ("baseline", "{name}", "{name}", "{name}"),
    "neighbours": ("neighbours", "{name}"),
    "publish": ("publish", "{name}:int8wo", "--repo", "me/it"),
    "gate": ("gate", "torchao=={name}", "torchao=={name}", "-m", "{name}"),
    "gate of a recipe": ("gate", "torchao==0.16.0", "torchao==0.17.0", "-m", "cpu", "--recipe", "{name}"),
    "gate resumed": ("gate", "torchao==0.16.0", "torchao==0.17.0", "-m", "cpu", "--resume", "{name}"),
    "bisect": ("bisect", "{name}", "0.16.0..0.17.0", "--metric", "latency", "-m", "cpu"),
    "bisect of a metric": ("bisect", "torchao", "{name}..0.17.0", "--metric", "{name}", "-m", "{name}"),
    "calibrate": ("calibrate", "-m", "{name}"),
    "choose": ("choose", "{out}", "--recipe", "{name}"),
    "trend": ("trend", "--runs", "{name}"),
    "no command": ("{name}",),
}


def there(name: str, *, folder: bool = False) -> bool:
    """Return whether an argument, or the name of a folder, can be so at all."""
    try:
        return "\0" not in os.fsdecode(os.fsencode(name)) and not (folder and "/" in name)
    except UnicodeEncodeError:
        return False


def _kept(folder: Path, model: str, word: str) -> Run:
    """Return a run of two models, one of them called so, with a failure that says the word."""
    run = Run(folder)
    run.append(Header(run=folder.name, command=["pytest", word], packages={}, device=DEVICE))
    for number, name in enumerate(dict.fromkeys((MODEL, model))):
        cell = CELL.model_copy(update={"model": CELL.model.model_copy(update={"name": name})})
        for value in (1.0, 1.01):
            run.append(measurement(0, value + number).model_copy(update={"cell": cell}))
        run.append(Failure(cell=cell, stage="load", failure="exception", message=word))
    return run


def printed(fault: Fault) -> None:
    """Such a name is one like another or is refused, nothing is lost for it, and no terminal gets its signs."""
    kind = fault.draw.choice(list(SIGNS))
    name, how = fault.draw.choice(SIGNS[kind]), fault.draw.choice(["records", "records", "folder", "argument"])
    terminal = fault.draw.choice(list(TERMINALS))
    runs, out = fault.folder / "runs", fault.folder / "out"
    runs.mkdir()
    out.mkdir()
    if how != "records" and not there(name, folder=how == "folder"):
        how = "records"
    command = fault.draw.choice(list(ASKED if how == "argument" else COMMANDS))
    fault.what = f"a name {kind} ({name!r}) in {how}, {command} on a terminal of {terminal}"
    fault.hit = True
    model = name if how == "records" else MODEL
    folders = [runs / (f"{name}{number}" if how == "folder" else f"run{number}") for number in ("", "-1", "-2")]
    for folder in folders:
        run = _kept(folder, model, name)
        found, problems = run.read()
        due = 2 if model == MODEL else 4
        if problems or sum(isinstance(it, Measurement) for it in found) != due:
            fault.broken("record lost", f"{len(found)} lines are read, {problems}")
        if len({it.cell.model.name for it in found if isinstance(it, Measurement)}) != due / 2:
            fault.broken("silent pass", "two models stand under one name")
    if how == "argument":
        words = [it.format(name=name, out=out) for it in ASKED[command]]
    else:
        words = [it.format(run=folders[0], runs=runs, out=out) for it in COMMANDS[command]]
    called = Command(fault.folder, "-m", "harness", *words, **TERMINALS[terminal])
    status, told = called.end(), called.told
    if TRACEBACK in told:
        fault.broken("traceback", told[told.index(TRACEBACK) :][-500:])
    if status == STUCK:
        fault.broken("other", f"it did not end by itself: {told[-300:]}")
    elif status not in (0, 1, 2, 3, 4):
        fault.broken("other", f"it ended with {status}: {told[-300:]}")
    elif status == 2 and not told.strip():
        fault.broken("other", "it was refused without a word")
    # One run is no trend; three of a few values may be no baseline, which they say.
    if how != "argument" and status and command not in ("trend", "baseline", "why", "cost"):
        fault.broken("not complete", f"it ended with {status}: {told[-300:]}")
    if visible(told) != told or (kind == "hidden" and name in told):
        fault.broken("other", f"a terminal was told what a name says: {told[-200:]!r}")


SCENARIOS = [Scenario("names: NUL, signs of direction, hidden, alike and half ones", printed, 16)]
