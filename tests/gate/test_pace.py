"""The budget is kept within a block, what there was no time for is said, and a gate says before how long it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness.base.errors import OutOfTime, WorkerError
from harness.commands import workplace
from harness.commands.workplace import Workplace
from harness.gate import schedule
from harness.gate.gate import Gate
from harness.gate.pace import Known, Pace
from harness.gate.plan import Unit, units
from harness.gate.schedule import Budget
from harness.judge import gatefile
from harness.judge.family import over_blocks
from harness.judge.gatefile import GateFile, Options, UnitState
from harness.judge.rules import Margins
from harness.judge.series import SIDES, Series
from harness.judge.verdict import judge
from harness.matrix.plan import Matrix
from harness.runtime.environment import Environment
from harness.runtime.environment_pair import Pair
from harness.runtime.store import Store
from tests import fake_gate
from tests.fake_gate import Machine

NOISY: Callable[[Any, Any, int], float] = lambda unit, side, block: (  # noqa: E731
    10.0 * (1.5 if (block % 3 == 0) == (side == "old") else 1.0)
)
RECIPES = ("bf16", "int8wo", "int8dq", "8da4w")


@pytest.fixture
def gate(tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gate]:
    """``gate(machine, budget=..., making=...)``: a new gate each time; making a cell's checkpoints takes that long."""
    made: list[int] = []

    def make(machine: Machine, *, making: float = 0.0, known: Known | None = None, **more: Any) -> Gate:
        if not more.get("resume"):
            made.append(1)
        wanted: dict[str, Any] = {"models": (fake_gate.MODEL,), "recipes": RECIPES, "servers": ("transformers",)}
        resume = more.pop("resume", False)
        options = Options("a", "b", "cpu", **(wanted | more))
        folder = tmp_path / str(len(made))
        folder.mkdir(exist_ok=True)
        found = fake_gate.make(folder, suites_matrix, monkeypatch, machine, options, resume=resume)
        real = found.compatibility.checkpoints

        def checkpoints(*given: Any) -> Any:
            if machine.cuts_off(found, making):
                return dict.fromkeys(SIDES, OutOfTime("cut off"))
            return real(*given)

        monkeypatch.setattr(found.compatibility, "checkpoints", checkpoints)
        if known:
            found.pace = Pace(known)
        return found

    return make


@given(budget=st.floats(1, 400), block=st.floats(30, 300), making=st.floats(0, 300))
@example(budget=152.28019042524974, block=194.0, making=1.08916299616088)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@pytest.mark.programs
def test_the_budget_is_kept(gate: Callable[..., Gate], budget: float, block: float, making: float) -> None:
    machine = Machine(rate=NOISY, block_seconds=lambda unit: block)
    outcome = gate(machine, budget=budget, making=making)()
    # Of what nothing is known one step may be begun, and is cut off where the budget ends, as exactly as floats add up.
    assert machine.now <= budget + 4 * math.ulp(budget)
    measured = {unit for unit, it in outcome.file.units.items() if it.done}
    assert {unit for unit, _, _ in machine.measured} >= measured
    for name in set(outcome.file.units) - measured:
        (said,) = [it for it in outcome.verdicts if it.metric == "measuring" and it.place.recipe in name.split("-")]
        assert (said.verdict, said.reason) == ("inconclusive", "budget-spent")
        assert said.detail.startswith("not measured: ")
    assert outcome.exit_status == 3


def test_no_block_is_begun_that_would_end_too_late(gate: Callable[..., Gate]) -> None:
    """Three minutes, blocks of 70 s: the first cell's, the second's, and no third."""
    machine = Machine(block_seconds=lambda unit: 70.0)
    outcome = gate(machine, budget=180)()
    assert (len(machine.measured), machine.now) == (2, 140.0)
    late = [it for it in outcome.verdicts if it.reason == "budget-spent"]
    assert len(late) == 2
    assert late[0].detail == "not measured: 40 s of the budget of 3 min were left, and it was expected to take 70 s"


@pytest.mark.programs
def test_what_earlier_gates_took_is_known_before_the_first_block(gate: Callable[..., Gate]) -> None:
    machine = Machine(block_seconds=lambda unit: 70.0)
    before = gate(machine, budget=1e6)().file
    again = Machine(block_seconds=lambda unit: 70.0)
    outcome = gate(again, budget=60, known=Known.of([before]))()
    assert again.measured == [], "a block of 70 s does not fit in 60 s"
    assert outcome.exit_status == 3
    assert {it.reason for it in outcome.verdicts} == {"budget-spent"}


def test_a_budget_that_the_environments_used_up_measures_nothing(gate: Callable[..., Gate]) -> None:
    machine = Machine()
    late = gate(machine, budget=100)
    late.budget = replace(late.budget, spent_before=120.0)
    assert late().exit_status == 3
    assert machine.measured == []


@pytest.mark.programs
def test_more_budget_goes_on_with_what_was_not_measured(gate: Callable[..., Gate]) -> None:
    machine = Machine(block_seconds=lambda unit: 70.0)
    assert gate(machine, budget=180)().exit_status == 3
    more = Machine(block_seconds=lambda unit: 70.0)
    outcome = gate(more, budget=1e6, resume=True)()
    assert outcome.exit_status == 0
    assert {unit for unit, _, _ in more.measured} == set(outcome.file.units)


def test_at_most_so_many_blocks(gate: Callable[..., Gate]) -> None:
    machine = Machine()
    outcome = gate(machine, budget=1e6, blocks=1)()
    assert {it.done for it in outcome.file.units.values()} == {1}
    assert outcome.exit_status == 3, "one block is too few to tell"
    assert not [it for it in outcome.verdicts if it.reason == "budget-spent"]


