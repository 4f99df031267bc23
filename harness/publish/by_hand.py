"""Runs the tutorial's own commands for rows of a run, one after another, and tells what each took and gave."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError, WorkerError
from harness.base.files import write_text
from harness.base.reading import json_file
from harness.base.text import file_name
from harness.publish import reproduction
from harness.records.by_hand import Ran
from harness.records.schema import Measurement
from harness.runtime.job import Server, free_port
from harness.runtime.process import Process, root_cause

WARMUP, ITERATIONS = 10, 30
"""What ``vllm bench latency`` does unless it is told otherwise."""
_ROUNDS = re.compile(r"--num-iters-warmup \d+ --num-iters \d+")
_PEAK = re.compile(r"Peak Memory Usage: ([0-9.]+) GB")
_COMPILES_ANEW = {"VLLM_DISABLE_COMPILE_CACHE": "1"}


@dataclass(frozen=True)
class Bench:
    """Where the commands run: ``environ`` with the interpreter first on its PATH, ``folder`` for logs and results.

    ``prompts`` is the file of ShareGPT's conversations, ``limit`` the seconds that one command may take.
    """

    environ: Mapping[str, str]
    folder: Path
    prompts: Path
    limit: float
    progress: Callable[[str], None]


def run(own: Sequence[Measurement], checkpoint: Path, bench: Bench, server: reproduction.ByHand) -> Iterator[Ran]:
    """Run the commands behind the records of one cell, each as it ends.

    A quantized checkpoint's commands compile anew, as the tutorial's do. Raises HarnessError for one that fails.
    """
    first = own[0]
    servers = {it.cell.server: server for it in own if it.metric != "peak_memory"}
    more = {} if first.cell.recipe.baseline else _COMPILES_ANEW
    shell = _Shell(bench, {"MODEL": str(checkpoint), **more}, f"{first.cell.model.name} {first.cell.recipe.name}")

    def ran(metric: str, it: Measurement, command: str, seconds: float, value: float | None) -> Ran:
        of = {"model": it.cell.model.name, "recipe": it.cell.recipe.name}
        kept: dict[str, Any] = {"parameters": {} if metric == "server" else dict(it.parameters), "command": command}
        return Ran(metric=metric, seconds=seconds, value=value, **of, **kept)  # type: ignore[arg-type]

    for it in (it for it in own if it.metric == "peak_memory"):
        (script,) = reproduction.peak_memory([it], str(checkpoint), str(checkpoint))
        write_text(bench.folder / "peak_memory.py", script)
        seconds, told = shell.once("peak memory", "python peak_memory.py")
        found = _PEAK.search(told)
        yield ran(it.metric, it, "python peak_memory.py", seconds, float(found[1]) if found else None)
    for it in (it for it in own if it.metric == "latency"):
        (plain,) = reproduction.latency([it], servers)
        command = _ROUNDS.sub(f"--num-iters-warmup {WARMUP} --num-iters {ITERATIONS}", plain)
        seconds, _ = shell.once(f"latency {it.parameters['batch_size']}", f"{command} --output-json latency.json")
        yield ran(it.metric, it, command, seconds, float(json_file(bench.folder / "latency.json")["avg_latency"]))
    serving = [it for it in own if it.metric == "request_throughput"]
    if not serving:
        return
    (serve,) = {reproduction.serve(it, server) for it in serving}
    dataset = bench.folder / f"./{reproduction.SHAREGPT.rsplit('/', 1)[1]}"
    dataset.unlink(missing_ok=True)
    dataset.symlink_to(bench.prompts)
    port = free_port()
    with shell.beside("serve", f"{serve} --host 127.0.0.1 --port {port}") as process:
        started = Server(process, port=port, label="serve")
        try:
            started.wait_ready(bench.limit)
        except WorkerError as error:
            raise _failed("serve", process, process.exit_code()) from error
        yield ran("server", serving[0], serve, started.start_seconds, None)
        for it in serving:
            _, (client,) = reproduction.serving([it], servers)
            result = f"--port {port} --save-result --result-dir . --result-filename serving.json"
            seconds, _ = shell.once(f"serving {it.parameters['num_prompts']}", f"{client} {result}")
            value = float(json_file(bench.folder / "serving.json")["request_throughput"])
            yield ran(it.metric, it, client, seconds, value)


class _Shell:
    """Runs a shell's commands in the bench's folder, each under a warden and with a log."""

    def __init__(self, bench: Bench, variables: Mapping[str, str], what: str) -> None:
        self._bench = bench
        self._environ = {**bench.environ, **variables}
        self._what = what

    def beside(self, name: str, command: str) -> _Beside:
        """Start a command that is ended when what stands within is done."""
        return _Beside(self._start(name, command))

    def once(self, name: str, command: str) -> tuple[float, str]:
        """Return the seconds that a command took, and what it wrote; raises HarnessError if it fails."""
        self._bench.progress(f"by hand, {self._what}: {name}")
        started = time.monotonic()
        process = self._start(name, command)
        try:
            code = process.wait(self._bench.limit)
            seconds = time.monotonic() - started
        finally:
            process.end()
        if code != 0:
            raise _failed(f"{self._what}: {name}", process, code)
        return seconds, process.log_text()

    def _start(self, name: str, command: str) -> Process:
        words = ["bash", "-c", f"cd {shlex.quote(str(self._bench.folder))} && exec env {command}"]
        return Process(
            words, environ=self._environ, log=self._bench.folder / f"{file_name(f'{self._what} {name}')}.log"
        )


class _Beside:
    def __init__(self, process: Process) -> None:
        self._process = process

    def __enter__(self) -> Process:
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.end(gently=True)


def _failed(what: str, process: Process, code: int | None) -> HarnessError:
    ended = "did not end in time" if code is None else f"ended with status {code}"
    cause = root_cause(process.log_text())
    return HarnessError(f"by hand, {what}: {ended}{f' ({cause})' if cause else ''}; its log is {process.log}")
