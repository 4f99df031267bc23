"""What lasts for a cell: started ahead where the machine can hold it, one at a time elsewhere, and ended in time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import WorkerError
from harness.contract import versions
from harness.matrix.hardware import Hardware
from harness.matrix.plan import Cell, Matrix
from harness.measure import fleet, workers
from harness.measure.flow import Flow
from harness.measure.launches import shared_flag, shares
from harness.measure.plain import Checkpoint
from harness.records.place import Place
from harness.records.run import Run
from harness.records.schema import ModelIdentity, Timing
from harness.runtime.environment import Environment
from harness.runtime.store import Store
from harness.servers.registry import SERVERS

MODEL = "SmolLM2-135M-Instruct"


class Ended:
    """The process of a stand-in: there is none."""


@dataclass
class Process:
    """Stands in for a worker or a server; ``told`` is what became of all of them, in order."""

    label: str
    told: list[str]
    fails: bool = False
    environment: Environment | None = None
    alive: bool = True
    ready: bool = False
    asked: int = 0
    start_seconds: float = 1.0
    info: dict[str, Any] = field(default_factory=dict)
    process: Any = field(default_factory=Ended)
    compiled: Any = None
    leaving: bool = False

    def __post_init__(self) -> None:
        self.told.append(f"start {self.label}")

    def wait_ready(self, timeout: float) -> dict[str, Any]:
        if self.fails:
            raise WorkerError(f"{self.label}: it broke", stage="start", kind="exception")
        if not self.ready:
            self.told.append(f"ready {self.label}")
        self.ready = True
        return self.info

    def ask_to_end(self) -> None:
        self.leaving = True

    def close(self) -> None:
        if self.alive:
            self.told.append(f"end {self.label}")
        self.alive = False


@dataclass
class Machine:
    """A flow over the matrix whose processes are nothing but names."""

    flow: Flow
    run: Run
    told: list[str]
    started: dict[str, Process]

    def took(self) -> list[str]:
        """Return what became of the processes since the last call."""
        found, self.told[:] = list(self.told), []
        return found


Make = Callable[..., Machine]


@pytest.fixture
def make(tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> Make:
    """``make(at_once, broken=..., **more)`` returns a machine whose hardware holds all workers of a cell, or one."""
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}), encoding="utf-8")

    def machine(at_once: bool, broken: str = "nothing", **more: Any) -> Machine:
        told: list[str] = []
        started: dict[str, Process] = {}

        def begin(label: str, environment: Environment) -> Process:
            started[label] = Process(label, told, fails=broken in label, environment=environment)
            return started[label]

        monkeypatch.setattr(Hardware, "workers_at_once", at_once)
        for name in ("Worker", "Server"):
            monkeypatch.setattr(fleet, name, Process)
        monkeypatch.setattr(workers, "Worker", lambda _, label, environment, **__: begin(label, environment))
        monkeypatch.setattr(workers.Workers, "_fork_server", lambda *_: None)
        monkeypatch.setattr(
            workers.Workers,
            "serve",
            lambda _, module, arguments, role, of, environment, **__: begin(f"{role} {of}", environment),
        )
        run = Run.create(tmp_path / "runs")
        flow = Flow.open(Store(tmp_path / "cache"), run, suites_matrix, environment=Environment(), **more)
        identity = ModelIdentity(name=MODEL, source="folder", revision="1", weights="pretrained")
        plain = Checkpoint(
            tmp_path, "plain/0", identity, {**dict.fromkeys(versions.CHECKPOINT_FACTS, 1), "weights": {}}
        )
        monkeypatch.setattr(flow.checkpoints, "of", lambda cell: plain)
        flow.checkpoints.models._found[MODEL] = plain
        return Machine(flow, run, told, started)

    return machine


@pytest.fixture
def subject(suites_matrix: Matrix) -> Cell:
    (found,) = [it for it in suites_matrix.cells([MODEL], ["int8wo"]) if it.id == f"{MODEL}-int8wo-cpu"]
    return replace(found, server="vllm")


NAMES = [f"{kind} {MODEL}-int8wo-cpu-vllm" for kind in ("transformers", "engine", "server")]


def every(subject: Cell) -> list[tuple[Place, str]]:
    """Return what the tests of all stages of a cell need."""
    return [(subject.base, kind) for kind in ("quantize", "transformers", "engine", "engine", "server")]


class Both(Process):
    """Stands in for a worker that is a server too."""

    def __init__(self, worker: Process, port: int) -> None:
        self.worker = worker

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["worker"], name)


@pytest.mark.parametrize("at_once", [True, False])
def test_engine_and_server_are_one_start_where_they_share_it(
    make: Make, subject: Cell, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (fleet, workers):
        monkeypatch.setattr(module, "Shared", Both)
    engine = subject.measurements.engine.model_copy(update={"shared": True})
    sharing = replace(subject, measurements=subject.measurements.model_copy(update={"engine": engine}))
    machine = make(at_once, plan=[(subject.base, "engine"), (subject.base, "server")])
    one, name = machine.flow.fleet, f"shared engine {MODEL}-int8wo-cpu-vllm"
    assert one.engine(sharing) is one.server(sharing).worker
    assert [it for it in machine.took() if it.startswith("start")] == [f"start {name}", "start client"]
    one.renew(sharing, "server")
    assert machine.took() == [f"end {name}"]
    one.engine(sharing)
    assert machine.took()[0] == f"start {name}"
    assert (shared_flag(sharing), shared_flag(subject)) == ({"shared_engine": True}, {})
    assert not shares(replace(sharing, server="sglang")), "which has no such engine"
    machine.flow.close()


def test_all_workers_of_a_cell_start_at_once_and_wait_idle_for_their_turn(make: Make, subject: Cell) -> None:
    machine = make(True, plan=every(subject))
    machine.flow.fleet.transformers(subject)
    took = machine.took()
    everything = [*NAMES, "client"]
    assert sorted(took[:4]) == sorted(f"start {name}" for name in everything), "before any is waited for"
    assert sorted(took[4:]) == sorted(f"ready {name}" for name in everything), "none disturbs what is measured"
    machine.flow.fleet.engine(subject)
    machine.flow.fleet.server(subject)
    machine.flow.fleet.client(subject)
    assert machine.took() == []
    other = replace(subject, recipe=subject.recipe.model_copy(update={"name": "other"}))
    machine.flow.fleet.engine(other)
    assert sorted(machine.took()[:3]) == sorted(f"end {name}" for name in NAMES), "the client is the session's"
    machine.flow.close()
    assert sorted(machine.took()) == ["end client", f"end engine {MODEL}-other-cpu-vllm"]


def test_what_ends_together_is_asked_to_before_any_of_it_is_waited_for(
    make: Make, subject: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make(True, plan=every(subject))
    machine.flow.fleet.transformers(subject)
    lasting = dict(machine.flow.workers.lasting)
    closing: list[int] = []
    monkeypatch.setattr(Process, "close", lambda _: closing.append(sum(it.leaving for it in lasting.values())))
    machine.flow.workers.end_lasting()
    assert closing == [3, 3, 3]
    assert not machine.flow.workers.lasting


def test_all_may_be_started_and_none_waited_for(make: Make, subject: Cell) -> None:
    machine = make(True, plan=every(subject))
    machine.flow.fleet.start_ahead(subject)
    assert sorted(machine.took()) == sorted(f"start {name}" for name in [*NAMES, "client"])
    one = make(False, plan=every(subject))
    one.flow.fleet.start_ahead(subject)
    assert one.took() == [], "a device is for one at a time"


def test_what_has_been_asked_is_not_unused(make: Make, subject: Cell) -> None:
    machine = make(False, plan=every(subject))
    first = machine.flow.fleet.unused(subject)
    first.asked = 1
    assert machine.flow.fleet.transformers(subject) is first
    assert machine.flow.fleet.unused(subject) is not first
    assert machine.took() == [f"{what} {NAMES[0]}" for what in ("start", "ready", "end", "start", "ready")]


def test_threads_of_a_process_whose_memory_is_measured_sleep_while_they_wait(
    make: Make, subject: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is timed keeps the threads that it has by itself."""
    machine, given = make(True), {}

    def start(backend: str, specification: Any, role: str, **named: Any) -> Process:
        given[role] = (named["variables"], named["family"])
        return Process(role, [])

    monkeypatch.setattr(machine.flow.workers, "start", start)
    machine.flow.fleet.whole_process(subject)
    machine.flow.fleet.transformers(subject)
    machine.flow.fleet.engine(subject)
    assert given["memory"] == ({"OMP_WAIT_POLICY": "PASSIVE"}, ""), "not forked: a fork shares what it inherits"
    assert given["transformers"] == ({}, None)
    assert "OMP_WAIT_POLICY" not in given["engine"][0]


