"""What a gate does block after block: how it stops, what it makes of failures, and how it goes on after a stop.

Its workers are functions (tests/fake_gate.py), so that many blocks take no time; test_gate.py has real ones.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import ArtifactError, DiscardedBlocks, HarnessError, WorkerError
from harness.base.memory import TooLittleMemory
from harness.gate import bisect
from harness.gate.gate import Gate, GateResult
from harness.gate.schedule import Turns
from harness.judge import gatefile, ledger
from harness.judge.gatefile import Options
from harness.judge.looks import NARROW_BLOCKS
from harness.judge.rules import LOGITS, Margins
from harness.judge.series import SIDES, Series, Side, in_series, place_of
from harness.judge.verdict import Verdict, judge
from harness.matrix.plan import Matrix
from harness.records import run as runs
from harness.records.metrics import TEXT_QUALITY
from harness.records.run import each, read
from harness.records.schema import Measurement
from harness.report import gate_report
from harness.runtime.environment import Environment
from tests import fake_gate
from tests.fake_gate import Machine

CELL = f"{fake_gate.MODEL}-int8wo-cpu"


@pytest.fixture
def gate(tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gate]:
    """``gate(machine, budget=..., resume=...)`` returns a gate of int8wo; the same folder each time."""

    def make(machine: Machine, *, resume: bool = False, matrix: Matrix = suites_matrix, **more: Any) -> Gate:
        pair = more.pop("pair", None)
        wanted: dict[str, Any] = {"models": (fake_gate.MODEL,), "recipes": ("int8wo",), "servers": ("transformers",)}
        options = Options("a", "b", "cpu", **(wanted | more))
        return fake_gate.make(tmp_path, matrix, monkeypatch, machine, options, pair=pair, resume=resume)

    return make


def of(outcome: GateResult, metric: str) -> Verdict:
    (found,) = [verdict for verdict in outcome.verdicts if verdict.metric == metric]
    return found


def crash(words: str = "ValueError: no kernel") -> WorkerError:
    return WorkerError(f"transformers: generate: {words}", stage="generate", kind="exception")


def test_blocks_go_on_until_the_interval_is_narrow_and_no_further(gate: Callable[..., Gate]) -> None:
    machine = Machine()
    outcome = gate(machine, budget=1e6)()
    found = of(outcome, "generate_throughput")
    assert (found.verdict, found.blocks) == ("pass", 6), "the fewest blocks that a sequential rule may stop at"
    assert [block for _, block, _ in machine.measured] == list(range(6))
    assert "perplexity" in machine.measured[0][2]
    assert not any(once for _, _, once in machine.measured[1:]), "one block of quality and memory is enough"
    assert outcome.exit_status == 0


HELD = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}


def test_of_a_model_that_came_quantized_nothing_is_waited_for_that_needs_a_baseline(
    gate: Callable[..., Gate], tmp_path: Path
) -> None:
    """Its distance from the baseline can never be told, so that it is settled without."""
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": HELD}), encoding="utf-8")
    machine = Machine()
    outcome = gate(machine, budget=1e6)()
    taken = frozenset().union(*(once for _, _, once in machine.measured))
    assert taken & TEXT_QUALITY == {"perplexity"}
    assert len(machine.measured) == 6
    # One side may find the answer that the other's has just stored.
    assert {command for _, command in machine.asked} == {"facts"}, "nothing is quantized"
    assert outcome.exit_status == 0


def test_cells_that_a_model_does_not_suit_are_left_out_of_a_gate(gate: Callable[..., Gate], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": HELD}), encoding="utf-8")
    machine = Machine()
    outcome = gate(machine, budget=1e6, recipes=("bf16", "int8wo", "int8dq"))()
    assert {unit for unit, _, _ in machine.measured} == {f"{CELL}-transformers"}
    assert {row.place.recipe for row in outcome.file.compatibility} == {"int8wo"}
    assert {verdict.place.recipe for verdict in outcome.verdicts} == {"int8wo"}
    assert outcome.exit_status == 0
    (left,) = [unit for name, unit in outcome.file.units.items() if "-int8dq-" in name]
    assert (left.closed, left.done) == (True, 0)
    assert "by --recipe int8wo or" in left.problem
    told = gate_report.text(outcome.file)
    assert re.search(r"^left out: .*-int8dq-.*: model .* came quantized.*by --recipe int8wo or", told, re.MULTILINE)


def test_a_gate_that_suits_no_model_says_which_recipe_does(gate: Callable[..., Gate], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": HELD}), encoding="utf-8")
    for resume in (False, True):
        with pytest.raises(HarnessError, match=r"^nothing to gate: model .* came quantized.*by --recipe int8wo or"):
            gate(Machine(), budget=1e6, recipes=("int8dq",), resume=resume)()


def test_a_gate_of_a_model_that_no_recipe_is_of_says_so(gate: Callable[..., Gate], tmp_path: Path) -> None:
    quantized = HELD | {"quant_type": {"default": {"_type": "LaterConfig", "_data": {}}}}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantized}), encoding="utf-8")
    with pytest.raises(HarnessError, match=r"^nothing to gate: model .* with LaterConfig, which is no recipe of"):
        gate(Machine(), budget=1e6, recipes=("int8dq",))()


def test_noise_uses_the_budget_up_and_is_inconclusive(gate: Callable[..., Gate]) -> None:
    machine = Machine(rate=lambda unit, side, block: 10.0 * (1.5 if (block % 3 == 0) == (side == "old") else 1.0))
    outcome = gate(machine, budget=200)()
    found = of(outcome, "generate_throughput")
    assert (found.verdict, found.reason, found.blocks) == ("inconclusive", "too-noisy", 20)
    assert machine.now <= 200
    assert outcome.exit_status == 3


def test_what_is_advisory_is_measured_on_where_it_alone_was_asked_for(gate: Callable[..., Gate]) -> None:
    machine = Machine()
    outcome = gate(machine, budget=1e6, servers=("vllm",), keyword="engine_start and not server")()
    found = of(outcome, "engine_start")
    assert (found.verdict, found.blocks) == ("pass", 6)


def test_a_change_as_large_as_the_margin_is_left_open_and_whoever_resumes_may_have_it_decided(
    gate: Callable[..., Gate],
) -> None:
    slower = Machine(rate=lambda unit, side, block: 10.0 * (1 - (side == "new") * (0.047 + 0.002 * (block % 3))))
    first = gate(slower, budget=1e6)()
    found = of(first, "generate_throughput")
    assert (found.verdict, found.reason, first.exit_status) == ("inconclusive", "near-margin", 3)
    assert found.blocks == NARROW_BLOCKS
    again = Machine(rate=slower.rate)
    decided = of(gate(again, budget=1e6, resume=True)(), "generate_throughput")
    assert (decided.verdict, decided.blocks > found.blocks) == ("regressed", True)


def test_blocks_that_depend_on_one_another_are_allowed_for_and_the_gate_says_so(gate: Callable[..., Gate]) -> None:
    """A side that is off stays so for four blocks: their number says more than they do."""
    lasting = Machine(rate=lambda unit, side, block: 10.0 * (1 + (side == "new") * (0.25 if block // 4 % 2 else -0.25)))
    outcome = gate(lasting, budget=400)()
    found = of(outcome, "generate_throughput")
    assert (found.verdict, found.blocks) == ("inconclusive", 40)
    assert found.freedom is not None
    assert found.freedom < 30, "forty blocks are worth fewer"
    (said,) = outcome.file.remarks
    assert re.match(r"blocks depend on one another: each keeps \d\d% of", said)
    assert said in gate_report.text(outcome.file)


def test_what_stored_gates_show_of_a_machine_is_allowed_for_from_the_first_look(gate: Callable[..., Gate]) -> None:
    plain = of(gate(Machine(), budget=1e6)(), "generate_throughput")
    known = gate(Machine(), budget=1e6, resume=False)
    known.ledger._kept = 0.5
    told = of(known(), "generate_throughput")
    assert plain.freedom is not None
    assert told.freedom is not None
    assert told.freedom < plain.freedom * told.blocks / plain.blocks
    assert "a block keeps 50%" in told.detail


def test_what_workers_are_forked_from_is_started_anew_every_five_minutes(
    gate: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = Machine(rate=lambda unit, side, block: 10.0 * (1.5 if (block % 2 == 0) == (side == "old") else 1.0))
    made = gate(noisy, budget=1000)
    at: list[float] = []
    monkeypatch.setattr(made.bench, "renew", lambda: at.append(noisy.now))
    made()
    assert at[:-1] == [320.0, 630.0, 940.0], "between two blocks; the last one ends them"


def test_engine_and_server_share_the_budget_with_transformers(gate: Callable[..., Gate]) -> None:
    noisy = Machine(
        rate=lambda unit, side, block: 10.0 * (1.5 if (block % 3 == 0) == (side == "old") else 1.0),
        block_seconds=lambda unit: 30.0 if unit.cell.server == "vllm" else 10.0,
    )
    outcome = gate(noisy, budget=400, servers=())()
    blocks = {unit.removeprefix(f"{CELL}-"): it.done for unit, it in outcome.file.units.items()}
    assert set(blocks) == {"transformers", "vllm", "vllm-server"}
    assert min(blocks.values()) >= 5, "a round of all takes 70 seconds"
    assert [unit for unit, _, _ in noisy.measured] != sorted(unit for unit, _, _ in noisy.measured), "in random order"


@pytest.mark.parametrize(
    ("broken", "old", "new", "status"),
    [("new", "works", "fails", 1), ("old", "fails", "works", 0), ("both", "fails", "fails", 2)],
)
def test_the_first_block_decides_whether_a_recipe_works(
    gate: Callable[..., Gate], broken: str, old: str, new: str, status: int
) -> None:
    machine = Machine(fault=lambda unit, side, block: crash() if broken in (side, "both") else None)
    outcome = gate(machine, budget=1e6)()
    row = next(row for row in outcome.file.compatibility if row.stage == "load and run")
    assert (row.old, row.new) == (old, new)
    assert outcome.exit_status == status
    assert len(machine.measured) == 1


@pytest.mark.programs
def test_served_throughput_goes_on_where_the_engine_of_the_same_cell_has_settled(gate: Callable[..., Gate]) -> None:
    machine = Machine(
        rate=lambda unit, side, block: (
            10.0 + (4.0 if unit.stage == "server" and (block % 2 == 0) == (side == "old") else 0)
        )
    )
    outcome = gate(machine, budget=300, servers=("vllm",))()
    done = {unit: it.done for unit, it in outcome.file.units.items()}
    assert done == {f"{CELL}-vllm": 6, f"{CELL}-vllm-server": 24}
    assert (of(outcome, "latency").verdict, of(outcome, "request_throughput").verdict) == ("pass", "inconclusive")
    starts = {verdict.label: verdict.blocks for verdict in outcome.verdicts if verdict.metric == "engine_start"}
    assert starts == {"kind=engine": 6, "kind=server": 24}
    more = Machine(rate=machine.rate)
    resumed = gate(more, budget=400, servers=("vllm",), resume=True)()
    assert {unit for unit, _, _ in more.measured} == {f"{CELL}-vllm-server"}
    assert resumed.file.units[f"{CELL}-vllm"].done == 6


def test_a_server_that_no_longer_starts_has_stopped_working_and_its_engine_has_not(gate: Callable[..., Gate]) -> None:
    machine = Machine(fault=lambda unit, side, block: crash() if (unit.stage, side) == ("server", "new") else None)
    outcome = gate(machine, budget=1e6, servers=("vllm",))()
    rows = {row.stage: (row.place.server, row.old, row.new) for row in outcome.file.compatibility}
    assert rows["load and run"] == rows["old checkpoint"] == ("vllm", "works", "works")
    assert rows["serve"] == ("vllm", "works", "fails")
    assert of(outcome, "works: serve").reason == "stopped-working"
    assert of(outcome, "latency").verdict == "pass"
    assert outcome.exit_status == 1
    assert [unit for unit, _, _ in machine.measured].count(f"{CELL}-vllm-server") == 1


@pytest.mark.parametrize(
    ("unsaved", "states", "reason", "status"),
    [
        ("old", ("at load", "works"), "started-saving", 0),
        ("new", ("works", "at load"), "stopped-saving", 1),
        ("both", ("at load", "at load"), "", 0),
    ],
)
def test_a_version_that_saves_no_checkpoint_has_none_to_be_read(
    gate: Callable[..., Gate], unsaved: str, states: tuple[str, str], reason: str, status: int
) -> None:
    """What is quantized anew as it is loaded predicts otherwise than before, and says nothing of old checkpoints."""
    machine = Machine(unsaved=frozenset(SIDES if unsaved == "both" else [unsaved]), kl={"new": 9.0})
    outcome = gate(machine, budget=1e6, servers=("transformers",), pair=fake_gate.apart())()
    rows = {row.stage: (row.old, row.new) for row in outcome.file.compatibility}
    assert rows["quantize and save"] == states
    assert ("old checkpoint" in rows) == (unsaved == "new")
    told = [it for it in outcome.verdicts if it.metric == "works: quantize and save"]
    assert [it.reason for it in told] == ([reason] if reason else [])
    assert any(it.metric == LOGITS for it in outcome.verdicts) == (unsaved == "new")
    assert outcome.exit_status == status


def test_a_recipe_that_only_one_side_can_quantize_is_served_there_alone(gate: Callable[..., Gate]) -> None:
    machine = Machine(broken=lambda side, command: crash() if (side, command) == ("old", "quantize") else None)
    outcome = gate(machine, budget=1e6, servers=("vllm",), pair=fake_gate.apart())()
    rows = {row.stage: (row.old, row.new) for row in outcome.file.compatibility}
    assert rows["load and run"] == rows["serve"] == ("not tried", "works")
    assert machine.asked.count(("new", "load")) == 2, "as an engine, and as a server"


def test_trouble_of_the_server_is_told_apart_from_that_of_the_engine(gate: Callable[..., Gate]) -> None:
    machine = Machine(fault=lambda unit, side, block: crash() if (side, block) == ("new", 1) else None)
    outcome = gate(machine, budget=1e6, servers=("vllm",))()
    found = [(verdict.metric, verdict.label) for verdict in outcome.verdicts if verdict.reason == "later-block-failed"]
    assert sorted(found) == [("measuring", ""), ("measuring", "server")]


def test_a_later_block_that_fails_is_an_error_and_no_recipe_that_stopped_working(gate: Callable[..., Gate]) -> None:
    machine = Machine(fault=lambda unit, side, block: crash() if (side, block) == ("new", 3) else None)
    outcome = gate(machine, budget=1e6)()
    found = of(outcome, "measuring")
    assert (found.verdict, found.reason) == ("error", "later-block-failed")
    assert "new side, block 4: " in found.detail
    assert "no kernel" in found.detail
    assert not [verdict for verdict in outcome.verdicts if verdict.reason == "stopped-working"]
    row = next(row for row in outcome.file.compatibility if row.stage == "load and run")
    assert (row.old, row.new) == ("works", "works")
    assert outcome.exit_status == 2
    assert len(machine.measured) == 4


@pytest.mark.parametrize("kl", [0.0, 1.0])
def test_one_block_is_enough_to_say_how_an_old_checkpoint_is_read(gate: Callable[..., Gate], kl: float) -> None:
    machine = Machine(kl={"new": kl})
    pair = fake_gate.apart()
    outcome = gate(machine, blocks=bisect.FIRST_BLOCKS, keyword=bisect.ON_THE_WAY, pair=pair)()
    assert bisect.answer_of(outcome.file, bisect.CHECKPOINT) == ("regressed" if kl else "pass")
    assert [(block, once) for _, block, once in machine.measured] == [(0, frozenset({"peak_memory"}))]


def test_one_stage_is_enough_to_say_that_an_old_checkpoint_is_served(gate: Callable[..., Gate]) -> None:
    machine = Machine()
    given = {"blocks": bisect.FIRST_BLOCKS, "keyword": bisect.ON_THE_WAY}
    outcome = gate(machine, servers=("vllm",), **given)()
    assert bisect.answer_of(outcome.file, bisect.CHECKPOINT) == "pass"
    assert [(unit, block) for unit, block, _ in machine.measured] == [(f"{CELL}-vllm", 0)]


def test_sizes_alone_need_no_block(gate: Callable[..., Gate]) -> None:
    machine = Machine()
    outcome = gate(machine, budget=1e6, keyword="checkpoint_size", pair=fake_gate.apart())()
    assert of(outcome, "checkpoint_size").verdict == "pass"
    assert machine.measured == []
    assert {command for _, command in machine.asked} == {"quantize"}
    assert outcome.exit_status == 0


TROUBLE = [
    DiscardedBlocks("3 blocks in a row were discarded: throttled"),
    ArtifactError("the disk of the cache is full"),
    crash("OSError: [Errno 28] No space left on device"),
]


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
def test_trouble_of_the_machine_is_no_failure_of_the_recipe_and_a_resumed_gate_goes_on(
    gate: Callable[..., Gate], error: HarnessError, block: int
) -> None:
    machine = Machine(fault=lambda unit, side, number: error if (side, number) == ("new", block) else None)
    outcome = gate(machine, budget=1e6)()
    found = of(outcome, "measuring")
    assert (found.verdict, found.reason) == ("error", "machine-trouble")
    assert str(error) in found.detail
    assert outcome.exit_status == 2
    assert "fails" not in {getattr(row, side) for row in outcome.file.compatibility for side in ("old", "new")}
    again = Machine()
    outcome = gate(again, budget=1e6, resume=True)()
    assert again.measured[0][1] == block, "under its own number"
    assert outcome.exit_status == 0
    assert of(outcome, "generate_throughput").blocks == 6


@pytest.mark.parametrize("command", ["quantize", "write_logits"])
def test_a_gate_whose_own_process_is_short_of_memory_ends_with_that_and_a_resumed_one_goes_on(
    gate: Callable[..., Gate], command: str, tmp_path: Path
) -> None:
    short = TooLittleMemory("this process may have 506 MB of address space (ulimit -v): raise it")
    machine = Machine(broken=lambda side, asked: short if asked == command else None)
    apart = fake_gate.apart()
    first = gate(machine, budget=1e6, pair=apart)
    with pytest.raises(TooLittleMemory, match="506 MB"):
        first()
    stored = gatefile.load(tmp_path / "run")
    assert not stored.finished
    assert "machine-trouble" not in {it.reason for it in stored.verdicts}
    assert "fails" not in {getattr(row, side) for row in stored.compatibility for side in ("old", "new")}
    assert gate(Machine(), budget=1e6, pair=apart, resume=True)().exit_status == 0


def test_no_credential_of_what_was_asked_for_is_kept_and_it_can_be_gone_on_with(
    gate: Callable[..., Gate], tmp_path: Path
) -> None:
    secret = "AbCd1234EfGh5678IjKl9012MnOp3456"
    asked: dict[str, Any] = {"budget": 1e6, "settings": (f"models.x.hub=https://ada:{secret}@host/x",)}
    asked |= {"margins": (), "pair": replace(fake_gate.apart(), differences=(f"tiny @ git+https://{secret}@host/x",))}
    assert gate(Machine(), **asked)().exit_status == 0
    kept = (tmp_path / "run" / "gate.json").read_text()
    assert secret not in kept
    assert kept.count("[token removed]") == 2
    assert gate(Machine(), resume=True, **asked)().exit_status == 0
    with pytest.raises(HarnessError, match="settings"):
        gate(Machine(), resume=True, **asked | {"settings": ("models.x.hub=y/x",)})


def test_where_no_thread_can_be_had_for_the_other_side_the_first_one_waits_for_it_no_longer(
    gate: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, turns, started = gate(Machine(), budget=1e6).bench, Turns(SIDES), threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name.endswith("_1"):
            raise RuntimeError("can't start new thread")
        started(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    met: list[Side] = []

    def work(side: Side) -> None:
        turns.meet(side)
        met.append(side)

    with pytest.raises(RuntimeError, match="can't start new thread"):
        bench.both(work, turns.cancel)
    assert met == []


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
def test_trouble_of_the_machine_while_quantizing_is_no_failure_of_the_recipe(
    gate: Callable[..., Gate], error: HarnessError
) -> None:
    machine = Machine(broken=lambda side, command: error if (side, command) == ("new", "quantize") else None)
    apart = fake_gate.apart()
    outcome = gate(machine, budget=1e6, pair=apart)()
    assert of(outcome, "measuring").reason == "machine-trouble"
    assert outcome.exit_status == 2
    assert machine.measured == []
    assert gate(Machine(), budget=1e6, pair=apart, resume=True)().exit_status == 0


def test_a_worker_that_is_lost_while_quantizing_is_tried_again(gate: Callable[..., Gate]) -> None:
    lost = [WorkerError("quantize: was ended by signal 9", stage="quantize", kind="crash")]
    machine = Machine(
        broken=lambda side, command: lost.pop() if (side, command) == ("new", "quantize") and lost else None
    )
    outcome = gate(machine, budget=1e6, pair=fake_gate.apart())()
    assert outcome.exit_status == 0
    assert machine.asked.count(("new", "quantize")) == 2


def test_a_recipe_that_can_no_longer_be_quantized_has_stopped_working(gate: Callable[..., Gate]) -> None:
    machine = Machine(broken=lambda side, command: crash() if (side, command) == ("new", "quantize") else None)
    outcome = gate(machine, budget=1e6, pair=fake_gate.apart())()
    assert of(outcome, "works: quantize and save").reason == "stopped-working"
    assert outcome.exit_status == 1


RIGHT = [1.0] * 300 + [0.0] * 100
ANSWERS = {"hellaswag": (RIGHT, RIGHT), "piqa": (RIGHT, RIGHT)}


def test_a_gate_that_is_stopped_between_two_tasks_measures_the_second_one_when_resumed(
    gate: Callable[..., Gate],
) -> None:
    machine = Machine(accuracy=ANSWERS, stop_after="hellaswag")
    with pytest.raises(KeyboardInterrupt):
        gate(machine, tasks=("hellaswag", "piqa"), keyword="accuracy")()
    assert {task for _, task in machine.evaluated} == {"hellaswag"}
    again = Machine(accuracy=ANSWERS)
    outcome = gate(again, tasks=("hellaswag", "piqa"), keyword="accuracy", resume=True)()
    assert {task for _, task in again.evaluated} == {"piqa"}, "what is there is not evaluated again"
    assert {verdict.task for verdict in outcome.verdicts if verdict.task} == {"hellaswag", "piqa"}
    (together,) = [verdict for verdict in outcome.verdicts if verdict.label == "mean of 2 tasks"]
    assert (together.verdict, together.primary) == ("pass", True)
    assert outcome.exit_status == 0


def test_a_closed_cell_stays_closed_when_the_gate_is_resumed(gate: Callable[..., Gate]) -> None:
    machine = Machine(fault=lambda unit, side, block: crash() if (side, block) == ("new", 1) else None)
    before = gate(machine, budget=1e6)()
    again = Machine()
    after = gate(again, budget=1e6, resume=True)()
    assert again.measured == []
    assert after.file.verdicts == before.file.verdicts
    assert after.exit_status == before.exit_status == 2


def test_what_changed_since_refuses_a_resumed_gate_by_name(
    gate: Callable[..., Gate], suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate(Machine(), budget=20, pair=fake_gate.apart())()
    rebuilt = replace(fake_gate.apart(), contents={"old": "a" * 64, "new": "c" * 64})
    with pytest.raises(HarnessError, match=r"started otherwise: contents\.new: bbb.* then, ccc.* now"):
        gate(Machine(), budget=20, pair=rebuilt, resume=True)
    cpu = suites_matrix.measurements["cpu"]
    tokens = cpu.model_copy(update={"generate": cpu.generate.model_copy(update={"max_new_tokens": 9})})
    other = replace(suites_matrix, measurements=suites_matrix.measurements | {"cpu": tokens})
    with pytest.raises(HarnessError, match=r"matrix\.measurements\.generate\.max_new_tokens: \d+ then, 9 now"):
        gate(Machine(), budget=20, pair=fake_gate.apart(), matrix=other, resume=True)
    upgraded = Environment().packages() | {"torch": "1.0"}
    for method, answer, words in (
        ("packages", upgraded, r"environments\.new\.torch: .* then, 1\.0 now"),
        ("interpreter", "pypy 3", r"interpreter: cpython .* then, pypy 3 now"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Environment, method, lambda _, answer=answer: answer)
            with pytest.raises(HarnessError, match=words):
                gate(Machine(), budget=20, pair=fake_gate.apart(), resume=True)
    assert gate(Machine(), budget=1e6, pair=fake_gate.apart(), resume=True)().exit_status == 0


class Counted:
    """How often records are read from the disk, and series judged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = self.judged = 0
        monkeypatch.setattr(runs, "each", self._read)
        monkeypatch.setattr(ledger, "judge", self._judge)

    def _read(self, path: Path, problems: list[str]) -> Any:
        self.reads += 1
        return each(path, problems)

    def _judge(self, one: Series, margins: Margins) -> Verdict:
        self.judged += 1
        return judge(one, margins)


