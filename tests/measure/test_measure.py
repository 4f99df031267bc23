"""Measuring: laws of the statistics, and what becomes a record, is taken over from one, or must not be one."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import HarnessError, Unsuitable, WrongKernels
from harness.judge import spread
from harness.judge.rounds import FEWEST, Rule
from harness.machine import probe, watch
from harness.matrix.hardware import Hardware
from harness.matrix.plan import Cell, Matrix
from harness.matrix.schema import TaskOptions, Threshold
from harness.measure import engine
from harness.measure import undisturbed as undisturbed_module
from harness.measure.figures import Figure, between_rounds, in_a_row, percentiles, split
from harness.measure.limits import Limits
from harness.measure.measure import Measure
from harness.measure.memory import Peak
from harness.measure.recorder import Recorder
from harness.records.run import Run
from harness.records.schema import Cell as CellIdentity
from harness.records.schema import Judgement, Measurement, ModelIdentity

SAMPLES = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=30)


# ---------------------------------------------------------------------------------------------------------------- laws


@given(SAMPLES, st.randoms())
def test_percentiles_lie_in_order_within_the_samples_whatever_their_order(
    samples: list[float], random: random.Random
) -> None:
    found = percentiles(samples)
    assert min(samples) <= found["p50"] <= found["p90"] <= found["p99"] <= max(samples)
    assert found["n"] == len(samples)
    assert found["p50"] == pytest.approx(statistics.median(samples), abs=1e-6)
    assert ("stdev" in found) == (len(samples) > 1)
    shuffled = list(samples)
    random.shuffle(shuffled)
    assert percentiles(shuffled) == found


@given(SAMPLES, st.floats(-1e6, 1e6), st.floats(0, 1e3))
def test_percentiles_move_and_stretch_with_the_samples(samples: list[float], shift: float, scale: float) -> None:
    found = percentiles(samples)
    moved = percentiles([scale * value + shift for value in samples])
    for name in ("mean", "p50", "p90", "p99"):
        assert moved[name] == pytest.approx(scale * found[name] + shift, rel=1e-6, abs=1e-3)


def test_percentiles_are_those_of_numpy() -> None:
    numpy = pytest.importorskip("numpy")

    @given(SAMPLES)
    def agree(samples: list[float]) -> None:
        found = percentiles(samples)
        for percent in (50, 90, 99):
            assert found[f"p{percent}"] == pytest.approx(numpy.percentile(samples, percent), rel=1e-9, abs=1e-6)
        if len(samples) > 1:
            assert found["stdev"] == pytest.approx(numpy.std(samples, ddof=1), rel=1e-6, abs=1e-3)

    agree()


@given(st.lists(st.floats(0, 1), max_size=8), st.integers(0, 8))
def test_what_warms_up_is_not_counted_unless_there_is_nothing_else(values: list[float], warmup: int) -> None:
    before, counted = split(values, warmup)
    assert before + counted == values
    assert len(before) == (warmup if len(values) > warmup else 0)
    assert counted or not values


# ------------------------------------------------------------------------------------------------------------- records


class StubFlow:
    """Stands in for a flow and its worker, which takes the given seconds for each answer."""

    def __init__(self, *seconds: float, peak_bytes: float = 6e9) -> None:
        self.seconds = itertools.cycle(seconds)
        self.peak_bytes = peak_bytes
        self.asked = 0
        self.start_seconds = 1.0
        self.compiled: Any = None
        self.renewed: list[str] = []
        self.versions = {"torch": "2.13.0"}
        self.said: list[str] = []
        self.data: Path | None = None
        self.limit: int | None = None
        self.task_options: Callable[[str], TaskOptions] = lambda _: TaskOptions()
        self.limits: Callable[..., list[Threshold]] = lambda *_, **__: []
        self.rule: Any = None
        self.kept: Any = None
        self.settings: tuple[str, ...] = ()
        self.workers = self.checkpoints = self.fleet = self.clock = self.memory = self

    def packages(self, cell: Cell) -> dict[str, str]:
        return self.versions

    def progress(self, words: str) -> None:
        self.said.append(words)

    @contextlib.contextmanager
    def timed(self, stage: str, cell: Cell | None = None) -> Iterator[None]:
        yield

    def cell_identity(self, cell: Cell) -> CellIdentity:
        return CellIdentity(
            model=ModelIdentity(name=cell.model.name, source="hub:x", revision="1", weights="pretrained"),
            recipe=cell.recipe.identity,
            hardware=cell.hardware.name,
            server=cell.server,
        )

    def transformers(self, cell: Cell) -> StubFlow:
        return self

    def peak(self, cell: Cell, due: Callable[[Cell], bool]) -> Peak:
        return Peak({"seconds": 1.0, "peak_bytes": self.peak_bytes, "new_tokens": 128}, self.start_seconds)

    def renew(self, cell: Cell, kind: str) -> None:
        self.renewed.append(kind)
        self.asked = 0

    def ask(self, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        self.asked += 1
        return {"seconds": next(self.seconds), "peak_bytes": self.peak_bytes, "new_tokens": 128}


class ServingFlow(StubFlow):
    """Stands in for a flow whose server gives the same answer to everything."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(1.0)
        self.answer = answer

    def options(self, cell: Cell) -> dict[str, Any]:
        return {}

    variables = options

    def server(self, cell: Cell) -> ServingFlow:
        return self

    def post(self, path: str, body: dict[str, Any], timeout: float) -> dict[str, Any]:
        return self.answer