def test_where_one_has_the_whole_of_a_device_none_lives_beside_it(make: Make, subject: Cell) -> None:
    machine = make(False, plan=every(subject))
    for ask in (machine.flow.fleet.transformers, machine.flow.fleet.engine, machine.flow.fleet.engine):
        ask(subject)
    first, second = NAMES[:2]
    assert machine.took() == [f"start {first}", f"ready {first}", f"end {first}", f"start {second}", f"ready {second}"]


def test_nothing_is_started_ahead_that_no_test_needs(make: Make, subject: Cell) -> None:
    machine = make(True, plan=[(subject.base, "quantize"), (replace(subject.base, model="another"), "engine")])
    machine.flow.fleet.transformers(subject)
    assert machine.took() == [f"start {NAMES[0]}", f"ready {NAMES[0]}"]


def test_a_start_that_fails_is_not_tried_again_and_hinders_no_other(make: Make, subject: Cell) -> None:
    machine = make(True, broken="engine", plan=every(subject))
    machine.flow.fleet.transformers(subject)
    took = machine.took()
    assert f"end {NAMES[1]}" in took
    for _ in range(2):
        with pytest.raises(WorkerError, match=r"it broke \(it failed before in this session and is not tried again\)"):
            machine.flow.fleet.engine(subject)
    machine.flow.fleet.server(subject)
    assert machine.took() == []


