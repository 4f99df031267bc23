"""A study of one engine against two: what is started, in which order it is asked, and that all of it ends."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.__main__ import main
from harness.base.errors import HarnessError, WorkerError
from harness.base.reading import json_file
from harness.matrix.plan import Cell, Matrix
from harness.measure import fairness

MODEL = "SmolLM2-135M-Instruct"


@dataclass
class Started:
    """Stands in for a worker, a server, or both."""

    kind: str
    told: list[str]
    fails: bool = False
    url: str = "http://127.0.0.1:1"

    @property
    def worker(self) -> Started:
        return self

    def wait_ready(self, timeout: float) -> None:
        self.told.append(f"ready {self.kind}")

    def close(self) -> None:
        self.told.append(f"end {self.kind}")

    def tell(self, path: str, timeout: float) -> None:
        self.told.append(f"empty {self.kind}")

    def ask(self, command: str, timeout: float, **asked: Any) -> dict[str, float]:
        self.told.append(f"{command} {self.kind}")
        if self.fails:
            raise WorkerError("it broke", stage="latency", kind="exception")
        return {"seconds": 2.0 if self.kind == "engine" else 2.1}


@dataclass
class Fleet:
    """Stands in for a fleet; ``told`` is what became of all that it started."""

    told: list[str] = field(default_factory=list)
    fails: bool = False

    def launch(self, cell: Cell, kind: str) -> Started:
        kind = "shared" if cell.measurements.engine.shared else kind
        self.told.append(f"start {kind}")
        return Started(kind, self.told, self.fails)

    def client(self, cell: Cell) -> SimpleNamespace:
        def ask(*_: Any, url: str, **asked: Any) -> dict[str, float]:
            self.told.append("client")
            return {"request_throughput": 4.0}

        return SimpleNamespace(ask=ask)

    def backend(self, cell: Cell) -> SimpleNamespace:
        return SimpleNamespace(empty_cache="/empty")


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    for name in ("Worker", "Server", "Shared"):
        monkeypatch.setattr(fairness, name, Started)
    return Fleet()


@pytest.fixture
def subject(suites_matrix: Matrix) -> Cell:
    (found,) = [it for it in suites_matrix.cells([MODEL], ["int8wo"]) if it.id == f"{MODEL}-int8wo-cpu"]
    measurements = found.measurements
    latency = measurements.latency.model_copy(update={"batch_sizes": [2]})
    serving = measurements.serving.model_copy(update={"num_prompts": [3]})
    return replace(
        found, server="vllm", measurements=measurements.model_copy(update={"latency": latency, "serving": serving})
    )


def flow_of(fleet: Fleet) -> Any:
    artifact = SimpleNamespace(folder=Path("/nowhere"))
    checkpoints = SimpleNamespace(served=lambda _: artifact, prompts=lambda: artifact)
    return SimpleNamespace(fleet=fleet, checkpoints=checkpoints, progress=lambda _: None)


def test_all_three_start_one_after_another_are_asked_in_turns_and_end(fleet: Fleet, subject: Cell) -> None:
    latency, serving = fairness.block(flow_of(fleet), subject, 0, 2)
    assert (latency.metric, latency.parameters) == ("latency", {"batch_size": 2})
    assert (latency.apart, latency.shared) == ([2.0, 2.0], [2.1, 2.1])
    assert (serving.metric, serving.parameters) == ("request_throughput", {"num_prompts": 3})
    assert [len(side) for side in (serving.apart, serving.shared)] == [2, 2]
    starts = [f"{what} {kind}" for kind in ("engine", "server", "shared") for what in ("start", "ready")]
    assert fleet.told[:6] == starts, "no two start at once"
    # One round each that does not count, then each first in every other round.
    order = ["engine", "shared", "engine", "shared", "shared", "engine"]
    assert fleet.told[6:12] == [f"latency {kind}" for kind in order]
    served = ["server", "shared", "server", "shared", "shared", "server"]
    assert fleet.told[12:24] == [it for kind in served for it in (f"empty {kind}", "client")]
    assert sorted(fleet.told[24:]) == ["end engine", "end server", "end shared"]


def test_who_starts_and_who_is_asked_first_goes_round(fleet: Fleet, subject: Cell) -> None:
    for number in range(3):
        fairness.block(flow_of(fleet), subject, number, 1)
    assert [it for it in fleet.told if it.startswith("start")][::3] == ["start engine", "start server", "start shared"]


def test_what_fails_leaves_nothing_running(fleet: Fleet, subject: Cell) -> None:
    fleet.fails = True
    with pytest.raises(WorkerError):
        fairness.block(flow_of(fleet), subject, 0, 1)
    assert sorted(it for it in fleet.told if it.startswith("end")) == ["end engine", "end server", "end shared"]


def test_a_server_without_such_an_engine_is_refused(fleet: Fleet, subject: Cell) -> None:
    with pytest.raises(HarnessError, match="sglang has no engine"):
        fairness.block(flow_of(fleet), replace(subject, server="sglang"), 0, 1)
    assert fleet.told == []


@pytest.mark.parametrize(("factor", "status", "says"), [(1.0, 0, "within 1 %"), (1.05, 1, "more than 1 % apart")])
def test_the_command_says_and_keeps_what_it_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    factor: float,
    status: int,
    says: str,
) -> None:
    asked = []

    def block(flow: Any, cell: Cell, number: int, rounds: int) -> list[fairness.Figure]:
        asked.append((cell.id, number, rounds))
        return [fairness.Figure("latency", {"batch_size": 1}, [1.0], [factor * (1 + 0.0001 * number)])]

    monkeypatch.setattr(fairness, "block", block)
    words = ["fairness", MODEL, "int8wo", "-m", "cpu", "--blocks", "3", "--rounds", "5", "--wide"]
    assert main([*words, "--results", str(tmp_path), "--cache", str(tmp_path / "cache")]) == status
    assert asked == [(f"{MODEL}-int8wo-cpu-vllm", number, 5) for number in range(3)]
    told = capsys.readouterr().out
    assert says in told
    assert ("shared = true" in told) == (status == 0)
    kept = json_file(tmp_path / "fairness" / f"cpu-{MODEL}-int8wo.json")
    assert kept["figures"][0]["ratio"] == pytest.approx(factor, rel=1e-3)
    assert len(kept["figures"][0]["blocks"]) == 3


@pytest.mark.parametrize("blocks", [1, 2])
def test_an_interrupted_study_tells_what_it_has_and_is_no_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], blocks: int
) -> None:
    def block(flow: Any, cell: Cell, number: int, rounds: int) -> list[fairness.Figure]:
        if number == blocks:
            raise KeyboardInterrupt("SIGTERM")
        return [fairness.Figure("latency", {"batch_size": 1}, [1.0], [1 + 0.0001 * number])]

    monkeypatch.setattr(fairness, "block", block)
    words = ["fairness", MODEL, "int8wo", "-m", "cpu", "--blocks", "3", "--rounds", "5", "--wide"]
    assert main([*words, "--results", str(tmp_path), "--cache", str(tmp_path / "cache")]) == 143
    told = capsys.readouterr()
    kept = list((tmp_path / "fairness").glob("*.json"))
    assert len(kept) == ("within 1 %" in told.out) == blocks - 1
    due = f"whole blocks are kept as {kept[0]}" if kept else "too few blocks were measured"
    assert f"interrupted; {due}" in told.err
