"""A gate over several devices: its verdicts are those of one machine, and what no node measured fails it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from harness.base.errors import HarnessError
from harness.cluster.campaign import Engine, Lost
from harness.cluster.host import Host
from harness.cluster.offer import Device as Offered
from harness.cluster.offer import Offer
from harness.commands import workplace
from harness.gate import far as far_gate
from harness.gate import merged
from harness.gate.far import Far
from harness.gate.gate import GateResult
from harness.gate.part import Part
from harness.gate.plan import Unit, units
from harness.gate.schedule import Budget
from harness.judge import gatefile
from harness.judge.gatefile import Options
from harness.judge.series import DEVICE
from harness.matrix.load import load
from harness.matrix.plan import Matrix
from harness.records.run import Run
from harness.records.schema import Device, Header, Measurement
from harness.runtime.environment import Environment
from harness.runtime.environment_pair import Pair
from harness.runtime.store import Store
from tests import fake_gate

pytestmark = pytest.mark.programs
REPOSITORY = Path(__file__).resolve().parents[2]
OPTIONS = Options(
    "tiny==1",
    "tiny==2",
    "cpu",
    models=(fake_gate.MODEL,),
    recipes=("int8wo", "8da4w"),
    servers=("transformers",),
    keyword="generate",
    budget=300.0,
)
INT8WO, INT4 = (f"{fake_gate.MODEL}-{recipe}-cpu-transformers" for recipe in OPTIONS.recipes)


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return load(REPOSITORY / "suites" / "matrix.toml")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMALL_GATE", str(tmp_path))
    return tmp_path


def devices(count: int) -> Host:
    return Host(Offer((Offered("cpu", "a wooden one", count),) if count else ()))


def gate(folder: Path, matrix: Matrix, engine: Engine, *, resume: bool = False, options: Options = OPTIONS) -> Far:
    run = Run(folder / "results" / "gates" / "one")
    run.append(Header(run="one", command=["gate"], packages={}, device=Device(name="planner")))
    found = Far(
        options,
        units(matrix, options),
        matrix.hardware["cpu"],
        engine,
        run,
        Budget(options.budget),
        print,
        words=["--cache", str(folder / "cache")],
        here=True,
        root=REPOSITORY,
        patience=1.0,
        program=("tests.cluster.small_gate",),
    )
    if resume:
        found.resume(gatefile.load(run.folder))
    return found


def measured(folder: Path) -> list[tuple[str, int, str]]:
    lines = (folder / "measured").read_text().splitlines()
    return [(unit, int(block), side) for unit, block, side, _ in map(str.split, lines)]


def told(result: GateResult) -> dict[tuple[str, str], str]:
    return {(it.place.recipe, it.metric): it.verdict for it in result.verdicts if it.primary}


def of_one_machine(folder: Path, matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> GateResult:
    def rate(unit: Unit, side: str, block: int) -> float:
        worse = 0.7 if side == "new" and unit.cell.recipe.name == "int8wo" else 1.0
        return worse * (10.0 + 0.01 * ((block * 7 + len(side)) % 5))

    pair = Pair("tiny", Environment(), Environment(), ())
    with monkeypatch.context() as patch:
        machine = fake_gate.Machine(rate=rate, block_seconds=lambda _: 0.0)
        (folder / "alone").mkdir()
        return fake_gate.make(folder / "alone", matrix, patch, machine, OPTIONS, pair=pair)()


def eventually(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_verdicts_are_those_of_one_machine_and_each_pair_is_of_one_device(
    folder: Path, matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = of_one_machine(folder, matrix, monkeypatch)
    engine = devices(2)
    far = gate(folder, matrix, engine)
    # Both are at work at once: the one waits in its second block until the other has begun.
    (folder / "hold").write_text(f"{INT8WO} 1")
    both = lambda: {unit for unit, *_ in measured(folder)} == {INT8WO, INT4}  # noqa: E731
    releasing = threading.Thread(
        target=lambda: (eventually(lambda: (folder / "measured").exists() and both()), (folder / "hold").unlink())
    )
    releasing.start()
    result = far()
    releasing.join()
    engine.close()
    assert told(result) == told(alone)
    assert told(result)["int8wo", "generate_throughput"] == "regressed"
    assert told(result)["8da4w", "generate_throughput"] == "pass"
    assert result.exit_status == alone.exit_status == gatefile.EXIT["regressed"]
    found = [it for it in far.run.read()[0] if isinstance(it, Measurement) and "side" in it.flags]
    assert all(it.flags[DEVICE] for it in found)
    for recipe in OPTIONS.recipes:
        assert len({it.flags[DEVICE] for it in found if it.cell.recipe.name == recipe}) == 1
    stored = gatefile.load(far.run.folder)
    assert stored.finished
    assert {name: unit.done for name, unit in stored.units.items()} == {
        name: unit.done for name, unit in alone.file.units.items()
    }
    assert {(row.place.recipe, row.stage, row.old, row.new) for row in stored.compatibility} == {
        (row.place.recipe, row.stage, row.old, row.new) for row in alone.file.compatibility
    }


def test_a_node_that_dies_in_a_block_leaves_all_before_it_and_no_pair_is_of_two_devices(
    folder: Path, matrix: Matrix
) -> None:
    options = replace(OPTIONS, recipes=("int8wo",))
    engine = devices(1)
    far = gate(folder, matrix, engine, options=options)
    (folder / "hold").write_text(f"{INT8WO} 1")
    results: list[GateResult] = []
    working = threading.Thread(target=lambda: results.append(far()))
    working.start()
    eventually(lambda: (folder / "measured").exists() and (INT8WO, 1) in {it[:2] for it in measured(folder)})
    eventually(lambda: far.groups[0].done(far.wanted[0]) == 1)
    pid = int((folder / "measured").read_text().split()[-1])
    engine._running[0].process.kill()
    (folder / "hold").unlink()
    working.join()
    engine.close()
    (result,) = results
    assert told(result)["int8wo", "generate_throughput"] == "regressed"
    processes = {int(line.split()[-1]) for line in (folder / "measured").read_text().splitlines()}
    assert len(processes) == 2
    assert pid in processes
    # The first block is whole, and was measured once.
    assert Counter(measured(folder))[INT8WO, 0, "old"] == 1
    assert result.file.units[INT8WO].done == 1 + max(block for _, block, _ in measured(folder))


def test_a_gate_that_no_node_could_measure_is_no_pass_and_is_gone_on_with_elsewhere(
    folder: Path, matrix: Matrix
) -> None:
    engine = devices(0)
    first = gate(folder, matrix, engine)()
    engine.close()
    assert first.exit_status == gatefile.EXIT["error"]
    assert {(it.place.recipe, it.reason) for it in first.verdicts} == {("int8wo", "no-node"), ("8da4w", "no-node")}
    assert all("no node offers 1 of cpu" in it.detail for it in first.verdicts)
    engine = devices(1)
    whole = gate(folder, matrix, engine, resume=True)()
    engine.close()
    assert told(whole)["8da4w", "generate_throughput"] == "pass"
    assert not [it for it in whole.verdicts if it.reason == "no-node"]


@pytest.mark.slow
def test_a_throttled_device_is_told_of_and_never_passes(
    folder: Path, matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALL_GATE_NODE", "hot")
    (folder / "throttled").write_text("hot")
    engine = devices(1)
    result = gate(folder, matrix, engine, options=replace(OPTIONS, recipes=("8da4w",)))()
    engine.close()
    assert result.exit_status == gatefile.EXIT["error"]
    (missing,) = [it for it in result.verdicts if it.reason == "no-node"]
    assert "hot was throttled" in missing.detail
    assert "attempt 3 of 3" in missing.detail


@pytest.mark.slow
def test_what_the_whole_leaves_open_is_measured_on(
    folder: Path, matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part was settled by itself; all verdicts together asked for more."""
    asked: list[int] = []
    real = far_gate.settled
    monkeypatch.setattr(far_gate, "settled", lambda it: real(it) and bool(asked.append(it.blocks) or len(asked) > 1))
    engine = devices(1)
    far = gate(folder, matrix, engine, options=replace(OPTIONS, recipes=("8da4w",)))
    result = far()
    engine.close()
    assert asked[1] == asked[0] + 2
    assert result.file.units[INT4].done == asked[1]
    assert Counter(measured(folder)).most_common(1)[0][1] == 1