class BenchmarkFlow(ServingFlow):
    """Stands in for a flow whose serving benchmark always gives the same; ``told`` is what it was asked, in order."""

    url = "http://127.0.0.1:1"

    def __init__(self, folder: Path) -> None:
        super().__init__(
            {"request_throughput": 4.0, "output_throughput": 32.0, "ttft": [5.0, 7.0], "tpot": [], "itl": []}
        )
        self.artifact = SimpleNamespace(folder=folder, key="prompts/1")
        self.told: list[str] = []

    def prompts(self) -> SimpleNamespace:
        return self.artifact

    def served(self, cell: Cell) -> SimpleNamespace:
        return self.artifact

    def backend(self, cell: Cell) -> SimpleNamespace:
        return SimpleNamespace(empty_cache="/empty")

    def client(self, cell: Cell) -> BenchmarkFlow:
        return self

    def tell(self, path: str, timeout: float) -> None:
        self.told.append(path)

    def ask(self, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        self.told.append(f"{command} {arguments['num_prompts']}")
        return self.answer


def repeat(once: Callable[[], None], rounds: int, warmup: int) -> int:
    for _ in range(warmup + rounds):
        once()
    return warmup + rounds


@pytest.fixture
def cells(suites_matrix: Matrix) -> dict[str, Cell]:
    """The CPU's cells by recipe, through Transformers."""
    return {
        cell.recipe.name: replace(cell, server="transformers")
        for cell in suites_matrix.cells()
        if cell.hardware.name == "cpu"
    }


def recorded(run: Run) -> list[Measurement]:
    return [line for line in run.lines() if isinstance(line, Measurement)]


def test_a_measurement_is_recorded_with_samples_warm_up_and_state(tmp_path: Path, cells: dict[str, Cell]) -> None:
    cell = cells["int8wo"]
    wanted = cell.measurements.generate
    assert (wanted.warmup, wanted.rounds) == (1, 3)
    found = Measure(Recorder(StubFlow(8.0, 1.0, 2.0, 4.0), Run(tmp_path))).generate(cell, repeat)  # type: ignore[arg-type]
    (record,) = recorded(Run(tmp_path))
    assert record == found
    tokens = wanted.max_new_tokens
    assert (record.metric, record.unit, record.value) == ("generate_throughput", "tok/s", tokens / 2)
    assert record.warmup == [wanted.warmup_tokens / 8]
    assert record.samples == [tokens / 1, tokens / 2, tokens / 4]
    assert record.statistics["p50"] == record.value
    assert record.packages == {"torch": "2.13.0"}
    assert record.parameters["max_new_tokens"] == tokens
    assert {"load_1min", "memory_available_gb"} <= record.state_before.keys() & record.state_after.keys()


@pytest.mark.parametrize(
    ("asked", "tags", "warming"),
    [(2, {}, 2), (None, {}, 8), (9, {}, 8), (2, {"side": "new", "block": 1}, 8)],
    ids=["few", "unsaid", "more than are timed", "a gate"],
)
def test_what_warms_up_has_as_many_tokens_as_the_matrix_says_but_in_gates(
    tmp_path: Path, cells: dict[str, Cell], asked: int | None, tags: dict[str, Any], warming: int
) -> None:
    """A gate tells by the first round how long one takes."""

    class NotingFlow(StubFlow):
        def ask(self, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
            made.append(arguments.get("max_new_tokens") or arguments["output_len"])
            return super().ask(command, timeout, **arguments)

        def engine(self, cell: Cell) -> StubFlow:
            return self

        def options(self, cell: Cell) -> dict[str, Any]:
            return {}

        variables = options

    made: list[int] = []
    cell = cells["int8wo"]
    tables = {
        name: getattr(cell.measurements, name).model_copy(update={"warmup": 1, "rounds": 2, "warmup_tokens": asked})
        for name in ("generate", "latency")
    }
    tables["generate"] = tables["generate"].model_copy(update={"max_new_tokens": 8})
    tables["latency"] = tables["latency"].model_copy(update={"output_len": 8})
    cell = replace(cell, measurements=cell.measurements.model_copy(update=tables))
    measure = Measure(Recorder(NotingFlow(1.0), Run(tmp_path), tags))  # type: ignore[arg-type]
    found = [measure.generate(cell, repeat), measure.latency(cell, 1, repeat)]
    assert made == [warming, 8, 8] * 2
    assert [it.statistics.get("warmup_tokens") for it in found] == [warming if warming < 8 else None] * 2
    assert (found[0].warmup, found[0].value, found[1].value) == ([warming / 1.0], 8.0, 1.0)


def test_a_resumed_run_measures_only_what_it_does_not_have(tmp_path: Path, cells: dict[str, Cell]) -> None:
    Measure(Recorder(StubFlow(1.0), Run(tmp_path))).generate(cells["bf16"], repeat)  # type: ignore[arg-type]
    flow = StubFlow(1.0)
    measure = Measure(Recorder(flow, Run(tmp_path)))  # type: ignore[arg-type]
    measure.recorder.resume()
    before = measure.generate(cells["bf16"], repeat)
    assert flow.asked == 0
    after = measure.generate(cells["int8wo"], repeat)
    assert flow.asked == 4
    assert measure.recorder.baseline_of(after) == before
    assert recorded(Run(tmp_path)) == [before, after]

    flow.versions = {"torch": "2.14.0"}
    measure.generate(cells["bf16"], repeat)
    assert flow.asked == 8, "other packages make another measurement"


def test_a_resumed_runs_baseline_counts_without_being_asked_for_again(tmp_path: Path, cells: dict[str, Cell]) -> None:
    before = Measure(Recorder(StubFlow(1.0), Run(tmp_path))).generate(cells["bf16"], repeat)  # type: ignore[arg-type]
    flow = StubFlow(1.0)
    measure = Measure(Recorder(flow, Run(tmp_path)))  # type: ignore[arg-type]
    measure.recorder.resume()
    assert measure.recorder.baseline_of(measure.generate(cells["int8wo"], repeat)) == before
    flow.versions = {"torch": "2.14.0"}
    measure.generate(cells["int8wo"], repeat)
    assert measure.recorder.baseline_of(measure.recorder.measurements[-1]) is None, (
        "it was measured under other packages"
    )


def test_a_resumed_runs_baseline_is_the_latest_from_the_same_data(tmp_path: Path, cells: dict[str, Cell]) -> None:
    measure = Measure(Recorder(StubFlow(1.0), Run(tmp_path)))  # type: ignore[arg-type]

    def accuracy(recipe: str, value: float, inputs: str) -> Measurement:
        found = measure.recorder.block(cells[recipe], {"task": "t"}, inputs=inputs).take(
            lambda: {"accuracy": Figure(value)}, names=("accuracy",)
        )
        return found["accuracy"]

    for value, inputs in ((0.9, "a"), (0.5, "b")):
        accuracy("bf16", value, inputs)
    measure = Measure(Recorder(StubFlow(1.0), Run(tmp_path)))  # type: ignore[arg-type]
    measure.recorder.resume()
    for inputs, expected in (("a", 0.9), ("b", 0.5)):
        baseline = measure.recorder.baseline_of(accuracy("int8wo", 0.4, inputs))
        assert baseline is not None
        assert baseline.value == expected
    assert measure.recorder.baseline_of(accuracy("int8wo", 0.4, "c")) is None


def test_serving_rounds_follow_each_other_or_wait_for_their_turn(tmp_path: Path, cells: dict[str, Cell]) -> None:
    cell = replace(cells["int8wo"], server="vllm")
    assert cell.measurements.serving.rounds == 2
    turns: list[tuple[int, int]] = []

    def timer(once: Callable[[], None], rounds: int, warmup: int) -> None:
        turns.append((rounds, warmup))
        repeat(once, rounds, warmup)

    for name, more in (("row", ()), ("turns", (timer,))):
        flow = BenchmarkFlow(tmp_path)
        found = Measure(Recorder(flow, Run(tmp_path / name))).serving(cell, 4, *more)  # type: ignore[arg-type]
        assert flow.told == ["/empty", "serving 4"] * 2, "the prefix cache is emptied before every round"
        assert found.keys() == {"request_throughput", "output_throughput", "ttft"}
        assert found["request_throughput"].samples == [4.0, 4.0]
        assert found["ttft"].samples == [5.0, 7.0, 5.0, 7.0]
        assert (found["ttft"].statistics["rounds"], found["ttft"].statistics["rounds_log_sd"]) == (2, 0)
    assert turns == [(2, 0)]


@pytest.mark.parametrize(
    ("limited", "tags", "rounds"),
    [("", {}, 3), ("ttft", {}, 6), ("request_throughput", {}, 6), ("", {"side": "old"}, 6)],
)
def test_rounds_of_serving_end_once_both_rates_are_known_and_no_limit_needs_more(
    tmp_path: Path, cells: dict[str, Cell], limited: str, tags: dict[str, Any], rounds: int
) -> None:
    cell = replace(cells["int8wo"], server="vllm")
    serving = cell.measurements.serving.model_copy(update={"rounds": 6})
    cell = replace(cell, measurements=cell.measurements.model_copy(update={"serving": serving}))
    flow = BenchmarkFlow(tmp_path)
    flow.rule = Rule
    # Of a baseline that was not measured.
    asked = Threshold(metric=limited or "latency", min_ratio=0.9, origin="chosen")
    flow.limits = lambda cell, metric, parameters, random: [asked] if metric == limited else []
    found = Measure(Recorder(flow, Run(tmp_path / "run"), tags=tags)).serving(cell, 4, in_a_row)  # type: ignore[arg-type]
    assert len(found["request_throughput"].samples) == rounds
    assert found["ttft"].statistics["rounds"] == rounds
    told = {name: found[name].statistics.get("rounds_most") for name in ("request_throughput", "output_throughput")}
    assert set(told.values()) == {6.0 if rounds < 6 else None}
    assert any("known within 0.00% after 3 of 6 rounds" in it for it in flow.said) == (rounds < 6)


class PredictingFlow(BenchmarkFlow):
    """Stands in for a flow whose evaluations always give the same; ``why`` is why there is no baseline."""

    def __init__(self, folder: Path, why: str) -> None:
        super().__init__(folder)
        self.why = why
        self.against: list[str | None] = []
        self.follow = False
        self.asked_for: list[tuple[str, Any]] = []

    def alone(self, cell: Cell) -> str:
        return self.why

    def plain(self, model: Any, on: str) -> SimpleNamespace:
        return SimpleNamespace(folder=Path("plain"), key="plain/1")

    def evaluated(self, cell: Cell, what: str, key: Any, ask: Callable[[], dict[str, Any]]) -> SimpleNamespace:
        return SimpleNamespace(facts=ask(), made=True)

    def recipes_follow(self, cell: Cell) -> bool:
        return self.follow

    def reference(self, cell: Cell, question: Mapping[str, Any], predict: Callable[..., Any]) -> Path:
        predict(Path("plain"), Path("logits"))
        return Path("logits")

    def ask(self, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        self.asked_for.append((command, arguments.get("kept") or arguments.get("output")))
        if command == "reference":
            return {}
        self.against.append(arguments["baseline"])
        beside = [0.1, 0.2] if arguments["baseline"] else []
        return {"windows": {"nll": [1.0, 1.2], "kl": beside, "top1": beside, "flips": beside}}


@pytest.mark.parametrize(("why", "against"), [("", "plain"), ("it came quantized", None)])
def test_text_is_held_against_the_baseline_if_there_is_one(
    tmp_path: Path, cells: dict[str, Cell], why: str, against: str | None
) -> None:
    flow = PredictingFlow(tmp_path, why)
    found = Measure(Recorder(flow, Run(tmp_path))).text_quality(cells["int8wo"])  # type: ignore[arg-type]
    assert flow.against == [against]
    others = {"kl_divergence", "top1_agreement", "token_flips"} if against else set()
    assert found.keys() == {"perplexity"} | others


@pytest.mark.parametrize(
    ("recipe", "follow", "why", "kept"),
    [
        ("int8wo", False, "", True),
        ("int8wo", False, "it came quantized", False),
        ("bf16", True, "", True),
        ("bf16", False, "", False),
    ],
)
def test_what_the_baseline_predicts_is_computed_once_where_a_recipe_is_held_against_it(
    tmp_path: Path, cells: dict[str, Cell], recipe: str, follow: bool, why: str, kept: bool
) -> None:
    flow = PredictingFlow(tmp_path, why)
    flow.follow = follow
    Measure(Recorder(flow, Run(tmp_path))).text_quality(cells[recipe])  # type: ignore[arg-type]
    asked = [("reference", "logits"), ("text_quality", "logits")] if kept else [("text_quality", None)]
    assert flow.asked_for == asked


def test_of_an_agreement_that_it_has_a_resumed_run_asks_nothing(tmp_path: Path, cells: dict[str, Cell]) -> None:
    """On another machine the checkpoint and the reference would have to be made anew, for nothing."""

    class AgreeingFlow(ServingFlow):
        def __init__(self) -> None:
            super().__init__({"ids": [[1, 2]], "top": [[[[1, -0.5], [2, -1.5]]]]})
            self.asked_for: list[str] = []

        def prompts(self) -> SimpleNamespace:
            return SimpleNamespace(folder=tmp_path, key="text")

        def evaluated(self, cell: Cell, what: str, key: object, ask: Callable[[], dict[str, Any]]) -> SimpleNamespace:
            return SimpleNamespace(facts=ask(), made=True)

        def engine(self, cell: Cell) -> AgreeingFlow:
            return self

        def ask(self, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
            self.asked_for.append("engine" if "sequences" in arguments else "reference")
            return self.answer

    flows = [AgreeingFlow(), AgreeingFlow()]
    for again, flow in enumerate(flows):
        measure = Measure(Recorder(flow, Run(tmp_path)))  # type: ignore[arg-type]
        if again:
            measure.recorder.resume()
        found = measure.agreement(replace(cells["int8wo"], server="vllm"))
        assert found["served_kl"].value == pytest.approx(0, abs=1e-12)
    assert [flow.asked_for for flow in flows] == [["reference", "engine"], []]


def test_a_chat_whose_answer_is_gone_is_asked_again(tmp_path: Path, cells: dict[str, Cell]) -> None:
    cell = replace(cells["bf16"], server="vllm")
    first, again = ({"usage": {"completion_tokens": count}} for count in (7, 9))
    assert Measure(Recorder(ServingFlow(first), Run(tmp_path))).chat(cell) == first  # type: ignore[arg-type]
    resumed = Measure(Recorder(ServingFlow(again), Run(tmp_path)))  # type: ignore[arg-type]
    resumed.recorder.resume()
    assert resumed.chat(cell) == first
    for kept in (tmp_path / "attachments").iterdir():
        kept.unlink()
    resumed = Measure(Recorder(ServingFlow(again), Run(tmp_path)))  # type: ignore[arg-type]
    resumed.recorder.resume()
    assert resumed.chat(cell) == again


def test_what_was_discarded_is_measured_again(tmp_path: Path, cells: dict[str, Cell]) -> None:
    found = Measure(Recorder(StubFlow(1.0), Run(tmp_path))).generate(cells["bf16"], repeat)  # type: ignore[arg-type]
    other = Run(tmp_path / "other")
    other.append(found.model_copy(update={"discarded": "throttled"}))
    flow = StubFlow(1.0)
    measure = Measure(Recorder(flow, other))  # type: ignore[arg-type]
    measure.recorder.resume()
    measure.generate(cells["bf16"], repeat)
    assert flow.asked == 4


@pytest.mark.parametrize(("comparison", "again"), [("max_ratio", 2), ("max", 1)])
def test_what_was_too_noisy_for_its_limit_is_measured_again(
    tmp_path: Path, cells: dict[str, Cell], comparison: str, again: int
) -> None:
    """With the baseline that it was held against, which may be what was noisy; others of the same metric stand."""
    measure = Measure(Recorder(StubFlow(1.0), Run(tmp_path)))  # type: ignore[arg-type]
    for name in ("bf16", "int8wo", "int8dq"):
        found = measure.generate(cells[name], repeat)
    asked = {"metric": found.metric, "parameters": found.parameters, "origin": "chosen", "comparison": comparison}
    of = measure.recorder.flow.cell_identity(cells["int8wo"])
    measure.recorder.run.append(Judgement(cell=of, passed=False, noisy=True, measured=1.0, limit=1.0, **asked))
    flow = StubFlow(1.0)
    resumed = Measure(Recorder(flow, Run(tmp_path)))  # type: ignore[arg-type]
    resumed.recorder.resume()
    for name in ("bf16", "int8wo", "int8dq"):
        resumed.generate(cells[name], repeat)
    assert flow.asked == 4 * again


def test_a_figure_that_says_nothing_is_measured_again_and_what_is_told_from_it(
    tmp_path: Path, cells: dict[str, Cell]
) -> None:
    """Though no limit is held against it, as none is against a baseline's; what is quiet stands."""

    class Batches(StubFlow):
        def engine(self, cell: Cell) -> StubFlow:
            return self

        def options(self, cell: Cell) -> dict[str, Any]:
            return {}

        variables = options

    def session(flow: Batches) -> dict[tuple[str, Any], float]:
        recorder = Recorder(flow, Run(tmp_path))  # type: ignore[arg-type]
        if Run(tmp_path).path.exists():
            recorder.resume(spread.too_wide)
        for size in (1, 8):
            latency = engine.latency(recorder, cell, size, repeat)
            recorder.note(cell, {**latency.parameters, "phase": "decode"}, "limit_fraction", Figure(1 / latency.value))
        return {(it.metric, it.parameters["batch_size"]): it.value for it in recorder.measurements}

    table = cells["int8wo"].measurements.latency.model_copy(update={"warmup": 0, "rounds": 3})
    cell = replace(cells["int8wo"], measurements=cells["int8wo"].measurements.model_copy(update={"latency": table}))
    assert session(Batches(0.5, 8.0, 0.5, 1.0, 1.0, 1.0))["latency", 1] == 3.0
    again = Batches(0.5)
    told = {("latency", 1): 0.5, ("limit_fraction", 1): 2.0, ("latency", 8): 1.0, ("limit_fraction", 8): 1.0}
    assert session(again) == told
    assert again.asked == 3
    assert session(Batches(9.0)) == told, "nothing is noisy any more"


@given(st.lists(st.lists(st.floats(0.1, 100), max_size=9), max_size=5), st.floats(0.1, 10))
def test_rounds_are_as_far_apart_in_any_unit(rounds: list[list[float]], factor: float) -> None:
    found = between_rounds(rounds)
    assert bool(found) == (sum(map(bool, rounds)) > 1)
    if found:
        scaled = between_rounds([[factor * it for it in values] for values in reversed(rounds)])
        assert scaled == pytest.approx(found, abs=1e-9)
        assert between_rounds([rounds[0] or [1.0]] * 3)["rounds_log_sd"] == pytest.approx(0, abs=1e-12)


class RestlessWatch:
    """Stands in for a watch of the machine that sees a problem in the first blocks."""

    restless = 0

    def __init__(self, hardware: object) -> None:
        self.problems: list[str] = []

    def __enter__(self) -> RestlessWatch:
        if RestlessWatch.restless:
            RestlessWatch.restless -= 1
            self.problems = ["throttled: too hot"]
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> type[RestlessWatch]:
    monkeypatch.setattr(watch, "Watch", RestlessWatch)
    monkeypatch.setattr(RestlessWatch, "restless", 0)
    return RestlessWatch


def test_a_disturbed_block_is_kept_as_discarded_and_repeated(
    tmp_path: Path, cells: dict[str, Cell], restless: type[RestlessWatch]
) -> None:
    restless.restless = 1
    flow = StubFlow(1.0)
    found = Measure(Recorder(flow, Run(tmp_path))).generate(cells["bf16"], repeat)  # type: ignore[arg-type]
    assert [record.discarded for record in recorded(Run(tmp_path))] == ["throttled: too hot", ""]
    assert not found.discarded
    assert "too hot" in flow.said[0]


class BusyBeside:
    """Stands in for a watch of the processors that sees other work."""

    state: ClassVar[dict[str, Any]] = {"other_cpus_in_use": 1.3}
    problems: ClassVar[list[str]] = ["shared: other processes used 1.3 of 2 processors"]

    def __enter__(self) -> BusyBeside:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_other_work_beside_a_block_is_told_of_and_the_block_stands(
    tmp_path: Path, cells: dict[str, Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What depends on no clock is not marked."""
    monkeypatch.setattr(undisturbed_module, "ProcessorWatch", BusyBeside)
    flow = StubFlow(1.0)
    found = Measure(Recorder(flow, Run(tmp_path))).generate(cells["bf16"], repeat)  # type: ignore[arg-type]
    assert (found.disturbed, found.discarded) == (BusyBeside.problems[0], "")
    assert found.state_after["other_cpus_in_use"] == 1.3
    (kept,) = recorded(Run(tmp_path))
    assert kept == found
    text = Measure(Recorder(PredictingFlow(tmp_path, ""), Run(tmp_path)))  # type: ignore[arg-type]
    assert {it.disturbed for it in text.text_quality(cells["int8wo"]).values()} == {""}


def test_a_machine_that_never_settles_is_an_error(
    tmp_path: Path, cells: dict[str, Cell], restless: type[RestlessWatch]
) -> None:
    restless.restless = 99
    measure = Measure(Recorder(StubFlow(1.0), Run(tmp_path)))  # type: ignore[arg-type]
    with pytest.raises(HarnessError, match=r"generate_throughput of .*3 blocks in a row .*too hot.*--resume"):
        measure.generate(cells["bf16"], repeat)
    assert all(record.discarded for record in recorded(Run(tmp_path)))
    cell = measure.recorder.flow.cell_identity(cells["int8wo"])
    quantized = recorded(Run(tmp_path))[0].model_copy(update={"cell": cell})
    assert measure.recorder.baseline_of(quantized) is None


def test_a_device_is_not_asked_what_it_can_do_for_what_the_model_does_not_suit(
    tmp_path: Path, cells: dict[str, Cell]
) -> None:
    """Its tables would have a column of that recipe, with nothing but the device's own figures."""

    class UnsuitedFlow(StubFlow):
        def facts(self, cell: Cell) -> None:
            raise Unsuitable("the model came quantized")

        def once(self, *_: Any, **__: Any) -> dict[str, Any]:
            pytest.fail("the device was measured")

    with pytest.raises(Unsuitable):
        Measure(Recorder(UnsuitedFlow(1.0), Run(tmp_path))).speed_of_light(cells["int8dq"], 1)  # type: ignore[arg-type]
    assert not Run(tmp_path).path.exists()


def test_a_device_is_asked_again_what_it_can_do_where_it_was_disturbed(
    tmp_path: Path, cells: dict[str, Cell], restless: type[RestlessWatch]
) -> None:
    class LimitedFlow(StubFlow):
        def once(self, backend: str, *_: Any, **__: Any) -> dict[str, Any]:
            assert backend == "limits"
            self.asked += 1
            return {"bandwidth": 1e9 * self.asked, "rates": {"bfloat16": 1e12}}

    restless.restless = 1
    limits = Limits(Recorder(LimitedFlow(1.0), Run(tmp_path)))  # type: ignore[arg-type]
    assert limits._ceiling(cells["bf16"]).bandwidth == 2e9


@pytest.mark.parametrize("name", ["cpu", "a100", "h100"])
def test_a_device_is_asked_for_the_arithmetic_that_its_entry_has(
    tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """No float8 product of an A100; what is multiplied otherwise is held against bfloat16's ceiling."""
    asked: dict[str, Any] = {}

    class LimitedFlow(StubFlow):
        def once(self, *_: Any, **arguments: Any) -> dict[str, Any]:
            asked.update(arguments)
            return {"bandwidth": 1e12, "rates": dict.fromkeys(arguments["arithmetic"], 1e14)}

    hardware = suites_matrix.hardware[name]
    monkeypatch.setattr(probe, "device", lambda _: probe.host())
    monkeypatch.setattr(probe, "state", lambda _: {})
    monkeypatch.setattr(Hardware, "watched", False)
    cell = next(it for it in suites_matrix.cells() if it.hardware == hardware and it.recipe.name == "bf16")
    limits = Limits(Recorder(LimitedFlow(1.0), Run(tmp_path)))  # type: ignore[arg-type]
    limits._ceiling(replace(cell, server="transformers"))
    assert asked["arithmetic"] == list(hardware.arithmetic)
    assert ("float8" in asked["arithmetic"]) == (name == "h100")
    rates = [it.parameters["dtype"] for it in recorded(Run(tmp_path)) if it.metric == "matrix_rate"]
    assert rates == list(hardware.arithmetic)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_not_a_number_is_an_error_and_no_record(tmp_path: Path, cells: dict[str, Cell], number: float) -> None:
    measure = Measure(Recorder(StubFlow(1.0, peak_bytes=number), Run(tmp_path)))  # type: ignore[arg-type]
    with pytest.raises(HarnessError, match=rf"peak_memory of {cells['bf16'].id} came out as {number}"):
        measure.peak_memory(cells["bf16"])
    assert not Run(tmp_path).path.exists()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (lambda bad: Figure(1.0, [1.0, bad, 1.0]), "as sample 1 of 3"),
        (lambda bad: Figure(1.0, [1.0], [bad]), "as warm-up 0 of 1"),
        (lambda bad: Figure(1.0, [1.0], statistics={"p99": bad}), "as p99"),
    ],
)
def test_a_sample_that_is_not_a_number_is_an_error_and_no_record(
    tmp_path: Path, cells: dict[str, Cell], figure: Callable[[float], Figure], words: str, number: float
) -> None:
    cell = cells["int8wo"]
    recorder = Recorder(StubFlow(1.0), Run(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(HarnessError, match=rf"latency of {cell.id} has {number} {words}"):
        recorder.block(cell, {}).take(lambda: {"latency": figure(number)}, names=("latency",), quick=True)
    assert not Run(tmp_path).path.exists()


@pytest.mark.parametrize("field", ["server", "hardware"])
def test_a_baseline_of_elsewhere_is_none(tmp_path: Path, cells: dict[str, Cell], field: str) -> None:
    measure = Measure(Recorder(StubFlow(1.0), Run(tmp_path)))  # type: ignore[arg-type]
    measure.generate(cells["bf16"], repeat)
    found = measure.generate(cells["int8wo"], repeat)
    assert measure.recorder.baseline_of(found) is not None
    assert measure.recorder.baseline_of(found.model_copy(update={"metric": "latency"})) is None
    elsewhere = found.cell.model_copy(update={field: "elsewhere"})
    assert measure.recorder.baseline_of(found.model_copy(update={"cell": elsewhere})) is None


# ------------------------------------------------------------------------------------------------------------- kernels


class StubEngine(StubFlow):
    """Stands in for a flow whose engine has two quantized layers and was profiled with the given kernels."""

    compiles = True

    def __init__(self, *ran: tuple[str, float, int], layers: int = 2) -> None:
        super().__init__(1.0)
        self.ran = ran
        self.info = {
            "layers": {f"layers.{index}": "Int8Tensor" for index in range(layers)},
            "compile_seconds": 0.5,
            "kv_cache_tokens": 1000,
        }

    def backend(self, cell: Cell) -> StubEngine:
        return self

    def engine(self, cell: Cell) -> StubEngine:
        return self

    def options(self, cell: Cell) -> dict[str, Any]:
        return {}

    variables = options

    def served(self, cell: Cell) -> SimpleNamespace:
        """A checkpoint whose layers are all meant to be quantized."""
        layer = {"kind": "linear", "part": "", "quantized": True, "rule": ""}
        weights = {f"{name}.weight": {**layer, "layer": name} for name in self.info["layers"]}
        return SimpleNamespace(facts={"weights": weights})

    def depth(self, cell: Cell) -> int:
        return 2

    def ask(self, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        calls = [[0, 0.0, 1000.0 * arguments["output_len"], 900.0]]
        return {"kernels": [list(row) for row in self.ran], "ran": {"names": ["aten::mm"], "calls": calls}}


OWN, OTHER = ("aten::_int_mm", 0.002, 8), ("aten::mm", 0.006, 8)


def test_kernels_are_recorded_with_their_share_and_calls(tmp_path: Path, cells: dict[str, Cell]) -> None:
    measure = Measure(Recorder(StubEngine(OWN, OTHER), Run(tmp_path)))  # type: ignore[arg-type]
    found = measure.kernels(replace(cells["int8dq"], server="vllm"))
    assert found["kernel_time"].value == pytest.approx(8)
    share = found["quantized_kernel_share"]
    assert (share.value, share.statistics) == (pytest.approx(0.25), {"calls": 8, "calls_due": 8})
    attached = json.loads((tmp_path / share.attachment).read_text())
    assert "aten::mm" in {name for name, _, _ in attached["kernels"]}
    assert attached["layers"] == 2
    assert attached["ran"]["calls"][0][2] == 4000.0, "the order of the batch, whose steps are four"


def test_transformers_is_profiled_where_it_is_what_a_cell_is_measured_through(
    tmp_path: Path, cells: dict[str, Cell]
) -> None:
    """How many products are due is what its worker counts: a batch of its own steps has no engine's further ones."""

    class Worker(StubEngine):
        def transformers(self, cell: Cell) -> Worker:
            return self

        def ask(self, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
            return {"kernels": [list(row) for row in self.ran], "due": 8}

        engine = options = None  # type: ignore[assignment]

    found = Measure(Recorder(Worker(OWN, OTHER), Run(tmp_path))).kernels(cells["int8dq"])  # type: ignore[arg-type]
    share = found["quantized_kernel_share"]
    assert share.statistics == {"calls": 8, "calls_due": 8}
    assert json.loads((tmp_path / share.attachment).read_text()).keys() == {"kernels"}
    with pytest.raises(WrongKernels, match="8 are due"):
        Measure(Recorder(Worker(OTHER), Run(tmp_path / "other"))).kernels(cells["int8dq"])  # type: ignore[arg-type]


@pytest.mark.parametrize("ran", [[OTHER], [("aten::_int_mm", 0.002, 4), OTHER], []])
def test_a_recipe_whose_kernels_did_not_run_for_every_layer_and_step_fails(
    tmp_path: Path, cells: dict[str, Cell], ran: list[tuple[str, float, int]]
) -> None:
    """Prefill alone is not enough: half of the calls are missing where decoding fell back."""
    measure = Measure(Recorder(StubEngine(*ran), Run(tmp_path)))  # type: ignore[arg-type]
    for _ in range(2):  # measured, and then out of the record
        with pytest.raises(WrongKernels, match="8 are due, one a quantized layer and step; what ran instead") as raised:
            measure.kernels(replace(cells["int8dq"], server="vllm"))
        assert not raised.value.known
        assert ("aten::mm (8 calls, 6.00 ms)" in str(raised.value)) == (OTHER in ran)


@pytest.mark.parametrize(("calls", "passes"), [(10, True), (12, True), (9, False), (11, False)])
def test_an_engine_that_goes_a_step_further_takes_every_layer_along(
    tmp_path: Path, cells: dict[str, Cell], calls: int, passes: bool
) -> None:
    """Else the calls of a further step would make up for a layer that fell back."""
    measure = Measure(Recorder(StubEngine(("aten::_int_mm", 0.002, calls), OTHER), Run(tmp_path)))  # type: ignore[arg-type]
    cell = replace(cells["int8dq"], server="vllm")
    if passes:
        measure.kernels(cell)
        return
    with pytest.raises(WrongKernels, match=rf"{calls} calls .* 8 are due, .* \(or whole steps more\); what ran"):
        measure.kernels(cell)


def test_a_known_fallback_says_why(tmp_path: Path, cells: dict[str, Cell]) -> None:
    measure = Measure(Recorder(StubEngine(OTHER), Run(tmp_path)))  # type: ignore[arg-type]
    with pytest.raises(WrongKernels, match="aten::mm") as raised:
        measure.kernels(replace(cells["int8wo"], server="vllm"))
    assert "widens" in raised.value.known


def test_the_profiles_of_the_committed_h100_runs_bear_their_records_out(
    repository: Path, suites_matrix: Matrix
) -> None:
    """Every profiled cell's kernels can be read by name, and are those that its record counts."""
    shares = 0
    for folder in (repository / "results" / "reference").glob("h100-*"):
        for line in Run(folder).lines():
            if not isinstance(line, Measurement) or line.metric not in ("kernel_time", "quantized_kernel_share"):
                continue
            ran = json.loads((folder / line.attachment).read_text(encoding="utf-8"))["kernels"]
            total = math.fsum(seconds for _, seconds, _ in ran)
            if line.metric == "kernel_time":
                assert line.value == pytest.approx(1000 * total)
                continue
            own = [(seconds, calls) for name, seconds, calls in ran if re.search(str(line.parameters["pattern"]), name)]
            assert line.value == pytest.approx(math.fsum(seconds for seconds, _ in own) / total)
            calls, due = line.statistics["calls"], line.statistics["calls_due"]
            assert calls == sum(calls for _, calls in own)
            assert due > 0
            whole = calls >= due and calls % (due / 4) == 0
            assert whole or suites_matrix.recipes[line.cell.recipe.name].known_fallback
            shares += 1
    assert shares


def test_the_baseline_is_profiled_alone(tmp_path: Path, cells: dict[str, Cell]) -> None:
    measure = Measure(Recorder(StubEngine(OTHER), Run(tmp_path)))  # type: ignore[arg-type]
    assert measure.kernels(replace(cells["bf16"], server="vllm")).keys() == {"kernel_time"}


def test_a_recipe_of_which_the_matrix_names_no_kernels_does_not_pass(tmp_path: Path, cells: dict[str, Cell]) -> None:
    unnamed = cells["int8dq"].recipe.model_copy(update={"kernels": {}})
    measure = Measure(Recorder(StubEngine(OWN, OTHER), Run(tmp_path)))  # type: ignore[arg-type]
    with pytest.raises(
        WrongKernels, match=r"no kernels of int8dq on cpu \(recipes.int8dq.kernels\).*aten::mm"
    ) as raised:
        measure.kernels(replace(cells["int8dq"], recipe=unnamed, server="vllm"))
    assert not raised.value.known


@pytest.mark.parametrize(
    ("recipe", "name", "own"),
    [
        # As an H100 profiled them.
        ("float8dq", "nvjet_sm90_qqtst_128x128_128x6_2x1_v_bz_ovscale_TNT", True),
        ("float8dq", "nvjet_sm90_tst_512x8_64x3_2x1_v_bz_TNT", False),
        ("float8dq", "triton_red_fused__scaled_mm__to_copy_abs_amax_clamp_div_fused_add_rms_norm_t_view_3", False),
        ("float8dq", "void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16, (vllm::Fp8KVCacheDataType)0>", False),
        ("float8dq", "void at::native::float8_copy_kernel_cuda<c10::Float8_e4m3fn>", False),
        ("float8dq", "sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n", True),
        ("int8dq", "void cutlass::device_kernel<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90<2>>>", False),
        ("int8dq", "cutlass_80_tensorop_i16832gemm_s8_256x128_64x3_tn_align16", True),
    ],
)
def test_only_products_of_the_recipes_own_kind_are_its_kernels(
    suites_matrix: Matrix, recipe: str, name: str, own: bool
) -> None:
    """What quantizes, copies or caches in a small data type runs beside an ordinary product too."""
    assert bool(re.search(suites_matrix.recipes[recipe].kernels["nvidia"], name)) is own


def test_a_start_that_was_disturbed_is_made_again(
    tmp_path: Path, cells: dict[str, Cell], restless: type[RestlessWatch]
) -> None:
    restless.restless = 1
    flow = StubEngine()
    Measure(Recorder(flow, Run(tmp_path))).engine(replace(cells["int8dq"], server="vllm"))  # type: ignore[arg-type]
    assert flow.renewed == ["engine"]


def test_an_engine_without_a_linear_layer_proves_nothing(tmp_path: Path, cells: dict[str, Cell]) -> None:
    with pytest.raises(HarnessError, match="no linear layer"):
        Measure(Recorder(StubEngine(layers=0), Run(tmp_path))).engine(  # type: ignore[arg-type]
            replace(cells["int8dq"], server="vllm")
        )


# -------------------------------------------------------------------------------------------------------------- rounds


def measured_rounds(
    folder: Path,
    cell: Cell,
    *,
    most: int,
    tags: dict[str, Any] | None = None,
    limits: tuple[Threshold, ...] = (),
) -> tuple[Measurement, StubFlow]:
    """Measure the latency of a cell whose batches take equally long, with the rule of a session of the suites.

    What the folder's run has already is resumed.
    """
    flow = StubFlow(2.0)
    flow.rule = Rule
    flow.limits = lambda *_, **__: list(limits)
    flow.engine = lambda _: flow  # type: ignore[attr-defined]
    flow.options = flow.variables = lambda _: {}  # type: ignore[attr-defined]
    latency = cell.measurements.latency.model_copy(update={"rounds": most, "warmup": 2})
    wanted = replace(cell, measurements=cell.measurements.model_copy(update={"latency": latency}))
    recorder = Recorder(flow, Run(folder), tags)  # type: ignore[arg-type]
    if Run(folder).path.exists():
        recorder.resume()
    return Measure(recorder).latency(wanted, 1, in_a_row), flow


def test_rounds_that_are_all_alike_end_early_and_the_record_says_so(tmp_path: Path, cells: dict[str, Cell]) -> None:
    found, flow = measured_rounds(tmp_path, replace(cells["bf16"], server="vllm"), most=8)
    assert len(found.samples) == FEWEST
    assert len(found.warmup) == 2
    assert not found.discarded
    assert (found.statistics["rounds_most"], found.statistics["half_width"]) == (8.0, 0.0)
    assert "known within 0.00% after 5 of 8 rounds" in "\n".join(flow.said)


def test_rounds_end_early_against_a_baseline_that_a_resumed_run_has(tmp_path: Path, cells: dict[str, Cell]) -> None:
    """Without it nothing is known of the ratio, and all rounds are taken."""
    asked = Threshold(metric="latency", max_ratio=2.0, origin="chosen")
    baseline, cell = (replace(cells[name], server="vllm") for name in ("bf16", "int8wo"))
    alone, _ = measured_rounds(tmp_path / "alone", cell, most=8, limits=(asked,))
    assert len(alone.samples) == 8
    measured_rounds(tmp_path / "resumed", baseline, most=8)
    found, _ = measured_rounds(tmp_path / "resumed", cell, most=8, limits=(asked,))
    assert len(found.samples) == FEWEST


def test_rounds_of_a_gate_and_few_rounds_are_all_taken(tmp_path: Path, cells: dict[str, Cell]) -> None:
    cell = replace(cells["bf16"], server="vllm")
    for folder, most, tags in (("few", 3, None), ("gate", 8, {"side": "old"})):
        found, _ = measured_rounds(tmp_path / folder, cell, most=most, tags=tags)
        assert len(found.samples) == most
        assert "rounds_most" not in found.statistics
