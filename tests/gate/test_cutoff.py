"""What is at work when the budget ends is ended there, and is said to have been cut off, whatever else it says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import OutOfTime, WorkerError
from harness.gate.cutoff import CutOff
from harness.matrix.plan import Matrix
from harness.measure.workers import Workers
from harness.runtime.environment import Environment, within
from harness.runtime.store import Store
from tests.gate.test_pace import Machine, gate

__all__ = ["gate"]


def test_a_server_that_is_at_work_is_ended_where_the_budget_ends(tmp_path: Path, suites_matrix: Matrix) -> None:
    limits = next(iter(suites_matrix.measurements.values())).time_limits
    workers = Workers(Store(tmp_path / "cache"), tmp_path / "logs", Environment(), limits=limits)
    begun = time.monotonic()
    cut = CutOff(lambda: begun + 0.5 - time.monotonic(), workers.kill)
    with cut.watching():
        # It answers, and never that it is ready.
        server = workers.serve(
            "http.server",
            lambda port: [str(port), "--bind", "127.0.0.1"],
            "server",
            of="a cell",
            variables={},
            environment=Environment(),
            family="",
        )
        with pytest.raises(WorkerError) as caught:
            server.wait_ready(60)
    assert time.monotonic() - begun < 20
    assert not server.alive
    assert isinstance(said := cut.instead(caught.value), OutOfTime)
    assert "cut off where the budget ended" in str(said)
    workers.close()


def test_what_fails_before_the_end_is_what_it_is() -> None:
    ended: list[str] = []
    cut = CutOff(lambda: 100.0, lambda: ended.append("all"))
    error = WorkerError("it does not work", stage="start", kind="exception")
    with cut.watching():
        assert cut.instead(error) is error
    assert (ended, cut.happened) == ([], False)


def test_an_installer_is_given_the_time_that_is_left() -> None:
    begun = time.monotonic()
    with pytest.raises(OutOfTime, match="installing x was cut off"):
        within(lambda: 0.2, ["sleep", "60"], "installing x")
    assert time.monotonic() - begun < 20
    assert within(lambda: math.inf, ["true"], "installing x").returncode == 0


@pytest.mark.programs
def test_a_first_block_of_unknown_length_is_cut_off(gate: Callable[..., Any]) -> None:
    machine = Machine(block_seconds=lambda unit: 443.0)
    outcome = gate(machine, budget=180)()
    assert (len(machine.measured), machine.now) == (1, 180.0)
    (first, *_) = [it for it in outcome.verdicts if it.metric == "measuring" and "cut off" in it.detail]
    assert (first.verdict, first.reason) == ("inconclusive", "budget-spent")
    assert first.detail == "not measured: cut off after 3 min, where the budget of 3 min ended"
    assert {it.done for it in outcome.file.units.values()} == {0}
    assert outcome.exit_status == 3
    again = Machine(block_seconds=lambda unit: 443.0)
    assert gate(again, budget=1e6, resume=True)().exit_status == 0
    assert {block for _, block, _ in again.measured if block == 0} == {0}, "a block that was cut off is measured again"


@pytest.mark.programs
def test_what_is_cheap_comes_first(gate: Callable[..., Any]) -> None:
    machine = Machine()
    gate(machine, budget=1e6, servers=(), blocks=1)()
    stages = [
        "server" if "server" in unit else "engine" if "vllm" in unit else "model" for unit, _, _ in machine.measured
    ]
    assert stages == sorted(stages, key=["model", "engine", "server"].index)
    assert len(set(stages)) == 3
