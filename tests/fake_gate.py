"""A gate whose workers are functions: everything of it is real but what is quantized, run and measured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.errors import HarnessError, OutOfTime
from harness.gate import blocks, schedule
from harness.gate.cutoff import CutOff
from harness.gate.gate import Gate
from harness.gate.plan import Unit, units
from harness.gate.schedule import Budget
from harness.judge import gatefile
from harness.judge.gatefile import Options
from harness.judge.series import SIDES, Side
from harness.matrix.plan import Cell, Matrix
from harness.measure.checkpoints import Checkpoints
from harness.measure.fleet import Fleet
from harness.measure.flow import Flow
from harness.measure.plain import Checkpoint
from harness.measure.workers import Workers
from harness.records.metrics import METRICS
from harness.records.run import Run
from harness.records.schema import Device, Header, Measurement, ModelIdentity
from harness.runtime.environment import Environment
from harness.runtime.environment_pair import Pair
from harness.runtime.store import Artifact, Store

MODEL = "SmolLM2-135M-Instruct"
IDENTITY = ModelIdentity(name=MODEL, source=f"folder:{MODEL}", revision="1", weights="pretrained")


def primed(flow: Flow, folder: Path) -> Flow:
    """Let a flow know the plain weights, so that it looks for none."""
    flow.checkpoints.models._found[MODEL] = Checkpoint(folder, "plain/1", IDENTITY, {})
    return flow


def apart() -> Pair:
    """Return two builds of one version, which share no artifact."""
    return Pair("torchao", Environment(), Environment(), (), {"old": "a" * 64, "new": "b" * 64})


def record(unit: Unit, metric: str, value: float, **more: Any) -> Measurement:
    known = METRICS[metric]
    fields: dict[str, Any] = {
        "metric": metric,
        "unit": known.unit,
        "direction": known.direction,
        "definition": known.version,
        "value": value,
        "cell": {
            "model": IDENTITY,
            "recipe": unit.cell.recipe.identity,
            "hardware": unit.cell.hardware.name,
            "server": unit.cell.server,
        },
        "packages": {},
        "device": Device(name="d"),
    }
    return Measurement.model_validate({**fields, **more})


Fault = Callable[[Unit, Side, int], HarnessError | None]


@dataclass
class Machine:
    """What the fake workers find: rates a side with a fixed noise, a clock that only blocks move, planted errors.

    ``rate`` gives a side's throughput or latency in one block; ``fault`` the error that a side's block ends with,
    ``broken`` that of one command of a worker on one side. ``measured`` lists every block as (unit id, block number,
    what it took once), ``asked`` every command as (side, command). ``accuracy`` has both sides' answers to each task;
    after ``stop_after`` the user interrupts. ``kl`` is how far each side's logits of an old checkpoint are from it,
    ``unsaved`` names the sides that quantize as a model is loaded.
    """

    rate: Callable[[Unit, Side, int], float] = lambda unit, side, block: 10.0 + 0.01 * ((block * 7 + len(side)) % 5)
    fault: Fault = lambda unit, side, block: None
    broken: Callable[[str, str], HarnessError | None] = lambda side, command: None
    unsaved: frozenset[str] = frozenset()
    accuracy: Mapping[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    kl: Mapping[str, float] = field(default_factory=dict)
    stop_after: str = ""
    block_seconds: Callable[[Unit], float] = lambda unit: 10.0
    now: float = 0.0
    measured: list[tuple[str, int, frozenset[str]]] = field(default_factory=list)
    evaluated: list[tuple[str, str]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def once(self, workers: Workers, backend: str, specification: Any, command: str, cell: Cell, **_: Any) -> Any:
        """Answer what a worker is asked that is started for one command."""
        self.asked.append((workers.side, command))
        if error := self.broken(workers.side, command):
            raise error
        layer = {"layer": "model.layers.0", "kind": "linear", "tensor": "Int8Tensor", "quantized": True}
        layer |= {"shape": [1000, 1000], "bytes": 1e6, "rule": ""}
        sizes: dict[str, Any] = {"weights": {"model.layers.0.weight": layer}, "unpredicted": []}
        for size in ("checkpoint_bytes", "weight_bytes"):
            sizes |= {size: 1e6, f"predicted_{size}": 1e6}
        if workers.side in self.unsaved:
            sizes |= {"checkpoint_bytes": None, "predicted_checkpoint_bytes": None}
        return sizes | {"kl": self.kl.get(workers.side, 0.0), "top1": 1.0, "largest": 0.0}

    def attempt(
        self, gate: Gate, unit: Unit, order: tuple[Side, Side], tags: dict[str, Any]
    ) -> dict[Side, HarnessError | None]:
        block = int(tags["block"])
        self.measured.append((unit.id, block, unit.once))
        if self.cuts_off(gate, self.block_seconds(unit)):
            return dict.fromkeys(order, OutOfTime("cut off"))
        found: dict[Side, HarnessError | None] = {}
        for side in order:
            found[side] = self.fault(unit, side, block)
            if found[side] is None:
                self._records(gate, unit, side, tags)
        for task in unit.tasks:
            for side in (side for side in order if not found[side]):
                self.evaluated.append((side, task))
                answers = self.accuracy[task][SIDES.index(side)]
                about = {"parameters": {"task": task, "task_metric": "acc"}, "flags": {"side": side, **tags}}
                gate.run.append(record(unit, "accuracy", sum(answers) / len(answers), samples=answers, **about))
            if self.stop_after == task:
                raise KeyboardInterrupt
        return found

    def cuts_off(self, gate: Gate, seconds: float) -> bool:
        """Let so many seconds pass, or those that are left of the budget; returns whether work was cut off there."""
        gate.bench.cut_off.happened = seconds > gate.budget.left
        self.now += min(seconds, gate.budget.left)
        return gate.bench.cut_off.happened

    def _records(self, gate: Gate, unit: Unit, side: Side, tags: dict[str, Any]) -> None:
        flags = {"side": side, **tags}
        parameters: dict[str, dict[str, Any]] = {
            "generate_throughput": {"max_new_tokens": 16},
            "latency": {"batch_size": 1},
            "request_throughput": {"num_prompts": 4},
            "engine_start": {"kind": unit.stage},
        }
        for metric in sorted(unit.metrics & parameters.keys()):
            # No machine repeats itself to the last digit.
            again = 2 * (10 * int(tags["block"]) + int(tags["attempt"])) + SIDES.index(side)
            rate = self.rate(unit, side, int(tags["block"])) * (1 + 1e-9 * again)
            rounds = [rate * part for part in (0.999, 1.0, 1.001)]
            gate.run.append(record(unit, metric, rate, samples=rounds, parameters=parameters[metric], flags=flags))
        for metric in sorted(unit.once & {"peak_memory"}):
            gate.run.append(record(unit, metric, 1.0, samples=[1.0], flags=flags))
        for metric in sorted(unit.once & {"perplexity", "kl_divergence", "top1_agreement", "token_flips"}):
            gate.run.append(record(unit, metric, 0.1, samples=[0.1 + 0.001 * i for i in range(16)], flags=flags))


def make(
    folder: Path,
    matrix: Matrix,
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    options: Options,
    *,
    pair: Pair | None = None,
    resume: bool = False,
    run: Run | None = None,
    cache: Path | None = None,
) -> Gate:
    """Return a gate in ``folder`` on ``machine``; ``resume`` takes over what an earlier one left there."""
    monkeypatch.setattr(Workers, "once", lambda *given, **more: machine.once(*given, **more))
    monkeypatch.setattr(Checkpoints, "prompts", lambda _: Artifact(folder, "prompts/1", False))
    for load in ("transformers", "engine", "server"):
        monkeypatch.setattr(Fleet, load, lambda fleet, cell: machine.once(fleet._workers, "generate", {}, "load", cell))
    clock = SimpleNamespace(monotonic=lambda: machine.now)
    monkeypatch.setattr(CutOff, "watching", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(blocks, "time", clock)
    monkeypatch.setattr(schedule, "time", clock)
    gate = Gate(
        options,
        store=Store(cache or folder / "cache"),
        matrix=matrix,
        run=run or Run(folder / "run"),
        pair=pair or Pair("none", Environment(), Environment(), ()),
        base=Environment(),
        progress=lambda _: None,
        wanted=units(matrix, options),
    )
    gate.run.append(Header(run="run", command=["gate"], packages={}, device=Device(name="d")))
    gate.budget = Budget(options.budget, started=machine.now)
    primed(gate.bench.base, folder)
    monkeypatch.setattr(gate.runner, "_attempt", lambda *given: machine.attempt(gate, *given))
    if resume:
        gate.resume(gatefile.load(gate.run.folder))
        gate.budget = replace(gate.budget, started=machine.now)
    return gate