def test_a_part_of_other_environments_measures_nothing() -> None:
    alike = {"environments": {"old": {"tiny": "1"}}, "interpreter": "CPython 3.11"}
    part = Part(("a",), alike=alike)
    part.check({**alike, "contents": {}})
    with pytest.raises(HarnessError, match=r"not those of the others: environments\.old\.tiny: 1 then, 2 now"):
        part.check({**alike, "environments": {"old": {"tiny": "2"}}})


def test_a_cluster_that_is_gone_between_two_waves_leaves_what_was_judged(
    folder: Path, matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, said = devices(1), list[str]()
    far = gate(folder, matrix, engine, options=replace(OPTIONS, recipes=("8da4w",)))
    far.progress = said.append
    # What its part took for settled the whole leaves open; by then the head does not answer.
    monkeypatch.setattr(far_gate, "settled", lambda it: bool(monkeypatch.setattr(engine, "devices", gone)))
    result = far()
    engine.close()
    assert said[-1] == f"the cluster is gone: its head died; go on with --resume {far.run.name}"
    assert told(result)["8da4w", "generate_throughput"] == "pass"
    assert (result.file.finished, result.exit_status) == (False, gatefile.EXIT["inconclusive"])


def gone() -> NoReturn:
    raise Lost("its head died")


def test_units_of_a_cell_stay_together_unless_devices_would_idle(matrix: Matrix) -> None:
    wanted = units(matrix, replace(OPTIONS, servers=(), keyword="", recipes=("int8wo",)))
    assert len(wanted) > 1
    assert [len(it.units) for it in far_gate.groups(wanted, 1)] == [len(wanted)]
    assert [len(it.units) for it in far_gate.groups(wanted, 2)] == [1] * len(wanted)


def test_a_gate_of_more_gpus_than_are_here_is_refused(
    tmp_path: Path, matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    (unit,) = units(matrix, replace(OPTIONS, recipes=("int8wo",)))
    two = replace(unit, cell=replace(unit.cell, gpus=2))
    wanted = [unit, two]
    place = workplace.Workplace(Store(tmp_path), tmp_path, matrix, matrix.hardware["cpu"], Environment(), print)
    monkeypatch.setattr(workplace, "units", lambda *_: list(wanted))
    monkeypatch.setattr(workplace, "Gate", lambda *_, **more: lambda: more["wanted"])
    monkeypatch.setattr(workplace.probe, "missing", lambda hardware, gpus=1: f"it takes {gpus} GPUs, and 1 is here")
    pair = Pair("none", Environment(), Environment(), ())
    with pytest.raises(HarnessError, match=r"cannot be gated here: it takes 2 GPUs, and 1 is here"):
        place.gate(OPTIONS, workplace.given(pair))
    wanted.remove(two)
    assert place.gate(OPTIONS, workplace.given(pair)) == [unit]


@pytest.mark.slow
def test_a_stored_gate_is_cut_into_parts_and_put_together_again(folder: Path, matrix: Matrix) -> None:
    engine = devices(1)
    whole = gate(folder, matrix, engine)().file
    engine.close()
    wanted = units(matrix, OPTIONS)
    parts = [merged.part_of(whole, [unit]) for unit in wanted]
    assert [list(part.units) for part in parts if part] == [[unit.id] for unit in wanted]
    assert all(
        list(part.matrix["recipes"]) == [unit.cell.recipe.name]
        for part, unit in zip(parts, wanted, strict=True)
        if part
    )
    judged: Sequence[gatefile.Verdict] = [it for it in whole.verdicts if it.metric == "generate_throughput"]
    begun = {name: getattr(whole, name) for name in ("finished", "old", "new", "package", "hardware", "created")}
    begun |= {"seconds": whole.seconds, "matrix": whole.matrix, "options": whole.options}
    again = merged.whole([part for part in parts if part], judged, {}, moved=[], begun=begun)
    assert again.units == whole.units
    assert again.exit_status == whole.exit_status
