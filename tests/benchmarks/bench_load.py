"""Holds the harness's load against ``vllm bench serve`` by hand, on the same server with the same prompts, in turns.

    python tests/benchmarks/bench_load.py MODEL [--rate 8] [--requests 64] [--pairs 3] [--output-tokens 16]

MODEL is a folder that vLLM can serve on this machine; ``simulated`` takes the simulated server of the tests, and
--tokenizer a folder with a tokenizer. Both sides send at Poisson's arrivals of one seed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness.runtime.job import free_port
from tests.load_server import simulated

FIGURES = ("request_throughput", "output_throughput", "median_ttft_ms", "median_tpot_ms")
VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "HF_HUB_OFFLINE": "1",
}
BY_HAND = (
    "from vllm.benchmarks import serve as bench; from vllm.utils.argparse_utils import FlexibleArgumentParser as P; "
    "p = P(); bench.add_cli_args(p); bench.main(p.parse_args())"
)


@contextlib.contextmanager
def served(model: str) -> Iterator[str]:
    if model == "simulated":
        with simulated(first=0.05, token=0.02) as server:
            yield server.url
        return
    port = free_port()
    words = ["--model", model, "--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "harness.worker.vllm_server", *words, "--enforce-eager", "--max-model-len", "256"]
    process = subprocess.Popen(
        command, env=os.environ | VARIABLES, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                break
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def by_hand(url: str, tokenizer: str, prompts: Path, asked: argparse.Namespace, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        words = ["--backend", "openai", "--base-url", url, "--endpoint", "/v1/completions", "--model", "model"]
        words += ["--tokenizer", tokenizer, "--dataset-name", "custom", "--dataset-path", str(prompts)]
        words += ["--custom-output-len", str(asked.output_tokens), "--skip-chat-template", "--disable-shuffle"]
        words += ["--num-prompts", str(asked.requests), "--request-rate", str(asked.rate), "--seed", str(seed)]
        words += ["--ignore-eos", "--temperature", "0", "--disable-tqdm", "--ready-check-timeout-sec", "0"]
        words += ["--save-result", "--result-dir", folder, "--result-filename", "found.json"]
        subprocess.run([sys.executable, "-c", BY_HAND, *words], check=True, env=os.environ | VARIABLES, stdout=2)
        found = json.loads((Path(folder) / "found.json").read_text(encoding="utf-8"))
    return {
        name: found[name] for name in ("request_throughput", "output_throughput", "median_ttft_ms", "median_tpot_ms")
    }


def by_harness(
    client: Any, url: str, tokenizer: str, prompts: Path, asked: argparse.Namespace, seed: int
) -> dict[str, float]:
    from harness.matrix.workload import Workload

    workload = Workload(
        name="same",
        arrival={"kind": "poisson"},  # type: ignore[arg-type]
        prompts=str(prompts),
        output={"kind": "fixed", "tokens": asked.output_tokens},  # type: ignore[arg-type]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        found = client.load(
            url, "model", tokenizer, workload.model_dump(), asked.requests, asked.rate, seed, None, False
        )
    return {
        "request_throughput": len(found["ttft"]) / found["duration"],
        "output_throughput": sum(found["tokens"]) / found["duration"],
        "median_ttft_ms": statistics.median(found["ttft"]),
        "median_tpot_ms": statistics.median(found["tpot"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokenizer")
    parser.add_argument("--rate", type=float, default=8.0)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--output-tokens", type=int, default=16)
    asked = parser.parse_args()
    tokenizer = asked.tokenizer or asked.model
    os.environ.update(VARIABLES)
    from harness.worker.client import Client

    client = Client(lambda _: None)
    client.open()
    words = ["model", "token", "language", "answer", "probability", "word", "likely", "next"]
    drawn = random.Random(0)
    rows = [{"prompt": " ".join(drawn.choices(words, k=12)), "output_tokens": 1} for _ in range(asked.requests)]
    ratios: dict[str, list[float]] = {}
    with served(asked.model) as url, tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        by_harness(client, url, tokenizer, prompts, asked, 0)
        for pair in range(asked.pairs):
            sides = {}
            for side in ("harness", "by hand")[:: 1 if pair % 2 else -1]:
                urllib.request.urlopen(urllib.request.Request(f"{url}/reset_prefix_cache", b"{}"), timeout=60).close()
                given = (url, tokenizer, prompts, asked, pair + 1)
                sides[side] = by_harness(client, *given) if side == "harness" else by_hand(*given)
            for name, value in sides["harness"].items():
                ratios.setdefault(name, []).append(value / sides["by hand"][name])
            print(json.dumps(sides), flush=True)
    for name, found in ratios.items():
        print(f"{name}: harness / by hand, median of {len(found)} pairs: {statistics.median(found):.4f} "
              f"({min(found):.4f} to {max(found):.4f})")  # fmt: skip


if __name__ == "__main__":
    main()
