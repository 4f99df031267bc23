"""One engine, one server and one client of the quantized two-layer model, as the suites' flow starts and asks them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import WorkerError
from harness.judge import layers, profile
from harness.matrix.measurements import Latency, Serving
from harness.matrix.plan import Cell, Matrix
from harness.measure.flow import Flow
from harness.measure.measure import Measure
from harness.measure.recorder import Recorder
from harness.records.run import Run
from harness.runtime.environment import Environment
from harness.runtime.job import Server
from harness.runtime.process import Process
from harness.runtime.store import Store
from harness.servers.base import SERVED_NAME
from harness.servers.registry import SERVERS
from tests.conftest import run_forked

pytestmark = pytest.mark.usefixtures("imports_stand")
LINEAR_LAYERS_IN_VLLM = 8  # two layers of qkv_proj, o_proj, gate_up_proj and down_proj


@dataclass
class Served:
    """The flow over one cell, and what measures through it."""

    cell: Cell
    flow: Flow
    measure: Measure


@pytest.fixture(scope="module")
def served(
    tiny_model: Any, suites_matrix: Matrix, kept_store: Store, documents: Path, tmp_path_factory: Any
) -> Iterator[Served]:
    cells = suites_matrix.cells([str(tiny_model.folder)], ["int8wo"])
    cell = next(cell for cell in cells if cell.hardware.name == "cpu" and not cell.recipe.baseline)
    measurements = cell.measurements.model_copy(
        update={
            "latency": Latency(batch_sizes=[2], input_len=16, output_len=8, warmup=1, rounds=2),
            "serving": Serving(num_prompts=[2], output_len=8, rounds=2),
        }
    )
    cell = replace(cell, server="vllm", measurements=measurements)
    run = Run.create(tmp_path_factory.mktemp("runs"))
    base = f"{cell.model.name}/{cell.recipe.name}/{cell.hardware}"
    plan = [(base, "engine"), (base, "server")]
    flow = Flow.open(kept_store, run, suites_matrix, environment=Environment(), data=documents, plan=plan)
    yield Served(cell, flow, Measure(Recorder(flow, run)))
    flow.close()


def repeat(function: Callable[[], None], rounds: int, warmup: int) -> int:
    for _ in range(rounds + warmup):
        function()
    return rounds + warmup


# --------------------------------------------------------------------------------------------- engine and server


def test_the_engine_holds_quantized_layers(served):
    found = served.measure.engine(served.cell)
    assert found["quantized_layers"].value == LINEAR_LAYERS_IN_VLLM
    assert found["engine_start"].value > 0
    assert found["kv_cache_capacity"].value >= served.cell.measurements.engine.max_model_len


def test_a_batch_is_as_long_as_asked(served):
    record = served.measure.latency(served.cell, 2, repeat)
    assert (len(record.warmup), len(record.samples)) == (1, 2)
    assert record.value == pytest.approx(sum(record.samples) / 2)
    assert record.parameters == {"batch_size": 2, "input_len": 16, "output_len": 8}
    engine = served.flow.fleet.engine(served.cell)
    with pytest.raises(WorkerError, match="maximum context length is 2048 tokens"):
        engine.ask("latency", 60, batch_size=1, input_len=4096, output_len=8)
    assert engine.alive


def test_the_server_answers_a_chat(served):
    answer = served.measure.chat(served.cell)
    usage = answer["usage"]
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    with pytest.raises(WorkerError, match="answered 404") as caught:
        served.flow.fleet.server(served.cell).post("/v1/nothing", {}, 10)
    assert caught.value.kind == "http"


def test_the_server_tells_what_its_cache_holds_as_the_engine_does(served):
    served.measure.engine(served.cell)
    served.measure.server(served.cell)
    lines = served.measure.recorder.run.read()[0]
    taken = {it.parameters["kind"]: it.value for it in lines if getattr(it, "metric", "") == "kv_cache_capacity"}
    assert taken["server"] == taken["engine"]


def test_serving_is_measured_through_the_client(served):
    found = served.measure.serving(served.cell, 2, repeat)
    assert {name: record.unit for name, record in found.items()} == {
        "request_throughput": "req/s",
        "output_throughput": "tok/s",
        "ttft": "ms",
        "tpot": "ms",
        "itl": "ms",
    }
    assert [len(found[name].samples) for name in ("request_throughput", "ttft")] == [2, 4]
    # Two requests of eight tokens each: eight times as many tokens as requests a second.
    assert found["output_throughput"].value == pytest.approx(8 * found["request_throughput"].value, rel=0.01)


def test_a_task_is_solved_through_the_server(served, documents, temporary_folder):
    """Where nothing is to be compiled, the server calls no compiler for the ranks of log-probabilities either."""
    before = compiled(temporary_folder)
    found = served.flow.fleet.client(served.cell).ask(
        "tasks",
        120,
        url=served.flow.fleet.server(served.cell).url,
        model=SERVED_NAME,
        tokenizer=str(served.flow.checkpoints.of(served.cell).folder),
        names=["hellaswag"],
        data=str(documents),
        limit=None,
    )["hellaswag"]
    assert found["metrics"]["acc"] == found["metrics"]["acc_norm"] == 0.25
    assert len(found["documents"]) == 12
    assert compiled(temporary_folder) == before


def compiled(folder: Path) -> set[Path]:
    """Return the sources that were written for a C++ compiler by what runs in this session."""
    return set(folder.glob("torchinductor_*/**/*.cpp"))


# ------------------------------------------------------------------------------------- a server that is not one


USAGE = {"prompt_tokens": 7, "completion_tokens": 2}


@dataclass
class Stub:
    """An OpenAI-compatible server that answers each request as ``answers`` says, in order; then always well."""

    url: str = ""
    answers: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> str:
        with self.lock:
            return self.answers.pop(0) if self.answers else "good"


@pytest.fixture
def stub() -> Iterator[Stub]:
    found = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._whole("text/plain", b"")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            found.paths.append(self.path)
            if self.path.startswith("/flush_cache"):
                # SGLang answers so in words.
                self._whole("text/plain", b"Cache flushed.\n")
                return
            if self.path == "/v1/chat/completions":
                said = {"message": {"role": "assistant", "content": "one two"}}
                self._whole("application/json", json.dumps({"choices": [said], "usage": USAGE}).encode())
                return
            answer = found.next()
            if answer == "refused":
                self.send_error(500, "out of luck")
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self._event({"choices": [{"text": "one"}]})
            time.sleep(0.01)
            if answer == "broken":
                self._event({"error": {"message": "the engine is dead", "code": 500}})
            else:
                self._event({"choices": [{"text": " two"}]})
                self._event({"choices": [], "usage": USAGE})
            self.wfile.write(b"data: [DONE]\n\n")

        def _whole(self, kind: str, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _event(self, data: dict[str, Any]) -> None:
            self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
            self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def ask_client(served: Served, url: str, num_prompts: int) -> dict[str, Any]:
    return served.flow.fleet.client(served.cell).ask(
        "serving",
        120,
        url=url,
        model=SERVED_NAME,
        tokenizer=str(served.flow.checkpoints.of(served.cell).folder),
        dataset=str(served.flow.checkpoints.prompts().folder / "prompts.json"),
        num_prompts=num_prompts,
        output_len=2,
        trust_remote_code=False,
    )


def test_every_request_answered_is_a_result(served, stub):
    found = ask_client(served, stub.url, 4)
    assert (found["input_tokens"], found["output_tokens"]) == (4 * 7, 4 * 2)
    assert [len(found[name]) for name in ("ttft", "tpot", "itl")] == [4, 4, 4]
    assert found["tpot"] == pytest.approx(found["itl"])
    whole = [first + second for first, second in zip(found["ttft"], found["itl"], strict=True)]
    assert all(milliseconds >= 10 for milliseconds in whole), "the server waits 10 ms between its two tokens"


@pytest.fixture
def through_sglang(served, stub, tmp_path, monkeypatch) -> Iterator[Cell]:
    """The cell through SGLang, in whose place the stub answers."""
    process = Process(
        [sys.executable, "-c", "import time; time.sleep(300)"], environ=dict(os.environ), log=tmp_path / "log"
    )
    server = Server(process, port=int(stub.url.rpartition(":")[2]), label="server through sglang")
    server.wait_ready(30)
    monkeypatch.setattr(served.flow.fleet, "server", lambda cell: server)
    yield replace(served.cell, server="sglang")
    server.close()


def test_sglang_is_asked_what_vllm_is_by_the_same_client(served, stub, through_sglang):
    assert served.measure.chat(through_sglang)["usage"] == USAGE
    found = served.measure.serving(through_sglang, 2, repeat)
    assert {record.cell.server for record in found.values()} == {"sglang"}
    assert found.keys() == {"request_throughput", "output_throughput", "ttft", "tpot", "itl"}
    assert [len(found[name].samples) for name in ("request_throughput", "ttft", "itl")] == [2, 4, 4]
    assert found["output_throughput"].value == pytest.approx(2 * found["request_throughput"].value, rel=0.01)
    flushed = SERVERS["sglang"].empty_cache
    asked = [path for path in stub.paths if path != "/v1/chat/completions"]
    rounds = [index for index, path in enumerate(asked) if path == flushed]
    assert len(rounds) == 2, "the prefix cache is emptied before each round"
    assert rounds[0] == 0
    assert set(asked) == {flushed, "/v1/completions"}


@pytest.mark.parametrize("failure", ["refused", "broken"])
def test_a_request_that_fails_makes_the_number_void(served, stub, failure):
    stub.answers = ["good", failure, "good", failure]
    with pytest.raises(WorkerError, match=r"2 of 4 requests failed; the first error: .*(out of luck|engine is dead)"):
        ask_client(served, stub.url, 4)
    assert ask_client(served, stub.url, 1)["output_tokens"] == 2, "the client goes on"


def test_a_server_that_dies_in_a_benchmark_is_a_failure_and_the_next_one_is_new(served):
    server = served.flow.fleet.server(served.cell)
    command = _command(server)
    served.flow.fleet.client(served.cell)
    killed = threading.Event()

    def kill_when_busy() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and _running(server.url) < 4:
            time.sleep(0.02)
        killed.set()
        os.kill(command, signal.SIGKILL)

    long = served.cell.measurements.model_copy(update={"serving": Serving(num_prompts=[16], output_len=256, rounds=1)})
    thread = threading.Thread(target=kill_when_busy)
    thread.start()
    with pytest.raises(WorkerError, match=r"server .*: serving 16 prompts, round 1: was killed \(signal 9\)") as caught:
        served.measure.serving(replace(served.cell, measurements=long), 16)
    thread.join()
    assert killed.is_set()
    assert caught.value.log_tail
    limits = long.time_limits.model_copy(update={"start": 0.2})
    hurried = replace(served.cell, measurements=long.model_copy(update={"time_limits": limits}))
    with pytest.raises(WorkerError, match=r"was not ready within 0\.2 s"):
        served.flow.fleet.server(hurried)


SETTLED = """
from vllm import logger
from vllm.config.logging import LoggingConfig
from vllm.platforms import current_platform
from vllm.triton_utils import dispatcher
from vllm.v1.worker.block_table import ComputeSlotMappingKernel