def test_a_lost_worker_is_not_tried_again_where_there_is_no_time(gate: Callable[..., Gate]) -> None:
    crash = WorkerError("transformers: generate: killed", stage="generate", kind="crash")
    machine = Machine(fault=lambda unit, side, block: crash, block_seconds=lambda unit: 70.0)
    outcome = gate(machine, budget=100, recipes=("int8wo",))()
    assert len(machine.measured) == 1
    (said,) = [it for it in outcome.verdicts if it.metric == "measuring"]
    assert (said.verdict, said.reason) == ("error", "machine-trouble")
    assert "the budget leaves no time for another try" in said.detail
    assert not [it for it in outcome.verdicts if it.reason == "stopped-working"]


# ------------------------------------------------------------------------------------------------------------ estimates


def unit_of(matrix: Matrix, recipe: str = "int8wo") -> Unit:
    wanted = Options("a", "b", "cpu", models=(fake_gate.MODEL,), recipes=(recipe,), servers=("transformers",))
    (found,) = units(matrix, wanted)
    return found


def stored(unit: Unit, **more: Any) -> GateFile:
    given: dict[str, Any] = {"done": 8, "seconds": 10.0, "first": 25.0, **more}
    return GateFile(
        finished=True,
        package="p",
        old="a",
        new="b",
        hardware="cpu",
        created="2026",
        seconds=160.0,
        measuring_seconds=100.0,
        verdicts=[],
        exit_status=2,
        units={unit.id: UnitState(unit.place, **given)},
    )


def test_an_estimate_is_of_stored_gates(suites_matrix: Matrix) -> None:
    unit = unit_of(suites_matrix)
    told = Known.of([stored(unit)]).estimate([unit], 1800)
    # A first block of 25 s, three more of 10 s, and 60 s besides.
    assert told.startswith("about 2 min for 4 blocks, the fewest, of each of 1 units, by earlier gates; at most the")
    short = Known.of([stored(unit)]).estimate([unit], 60)
    assert "give more --budget" in short
    other = Known.of([stored(unit)]).estimate([unit, unit_of(suites_matrix, "bf16")], 1800)
    assert "and what 1 more take, of which nothing is known" in other


def test_stored_gates_say_how_much_blocks_depend_on_one_another(suites_matrix: Matrix) -> None:
    unit = unit_of(suites_matrix)

    def gates(kept: float) -> list[GateFile]:
        rng = np.random.default_rng(0)
        found = []
        for _ in range(10):
            logs = [0.0]
            for _ in range(9):
                logs.append(kept * logs[-1] + float(rng.normal(0, 0.03)))
            values = {"old": [1 + 1e-6 * at for at in range(10)], "new": np.exp(logs).tolist()}
            verdict = judge(Series(unit.place.at("latency", {"batch_size": 1}), values), Margins())
            found.append(stored(unit).model_copy(update={"verdicts": [verdict]}))
        return found

    assert Known.of(gates(0.0)).kept == 0.0
    assert 0.3 < Known.of(gates(0.7)).kept < 0.9


def test_gates_that_older_harnesses_stored_say_it_too(repository: Path) -> None:
    old = [gatefile.load(path) for path in sorted((repository / "results" / "gates").glob("*/gate.json"))]
    series = [one for gate in old for one in over_blocks(gate.verdicts).values()]
    assert len(series) >= 9
    assert 0 <= Known.of(old).kept < 0.9


def test_an_estimate_of_what_was_never_gated_says_so(suites_matrix: Matrix) -> None:
    assert "is not known" in Known().estimate([unit_of(suites_matrix)], 1800)


def test_what_is_expected_of_a_unit_is_the_longest_that_is_like_it(suites_matrix: Matrix) -> None:
    unit, other = unit_of(suites_matrix), unit_of(suites_matrix, "bf16")
    pace = Pace(Known())
    assert pace.block(unit) is None
    pace.took(other, 40.0)
    assert pace.block(unit) == 40.0
    assert Pace(Known.of([stored(unit)])).block(unit) == 25.0
    unit.done, unit.seconds = 1, 7.0
    assert pace.block(unit) == 7.0


def test_work_of_which_nothing_is_known_may_begin_as_long_as_anything_is_left() -> None:
    assert Budget(10.0, spent_before=9.0).allows(None)
    assert not Budget(10.0, spent_before=11.0).allows(None)
    assert not Budget(10.0, spent_before=9.0).allows(None, 5.0)


def test_the_environments_count_and_the_estimate_is_said_before_they_are_made(
    tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, said, spent = [0.0], [], []

    def make(*given: Any) -> Pair:
        said.append("made")
        now[0] += 90.0
        return Pair("none", Environment(), Environment(), ())

    def gate(options: Options, *, budget: Budget, **more: Any) -> Any:
        spent.append(budget.spent)
        return lambda: None

    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(workplace, "make", make)
    monkeypatch.setattr(workplace, "Gate", gate)
    cpu, store = suites_matrix.hardware["cpu"], Store(tmp_path / "cache")
    place = Workplace(store, tmp_path / "results", suites_matrix, cpu, Environment(), said.append)
    wanted = Options("a==1", "a==2", "cpu", models=(fake_gate.MODEL,), recipes=("int8wo",), servers=("transformers",))
    place.gate(wanted, place.made, calibrated=False)
    assert spent == [90.0]
    expected = next(line for line in said if line.startswith("expected: how long it takes is not known"))
    assert "at most the budget of 30 min" in expected
    assert said.index(expected) < said.index("made")
