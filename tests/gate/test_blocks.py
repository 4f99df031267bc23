"""From the records of a gate to paired samples: only blocks that both sides finished count."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.gate import blocks
from harness.gate.bench import Bench
from harness.gate.blocks import BlockRunner, of_the_machine
from harness.gate.plan import units
from harness.judge.gatefile import Options
from harness.judge.series import SIDES, label_of, series
from harness.matrix.hardware import Hardware
from harness.matrix.plan import Matrix
from harness.measure.flow import Flow
from harness.measure.plain import Checkpoint
from harness.measure.workers import Workers
from harness.records.metrics import METRICS
from harness.records.run import Run
from harness.records.schema import Cell, Device, Measurement, ModelIdentity, RecipeIdentity
from harness.runtime.environment import Environment
from harness.runtime.environment_pair import Pair
from harness.runtime.store import Store

MODEL = ModelIdentity(name="m", source="folder:m", revision="1", weights="pretrained")
CELL = Cell(
    model=MODEL, recipe=RecipeIdentity(name="int8wo", hash="h", config={}), hardware="cpu", server="transformers"
)
KINDS = ("engine", "server", "client")
PROMPTS = {"num_prompts": 4, "dataset": "ShareGPT"}


def record(metric: str, value: float, side: str, block: int = 0, attempt: int = 0, **more: object) -> Measurement:
    known = METRICS[metric]
    fields: dict[str, object] = {
        "metric": metric,
        "unit": known.unit,
        "direction": known.direction,
        "definition": known.version,
        "value": value,
        "cell": CELL,
        "packages": {},
        "device": Device(name="d"),
        "flags": {"side": side, "block": block, "attempt": attempt},
    }
    return Measurement.model_validate({**fields, **more})


places = st.tuples(st.sampled_from(SIDES), st.integers(0, 12), st.integers(0, 2))


@given(st.dictionaries(places, st.tuples(st.floats(0.1, 10), st.booleans())), st.randoms())
def test_a_pair_is_a_block_that_both_sides_finished(taken: dict, random: object) -> None:  # type: ignore[type-arg]
    lines = [
        record("generate_throughput", value, *place, discarded="throttled" if void else "")
        for place, (value, void) in taken.items()
    ]
    random.shuffle(lines)  # type: ignore[attr-defined]
    good = {place: value for place, (value, void) in taken.items() if not void}
    both = sorted(place for side, *place in good if side == "old" and ("new", *place) in good)
    whole = [max(place for place in both if place[0] == block) for block in sorted({block for block, _ in both})]
    found = series(lines, interleaved=True)
    if not good:
        assert found == []
        return
    (one,) = found
    assert one.old == [good[("old", *place)] for place in whole]
    assert one.new == [good[("new", *place)] for place in whole]
    assert one.drift_cancelled


def test_quality_is_paired_document_by_document_and_metrics_stay_apart() -> None:
    lines = [
        record("perplexity", 2.0, "old", samples=[1.0, 3.0]),
        record("perplexity", 4.0, "new", samples=[3.0, 5.0]),
        *(record("latency", 1.0, side, parameters={"batch_size": size}) for side in SIDES for size in (1, 8)),
        record("chat_tokens", 5.0, "old"),
        record("latency", 9.0, "old").model_copy(update={"flags": {}}),
    ]
    found = {(one.metric, label_of(one.place)): one for one in series(lines, interleaved=False)}
    assert found.keys() == {("perplexity", ""), ("latency", "batch_size=1"), ("latency", "batch_size=8")}
    assert found["perplexity", ""].new == [3.0, 5.0]
    assert not found["latency", "batch_size=1"].drift_cancelled


def test_a_block_of_several_rounds_counts_with_their_median() -> None:
    rounds = {"old": [1.0, 1.1, 9.0], "new": [1.2, 1.3, 1.4]}
    lines = [record("latency", sum(samples) / 3, side, samples=samples) for side, samples in rounds.items()]
    (found,) = series(lines, interleaved=False)
    assert (found.old, found.new) == ([1.1], [1.3])


def test_served_times_count_by_their_median_and_the_start_of_the_client_does_not_count() -> None:
    lines = [
        *(record("engine_start", 9.0, side, parameters={"kind": kind}) for side in SIDES for kind in KINDS),
        *(record("request_throughput", 2.0, side, samples=[1.0, 2.0, 3.0], parameters=PROMPTS) for side in SIDES),
        *(record("ttft", 2.0, side, samples=[1.0, 2.0, 9.0, 9.0], parameters=PROMPTS) for side in SIDES),
    ]
    served = [line.model_copy(update={"cell": CELL.model_copy(update={"server": "vllm"})}) for line in lines]
    found = {(one.metric, label_of(one.place)): one for one in series(served, interleaved=True)}
    assert found.keys() == {
        ("engine_start", "kind=engine"),
        ("engine_start", "kind=server"),
        ("request_throughput", "num_prompts=4"),
        ("ttft", "num_prompts=4"),
    }
    assert {key for key, one in found.items() if one.drift_cancelled} == {key for key in found if "num" in key[1]}
    throughput, ttft = (found[metric, "num_prompts=4"] for metric in ("request_throughput", "ttft"))
    assert (throughput.old, throughput.rounds["old"]) == ([2.0], [[1.0, 2.0, 3.0]])
    assert (ttft.old, ttft.rounds) == ([5.5], {}), "a sample is a request, and no round"
    stages = {key: one.place.stage for key, one in found.items()}
    assert {key for key, stage in stages.items() if stage == "engine"} == {("engine_start", "kind=engine")}


@dataclass
class Taken:
    """Stands in for Measure and tells what was measured, in order; every timing has two rounds."""

    told: list[tuple[str, str]]
    side: str

    def _timed(self, name: str, time: Callable[..., Any]) -> None:
        time(lambda: self.told.append((self.side, name)), 2, 0)

    def generate(self, cell: object, time: Callable[..., Any]) -> None:
        self._timed("generate", time)

    def engine(self, cell: object) -> None:
        self.told.append((self.side, "engine"))

    def latency(self, cell: object, size: int, time: Callable[..., Any]) -> None:
        self._timed(f"latency {size}", time)

    def server(self, cell: object) -> None:
        self.told.append((self.side, "server"))

    def serving(self, cell: object, prompts: int, time: Callable[..., Any]) -> None:
        self._timed(f"serving {prompts}", time)


@pytest.mark.parametrize(
    ("keyword", "starts", "timed"),
    [
        ("generate_throughput", [], ["generate"]),
        ("latency", ["engine"], ["latency 1", "latency 8"]),
        ("request_throughput", ["server"], ["serving 1", "serving 4"]),
        ("engine_start and server", ["server"], []),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_block_takes_what_its_stage_has_in_turns_or_one_side_alone_on_a_gpu(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, device: str, keyword: str, starts: list[str], timed: list[str]
) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(blocks, "Measure", lambda recorder: Taken(told, recorder.tags["side"]))
    monkeypatch.setattr(Hardware, "sides_at_once", device == "cpu")
    (unit,) = units(bench.matrix, Options("a", "b", "cpu", recipes=("int8wo",), keyword=keyword))
    assert BlockRunner(bench)(unit, ("new", "old")) == {"old": None, "new": None}
    alone = [*starts, *(name for name in timed for _ in range(2))]
    assert [name for side, name in told if side == "old"] == alone
    if device == "cuda":
        assert told == [(side, name) for side in ("new", "old") for name in alone]
    else:
        in_turns = [(side, name) for name in timed for side in ("new", "old", "old", "new")]
        assert [it for it in told if it[1] in timed] == in_turns


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_a_block_takes_once_is_not_expected_of_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    class Slow(Taken):
        def peak_memory(self, cell: object) -> None:
            time.sleep(0.3)

    monkeypatch.setattr(blocks, "Measure", lambda recorder: Slow([], recorder.tags["side"]))
    monkeypatch.setattr(Hardware, "sides_at_once", device == "cpu")
    keyword = "generate_throughput or peak_memory"
    (unit,) = units(bench.matrix, Options("a", "b", "cpu", recipes=("int8wo",), keyword=keyword))
    unit.once = frozenset({"peak_memory"})
    BlockRunner(bench)(unit, ("old", "new"))
    assert 0 <= unit.seconds < 0.2
    assert unit.measuring >= (0.3 if device == "cpu" else 0.6)


def keys(bench: Bench, flow: Flow) -> tuple[str, str]:
    """Return the keys of a checkpoint that a flow makes, and of an evaluation of it."""
    cells = bench.matrix.cells([MODEL.name], ["int8wo"])
    cell = next(cell for cell in cells if cell.hardware.name == "cpu" and not cell.recipe.baseline)
    return flow.checkpoints.of(cell).key, flow.checkpoints.evaluated(cell, "text", {}, dict).key


@pytest.fixture
def bench(tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench of this environment against itself whose workers make nothing."""
    monkeypatch.setattr(Workers, "once", lambda *_, **__: {})
    model = suites_matrix.models["SmolLM2-135M-Instruct"].model_copy(update={"name": MODEL.name})
    matrix = replace(
        suites_matrix,
        models=suites_matrix.models | {MODEL.name: model},
        entries=[
            entry.model_copy(update={"models": [MODEL.name]})
            for entry in suites_matrix.entries
            if entry.hardware == "cpu"
        ],
    )
    store, run, environment = Store(tmp_path / "cache"), Run(tmp_path / "run"), Environment()
    base = Flow.open(store, run, matrix, environment=environment)
    base.checkpoints.models._found[MODEL.name] = Checkpoint(tmp_path, "plain/1", MODEL, {})
    return Bench(Pair("torchao", environment, environment, ()), store, run, matrix, base)


