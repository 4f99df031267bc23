"""Hostile names as real folders and records, homes that cannot be written, and what workers get of the environment."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from harness import __main__
from harness.base.secrets import is_secret
from harness.base.text import visible
from harness.contract.protocol import Job
from harness.matrix.load import load
from harness.records.run import Run
from harness.records.schema import Failure, Header, Measurement
from harness.runtime.environment import Environment
from harness.runtime.job import Worker
from harness.runtime.store import Store
from tests.faults.campaign import Fault, Scenario
from tests.faults.small_session import CELL, DEVICE, interpreter, measurement

REPOSITORY = Path(__file__).resolve().parents[2]
TRACEBACK = "Traceback (most recent call last)"
NAMES = (
    *(
        "-rf",
        "--help",
        "-",
        "$(touch pwned)",
        "`touch pwned`",
        "; touch pwned;",
        "a|touch pwned",
        "a\ntouch pwned\n",
        "&& x",
    ),
    *("=cmd|' /C calc'!A0", "+1+1", "@SUM(A1)", "-2+3", "\t=1", "<script>alert(1)</script>", '"><img src=x onerror=a>'),
    *("../../../evil", "/etc/evil", "..", ".", "a/../../b", "..\\..\\evil", "con", "nul.txt", "~", "~root", "a\0b"),
    *("%s%n%x", "{0.__class__}", "{{7*7}}", "${jndi:x}", "a | b", "| --- |", "[x](javascript:a)", "# title", "***"),
    *(
        "\u202egnp.exe",
        "\u200b",
        "e\u0301",
        "\U0001f600" * 9,
        "a" * 255,
        "b" * 5000,
        " ",
        " x ",
        "a\rb",
        "\x1b[31mred\x1b[0m",
    ),
    *("'", '"', "\\", "a'b\"c", "a,b;c", "名前", "null", "true", "NaN", "1e999", "model.safetensors", "records.jsonl"),
)
COMMANDS = {
    "table": ("table", "{run}", "--layout", "all", "-o", "{out}/table"),
    "csv": ("export", "{run}", "--format", "csv", "-o", "{out}/export.csv"),
    "parquet": ("export", "{run}", "--format", "parquet", "-o", "{out}/export.parquet"),
    "database": ("export", "{run}", "--format", "pytorch-v3", "-o", "{out}/export.json"),
    "page": ("report", "{run}", "-o", "{out}/page.html"),
    "site": ("site", "{out}/site", "--runs", "{runs}"),
    "baseline": ("baseline", "{run}", "{run}-1", "{run}-2", "--results", "{out}/results"),
    "trend": ("trend", "--runs", "{runs}"),
    "why": ("why", "{run}"),
    "cost": ("cost", "{run}"),
}


def _tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@contextlib.contextmanager
def _at(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _called(words: list[str]) -> tuple[int, str]:
    """Return exit status and words of a command, called in this process."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            status = __main__.main(words)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 2
    return status, told.getvalue()