def test_a_worker_that_died_or_was_renewed_is_started_anew(make: Make, subject: Cell) -> None:
    machine = make(True)
    first = machine.flow.fleet.engine(subject)
    machine.started[NAMES[1]].alive = False
    second = machine.flow.fleet.engine(subject)
    machine.flow.fleet.renew(subject, "engine")
    third = machine.flow.fleet.engine(subject)
    assert len({id(first), id(second), id(third)}) == 3
    assert machine.took().count(f"start {NAMES[1]}") == 3


def test_the_compilation_that_an_engine_tells_of_is_a_time_of_its_own(make: Make, subject: Cell) -> None:
    machine = make(True)
    monkeyed = Process.wait_ready

    def compile_first(self: Process, timeout: float) -> dict[str, Any]:
        self.info = {"compile_seconds": 5.0}
        return monkeyed(self, timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Process, "wait_ready", compile_first)
        machine.flow.fleet.engine(subject)
        machine.flow.fleet.engine(subject)
    lines = machine.run.lines()
    assert [(it.stage, it.seconds) for it in lines if isinstance(it, Timing)] == [("compile", 5.0)]


def test_the_client_runs_where_it_is(make: Make, subject: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the workers' environment, or in the harness's own where that alone has it, as beside SGLang's pins."""
    own = Environment()
    monkeypatch.setattr(Environment, "has", lambda self, *_: self.name == "this")
    machine = make(True)
    machine.flow.fleet.client(subject)
    assert machine.started["client"].environment == own
    monkeypatch.setattr(machine.flow.workers, "environment", Environment(name="pins", python="/no/such"))
    machine.flow.fleet.end()
    machine.flow.fleet.client(subject)
    assert machine.started["client"].environment == own
    monkeypatch.setattr(Environment, "has", lambda self, *_: True)
    machine.flow.fleet.end()
    machine.flow.fleet.client(subject)
    assert machine.started["client"].environment == Environment(name="pins", python="/no/such")


@pytest.mark.parametrize("name", list(SERVERS))
def test_a_server_runs_in_its_own_environment_and_all_else_in_the_sessions(
    make: Make, subject: Cell, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Environment, "has", lambda self, *_: True)
    apart = Environment(name="apart", python="/apart")
    machine = make(True, environments={name: apart})
    through = replace(subject, server=name)
    machine.flow.fleet.engine(through)
    machine.flow.fleet.server(through)
    machine.flow.fleet.transformers(through)
    found = {label.split()[0]: process.environment for label, process in machine.started.items()}
    own = Environment()
    assert found == {"engine": apart, "server": apart, "transformers": own, "client": own}


# ------------------------------------------------------------------------------------- what compilers have left


class Left:
    """Stands in for what an earlier start had compiled, which its start fails with until it is thrown away."""

    def __init__(self) -> None:
        self.there = True

    def forget(self) -> bool:
        was, self.there = self.there, False
        return was

    def keep(self, facts: object) -> None:
        """Nothing is new."""


@pytest.mark.parametrize(("kind", "starts"), [("exception", 2), ("timeout", 1)])
def test_an_engine_that_fails_with_what_was_compiled_is_started_once_more_with_nothing(
    make: Make, subject: Cell, monkeypatch: pytest.MonkeyPatch, kind: str, starts: int
) -> None:
    said: list[str] = []
    machine = make(at_once=False, plan=every(subject), progress=said.append)
    left = Left()
    wait = Process.wait_ready

    def wait_ready(process: Process, timeout: float) -> dict[str, Any]:
        process.compiled = left
        if left.there:
            raise WorkerError("FileNotFoundError: artifact_compile_range_1", stage="start", kind=kind)
        return wait(process, timeout)

    monkeypatch.setattr(Process, "wait_ready", wait_ready)
    if starts == 1:
        with pytest.raises(WorkerError, match="artifact_compile_range_1"):
            machine.flow.fleet.engine(subject)
    else:
        assert machine.flow.fleet.engine(subject).ready
        assert any("did not start with what an earlier start had compiled" in it for it in said)
    assert sum(it.startswith("start engine") for it in machine.took()) == starts
