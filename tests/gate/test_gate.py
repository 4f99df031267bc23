"""A gate as users run it, with real workers, a real model and a torchao with a planted fault, while things go wrong.

One story over one cache: a gate is interrupted, resumed, loses a worker, and finishes; then it is resumed once more.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.records.run import Run
from harness.records.schema import Failure, Measurement
from harness.runtime.store import Store
from tests import planted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

TIMEOUT = 420
SMALL = {
    "generate": "{ max_new_tokens = 2, rounds = 1 }",
    "memory": "{ max_new_tokens = 8 }",
    "text": "{ windows = 8, window_tokens = 64 }",
    "serving": "{ num_prompts = [2], output_len = 4, rounds = 1 }",
    "blocks": "{ gate_rounds = 3 }",
}


@dataclass
class Gates:
    """Gates of the tiny model over one results folder; ``command`` is what they all share."""

    folder: Path
    command: list[str]

    def start(self, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.command, *more],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *more: str) -> tuple[int, str]:
        process = self.start(*more)
        output, _ = process.communicate(timeout=TIMEOUT)
        return process.returncode, output

    def elsewhere(self, name: str, server: str) -> Gates:
        """Return the same gates through another server, over a results folder of their own."""
        folder = self.folder / name
        command = [*self.command]
        command[command.index("--results") + 1] = str(folder / "results")
        command[command.index("--server") + 1] = server
        return Gates(folder, command)

    @property
    def gate(self) -> Path:
        (found,) = self.folder.glob("results/gates/*")
        return found

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.gate / "gate.json").read_text(encoding="utf-8"))
        return found

    def measured(self) -> Counter[tuple[str, str]]:
        """Return how often each side has each metric."""
        lines = Run(self.gate).lines()
        return Counter((str(line.flags["side"]), line.metric) for line in lines if isinstance(line, Measurement))


@pytest.fixture(scope="module")
def gates(
    tmp_path_factory: pytest.TempPathFactory,
    kept_store: Store,
    repository: Path,
    tiny_model: Any,
    sharegpt_folder: Path,
) -> Gates:
    folder = tmp_path_factory.mktemp("gate")
    matrix = (repository / "suites" / "matrix.toml").read_text(encoding="utf-8")
    before, start, rest = matrix.partition("[measurements.cpu]\n")
    for measurement, parameters in SMALL.items():
        line = f"{measurement} = {parameters}"
        rest, found = re.subn(rf"^{measurement} = .*", line, rest, count=1, flags=re.MULTILINE)
        assert found
    matrix = before + start + rest
    (folder / "suites").mkdir()
    (folder / "suites" / "matrix.toml").write_text(matrix, encoding="utf-8")
    shutil.copytree(repository / "suites" / "shapes", folder / "suites" / "shapes")
    command = [sys.executable, "-m", "harness", "gate", str(planted.same(folder)), str(planted.worse(folder))]
    command += ["-m", "cpu", "--model", str(tiny_model.folder), "--recipe", "int8wo", "--server", "transformers"]
    command += ["--data", str(sharegpt_folder), "--cache", str(kept_store.root), "--results", str(folder / "results")]
    return Gates(folder, [*command, "--matrix", str(folder / "suites" / "matrix.toml"), "--blocks", "1", "--wide"])


def until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Wait until the condition holds and return what it gave; fails with the gate's output if the gate ends first."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if found := condition():
            return found
        if process.poll() is not None:
            pytest.fail(f"the gate ended: {process.communicate()[0]}")
        time.sleep(0.1)
    return pytest.fail("it took too long")


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the gate's processes that have loaded torch and started none themselves."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.memory_info().rss > 250e6 and not child.children():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def test_an_interrupted_gate_keeps_what_it_has(gates: Gates) -> None:
    process = gates.start()
    until(lambda: list(gates.folder.glob("results/gates/*/records.jsonl")) and workers(process), process)
    mine = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, output
    assert "--resume last" in output
    assert gates.data["old"].startswith("torchao==")
    assert not [child for child in mine if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_a_resumed_gate_repeats_the_block_that_lost_a_worker_and_finds_the_planted_fault(gates: Gates) -> None:
    junit, copy = gates.folder / "junit.xml", gates.folder / "copy.json"
    process = gates.start("--resume", "last", "--junit", str(junit), "--json", str(copy), "--explain", "kl_divergence")

    def block() -> list[psutil.Process]:
        # Peak memory is measured in a process of its own; what is forked prepares the blocks.
        return [worker for worker in workers(process) if "harness.worker.forkserver" not in worker.cmdline()]

    victim = until(block, process)[0]
    victim.kill()
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1, output
    data = gates.data
    (unit,) = data["units"].values()
    assert unit["lost"] == 1
    assert "lost a worker and was repeated" in output
    (lost,) = [line for line in Run(gates.gate).lines() if isinstance(line, Failure)]
    assert "block 0, attempt 0" in lost.message

    verdicts = {it["metric"]: it for it in data["verdicts"]}
    assert verdicts["kl_divergence"]["verdict"] == "regressed"
    assert verdicts["kl_divergence"]["ratio"] > 1
    assert verdicts["peak_memory"]["verdict"] == "pass"
    assert verdicts["weight_size"]["reason"] == "identical"
    assert verdicts["quantized_layers"]["reason"] == "layers-kept"
    assert verdicts["old checkpoint's logits"]["reason"] == "checkpoint-reads-same", "only making checkpoints was hurt"
    assert verdicts["generate_throughput"]["reason"] == "too-few-blocks"
    assert {(row["stage"], row["old"], row["new"]) for row in data["compatibility"]} == {
        (stage, "works", "works") for stage in ("quantize and save", "load and run", "old checkpoint")
    }
    assert data["differences"] == [f"torchao {data['old'].partition('==')[2]} -> {data['new'].partition('==')[2]}"]
    assert "| regressed " in output
    assert "the whole interval lies beyond the margin on the worse side" in output
    assert json.loads(copy.read_text(encoding="utf-8")) == data
    failed = [case.get("name") for case in xml.parse(junit).iter("testcase") if case.find("failure") is not None]
    assert "kl_divergence" in failed


def test_a_finished_gate_that_is_resumed_measures_nothing_again(gates: Gates) -> None:
    before, told = gates.measured(), gates.data["verdicts"]
    status, output = gates.run("--resume", "last")
    assert status == 1, output
    again = gates.measured() - before
    of_checkpoints = {"checkpoint_size", "weight_size", "size_deviation"}
    of_checkpoints |= {"quantized_layers", "quantized_parameters", "quantized_bytes"}
    assert {metric for _, metric in again} <= of_checkpoints
    assert gates.data["verdicts"] == told
    status, output = gates.run("--resume", "last", "--seed", "7")
    assert status == 2
    assert "started otherwise: seed: 0 then, 7 now" in output


def test_both_sides_serve_in_turns_and_a_server_is_no_engine(gates: Gates) -> None:
    served = gates.elsewhere("served", "vllm")
    status, output = served.run("-k", "server and (request_throughput or engine_start)")
    data = served.data
    assert status == 3, output
    assert [unit.rsplit("-", 2)[1:] for unit in data["units"]] == [["vllm", "server"]]
    rows = {row["stage"]: (row["server"], row["old"], row["new"]) for row in data["compatibility"]}
    assert rows["serve"] == rows["old checkpoint"] == ("vllm", "works", "works")
    assert "load and run" not in rows
    verdicts = {(it["metric"], it["label"]): it for it in data["verdicts"] if it["samples"]["old"]}
    throughput = verdicts["request_throughput", "num_prompts=2"]
    assert (throughput["reason"], throughput["primary"], throughput["drift_cancelled"]) == (
        "too-few-blocks",
        True,
        True,
    )
    assert [len(rounds) for rounds in throughput["rounds"]["new"]] == [2], "half as many as a gate's block has"
    assert not verdicts["engine_start", "kind=server"]["primary"]
    assert {label for metric, label in verdicts if metric == "engine_start"} == {"kind=server"}


def test_an_environment_that_cannot_be_imported_is_an_error_in_its_own_words(gates: Gates) -> None:
    command = [*gates.command]
    command[5] = str(planted.broken(gates.folder))
    process = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert process.returncode == 2
    assert "planted: this build is broken" in process.stderr
    assert list(gates.folder.glob("results/gates/*")) == [gates.gate], "no gate was begun"
