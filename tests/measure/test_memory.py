"""Peak memory: of a process of its own, those of all coming tests at once, and each figure of its own recipe."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.errors import HarnessError, WorkerError
from harness.contract import versions
from harness.matrix.hardware import Hardware
from harness.matrix.plan import Cell, Matrix
from harness.measure.checkpoints import Checkpoints
from harness.measure.flow import Flow
from harness.measure.memory import PeakMemory
from harness.measure.plain import Checkpoint
from harness.plugin import collect
from harness.plugin.collect import Claim
from harness.records.run import Run
from harness.records.schema import ModelIdentity
from harness.runtime import parallel
from harness.runtime.environment import Environment
from harness.runtime.store import Store

WEIGHTS = {"bf16": 2.7e8, "int8wo": 1.6e8, "int8dq": 1.5e8}


@dataclass
class Process:
    """Stands in for a worker; two of them answer together, or none."""

    cell: Cell
    told: list[str]
    both: threading.Barrier | None
    fails: int
    start_seconds: float = 2.0
    process: Any = field(default_factory=lambda: SimpleNamespace(end=lambda: None))

    def wait_ready(self, timeout: float) -> None:
        self.told.append(f"start {self.cell.recipe.name}")

    def ask(self, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        tokens = self.cell.measurements.memory.max_new_tokens
        assert (command, arguments) == ("peak_memory", {"max_new_tokens": tokens})
        if self.both:
            self.both.wait()
        if self.fails:
            raise WorkerError("peak_memory: no memory left", stage="peak_memory", kind="out_of_memory")
        return {"peak_bytes": WEIGHTS[self.cell.recipe.name] * 3}

    def close(self) -> None:
        self.told.append(f"end {self.cell.recipe.name}")


class Machine:
    """A fleet and checkpoints of nothing. ``failures`` says how often the process of a recipe fails."""

    def __init__(self, **failures: int) -> None:
        self.told: list[str] = []
        self.ahead: list[str] = []
        self.said: list[str] = []
        self.beside: list[Process] = []
        self.both: threading.Barrier | None = None
        self.failures = failures
        self.unmade: set[str] = set()

    def progress(self, words: str) -> None:
        self.said.append(words)

    def whole_process(self, cell: Cell) -> Process:
        left = self.failures.get(cell.recipe.name, 0)
        self.failures[cell.recipe.name] = max(0, left - 1)
        return Process(cell, self.told, self.both, left)

    def unused(self, cell: Cell) -> Process:
        self.told.append(f"unused {cell.recipe.name}")
        return Process(cell, self.told, None, 0)

    def start_ahead(self, cell: Cell) -> None:
        self.ahead.append(cell.recipe.name)

    def make(self, cells: list[Cell]) -> list[Cell]:
        return [cell for cell in cells if cell.recipe.name not in self.unmade]

    def end_lasting(self) -> None:
        raise AssertionError("nothing was interrupted")

    def facts(self, cell: Cell) -> dict[str, Any]:
        return {"weight_bytes": WEIGHTS[cell.recipe.name]}

    def memory(self, *coming: Cell) -> PeakMemory:
        return PeakMemory(self, self, self, lambda: coming)  # type: ignore[arg-type]


@pytest.fixture
def cells(suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Three recipes, on a machine with two processors and memory for all."""
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(parallel.psutil, "virtual_memory", lambda: SimpleNamespace(available=11e9))
    every = suites_matrix.cells(["SmolLM2-135M-Instruct"], list(WEIGHTS))
    of = {cell.recipe.name: cell for cell in every if cell.hardware.name == "cpu"}
    return [of[name] for name in WEIGHTS]


def test_those_of_coming_tests_are_taken_at_once_and_each_is_its_own(cells: list[Cell]) -> None:
    machine = Machine()
    machine.both = threading.Barrier(2, timeout=10)
    memory = machine.memory(*cells[:2])
    for cell in cells[:2]:
        found = memory.peak(cell)
        assert found.answer["peak_bytes"] == WEIGHTS[cell.recipe.name] * 3
        assert found.start_seconds == 2.0
    assert sorted(machine.told) == sorted(f"{what} {it.recipe.name}" for it in cells[:2] for what in ("start", "end"))
    assert machine.ahead == ["bf16", "int8wo"], "each cell's other workers start at its own test"


def test_asked_again_it_is_measured_anew(cells: list[Cell]) -> None:
    machine = Machine()
    memory = machine.memory(*cells[:2])
    for _ in range(2):
        memory.peak(cells[0])
    assert machine.told.count("start bf16") == 2


def test_a_single_one_starts_beside_what_its_cell_needs(cells: list[Cell]) -> None:
    machine = Machine()
    memory = machine.memory(cells[0])
    memory.peak(cells[0])
    memory.peak(cells[2])
    assert machine.ahead == ["bf16", "int8dq"]
    assert machine.told == ["start bf16", "end bf16", "start int8dq", "end int8dq"]


