"""Workloads sent by vLLM's serving benchmark to a server of known timing: what the client draws, takes, and tells.

The client is the worker that the suites use; no model is loaded.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import VoidLoad, WorkerError
from harness.matrix.plan import Cell, Matrix
from harness.matrix.workload import Workload
from harness.measure.capacity import correlation_time
from harness.measure.flow import Flow
from harness.measure.load_run import Run
from harness.measure.loads import Loads
from harness.measure.recorder import Recorder
from harness.records.run import Run as RunFolder
from harness.records.schema import Measurement
from harness.runtime.environment import Environment
from harness.runtime.job import Worker
from harness.runtime.store import Store
from tests.load_server import Running, simulated

pytestmark = pytest.mark.usefixtures("imports_stand")
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def flow(
    tiny_model: Any, kept_store: Store, suites_matrix: Matrix, documents: Path, tmp_path_factory: Any
) -> Iterator[Flow]:
    run = RunFolder.create(tmp_path_factory.mktemp("runs"))
    found = Flow.open(kept_store, run, suites_matrix, environment=Environment(), data=documents)
    yield found
    found.close()


@pytest.fixture(scope="module")
def of_cell(tiny_model: Any, suites_matrix: Matrix) -> Cell:
    cells = suites_matrix.cells([str(tiny_model.folder)], ["bf16"])
    found = next(it for it in cells if it.hardware.name == "cpu")
    return replace(found, server="vllm")


@pytest.fixture(scope="module")
def client(flow: Flow, of_cell: Cell) -> Worker:
    return flow.fleet.client(of_cell)


@pytest.fixture
def ask(client: Worker, tiny_model: Any) -> Ask:
    def send(server: Running, requests: int, rate: float | None, **workload: Any) -> dict[str, Any]:
        tokens = {"kind": "fixed", "tokens": 8}
        table = {"arrival": {"kind": "poisson"}, "input": tokens, "output": {"kind": "fixed", "tokens": 1}} | workload
        return client.ask(
            "load",
            120,
            url=server.url,
            model="model",
            tokenizer=str(tiny_model.folder),
            workload=Workload(name="known", **table).model_dump(),
            requests=requests,
            rate=rate,
            seed=1,
            dataset=None,
            trust_remote_code=False,
        )

    return send


SERVICE = 0.01


@pytest.mark.parametrize(("service", "squared"), [("fixed", 0.0), ("two-point", 4 / 9)], ids=["M/D/1", "M/G/1"])
def test_the_mean_wait_is_that_of_pollaczek_and_khinchine(ask: Ask, service: str, squared: float) -> None:
    """W = rho S (1 + c^2) / (2 (1 - rho)), at half of what one place serves, if arrivals are Poisson's.

    It is within three standard errors of the mean wait, by the effective number of waits; and the client's times are
    those at which the server sent.
    """
    rate, count = 0.5 / SERVICE, 250
    expected = 1000 * 0.5 * SERVICE * (1 + squared) / (2 * (1 - 0.5))
    # While other processes take the processors for a second, requests queue for them: of such a run nothing is to tell.
    for _ in range(4):
        with simulated(first=SERVICE, servers=1, service=service) as server:
            found = ask(server, count, rate)
            seen = server.log()
        waits = [1000 * (it["start"] - it["arrived"]) for it in seen]
        error = statistics.stdev(waits) * (correlation_time(waits) / count) ** 0.5
        if error < 0.5 * expected and not Run(rate, found, due=count / rate).void:
            break
    assert error < 0.5 * expected, "the interval tells something"
    assert statistics.fmean(waits) == pytest.approx(expected, abs=3 * error)
    sent = [1000 * (it["first"] - it["arrived"]) for it in seen]
    # A time is no surer than the client's own timers are.
    assert statistics.median(found["ttft"]) == pytest.approx(statistics.median(sent), abs=5 + 2 * found["lag_p99"])
    assert Run(rate, found, due=count / rate).void == ""


def test_tokens_are_timed_as_the_server_sends_them(ask: Ask) -> None:
    with simulated(first=0.05, token=0.02) as server:
        found = ask(server, 40, 20.0, output={"kind": "fixed", "tokens": 6})
        seen = server.log()
    assert statistics.median(found["tpot"]) == pytest.approx(20, rel=0.1)
    assert statistics.median(found["ttft"]) == pytest.approx(50, abs=5 + 2 * found["lag_p99"])
    assert found["tokens"] == [6] * 40 == [it["tokens"] for it in seen]
    assert found["read"] == [8] * 40, "prompts are as long as they should be, to the token"


@pytest.mark.parametrize(
    ("arrival", "gaps"),
    [
        ({"kind": "constant"}, lambda it: statistics.pstdev(it) < 0.015),
        ({"kind": "burst", "burst": 10}, lambda it: sum(gap > 0.1 for gap in it) == 3),
        ({"kind": "gamma", "burstiness": 0.2}, lambda it: statistics.pstdev(it) > 1.4 * statistics.fmean(it)),
    ],
    ids=["constant", "burst", "gamma"],
)
def test_requests_come_as_the_workload_has_it(ask: Ask, arrival: dict[str, Any], gaps: Callable[..., bool]) -> None:
    def come() -> list[float]:
        with simulated(first=0.001) as server:
            ask(server, 40, 40.0, arrival=arrival)
            arrived = sorted(it["arrived"] for it in server.log())
        return [later - earlier for earlier, later in itertools.pairwise(arrived)]

    # Where other processes have the processors for a second requests come late, of whatever arrival they are.
    assert any(gaps(come()) for _ in range(4))


def test_so_many_are_in_flight_and_no_more(ask: Ask) -> None:
    with simulated(first=0.05, refuse_above=3) as server:
        found = ask(server, 12, None, arrival={"kind": "concurrent", "concurrency": 3})
    assert found["errors"] == []
    assert found["duration"] >= 12 / 3 * 0.05


def test_a_trace_is_replayed_by_its_timestamps(ask: Ask, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": at, "input_length": 5 + index, "output_length": 2} for index, at in enumerate((0, 400, 2400))]
    trace.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arrival = {"kind": "trace", "file": str(trace), "unit": "ms", "speed": 2.0}
    with simulated(first=0.001) as server:
        found = ask(server, 10, None, arrival=arrival, input=None, output=None)
        arrived = [it["arrived"] for it in server.log()]
    assert [at - arrived[0] for at in arrived] == pytest.approx([0.0, 0.2, 1.2], abs=0.16)
    assert found["read"] == [5, 6, 7]


def test_a_conversation_sends_what_was_said_before(ask: Ask) -> None:
    with simulated(first=0.01) as server:
        found = ask(server, 3, 20.0, output={"kind": "fixed", "tokens": 2}, turns=3, think=0.05)
    assert len(found["ttft"]) == 9
    assert sorted(found["read"])[:3] == [8, 8, 8]
    assert max(found["read"]) >= 3 * 8 + 2 * 2, "the answers are part of what is sent"


def test_prompts_share_their_beginning(ask: Ask) -> None:
    with simulated(first=0.001) as server:
        found = ask(server, 6, 50.0, shared_prefix={"tokens": 16, "groups": 2})
    assert found["read"] == [24] * 6


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"refuse_above": 2}, r"refused or dropped \d+ of 30 requests; the first: .*(Service Unavailable|No)"),
        ({"drop_every": 5}, r"refused or dropped 6 of 30 requests; the first: .*not completed"),
        ({"short_every": 5}, r"6 of 30 answers have fewer tokens than asked for"),
    ],
    ids=["refused", "dropped", "short"],
)
def test_a_server_that_does_not_answer_what_it_is_asked_makes_the_run_void(
    ask: Ask, fault: dict[str, int], words: str
) -> None:
    with simulated(first=0.05, token=0.005, **fault) as server:
        found = ask(server, 30, 100.0, output={"kind": "fixed", "tokens": 4})
    assert re.search(words, Run(100.0, found, due=0.3).void)


def test_a_client_that_cannot_keep_up_makes_the_run_void(ask: Ask) -> None:
    """Sent are far more requests a second than one thread can."""
    with simulated(first=0.001) as server:
        found = ask(server, 600, 20_000.0)
    assert "the client was the bottleneck" in Run(20_000.0, found, due=600 / 20_000).void


def test_a_file_that_has_too_few_prompts_is_refused(ask: Ask, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one", "output_tokens": 2}\n', encoding="utf-8")
    with simulated() as server, pytest.raises(WorkerError, match="has 1 prompts, and 5 are sent"):
        ask(server, 5, 10.0, prompts=str(prompts), input=None, output=None)


# ------------------------------------------------------------------------------------- from a workload to records


class Standing:
    """A simulated server in the place of the cell's."""

    def __init__(self, url: str) -> None:
        self.url = url

    def tell(self, path: str, timeout: float) -> None: ...

    def get(self, path: str, timeout: float) -> str:
        return 'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0'

    def check_alive(self, stage: str) -> None: ...