def records(fault: Fault) -> None:
    """Records in which a model, recipe, task, hardware or device has a hostile name, through every command."""
    name, command = fault.draw.choice(NAMES), fault.draw.choice(list(COMMANDS))
    where = fault.draw.choice(["model", "recipe", "task", "hardware", "device", "package", "message"])
    fault.what = f"{command} of a {where} called {name[:40]!r}"
    cell = CELL
    if where == "model":
        cell = CELL.model_copy(update={"model": CELL.model.model_copy(update={"name": name})})
    elif where == "recipe":
        cell = CELL.model_copy(update={"recipe": CELL.recipe.model_copy(update={"name": name})})
    elif where == "hardware":
        cell = CELL.model_copy(update={"hardware": name})
    device = DEVICE.model_copy(update={"name": name}) if where == "device" else DEVICE
    inner, outside = fault.folder / "inner" / "work", fault.folder
    (inner / "runs").mkdir(parents=True)
    (inner / "out").mkdir()
    for number, folder in enumerate(("run", "run-1", "run-2")):
        run = Run(inner / "runs" / folder)
        run.append(Header(run=folder, command=["pytest", name], packages={name: "1"}, device=device))
        parameters = {"task": name} if where == "task" else {"batch_size": 1}
        packages = {name: "1.0"} if where == "package" else {}
        more = {"cell": cell, "device": device, "parameters": parameters, "packages": packages}
        for value in (1.0, 1.01):
            run.append(measurement(0, value + number / 100).model_copy(update=more))
        run.append(Failure(cell=cell, stage="load", failure="exception", message=name))
    before = _tree(outside)
    given = {"run": str(inner / "runs" / "run"), "runs": str(inner / "runs"), "out": str(inner / "out")}
    variables = {"XDG_CACHE_HOME": str(inner / "xdg"), "HOME": str(inner / "home")}
    with _at(inner), mock.patch.dict(os.environ, variables):
        status, told = _called([word.format(**given) for word in COMMANDS[command]])
    fault.hit = True
    if TRACEBACK in told:
        fault.broken("traceback", told[told.index(TRACEBACK) :][-500:])
    if status not in (0, 1, 2):
        fault.broken("other", f"it ended with {status}: {told[-300:]}")
    made = _tree(outside) - before
    allowed = (inner / "out", inner / "xdg", inner / "home")
    if stray := [it for it in made if not any(it == place or place in it.parents for place in allowed)]:
        fault.broken("other", f"it wrote {stray}")
    _harmless(fault, made, name)
    if visible(told) != told:
        fault.broken("other", "it told the terminal what a name says")


def _harmless(fault: Fault, made: set[Path], name: str) -> None:
    """Hold what was written against what browsers and spreadsheets would do with it."""
    for path in made:
        if path.suffix == ".html":
            text = path.read_text(encoding="utf-8")
            if "<script>alert(1)" in text or "<img src=x" in text:
                fault.broken("other", f"{path.name} holds a name as markup")
            if visible(text) != text:
                fault.broken("other", f"{path.name} holds controls of a name")
        if path.suffix == ".csv":
            for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"))):
                cells = [it for it in row if it.startswith(("=", "+", "-", "@", "\t", "\r"))]
                if cells := [it for it in cells if not re.fullmatch(r"-?[\d.e+-]+", it)]:
                    fault.broken("other", f"{path.name} holds a formula: {cells[0][:80]!r}")
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))


def folders(fault: Fault) -> None:
    """A real folder with a hostile name is given as a model, a run, data or a results folder."""
    name = fault.draw.choice(
        [it for it in NAMES if "\0" not in it and len(it.encode()) <= 255 and it not in ("..", ".")]
    )
    parts = [part for part in name.split("/") if part not in ("", "..", ".")]
    folder = fault.folder.joinpath("inner", *parts)
    how = fault.draw.choice(["a model", "a run", "results", "a token's echo"])
    fault.what = f"{how}: a folder called {name[:40]!r}"
    folder.mkdir(parents=True, exist_ok=True)
    matrix = load(REPOSITORY / "suites" / "matrix.toml")
    fault.hit = True
    before = _tree(fault.folder)
    variables = {"XDG_CACHE_HOME": str(fault.folder / "xdg"), "HOME": str(fault.folder / "home")}
    with _at(fault.folder), mock.patch.dict(os.environ, variables):
        if how == "a model":
            found = matrix.model(str(folder))
            if Path(found.folder or "") != folder.resolve() or found.name != folder.resolve().name:
                fault.broken("other", f"{found}")
            return
        if how == "a run":
            run = Run(folder)
            run.append(measurement(0, 1.0))
            status, told = _called(["table", str(folder), "--layout", "all"])
        elif how == "results":
            run = Run(folder / "runs" / "20260101-000000")
            run.append(measurement(0, 1.0))
            status, told = _called(["table", "last", "--layout", "all", "--runs", str(folder / "runs")])
        else:
            status, told = _called(["table", f"hf_{'AbCd1234' * 4}{name}", "--runs", str(folder)])
            if "AbCd1234" in told:
                fault.broken("other", f"a token is shown: {told[-200:]}")
    if TRACEBACK in told:
        fault.broken("traceback", told[told.index(TRACEBACK) :][-500:])
    if status not in (0, 2) or (status == 2 and how in ("a run", "results")):
        fault.broken("not complete", f"it ended with {status}: {told[-300:]}")
    if any("pwned" in it.name and "touch" not in it.name for it in _tree(fault.folder) - before):
        fault.broken("other", "a name was run by a shell")


