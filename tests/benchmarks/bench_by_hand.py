"""What the harness measures against the same done by hand with vLLM's own commands, interleaved.

Run: python -m pytest -s tests/benchmarks/bench_by_hand.py [--benchmark-disable]

Each pair measures the bf16 baseline of SmolLM2-135M-Instruct once through `pytest suites` and once by hand, with the
same options, the order of the two changing from pair to pair. The ratio of each pair is printed, with the median.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from harness.job import free_port

ROOT = Path(__file__).resolve().parents[2]
PAIRS = int(os.environ.get("HARNESS_PAIRS", "5"))
CACHE = os.environ.get("HARNESS_TEST_CACHE")
MODEL = "SmolLM2-135M-Instruct"
INPUT, OUTPUT, ROUNDS, PROMPTS, ANSWER = 64, 64, 5, 4, 32
VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
    "TOKENIZERS_PARALLELISM": "false",
}
ENGINE = ["--enforce-eager", "--max-model-len", "2048"]
LATENCY = """
import json, sys
from vllm.benchmarks import latency
from vllm.utils.argparse_utils import FlexibleArgumentParser
if __name__ == "__main__":
    parser = FlexibleArgumentParser(); latency.add_cli_args(parser); latency.main(parser.parse_args())
"""
SERVE = """
from vllm.benchmarks import serve
from vllm.utils.argparse_utils import FlexibleArgumentParser
if __name__ == "__main__":
    parser = FlexibleArgumentParser(); serve.add_cli_args(parser); serve.main(parser.parse_args())
"""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """The project's matrix with longer measurements, so that a pair's noise is small."""
    text = (ROOT / "suites" / "matrix.toml").read_text(encoding="utf-8")
    latency = f"latency = {{ batch_sizes = [1], input_len = {INPUT}, output_len = {OUTPUT}, rounds = {ROUNDS} }}"
    serving = f"serving = {{ num_prompts = [{PROMPTS}], output_len = {ANSWER}, rounds = {ROUNDS} }}"
    text = re.sub(r"^latency = .*$", latency, text, count=1, flags=re.M)
    text = re.sub(r"^serving = .*$", serving, text, count=1, flags=re.M)
    folder = tmp_path_factory.mktemp("matrix")
    (folder / "matrix.toml").write_text(text, encoding="utf-8")
    return folder / "matrix.toml"


def through_the_harness(matrix, folder):
    command = [sys.executable, "-m", "pytest", "suites", "-q", "-m", "cpu", "--model", MODEL, "--recipe", "bf16"]
    command += ["-k", "latency or serving", "--matrix", str(matrix), "--results", str(folder)]
    command += ["--cache", CACHE] if CACHE else []
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    records = next((folder / "runs").glob("*/records.jsonl")).read_text(encoding="utf-8").splitlines()
    lines = [json.loads(line) for line in records]
    found = {line["metric"]: line["value"] for line in lines if line["kind"] == "measurement"}
    return {"latency": found["latency"], "request_throughput": found["request_throughput"]}


def by_hand(checkpoint, prompts, folder):
    environ = os.environ | VARIABLES
    result = folder / "latency.json"
    lengths = ["--input-len", str(INPUT), "--output-len", str(OUTPUT), "--batch-size", "1"]
    rounds = ["--num-iters-warmup", "1", "--num-iters", str(ROUNDS), "--output-json", str(result)]
    latency = [sys.executable, "-c", LATENCY, "--model", checkpoint, *ENGINE, *lengths, *rounds]
    subprocess.run(latency, env=environ, check=True, capture_output=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    serve = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", checkpoint, *ENGINE]
    serve += ["--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(serve, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.5)
        rates = []
        for index in range(2):
            urllib.request.urlopen(urllib.request.Request(f"{url}/reset_prefix_cache", method="POST")).close()
            name = f"serve-{index}.json"
            client = [sys.executable, "-c", SERVE, "--backend", "openai", "--base-url", url, "--model", "model"]
            client += ["--served-model-name", "model", "--tokenizer", checkpoint, "--dataset-name", "sharegpt"]
            client += ["--dataset-path", prompts, "--num-prompts", str(PROMPTS), "--temperature", "0"]
            client += ["--sharegpt-output-len", str(ANSWER), "--save-result", "--result-dir", str(folder)]
            subprocess.run([*client, "--result-filename", name], env=environ, check=True, capture_output=True)
            rates.append(json.loads((folder / name).read_text(encoding="utf-8"))["request_throughput"])
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)
    average = json.loads(result.read_text(encoding="utf-8"))["avg_latency"]
    return {"latency": average, "request_throughput": statistics.median(rates)}


def test_agrees_with_vllm_by_hand(matrix, tmp_path):
    """The median ratio of the pairs is within 3 %."""
    from harness.artifacts import Store, default_root
    from harness.sources import sharegpt

    store = Store(Path(CACHE) if CACHE else default_root())
    prompts = str(sharegpt(store, None).folder / "prompts.json")
    (tmp_path / "warm").mkdir()
    through_the_harness(matrix, tmp_path / "warm")
    plain = {path.parent: json.loads(path.read_text()) for path in (store.root / "plain").glob("*/artifact.json")}
    checkpoint = str(next(folder for folder, made in plain.items() if MODEL in made["key"].get("file", "")))
    ratios = {"latency": [], "request_throughput": []}
    for pair in range(PAIRS):
        folder = tmp_path / str(pair)
        folder.mkdir()
        if pair % 2:
            hand = by_hand(checkpoint, prompts, folder)
            ours = through_the_harness(matrix, folder / "ours")
        else:
            ours = through_the_harness(matrix, folder / "ours")
            hand = by_hand(checkpoint, prompts, folder)
        for metric, values in ratios.items():
            values.append(ours[metric] / hand[metric])
            print(
                f"pair {pair + 1}, {metric}: harness {ours[metric]:.4f}, by hand {hand[metric]:.4f}, "
                f"ratio {values[-1]:.4f}",
                flush=True,
            )
    medians = {metric: statistics.median(values) for metric, values in ratios.items()}
    print(f"median ratios over {PAIRS} pairs: {medians}")
    assert all(abs(median - 1) <= 0.03 for median in medians.values()), medians