def test_old_against_old_is_evaluated_on_both_sides(bench: Bench) -> None:
    """What came from the cache would say that it is exactly itself."""
    old, new = (keys(bench, bench.flow(side)) for side in SIDES)
    assert old[0] == new[0]
    assert old[1] != new[1]
    bench.pair = replace(bench.pair, new=Environment(name="other"))
    assert keys(bench, bench.flow("new"))[1] == old[1]


def test_two_builds_of_one_version_share_nothing_that_is_made_with_them(bench: Bench) -> None:
    bench.pair = replace(bench.pair, contents={"old": "a" * 64, "new": "b" * 64})
    old, new = (keys(bench, bench.flow(side)) for side in SIDES)
    assert not {*old} & {*new}
    bench.pair = replace(bench.pair, contents={"old": "a" * 64, "new": "a" * 64})
    assert keys(bench, bench.flow("new")) == old, "the same build does"


def test_a_package_beside_the_makers_tells_the_sides_apart(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = keys(bench, bench.base)
    assert keys(bench, bench.flow("old")) == ordinary, "alike environments share a session's artifacts"
    packages: dict[str, dict[str, str]] = {"old": {"accelerate": "1.0"}, "new": {"accelerate": "1.1"}}

    def listed(environment: Environment) -> dict[str, str]:
        return {"torchao": "0.18.0"} | packages.get(environment.name, {})

    monkeypatch.setattr(Environment, "packages", listed)
    environments: dict[str, Any] = {side: Environment(name=side) for side in SIDES}
    bench.pair = replace(bench.pair, **environments)
    old, new = (keys(bench, bench.flow(side)) for side in SIDES)
    assert not {*old} & {*new}
    packages |= {"old": {"torchao": "0.17.0"}, "new": {"torchao": "0.18.0"}}
    new, own = (flow.checkpoints._keys.packages() for flow in (bench.flow("new"), bench.base))
    assert new == own, "a maker's version stands in the key already"


def test_the_logs_of_the_two_sides_are_two_files(bench: Bench) -> None:
    logs = {bench.flow(side).workers.log("quantize m-int8wo-cpu").name for side in SIDES}
    assert logs == {"old-quantize-m-int8wo-cpu.log", "new-quantize-m-int8wo-cpu.log"}


def test_a_disk_that_refuses_a_file_is_no_failure_of_what_was_measured(bench: Bench) -> None:
    def full(side: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    found = bench.both(full)
    assert all(of_the_machine(error) for error in found.values())
    assert "No space left on device" in str(found["new"])