before = dict(dispatcher._registry)
current_platform.register_triton_kernel_overrides()
print(logger._last_configured_logging_config == LoggingConfig(), len(before) > 0, dispatcher._registry == before)
print(type(ComputeSlotMappingKernel.kernel).__name__)
"""


def test_what_each_start_on_a_processor_does_the_same_is_done_before_it_is_forked(served, tmp_path: Path) -> None:
    flow = served.flow
    forks = flow.workers._fork_server("vllm", flow.fleet.variables(served.cell), flow.workers.environment)
    assert run_forked(forks, tmp_path, SETTLED).stdout.split() == ["True", "True", "True", "KernelOverride"]


def sharing(cell: Cell) -> Cell:
    """Return a cell whose server's engine is its offline engine too."""
    engine = cell.measurements.engine.model_copy(update={"shared": True})
    return replace(cell, measurements=cell.measurements.model_copy(update={"engine": engine}))


def test_one_engine_answers_batches_and_http_and_holds_and_predicts_what_the_offline_one_does(served):
    """What both are asked while the shared one is there, and after it has refused something."""
    offline, cell = served.flow.fleet.engine(served.cell), sharing(served.cell)
    shared, server = served.flow.fleet.engine(cell), served.flow.fleet.server(cell)
    assert shared is not offline
    assert shared.process is server.process
    told = ("quantization", "dtype", "layers", "merged")
    assert {name: shared.info[name] for name in told} == {name: offline.info[name] for name in told}
    asked = {"sequences": [[5, 6, 7, 8], [9, 10]], "top": 3}
    assert shared.ask("predictions", 60, **asked) == offline.ask("predictions", 60, **asked)
    record = served.measure.latency(cell, 2, repeat)
    assert (len(record.warmup), len(record.samples)) == (1, 2)
    assert record.flags["shared_engine"] is True
    assert record.value == pytest.approx(sum(record.samples) / 2)
    with pytest.raises(WorkerError, match="maximum context length is 2048 tokens"):
        shared.ask("latency", 60, batch_size=1, input_len=4096, output_len=8)
    found = served.measure.serving(cell, 2, repeat)["output_throughput"]
    assert found.flags["shared_engine"] is True
    assert found.value > 0
    profiled = shared.ask("kernels", 60, batch_size=1, input_len=16, output_len=4)
    by_layer = layers.phases(profile.kept(profiled | {"layers": served.flow.fleet.depth(cell)}))
    assert by_layer.keys() == {profile.PREFILL, profile.DECODE}
    for step in by_layer.values():
        assert {layers.ATTENTION, layers.MLP, layers.NORMS, layers.HEAD} <= step.layers.keys()
    own = sum(seconds for _, seconds, _ in profiled["kernels"])
    assert sum(it[3] for it in profiled["ran"]["calls"]) / 1e6 == pytest.approx(own, rel=0.05)
    os.kill(_command(server), signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"killed \(signal 9\)"):
        served.measure.latency(cell, 1, repeat)
    assert not server.alive
    assert "shared_engine" not in served.measure.latency(served.cell, 1, repeat).flags