def recorded(folder: Path) -> list[Measurement]:
    return [line for line in read(folder / "records.jsonl")[0] if isinstance(line, Measurement) and in_series(line)]


@pytest.mark.programs
def test_a_gate_reads_its_records_once_on_resume_and_judges_what_a_block_changed(
    gate: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(rate=lambda unit, side, block: 10.0 * (1.5 if (block % 3 == 0) == (side == "old") else 1.0))
    every: dict[str, Any] = {"recipes": ("bf16", "int8wo", "int8dq"), "servers": ("transformers", "vllm")}
    counted = Counted(monkeypatch)
    outcome = gate(machine, budget=540, **every)()
    assert (len(outcome.file.units), len(machine.measured), counted.reads) == (9, 54, 0)
    before = recorded(outcome.folder)
    assert counted.judged <= len(before) / 2, "at most once for the two records that a block gives of a metric"
    counted = Counted(monkeypatch)
    again = Machine(rate=machine.rate)
    resumed = gate(again, budget=1080, resume=True, **every)()
    assert (len(again.measured), counted.reads) == (54, 1)
    after = recorded(resumed.folder)[len(before) :]
    assert counted.judged <= len({place_of(line) for line in before}) + len(after) / 2, "each once as it was found"
    assert resumed.verdicts
