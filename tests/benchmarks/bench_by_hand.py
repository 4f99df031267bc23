"""What the harness measures against the same done by hand with vLLM's own commands, interleaved.

Run: python -m pytest -s tests/benchmarks/bench_by_hand.py

Both measure the bf16 baseline of SmolLM2-135M-Instruct with the same options and environment variables. Two of them
matter on two cores: with VLLM_ENABLE_V1_MULTIPROCESSING=0 the engine shares the process that asks, where vLLM otherwise
keeps one core free for the latter; and PyTorch's OpenMP runtime is preloaded, as vLLM advises. A pair of latency is a
fresh engine of the harness and a fresh `vllm bench latency`; a pair of serving is one benchmark of each client against
the same server. The order of the two changes from pair to pair. The median of the pairs' ratios is
printed with its interval.
"""

import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from scipy.stats import binom

from harness.base.files import default_root
from harness.matrix import load
from harness.measure.flow import Flow
from harness.records.run import Run
from harness.runtime.environment import Environment
from harness.runtime.store import Store
from harness.servers.base import SERVED_NAME
from harness.servers.registry import SERVERS

ROOT = Path(__file__).resolve().parents[2]
PAIRS = int(os.environ.get("HARNESS_PAIRS", "12"))
CACHE = os.environ.get("HARNESS_TEST_CACHE")
MODEL = "SmolLM2-135M-Instruct"
INPUT, OUTPUT, ROUNDS, PROMPTS, ANSWER = 64, 32, 10, 8, 32
SUITES = load.load(ROOT / "suites" / "matrix.toml")
COMMAND = """
import sys
from vllm.benchmarks import {module} as benchmark
from vllm.utils.argparse_utils import FlexibleArgumentParser
if __name__ == "__main__":
    parser = FlexibleArgumentParser(); benchmark.add_cli_args(parser); benchmark.main(parser.parse_args())
"""


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("by-hand")
    store = Store(Path(CACHE) if CACHE else default_root())
    flow = Flow.open(store, Run.create(folder), SUITES, environment=Environment())
    yield flow
    flow.close()


@pytest.fixture(scope="module")
def baseline():
    found = SUITES.cells([MODEL])
    return replace(next(it for it in found if it.recipe.baseline and it.hardware.name == "cpu"), server="vllm")


def by_hand(module, cell, arguments):
    variables = SERVERS["vllm"].variables(cell) | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    # As vLLM advises for CPUs, and as the harness's workers have it; without, an engine in this process uses one core.
    preload = {"LD_PRELOAD": str(next(Path(find_spec("torch").origin).parent.glob("lib/libgomp*.so*")))}
    threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    command = [sys.executable, "-c", COMMAND.format(module=module), *arguments]
    subprocess.run(command, env=os.environ | variables | preload | threads, check=True, capture_output=True)


def compare(name, ours, hand):
    pairs = []
    for pair in range(PAIRS):
        first, second = (hand, ours) if pair % 2 else (ours, hand)
        values = {first: first(), second: second()}
        pairs.append((values[hand], values[ours]))
        print(f"{name}, pair {pair + 1}: by hand {pairs[-1][0]:.4f}, harness {pairs[-1][1]:.4f}", flush=True)
    logs = sorted(math.log(ours / hand) for hand, ours in pairs)
    middle = math.exp(statistics.median(logs))
    low, high = (math.exp(logs[rank]) for rank in order_statistics(len(logs)))
    print(f"{name}: harness / by hand, median of {PAIRS} pairs: {middle:.4f} ({low:.4f} to {high:.4f})")
    assert abs(middle - 1) <= 0.03


def order_statistics(count):
    """Ranks of the least and the greatest of ``count`` values that hold their median at 95 % or just above.

    Distribution-free, by the binomial distribution (Conover, Practical Nonparametric Statistics, 3.2): other tenants of
    the machine make stragglers of any length.
    """
    rank = next(r for r in range(count // 2, -1, -1) if r == 0 or binom.cdf(r - 1, count, 0.5) <= 0.025)
    return rank, count - 1 - rank


def test_latency_agrees_with_vllm_by_hand(flow, baseline, tmp_path):
    checkpoint = str(flow.checkpoints.of(baseline).folder)
    engine = ["--enforce-eager", "--max-model-len", str(flow.fleet.options(baseline)["max_model_len"])]

    def ours():
        worker = flow.fleet.engine(baseline)
        ask = {"batch_size": 1, "input_len": INPUT, "output_len": OUTPUT}
        seconds = [worker.ask("latency", 600, **ask)["seconds"] for _ in range(ROUNDS + 1)]
        flow.close()
        return statistics.median(seconds[1:])

    def hand():
        result = tmp_path / "latency.json"
        lengths = ["--input-len", str(INPUT), "--output-len", str(OUTPUT), "--batch-size", "1"]
        rounds = ["--num-iters-warmup", "1", "--num-iters", str(ROUNDS), "--output-json", str(result)]
        by_hand("latency", baseline, ["--model", checkpoint, *engine, *lengths, *rounds])
        return statistics.median(json.loads(result.read_text(encoding="utf-8"))["latencies"])

    compare("latency", ours, hand)


def test_serving_agrees_with_vllm_by_hand(flow, baseline, tmp_path):
    checkpoint = str(flow.checkpoints.of(baseline).folder)
    prompts = str(flow.checkpoints.prompts().folder / "prompts.json")
    server, client = flow.fleet.server(baseline), flow.fleet.client(baseline)

    def emptied():
        server.tell(SERVERS["vllm"].empty_cache, 60)

    def ours():
        emptied()
        asked = {"url": server.url, "model": SERVED_NAME, "tokenizer": checkpoint, "dataset": prompts}
        asked |= {"num_prompts": PROMPTS, "output_len": ANSWER, "trust_remote_code": False}
        return client.ask("serving", 600, **asked)["request_throughput"]

    def hand():
        emptied()
        asked = ["--backend", "openai", "--base-url", server.url, "--model", SERVED_NAME, "--tokenizer", checkpoint]
        asked += ["--served-model-name", SERVED_NAME, "--dataset-name", "sharegpt", "--dataset-path", prompts]
        asked += ["--num-prompts", str(PROMPTS), "--temperature", "0", "--sharegpt-output-len", str(ANSWER)]
        asked += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "serve.json"]
        by_hand("serve", baseline, asked)
        return json.loads((tmp_path / "serve.json").read_text(encoding="utf-8"))["request_throughput"]

    compare("request throughput", ours, hand)