def home(fault: Fault) -> None:
    """A home folder and the user's cache that are there and can hold nothing: commands do their work all the same."""
    command = fault.draw.choice(list(COMMANDS))
    how = fault.draw.choice(["a file", "a file", "a dangling link", "no such device"])
    fault.what = f"{command} with a home that is {how}"
    for folder in ("run", "run-1", "run-2"):
        run = Run(fault.folder / "runs" / folder)
        run.append(Header(run=folder, command=["pytest"], packages={}, device=DEVICE))
        run.append(measurement(0, 1.0))
    (fault.folder / "out").mkdir()
    place = fault.folder / "home"
    if how == "a file":
        place.write_text("")
    elif how == "a dangling link":
        place.symlink_to("/nowhere/at/all")
    else:
        place = Path("/proc/self/nothing")
    given = {"run": str(fault.folder / "runs" / "run"), "runs": str(fault.folder / "runs")}
    given["out"] = str(fault.folder / "out")
    with _at(fault.folder), mock.patch.dict(os.environ, {"HOME": str(place), "XDG_CACHE_HOME": str(place / ".cache")}):
        status, told = _called([word.format(**given) for word in COMMANDS[command]])
    fault.hit = True
    if TRACEBACK in told:
        fault.broken("traceback", told[told.index(TRACEBACK) :][-500:])
    # One run says nothing of a trend, and three of one value are no baseline's fault.
    if status != 0 and command not in ("trend", "baseline", "why", "cost"):
        fault.broken("not complete", f"it ended with {status}: {told[-300:]}")
    if [it for it in Run(fault.folder / "runs" / "run").lines() if isinstance(it, Measurement)] == []:
        fault.broken("record lost", "the records are gone")


SECRETS = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "OPENAI_API_KEY", "VLLM_API_KEY", "CUDA_TOKEN", "TORCH_PASSWORD")
KEPT = ("HF_HUB_CACHE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "VLLM_LOGGING_LEVEL", "TORCH_LOGS", "NCCL_DEBUG")
STRANGE = ("KUBECONFIG", "SSH_AUTH_SOCK", "MY_SETTING", "DATABASE_URL", "AWS_PROFILE", "GPG_AGENT_INFO", "BASH_FUNC_x")


def environment(fault: Fault) -> None:
    """An environment full of credentials and of what is nobody's business: a worker gets neither, and the rest."""
    names = fault.draw.sample(SECRETS, 3) + fault.draw.sample(STRANGE, 3) + fault.draw.sample(KEPT, 3)
    value = "".join(fault.draw.choice("AbCd1234") for _ in range(24))
    fault.what = f"{', '.join(names)} in the environment"
    given = {name: f"{name}-{value}" for name in names}
    with mock.patch.dict(os.environ, given):
        found = Worker(
            Job(backend="small", specification={}),
            environment=Environment(python=interpreter(fault.folder / "bin")),
            store=Store(fault.folder / "cache"),
            log=fault.folder / "worker.log",
            label="small",
        )
        try:
            found.wait_ready(60)
            there = found.ask("environ", 30)["environ"]
        finally:
            found.close()
    fault.hit = True
    if leaked := sorted(name for name in there if is_secret(name) or name in STRANGE or name in SECRETS):
        fault.broken("other", f"a worker got {leaked}")
    if lost := [name for name in names if name in KEPT and there.get(name) != given[name]]:
        fault.broken("other", f"a worker did not get {lost}")


SCENARIOS = [
    Scenario("names: hostile ones in records, through every command", records, 24),
    Scenario("names: hostile ones of real folders", folders, 16),
    Scenario("home: one that cannot be written", home, 8),
    Scenario("environment: credentials in it", environment, 2),
]
