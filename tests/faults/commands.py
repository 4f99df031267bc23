"""Faults of commands: a gate, exports, pages, baselines and publishing, killed, out of disk or refused by the hub."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from harness.base.errors import HarnessError
from harness.judge import gatefile
from harness.records.run import Run, read
from harness.records.schema import Header
from harness.runtime.store import MANIFEST, Store
from tests.faults.campaign import Fault, Scenario
from tests.faults.damage import spoil
from tests.faults.sessions import REPOSITORY, STUCK, TRACEBACK, ended
from tests.hub_server import TOKEN, Hub, Repository, serving
from tests.publish import test_publish as publishing

# What a gate of small_gate comes to, however often it was interrupted.
VERDICTS = re.compile(r"^verdicts (\d) (.*)$", re.MULTILINE)


class Command:
    """A process with its output."""

    def __init__(
        self,
        folder: Path,
        *words: str,
        file_limit: int = 0,
        memory: int = 0,
        cwd: Path | None = None,
        streams: Mapping[str, IO[bytes]] | None = None,
        **variables: str,
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.output = folder / f"output-{self.mark}"
        environ = {name: it for name, it in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
        environ |= {"PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(folder / "xdg")}
        # A temporary folder of its own: whatever else measures on this machine holds nothing up. The mark is handed on
        # to workers by its name.
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        environ |= {"TMPDIR": str(folder / "tmp"), "HARNESS_FAULT": self.mark, **variables}

        def limit() -> None:
            if file_limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
            if memory:
                resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

        with self.output.open("wb") as output:
            # Both into one file, but for those that are to go elsewhere.
            to: dict[str, Any] = {"stdout": output, "stderr": output, **(streams or {})}
            self.process = subprocess.Popen(
                [sys.executable, *words], env=environ, cwd=cwd or folder, preexec_fn=limit, **to
            )

    @property
    def told(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def end(self, timeout: float = 120) -> int:
        return ended(self.process, timeout)

    def strike(self, number: int) -> bool:
        """Send a signal; False if it had ended."""
        there = self.process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return there


def told(fault: Fault, command: Command, status: int) -> None:
    if TRACEBACK in command.told:
        fault.broken("traceback", command.told[command.told.index(TRACEBACK) :][-400:])
    if status == STUCK:
        fault.broken("other", f"it did not end by itself: {command.told[-300:]}")


# ----------------------------------------------------------------------------------------------------------------- gate


def gate(fault: Fault) -> None:
    """A gate is killed or interrupted, its disk fills, or its gate.json is torn; it goes on, and says what it would."""
    how = fault.draw.choice(["SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "disk"])
    after, delay = fault.draw.randrange(6), fault.draw.random() * 0.08
    fault.what = f"a gate: {how} after {after} blocks"
    limit = fault.draw.randrange(2000, 30_000) if how == "disk" else 0
    words = ("-m", "tests.faults.small_gate", str(fault.folder))
    first = Command(fault.folder, *words, file_limit=limit)
    if how != "disk":
        deadline = time.monotonic() + 60
        while (
            (first.told.count("block ") < after or "started" not in first.told)
            and first.process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.005)
        time.sleep(delay)
        fault.hit = first.strike(getattr(signal, how))
    status = first.end()
    if how == "disk":
        fault.hit = status != 1
    told(fault, first, status)
    if fault.hit and status in (0, 1) and how != "SIGINT" and "verdicts" not in first.told:
        fault.broken("silent pass", f"it ended with {status}: {first.told[-300:]}")
    path = fault.folder / "run" / "gate.json"
    before = set(_lines(fault.folder))
    if path.exists():
        try:
            gatefile.load(path)
        except HarnessError as error:
            fault.broken("record lost", str(error))
    again = Command(fault.folder, *words, "--resume")
    status = again.end()
    told(fault, again, status)
    found = VERDICTS.search(again.told)
    if status != 1 or not found or "generate_throughput=regressed" not in found[2]:
        fault.broken("not complete", f"--resume ended with {status}: {again.told[-300:]}")
    if not before <= set(_lines(fault.folder)):
        fault.broken("record lost", "lines of the gate's records are gone")


def _lines(folder: Path) -> list[bytes]:
    path = folder / "run" / "records.jsonl"
    return [it for it in path.read_bytes().split(b"\n")[:-1] if it] if path.exists() else []


_INTERRUPTED = [128 + it for it in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
# What many gates come to, however often they were interrupted; a search has none to go on with and begins anew.
MANY = {"calibrate": (0, "calibration: "), "bisect": (1, "first bad release: 1.3 (last good: 1.2)")}


def many_gates(fault: Fault) -> None:
    """A calibration or a search is killed, interrupted, out of disk, or its state damaged; it comes to its end."""
    which = fault.draw.choice(list(MANY))
    # A search keeps no state that could be damaged.
    state = ["damaged state"] if which == "calibrate" else []
    how = fault.draw.choice(["SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "disk", *state])
    after, delay = fault.draw.randrange(4), fault.draw.random() * 0.4
    fault.what = f"{which}: {how} after {after} gates"
    words = ("-m", "tests.faults.small_gates", str(fault.folder), which)
    first = Command(fault.folder, *words, file_limit=fault.draw.randrange(2000, 20_000) if how == "disk" else 0)
    if how != "disk":
        deadline = time.monotonic() + 60
        while (
            ("started" not in first.told or first.told.count("gate 2") < after)
            and first.process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.005)
        time.sleep(delay)
        fault.hit = first.strike(signal.SIGKILL if how == "damaged state" else getattr(signal, how))
    status = first.end()
    due, said = MANY[which]
    if how == "disk":
        fault.hit = status != due
    told(fault, first, status)
    if fault.hit and status == due and said not in first.told:
        fault.broken("silent pass", f"it ended with {status}: {first.told[-300:]}")
    # Before its first gate there is nothing to go on with.
    if fault.hit and status in _INTERRUPTED and "\ngate 2" in first.told and "same command" not in first.told:
        fault.broken("other", f"it does not say how to go on: {first.told[-300:]}")
    state = fault.folder / "results" / "calibration" / "cpu.unfinished.json"
    gates = fault.folder / "results" / "gates"
    before = {path: path.read_bytes() for path in gates.glob("*/records.jsonl")}
    for path in gates.glob("*/gate.json"):
        try:
            gatefile.load(path)
        except HarnessError as error:
            fault.broken("record lost", str(error))
    resumed = which == "calibrate" and state.exists()
    if how == "damaged state":
        fault.hit = resumed
        if resumed:
            fault.what += f", {spoil(fault.draw, state)}"
            damaged = Command(fault.folder, *words, "--resume")
            status = damaged.end()
            told(fault, damaged, status)
            # What is damaged may be what it was, or be refused by its name: then the calibration begins anew.
            resumed = status == due
            if status == 2 and state.name not in damaged.told:
                fault.broken("other", f"it does not name the file: {damaged.told[-300:]}")
            if resumed:
                before = {}
    again = Command(fault.folder, *words, *(["--resume"] if resumed and how != "damaged state" else []))
    status = again.end()
    told(fault, again, status)
    if status != due or said not in again.told:
        fault.broken("not complete", f"it ended with {status} afterwards: {again.told[-300:]}")
    for path, data in before.items():
        if not path.read_bytes().startswith(data[: data.rfind(b"\n") + 1]):
            fault.broken("record lost", f"records of {path.parent.name} are others")


# -------------------------------------------------------------------------------------------------------------- exports

EXPORTS = {
    "table": ("table", "{run}", "--layout", "all", "-o", "{out}"),
    "csv": ("export", "{run}", "--format", "csv", "-o", "{out}"),
    "parquet": ("export", "{run}", "--format", "parquet", "-o", "{out}"),
    "database": ("export", "{run}", "--format", "pytorch-v3", "-o", "{out}"),
    "page": ("report", "{run}", "-o", "{out}"),
    "site": ("site", "{site}", "--runs", "{runs}"),
    "baseline": ("baseline", "{run}", "{run}", "{run}", "--results", "{site}"),
}


def prepared(folder: Path, quantized: Path | None = None) -> tuple[Store, Run]:
    """Return a cache with a quantized checkpoint, that of a folder if one is given, and a run with its records."""
    store = Store(folder / "cache")

    def copied(place: Path) -> dict[str, Any]:
        for path in quantized.iterdir() if quantized else ():
            if path.name != MANIFEST:
                shutil.copyfile(path, place / path.name)
        return {"checkpoint_bytes": (place / "model.safetensors").stat().st_size}

    build = copied if quantized else publishing.fill
    made = store.get("checkpoint", publishing.key(), build, label="checkpoint")
    run = Run(folder / "runs" / "20260101-000000")
    run.append(Header(run=run.name, command=["pytest"], packages=publishing.PACKAGES, device=publishing.DEVICE))
    size = float(made.facts["checkpoint_bytes"])
    for recipe, scale in ((publishing.BASE, 2.0), (publishing.RECIPE, 1.0)):
        of = publishing.cell(recipe)
        run.append(publishing.measured("checkpoint_size", size * scale, of))
        run.append(publishing.measured("peak_memory", 4 * scale, of, parameters={"max_new_tokens": 128}))
        run.append(publishing.measured("perplexity", 10 + 1 / scale, of, parameters={"text": "ShareGPT answers"}))
    return store, run


def export(fault: Fault) -> None:
    """An export is killed, or the disk takes no more: what stood there before stays, or the new one is whole."""
    name = fault.draw.choice(list(EXPORTS))
    how = fault.draw.choice(["SIGKILL", "SIGTERM", "disk"])
    delay, limit = fault.draw.random() * 1.2, fault.draw.randrange(0, 600)
    fault.what = f"{name}: {how}" + (f" after {delay:.2f} s" if how != "disk" else f" of {limit} bytes")
    _, run = prepared(fault.folder)
    records, out = run.path.read_bytes(), fault.folder / "out"
    out.write_text("as it was")
    given = {
        "run": str(run.folder),
        "runs": str(run.folder.parent),
        "out": str(out),
        "site": str(fault.folder / "site"),
    }
    words = ["-m", "harness", *(word.format(**given) for word in EXPORTS[name])]
    first = Command(fault.folder, *words, file_limit=max(1, limit) if how == "disk" else 0)
    if how != "disk":
        time.sleep(delay)
        fault.hit = first.strike(getattr(signal, how))
    status = first.end()
    if how == "disk":
        fault.hit = status not in (0, STUCK) and name != "baseline"
    told(fault, first, status)
    after = out.read_bytes() if out.is_file() else b""
    again = Command(fault.folder, *words)
    status = again.end()
    told(fault, again, status)
    if status not in (0, 2 if name == "baseline" else 0):
        fault.broken("not complete", f"it ended with {status} afterwards: {again.told[-300:]}")
    whole = after in (b"as it was", out.read_bytes()) or (name == "page" and after.rstrip().endswith(b"</html>"))
    if not whole and name not in ("site", "baseline"):
        fault.broken("record lost", f"half an export is there: {after[:40]!r} ... {after[-40:]!r}")
    if run.path.read_bytes() != records or read(run.path)[1]:
        fault.broken("record lost", "the records are others")


# -------------------------------------------------------------------------------------------------------------- publish


# What publishing asks of a hub; the last is sent what it stores.
HUB = (
    *(("POST", "repos/create"), ("POST", "validate-yaml"), ("POST", "/preupload/"), ("POST", "objects/batch")),
    *(("POST", "/commit/"), ("PUT", "^/storage/")),
)


def publish(fault: Fault) -> None:
    """Publishing is killed, or the hub refuses, loses, cuts off or forgets: the same command again puts it right."""
    how = fault.draw.choice(["killed", "status", "status", "cut off", "answer lost"])
    delay = fault.draw.uniform(0.5, 4)
    store, run = prepared(fault.folder)
    with serving(Hub(fault.folder / "hub", part=1 << 17)) as hub:
        hub.repositories["them/Tiny"] = Repository(private=False)
        method, path = HUB[-1] if how == "cut off" else fault.draw.choice(HUB)
        more: dict[str, Any] = {}
        if how == "status":
            more = {"status": fault.draw.choice([400, 401, 403, 404, 409, 412, 429, 500, 502, 503])}
            more["headers"] = {"Retry-After": "0"} if more["status"] == 429 else {}
        elif how == "cut off":
            more = {"cut_after": fault.draw.randrange(200_000)}
        elif how == "answer lost":
            more = {"lose_answer": True}
        planted = hub.fault(method, path, **more) if more else None
        fault.what = f"publish: {how} {more or f'after {delay:.1f} s'}" + (f" of {method} {path}" if more else "")
        words = ("-m", "harness", "publish", "Tiny:int8wo", "--repo", publishing.REPOSITORY, "--cache", str(store.root))
        words += ("--runs", str(run.folder.parent))
        variables = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        variables["HF_HOME"] = str(fault.folder / "home")
        first = Command(fault.folder, *words, **variables)
        if planted is None:
            time.sleep(delay)
            fault.hit = first.strike(signal.SIGKILL)
        status = first.end()
        if planted is not None:
            fault.hit = planted.times < 1
        told(fault, first, status)
        if TOKEN in first.told:
            fault.broken("other", "the token is shown")
        hub.faults.clear()
        again = Command(fault.folder, *words, **variables)
        status = again.end()
        told(fault, again, status)
        sent = hub.repositories.get(publishing.REPOSITORY)
        if status != 0 or sent is None or not {"model.safetensors", "README.md"} <= set(sent.files):
            fault.broken("not complete", f"it ended with {status} afterwards: {again.told[-300:]}")
        elif hub.content(publishing.REPOSITORY, "model.safetensors") != _weights(store):
            fault.broken("silent pass", "other weights than the checkpoint's were published")


def _weights(store: Store) -> bytes:
    (path,) = store.root.glob("checkpoint/*/model.safetensors")
    return path.read_bytes()


SCENARIOS = [
    Scenario("gate: killed, interrupted, a full disk", gate, 2),
    Scenario("calibrate, bisect: killed, interrupted, a full disk, damaged state", many_gates, 4),
    Scenario("export, page, site, baseline: killed, a full disk", export, 3),
    Scenario("publish: killed, a hub that refuses, cuts off, loses", publish, 2),
]