def test_one_that_fails_beside_others_is_taken_once_more_alone(cells: list[Cell]) -> None:
    memory = Machine(int8wo=1).memory(*cells)
    assert [memory.peak(cell).answer["peak_bytes"] for cell in cells] == [WEIGHTS[it.recipe.name] * 3 for it in cells]
    broken = Machine(int8wo=9)
    memory = broken.memory(*cells)
    memory.peak(cells[0])
    with pytest.raises(WorkerError, match=r"no memory left$"):
        memory.peak(cells[1])
    with pytest.raises(WorkerError, match="not tried again"):
        memory.peak(cells[1])
    assert broken.told.count("start int8wo") == 2, "once ahead, once by its own test"
    memory.peak(cells[2])


def test_one_without_a_checkpoint_hinders_no_other(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: {0})
    machine = Machine()
    machine.unmade = {"int8wo"}
    machine.memory(*cells).peak(cells[0])
    assert {it.split()[1] for it in machine.told} == {"bf16", "int8dq"}
    assert machine.told[0] == "start int8dq", "the baseline, which is done soonest, comes last"


def test_the_memory_of_a_device_is_that_of_an_unused_worker(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hardware, "whole_processes", False)
    machine = Machine()
    machine.memory(*cells).peak(cells[1])
    assert machine.told == ["unused int8wo", "start int8wo"]


def test_coming_are_the_tests_of_peak_memory_that_will_run(cells: list[Cell]) -> None:
    claims = [
        Claim(Path("suites/test_transformers.py"), name, "transformers", cell, skipped=cell.recipe.name == "int8dq")
        for cell in cells
        for name in ("test_peak_memory", "test_generate")
    ]
    assert [cell.recipe.name for cell in collect.memories(claims)] == ["bf16", "int8wo"]


# ---------------------------------------------------------------------------------------------------- checkpoints


class Quantizing:
    """Checkpoints whose worker quantizes in pairs; ``fails`` is the recipe that cannot be applied."""

    def __init__(self, folder: Path, matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.fails = ""
        self.both = threading.Barrier(2, timeout=10)
        flow = Flow.open(Store(folder / "cache"), Run.create(folder / "runs"), matrix, environment=Environment())
        self.checkpoints: Checkpoints = flow.checkpoints
        identity = ModelIdentity(name="m", source="folder", revision="1", weights="pretrained")
        plain = Checkpoint(folder, "plain/0", identity, {"weight_bytes": 1})
        (folder / "config.json").write_text("{}", encoding="utf-8")
        monkeypatch.setattr(self.checkpoints, "plain", lambda *_: plain)
        monkeypatch.setattr(flow.workers, "once", self.once)

    def once(self, backend: str, specification: Any, command: str, cell: Cell, **arguments: Any) -> dict[str, Any]:
        self.both.wait()
        self.made.append(cell.recipe.name)
        if cell.recipe.name == self.fails:
            raise WorkerError("quantize: it broke", stage="quantize", kind="exception")
        return dict.fromkeys(versions.CHECKPOINT_FACTS, 1)


def test_checkpoints_are_made_at_once_and_one_that_fails_fails_its_own_test(
    cells: list[Cell], tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = Quantizing(tmp_path, suites_matrix, monkeypatch)
    it.fails = "int8dq"
    assert [cell.recipe.name for cell in it.checkpoints.make(cells)] == ["bf16", "int8wo"]
    assert sorted(it.made) == ["int8dq", "int8wo"]
    assert it.checkpoints.of(cells[1]).facts["weight_bytes"] == 1
    for words in (r"it broke$", "failed before in this session"):
        with pytest.raises(HarnessError, match=words):
            it.checkpoints.of(cells[2])
    assert len(it.made) == 2, "neither is made again"


def test_what_is_there_is_not_made_again(
    cells: list[Cell], tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    Quantizing(tmp_path, suites_matrix, monkeypatch).checkpoints.make(cells)
    later = Quantizing(tmp_path, suites_matrix, monkeypatch)
    later.checkpoints.make(cells)
    assert later.made == []


def test_who_interrupts_a_flow_ends_the_process_whose_memory_is_waited_for(
    cells: list[Cell], tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Flow.open(Store(tmp_path / "cache"), Run(tmp_path), suites_matrix, environment=Environment())
    machine = Machine()
    ended = threading.Event()

    def whole_process(cell: Cell) -> Process:
        process = Process(cell, machine.told, None, 0, process=SimpleNamespace(end=ended.set))
        monkeypatch.setattr(process, "wait_ready", lambda _: ended.wait(10) or pytest.fail("it was not ended"))
        return process

    monkeypatch.setattr(flow.fleet, "whole_process", whole_process)
    monkeypatch.setattr(flow.fleet, "start_ahead", lambda _: None)
    asking = threading.Thread(target=flow.memory.peak, args=(cells[0],))
    asking.start()
    while not flow.workers.beside:
        asking.join(0.01)
    flow.fleet.end()
    asking.join(10)
    assert ended.is_set()
    assert flow.workers.beside == []
