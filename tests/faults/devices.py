"""Devices that vanish: a GPU that falls off the bus or loses its driver, a phone whose cable is pulled."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import DeviceLost, DiscardedBlocks, HarnessError, WorkerError
from harness.devices import Adb, DeviceError, Request
from harness.machine import probe, watch
from harness.matrix.load import load
from harness.matrix.plan import Cell
from harness.measure.figures import Figure
from harness.measure.recorder import Recorder
from harness.records.run import Run
from harness.records.schema import Cell as CellIdentity
from harness.records.schema import Measurement, ModelIdentity
from tests.devices.adb_server import AdbServer
from tests.faults.campaign import Fault, Scenario
from tests.machine.drivers import Driver, NVMLError

REPOSITORY = Path(__file__).resolve().parents[2]
UNITS = 4
LOST = {
    "falls off the bus": "GPU is lost",
    "is reset": "GPU requires reset",
    "loses its driver": "Driver Not Loaded",
    "goes from the list": "Not Found",
    "hangs": "Timeout",
}


class Falling(Driver):
    """A driver that after some questions, of whatever kind, answers none any more."""

    def __init__(self, name: str, after: int, words: str) -> None:
        super().__init__(name)
        self.after, self.words, self.questions, self.refused = after, words, 0, 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        # Initialization of a library whose GPU fell off the bus works; that of one without its driver does not.
        if not name.startswith("nvml") or (name == "nvmlInit" and "Driver" not in self.words):
            return found
        self.questions += 1
        if self.questions > self.after:
            self.refused += 1

            def refuse(*_: Any) -> Any:
                raise NVMLError(self.words)

            return refuse
        return found


class Bench:
    """Stands in for a flow whose worker needs the GPU: a block is a few questions long."""

    rule = None
    limits = staticmethod(lambda *_, **__: [])
    settings: tuple[str, ...] = ()

    def __init__(self, driver: Falling) -> None:
        self.driver = driver
        self.checkpoints = self.fleet = self.clock = self
        self.progress = lambda words: None

    @contextlib.contextmanager
    def timed(self, stage: str, cell: Cell | None = None) -> Iterator[None]:
        yield

    def packages(self, cell: Cell) -> dict[str, str]:
        return {}

    def cell_identity(self, cell: Cell) -> CellIdentity:
        model = ModelIdentity(name=cell.model.name, source="folder:x", revision="1", weights="pretrained")
        return CellIdentity(model=model, recipe=cell.recipe.identity, hardware=cell.hardware.name, server=cell.server)

    def work(self, unit: int) -> dict[str, Figure]:
        # As CUDA does once the GPU is gone.
        try:
            self.driver.nvmlDeviceGetMemoryInfo(0)
        except NVMLError as error:
            raise WorkerError("CUDA error: unspecified launch failure", stage="generate", kind="exception") from error
        return {"generate_throughput": Figure(10.0 + unit, [10.0 + unit])}


def _session(run: Run, cell: Cell, driver: Falling) -> str:
    """Measure what the run does not have; return the error that ended it, in words, or an empty text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pynvml", driver)
        patch.setattr(watch.Watch, "INTERVAL", 0.001)
        for cached in (probe.product, probe.device, probe.unfit, watch.strangers):
            cached.cache_clear()
        try:
            if problem := probe.missing(cell.hardware):
                return f"not here: {problem}"
            bench = Bench(driver)
            recorder = Recorder(bench, run)  # type: ignore[arg-type]
            if run.path.exists():
                recorder.resume()
            for unit in range(UNITS):
                parameters = {"max_new_tokens": unit + 1}
                recorder.block(cell, parameters).take(lambda unit=unit: bench.work(unit), names=["generate_throughput"])
        except HarnessError as error:
            return f"{type(error).__name__}: {error}"
        finally:
            for cached in (probe.product, probe.device, probe.unfit, watch.strangers):
                cached.cache_clear()
    return ""


