"""The servers by name: what they are told, and what is said where they cannot run."""

from __future__ import annotations

import ast
import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness.base.errors import BrokenEnvironment, WorkerError
from harness.matrix.plan import Cell, Matrix
from harness.records.metrics import GATED, METRICS
from harness.runtime.environment import Environment, at
from harness.runtime.job import Server, free_port
from harness.runtime.process import Process
from harness.servers.registry import SERVERS, distributions, gated

FOLDER = Path("/weights")


@pytest.fixture
def cells(suites_matrix: Matrix) -> dict[str, Cell]:
    """The H100's cells of Phi-4-mini by recipe."""
    found = suites_matrix.cells(["Phi-4-mini-instruct"])
    return {cell.recipe.name: cell for cell in found if cell.hardware.name == "h100"}


def command(cell: Cell, name: str) -> list[str]:
    backend = SERVERS[name]
    return [backend.module, *backend.arguments(cell, FOLDER, backend.options(cell, 131072), 8000)]


def value_of(flags: list[str], flag: str) -> str:
    return flags[flags.index(flag) + 1]


@pytest.mark.parametrize("name", list(SERVERS))
def test_every_server_listens_on_loopback_alone_under_one_name(cells, name):
    flags = command(cells["float8dq"], name)
    assert value_of(flags, "--host") == "127.0.0.1"
    assert value_of(flags, "--port") == "8000"
    assert value_of(flags, "--served-model-name") == "model"
    assert "--trust-remote-code" not in flags


def test_baseline_and_recipe_get_the_same_options(cells):
    for backend in SERVERS.values():
        options = [backend.options(cells[name], 131072) for name in ("bf16", "float8dq")]
        assert options[0] == options[1]
        assert backend.variables(cells["bf16"]) == backend.variables(cells["float8dq"])


@pytest.mark.parametrize(
    ("name", "path", "told"),
    [
        ("vllm", "/metrics", 'vllm:cache_config_info{block_size="16",cache_dtype="auto",num_gpu_blocks="8192"} 1.0'),
        ("sglang", "/get_server_info", '{"version": "0.5", "max_total_num_tokens": 131072, "tp_size": 1}'),
    ],
)
def test_a_server_tells_what_its_cache_holds_or_nothing(name, path, told):
    answers = {path: f"# HELP of it\n{told}\n"}
    assert SERVERS[name].cache_tokens(answers.__getitem__) == 131072
    # What an engine without a cache of blocks tells, and another version.
    none = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0'
    for other in (none, '{"max_total_num_tokens": null}', ""):
        assert SERVERS[name].cache_tokens({path: other}.__getitem__) is None


def test_a_recipe_says_what_keys_and_values_are_held_in(suites_matrix):
    """In vLLM's word, and in SGLang's, which has one for each of the two formats; it is part of what is measured."""
    plain, held = (suites_matrix.cells(["Phi-4-mini-instruct"], [name], None) for name in ("float8dq", "float8dq-kv8"))
    cell = next(one for one in held if one.hardware.name == "h100" and one.recipe.kv_cache_dtype)
    assert value_of(command(cell, "vllm"), "--kv-cache-dtype") == "fp8"
    assert value_of(command(cell, "sglang"), "--kv-cache-dtype") == "fp8_e4m3"
    other = next(one for one in plain if one.hardware.name == "h100" and one.recipe.name == "float8dq")
    for name in ("vllm", "sglang"):
        assert "--kv-cache-dtype" not in command(other, name)
    assert cell.recipe.identity.hash != other.recipe.identity.hash
    assert "Transformers has no KV cache in float8" not in cell.recipe.refusal(cell.hardware, "vllm")


def test_vllm_reads_a_quantized_checkpoint_by_itself(cells):
    flags = command(cells["float8dq"], "vllm")
    assert flags[0] == "harness.worker.vllm_server"
    assert value_of(flags, "--model") == "/weights"
    assert value_of(flags, "--max-model-len") == "4096"
    assert not SERVERS["vllm"].at_load


def test_sglang_is_given_the_recipe_beside_a_plain_checkpoint(cells):
    flags = command(cells["float8dq"], "sglang")
    assert flags[0] == "harness.worker.sglang"
    assert value_of(flags, "--model-path") == "/weights"
    recipe = cells["float8dq"].recipe
    assert json.loads(value_of(flags, "--recipe")) == {"config": recipe.config, "arguments": recipe.arguments}
    assert value_of(flags, "--attention-backend") == "triton"
    assert value_of(flags, "--sampling-backend") == "pytorch"
    assert "--recipe" not in command(cells["bf16"], "sglang")
    assert SERVERS["sglang"].at_load
    options = SERVERS["sglang"].options(cells["float8dq"], 2048)
    specification = SERVERS["sglang"].specification(cells["float8dq"], FOLDER, options)
    assert specification["context_length"] == 2048
    assert specification["disable_radix_cache"] is True


