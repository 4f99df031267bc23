"""What becomes of a device's runs as records: two phones of one model, another runner, one that throttles."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import HarnessError
from harness.devices import Devices, Host, Qemu
from harness.machine import probe
from harness.matrix.plan import Cell, Matrix
from harness.measure.mobile import MeasureMobile
from harness.measure.plain import Checkpoint
from harness.measure.recorder import Recorder
from harness.records.run import Run
from harness.records.schema import Measurement, ModelIdentity
from harness.runtime.environment import Environment
from harness.runtime.store import Artifact, Store
from tests import needs
from tests.devices.adb_server import AdbServer
from tests.measure.test_measure import StubFlow

pytestmark = needs.program("adb")

READING = {
    "load_seconds": 0.5,
    "peak_bytes": 200_000_000,
    "prompt_tokens": 64,
    "new_tokens": 32,
    "threads": 2,
    "warmup": 1,
    "prefill_seconds": [0.2, 0.1, 0.1],
    "decode_seconds": [2.0, 1.0, 1.0],
}
AGREEMENT = {"nll": [1.0], "eager_nll": [1.0], "kl": [0.01], "top1": [0.95]}


class StubMobileFlow(StubFlow):
    """A flow whose program, text and worker are given: what is under test is the device's part."""

    def __init__(self, folder: Path) -> None:
        super().__init__(1.0)
        self.kept = Store(folder / "store")
        self.folder = folder
        (folder / "model.pte").write_bytes(b"a program")
        (folder / "text.txt").write_text("a text", encoding="utf-8")

    def program(self, cell: Cell, route: str) -> Artifact:
        facts = {"context": 256, "file": "model.pte"}
        return Artifact(self.folder, f"program/{cell.recipe.name}", made=False, facts=facts)

    def prompts(self) -> Artifact:
        return Artifact(self.folder, "sharegpt/0", made=False)

    def of(self, cell: Cell) -> Checkpoint:
        identity = ModelIdentity(name=cell.model.name, source="folder", revision="1", weights="pretrained")
        return Checkpoint(self.folder, "checkpoint/0", identity, {})

    def evaluated(self, cell: Cell, what: str, key: dict[str, Any], ask: Callable[[], dict[str, Any]]) -> Artifact:
        return self.kept.get("evaluation", key, lambda _: ask(), label=what)

    def prompt(self, cell: Cell, route: str, tokens: int, ask: Callable[[], dict[str, Any]]) -> Artifact:
        return self.kept.get("prompt", {"tokens": tokens}, lambda _: ask(), label="prompt")

    def executorch(self, cell: Cell, route: str) -> StubMobileFlow:
        return self

    def ask(self, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        if command == "windows":
            return {"windows": [[1] * arguments["window_tokens"]] * arguments["windows"]}
        if command == "tasks":
            metrics: dict[str, Any] = {"metrics": {"acc": 0.5}, "stderr": {}, "truncated": 1}
            return {"arc_easy": metrics | {"documents": [{"acc": 1.0}, {"acc": 0.0}]}}
        return {"windows": AGREEMENT, "largest_difference": 0.1}


@pytest.fixture
def quantized_cell(suites_matrix: Matrix) -> Cell:
    found = next(one for one in suites_matrix.cells() if one.hardware.name == "arm-mobile" and not one.recipe.baseline)
    return replace(found, server="executorch")


@pytest.fixture
def bench(tmp_path: Path, phone: AdbServer) -> Bench:
    return Bench(tmp_path, phone)


class Bench:
    """Phones that run a script, and a run that their figures are recorded in."""

    def __init__(self, folder: Path, phone: AdbServer) -> None:
        self.folder = folder
        self.phone = phone
        self.runner = folder / "runner"
        self.tells(READING)
        self.flow = StubMobileFlow(folder)
        self.run = Run(folder / "runs" / "one")
        self.session()

    def session(self) -> None:
        """Begin a session, which goes on with the run as --resume does."""
        recorder = Recorder(self.flow, self.run)  # type: ignore[arg-type]
        if self.run.path.exists():
            recorder.resume()
        self.mobile = MeasureMobile(recorder)
        self.device = Devices(self.flow.kept, Environment(), self.runner)

    def tells(self, reading: dict[str, Any], besides: str = "") -> None:
        """Have another runner, which says this; it leaves logits where it is asked for any."""
        text = f"#!/bin/sh\n{besides}\necho logits > logits.bin\necho '{json.dumps(reading)}'\n"
        self.runner.write_text(text, encoding="utf-8")
        self.runner.chmod(0o755)

    @property
    def runs(self) -> int:
        """How often a program was run on any phone."""
        return sum("--program" in command for command in self.phone.commands)

    def records(self) -> list[Measurement]:
        return [line for line in self.run.lines() if isinstance(line, Measurement)]


@pytest.mark.programs
def test_two_phones_of_one_model_are_both_measured(bench: Bench, quantized_cell: Cell) -> None:
    bench.phone.serials.append("emulated-2")
    for number, serial in enumerate(bench.phone.serials, start=1):
        device = bench.device(f"adb:{serial}")
        found = bench.mobile.on_device(quantized_cell, "transformers", device)
        assert bench.runs == 2 * number - 1
        agreed = bench.mobile.agreement(quantized_cell, "transformers", device)
        assert bench.runs == 2 * number
        assert found["decode_throughput"].statistics["threads"] == 2
        for record in (*found.values(), *agreed.values()):
            assert record.device.name == f"Stand-in Phone ({serial})"
            assert record.parameters["runner"] == "adb"
            assert record.state_before["battery_percent"] == record.state_after["battery_percent"] == 77
            assert "load_1min" not in record.state_before, "the phone's state, not this machine's"
    bench.session()
    for serial in bench.phone.serials:
        bench.mobile.on_device(quantized_cell, "transformers", bench.device(f"adb:{serial}"))
        bench.mobile.agreement(quantized_cell, "transformers", bench.device(f"adb:{serial}"))
    assert bench.runs == 4, "each phone's records stand for it"


@pytest.mark.programs
def test_another_runner_is_another_measurement(bench: Bench, quantized_cell: Cell) -> None:
    """Neither a resumed run's records nor the cache answer for a binary that did not run."""
    device = bench.device("adb:emulated-1")
    bench.mobile.on_device(quantized_cell, "transformers", device)
    bench.mobile.agreement(quantized_cell, "transformers", device)
    bench.tells(READING, besides="# built anew")
    bench.session()
    device = bench.device("adb:emulated-1")
    bench.mobile.on_device(quantized_cell, "transformers", device)
    bench.mobile.agreement(quantized_cell, "transformers", device)
    assert bench.runs == 4
    assert len({record.flags["inputs"] for record in bench.records()}) == 4


def test_a_phone_that_throttles(bench: Bench, quantized_cell: Cell) -> None:
    """All times of the run are kept as discarded, the memory stands, and what is measured then is its own."""
    bench.phone.answers["dumpsys thermalservice"] = "Thermal Status: 3\n"
    device = bench.device("adb:emulated-1")
    with pytest.raises(HarnessError, match=r"throttled: thermal status 3 of the phone; .*Let it cool, then --resume"):
        bench.mobile.on_device(quantized_cell, "transformers", device)
    discarded = {record.metric: record.discarded for record in bench.records()}
    times = ("load_time", "prefill_throughput", "decode_throughput", "generate_throughput")
    assert discarded == {"peak_memory": "", **dict.fromkeys(times, "throttled: thermal status 3 of the phone")}
    bench.phone.answers["dumpsys thermalservice"] = "Thermal Status: 0\n"
    bench.session()
    found = bench.mobile.on_device(quantized_cell, "transformers", bench.device("adb:emulated-1"))
    assert bench.runs == 2
    assert found["load_time"].value == 0.5
    assert not any(record.discarded for record in found.values())


def test_a_runner_that_tells_no_load_time_has_none(bench: Bench, quantized_cell: Cell) -> None:
    bench.tells({name: value for name, value in READING.items() if name not in ("load_seconds", "peak_bytes")})
    found = bench.mobile.on_device(quantized_cell, "transformers", bench.device("adb:emulated-1"))
    assert {*found} == {"prefill_throughput", "decode_throughput", "generate_throughput"}


def test_documents_that_were_cut_are_counted(bench: Bench, quantized_cell: Cell) -> None:
    for through in ("program", "eager"):
        found = bench.mobile.task(quantized_cell, "arc_easy", through)["acc"]
        assert found.statistics == {"truncated": 1.0}
        assert found.samples == [1.0, 0.0]


def test_whose_state_is_recorded(tmp_path: Path) -> None:
    """This machine's for what runs here, none for what is emulated."""
    store = Store(tmp_path)
    assert Host(store, Environment()).state().keys() == probe.host_state().keys()
    assert Qemu(store, Environment()).state() == {}