def gpu(fault: Fault) -> None:
    """A GPU cannot be asked any more in the middle of a session: an error that names it, and nothing is lost."""
    how, after = fault.draw.choice(list(LOST)), fault.draw.randrange(4, 70)
    fault.what = f"a GPU that {how} after {after} questions"
    matrix = load(REPOSITORY / "suites" / "matrix.toml")
    cell = next(replace(it, server="transformers") for it in matrix.cells() if it.hardware.name == "h100")
    run = Run(fault.folder / "run")
    driver = Falling("NVIDIA H100 80GB HBM3", after, LOST[how])
    told = _session(run, cell, driver)
    fault.hit = bool(driver.refused)
    before = _measured(run)
    if fault.hit:
        named = any(word in told for word in ("H100", "NVIDIA")) and LOST[how] in told
        if not told and len(before) < UNITS:
            fault.broken("silent pass", f"it ended without a word, with {before}")
        elif told and not named:
            fault.broken("other", f"it does not name the GPU: {told}")
        elif told.startswith((DiscardedBlocks.__name__, WorkerError.__name__)):
            fault.broken("other", f"it blames something else: {told}")
        elif told.startswith(DeviceLost.__name__) and "--resume" not in told:
            fault.broken("other", f"it does not say how to go on: {told}")
    told = _session(run, cell, Falling("NVIDIA H100 80GB HBM3", 10**9, ""))
    after_all = _measured(run)
    if told or after_all.keys() != set(range(1, UNITS + 1)):
        fault.broken("not complete", f"{told}: {after_all}")
    if before.items() - after_all.items():
        fault.broken("record lost", f"{before} of {after_all}")
    if wrong := {unit: it for unit, it in after_all.items() if it != 9.0 + unit}:
        fault.broken("silent pass", f"{wrong}")


def _measured(run: Run) -> dict[int, float]:
    return {
        int(it.parameters["max_new_tokens"]): it.value
        for it in (run.lines() if run.path.exists() else ())
        if isinstance(it, Measurement) and not it.discarded
    }


READING = {"prompt_tokens": 3, "new_tokens": 2, "prefill_seconds": [0.1], "decode_seconds": [0.2], "tokens": [1, 2]}
PLACES = ("chmod", "SEND", "RECV", "STAT", "stat -c", "--prompt", "dumpsys battery", "dumpsys trust", ".pte", "runner-")


def phone(fault: Fault) -> None:
    """A phone's cable is pulled, or its storage fills, at a random step: it is named, and the next run is whole."""
    where = fault.draw.choice([*PLACES, "storage", "refuses"])
    fault.what = f"a phone that is unplugged at {where!r}" if where in PLACES else f"a phone: {where}"
    if not shutil.which("adb"):
        fault.lacks = "there is no adb here"
        return
    (fault.folder / "phone").mkdir()
    program, runner = fault.folder / "p.pte", fault.folder / "runner"
    program.write_bytes(fault.draw.randbytes(5000))
    body = f"#!/bin/sh\nhead -c 40 /dev/zero > {fault.folder}/phone/torchao-harness/logits.bin\n"
    body += f"echo '{json.dumps(READING)}'\n"
    runner.write_text(body, encoding="utf-8")
    runner.chmod(0o755)
    server = AdbServer(fault.folder / "phone")
    request = Request([1, 2, 3], 2, 0, 1, [[1, 2]])
    logits = fault.folder / "logits"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(os.environ, "ANDROID_ADB_SERVER_PORT", str(server.port))
            device = Adb(server.serials[0], runner)
            server.full = where == "storage"
            server.refusal = "device offline" if where == "refuses" else ""
            server.unplug_at = where if where in PLACES else ""
            try:
                device.run(program, request, logits, 60)
                device.device()
                device.state()
            except DeviceError as error:
                fault.hit = True
                if device.name not in str(error):
                    fault.broken("other", f"it does not name the phone: {error}")
                if where != "storage" and "--resume" not in str(error):
                    fault.broken("other", f"it does not say how to go on: {error}")
            else:
                if not server.serials:
                    fault.broken("silent pass", "an unplugged phone gave a result")
            server.full, server.refusal, server.unplug_at, server.serials = False, "", "", ["emulated-1"]
            found = device.run(program, request, logits, 60)
            if found.tokens != [1, 2] or logits.stat().st_size != 40:
                fault.broken("not complete", f"{found}")
    finally:
        server.close()


SCENARIOS = [
    Scenario("device: a GPU that vanishes", gpu, 8),
    Scenario("device: a phone that vanishes, or is full", phone, 4),
]