def test_sglang_is_given_no_recipe_beside_a_checkpoint_that_holds_it(cells, tmp_path):
    """Its worker refuses to quantize what is quantized."""
    config = {"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {"_type": "X"}}}}
    backend, cell = SERVERS["sglang"], cells["float8dq"]
    for text, given in (("{}", True), (json.dumps(config), False)):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        assert ("--recipe" in backend.arguments(cell, tmp_path, {}, 8000)) is given
        assert bool(backend.specification(cell, tmp_path, {})["recipe"]) is given


def test_sglang_captures_graphs_for_what_is_measured(cells):
    """The engine for its batches alone, the server as far as vLLM does."""
    specification = SERVERS["sglang"].specification(cells["float8dq"], FOLDER, {})
    assert specification["cuda_graph_bs"] == [1, 128]
    flags = command(cells["float8dq"], "sglang")
    sizes = flags[flags.index("--cuda-graph-bs") + 1 :]
    assert sizes == [str(size) for size in SERVERS["sglang"].graphs]
    assert (sizes[0], sizes[-1]) == ("1", "512")


def test_sglang_says_where_it_cannot_be(suites_matrix):
    on = suites_matrix.hardware
    assert SERVERS["sglang"].unsupported(on["h100"]) == ""
    for name in ("cpu", "mi300"):
        told = SERVERS["sglang"].unsupported(on[name])
        assert told == f"SGLang is served on an NVIDIA GPU of capability >=8.0, not on {name}"
        assert SERVERS["vllm"].unsupported(on[name]) == ""
    old = on["a100"].model_copy(update={"name": "t4", "capability": "7.5"})
    told = "vLLM is served on a processor or an AMD GPU, or an NVIDIA GPU of capability >=8.0, not on t4"
    assert SERVERS["vllm"].unsupported(old) == told


def test_each_server_says_what_it_can_be_gated_on():
    """One that compiles nothing has no compile time; what it needs no server for is asked of Transformers."""
    found = gated()
    assert found.keys() == {"transformers", *SERVERS}
    for name, server in SERVERS.items():
        assert found[name] == server.stages
        assert found[name].keys() == {"engine", "server"}
        assert ("compile_time" in found[name]["engine"]) == server.compiles
        assert {"engine_start", "latency"} <= found[name]["engine"]
    known = {metric for stages in found.values() for metrics in stages.values() for metric in metrics}
    assert known == set().union(*GATED.values()) <= METRICS.keys()


def test_a_server_that_is_not_installed_is_told_by_environment(tmp_path):
    problem = at(tmp_path, Environment()).lacking(*SERVERS["sglang"].distributions)
    assert problem == f"sglang is not installed in {tmp_path} (before {sys.executable})"
    (tmp_path / "sglang-0.5.13.dist-info").mkdir()
    (tmp_path / "sglang-0.5.13.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.13\n"
    )
    other = tmp_path.with_name("link")
    other.symlink_to(tmp_path)
    assert at(other, Environment()).lacking(*SERVERS["sglang"].distributions) == ""


def test_an_environment_is_an_interpreter_or_a_folder(tmp_path):
    assert at(Path(sys.executable), Environment()).python == sys.executable
    folder = at(tmp_path, Environment(python="python3"))
    assert (folder.python, folder.overlay) == ("python3", tmp_path)
    with pytest.raises(BrokenEnvironment, match="nowhere is neither an interpreter nor a folder of packages"):
        at(tmp_path / "nowhere", Environment())


# ---------------------------------------------------------------------------------- over HTTP, with SGLang's answers


@pytest.fixture
def sglang_like(tmp_path) -> Iterator[Server]:
    """A server that answers as SGLang's does: text where its cache is emptied, JSON to a chat."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.startswith("/flush_cache"):
                busy = "busy" in seen
                self._answer(400 if busy else 200, b"Cache flushed.\nPlease check backend logs for more details.\n")
            else:
                asked = json.loads(body)
                self._answer(200, json.dumps({"model": asked["model"], "choices": []}).encode())

        def _answer(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return None

    seen: list[str] = []
    port = free_port()
    http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    process = Process(
        [sys.executable, "-c", "import time; time.sleep(60)"], environ=dict(os.environ), log=tmp_path / "log"
    )
    server = Server(process, port=port, label="server x")
    server.seen = seen  # type: ignore[attr-defined]
    yield server
    server.close()
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_cache_is_emptied_whatever_words_the_server_finds_for_it(sglang_like):
    sglang_like.wait_ready(10)
    sglang_like.tell(SERVERS["sglang"].empty_cache, 10)
    assert sglang_like.post("/v1/chat/completions", {"model": "model"}, 10)["model"] == "model"
    with pytest.raises(WorkerError, match="answered what is not a JSON object"):
        sglang_like.post(SERVERS["sglang"].empty_cache, {}, 10)
    sglang_like.seen.append("busy")
    with pytest.raises(WorkerError, match="answered 400: Cache flushed"):
        sglang_like.tell(SERVERS["sglang"].empty_cache, 10)


@pytest.mark.programs
def test_what_is_true_of_one_server_stands_with_it_alone(repository: Path) -> None:
    """Elsewhere the registry is asked: no module names a server or its packages."""
    names = {*SERVERS, *distributions()}
    found = {
        f"{path.relative_to(repository)}: {node.value}"
        for path in (repository / "harness").rglob("*.py")
        if path.parts[-2] not in ("servers", "worker")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert found == set()