def measured(
    flow: Flow, cell: Cell, monkeypatch: pytest.MonkeyPatch, folder: Path, server: Running, **load: Any
) -> tuple[Loads, Cell]:
    monkeypatch.setattr(flow.fleet, "server", lambda cell: Standing(server.url))
    wanted = {"requests": 24, "seconds": 0.5, "sweep": [0.3, 0.8], "precision": 0.3, "most_runs": 2}
    wanted |= {"idle_seconds": 0.2} | load
    whole = cell.measurements
    found = replace(cell, measurements=whole.model_copy(update={"load": whole.load.model_copy(update=wanted)}))
    return Loads(Recorder(flow, RunFolder.create(folder))), found


def known(**table: Any) -> Workload:
    lengths = {"input": {"kind": "fixed", "tokens": 8}, "output": {"kind": "fixed", "tokens": 4}}
    return Workload(name="known", **({"arrival": {"kind": "poisson"}, **lengths} | table))


@pytest.fixture
def of_flow(flow: Flow) -> Callable[[Workload], Flow]:
    return lambda workload: replace(flow, workload=lambda name: workload)


def test_a_capacity_is_recorded_with_its_interval_goodput_and_cost(
    of_flow: Any, of_cell: Cell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workload = known(slo={"ttft_p90_ms": 150})
    with simulated(first=0.01, token=0.005, servers=1) as server:
        flow = of_flow(workload)
        # On a machine that is busy with other tests the client itself may be too slow, which is told of and void.
        for left in (2, 1, 0):
            loads, found = measured(flow, of_cell, monkeypatch, tmp_path, server, price=3.6)
            try:
                capacity = loads.capacity(found, "known")
                break
            except VoidLoad as void:
                if not left or "the client was the bottleneck" not in str(void):
                    raise
    (record,) = capacity.values()
    # One place, 25 ms each: never more than 40 a second for long, told as precisely as it is asked for (0.2).
    assert 5 < record.value <= 40 * 1.2
    assert record.statistics["interval_low"] <= 40
    assert record.statistics["interval_low"] <= record.value <= record.statistics["interval_high"]
    assert record.parameters == {"workload": "known", "slo": "ttft p90 150 ms"}
    records = {(it.metric, it.parameters.get("at")): it for it in loads.recorder.measurements}
    saturation: Measurement = records["saturation_throughput", None]
    # Four tokens each, 40 times a second at most; the way there and back takes its part of so short a run.
    assert 80 < saturation.value <= 4 * 40
    cost = records["token_cost", "saturation"]
    assert cost.value == pytest.approx(3.6 / 3600 / saturation.value * 1e6)
    assert records["goodput", "30% of saturation"].value > 0
    assert records["kv_cache_capacity", None].value == 16 * 100
    light, heavy = (records["load_ttft", f"{share}% of saturation"] for share in (30, 80))
    assert light.statistics["asked_rate"] < heavy.statistics["asked_rate"]
    energy = [it for it in records if it[0] == "energy_per_token"]
    assert energy or "not available" in str(heavy.state_after["energy"])


def test_a_void_run_is_recorded_as_void_and_raised(
    of_flow: Any, of_cell: Cell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with simulated(first=0.01, short_every=7) as server:
        flow = of_flow(known(arrival={"kind": "at-once"}, requests=14))
        loads, found = measured(flow, of_cell, monkeypatch, tmp_path, server)
        with pytest.raises(VoidLoad, match=r"known on .* is void: 2 of 14 answers have fewer tokens than asked for"):
            loads.load(found, "known")
    # What its cache holds the server tells whatever it answers.
    told = {it.discarded for it in loads.recorder.measurements if it.metric != "kv_cache_capacity"}
    assert told == {"2 of 14 answers have fewer tokens than asked for"}