def test_a_shared_engine_that_cannot_start_says_why(served):
    fleet, backend = served.flow.fleet, SERVERS["vllm"]
    folder = served.flow.checkpoints.served(served.cell).folder
    options = {**fleet.options(served.cell), "max_model_len": 999_999}
    broken = served.flow.workers.share(
        "vllm_shared",
        lambda port: backend.shared(served.cell, folder, options, port),
        "shared engine",
        variables=fleet.variables(served.cell),
        family=backend.family,
    )
    with pytest.raises(WorkerError, match=r"(?s)shared engine: start: .*max_model_len \(999999\)"):
        broken.wait_ready(60)
    assert not broken.alive
    broken.close()


def _command(server: Server) -> int:
    return int(Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()[0])


def _running(url: str) -> float:
    with urllib.request.urlopen(url + "/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))


PREDICTIONS = """
from types import SimpleNamespace
import torch
from harness.worker.vllm import Engine

compiled = []
counted = torch.compile(lambda x: (x >= 2).sum(), backend=lambda graph, _: compiled.append(1) or graph.forward)

def generate(prompts, **_):
    rank = int(counted(torch.tensor([1.0, 2.0, 3.0])))
    row = {7: SimpleNamespace(rank=rank, logprob=-0.5)}
    return [SimpleNamespace(prompt_logprobs=[None, row]) for _ in prompts]

engine = Engine(print)
engine.llm, engine.sampling = SimpleNamespace(generate=generate), lambda **_: None
engine.tokens_prompt = lambda **_: None
for engine.eager in (True, False):
    print(engine.predictions([[1, 2]], 5), len(compiled))
"""


def test_where_nothing_is_compiled_a_check_of_predictions_compiles_nothing_either(run_code) -> None:
    """And a rank is the same; where the engine compiles, so does what it is checked by."""
    assert run_code(PREDICTIONS).stdout.splitlines() == [f"{{'top': [[[(7, -0.5)]]]}} {count}" for count in (0, 1)]


STORE = """
import os, sys
from torch import distributed
from harness.worker.vllm import Engine

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
if (child := os.fork()) == 0:
    distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
    os.path.exists(sys.argv[1]) or os._exit(3)
    engine = Engine(print)
    engine.llm = object()
    engine.close()
print(os.waitpid(child, 0)[1], os.path.exists(sys.argv[1]))
"""


def test_an_engine_that_is_closed_leaves_no_store_in_the_temporary_folder(run_code, tmp_path: Path) -> None:
    assert run_code(STORE, str(tmp_path / "vllm_dist_0")).stdout.split() == ["0", "False"]
