"""Measures ExecuTorch programs: their making, speed and memory where they run, agreement with the model, and tasks."""

from __future__ import annotations

import math
import re
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.files import file_digest
from harness.contract import versions
from harness.devices import Adb, DeviceRunner, Host, Ios, Reading, Request
from harness.matrix.measurements import Mobile
from harness.matrix.plan import Cell
from harness.matrix.schema import PORTABLE
from harness.measure.figures import Figure, percentiles
from harness.measure.quality import task_through
from harness.measure.recorder import Recorder
from harness.records.metrics import METRICS
from harness.records.schema import Measurement, Scalar
from harness.runtime.store import Artifact

# An emulator is asked for little: what it computes counts, not how long it takes.
_EMULATED = {"prompt_tokens": 16, "new_tokens": 4, "warmup": 0, "rounds": 1}
# Events of an etdump that hold others.
_OUTER = ("OPERATOR_CALL", "DELEGATE_CALL")


class MeasureMobile:
    """One function a claim of the mobile suite; every figure says on which device it was taken."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.flow = recorder.flow

    # ------------------------------------------------------------------------------------------------- export

    def program(self, cell: Cell, route: str) -> dict[str, Measurement]:
        """Record a program's size, what of it was delegated, and what its export cost when it was made."""
        names = ("program_size", "delegated_arithmetic", "fallback_nodes", "export_cpu_time", "export_peak_memory")

        def take() -> dict[str, Figure]:
            artifact = self.flow.checkpoints.program(cell, route)
            facts = artifact.facts
            attachment = self.recorder.attach(f"{cell.id}-{route}-program", facts)
            self.flow.progress(f"program {cell.id} ({route}): {fallbacks(facts)}")
            nodes = {"delegated": float(facts["delegated_nodes"]), "delegates": float(sum(facts["delegates"].values()))}
            cached = not artifact.made
            return {
                "program_size": Figure(float(facts["program_bytes"]), attachment=attachment),
                "delegated_arithmetic": Figure(facts["arithmetic_share"], attachment=attachment),
                "fallback_nodes": Figure(float(facts["fallback_nodes"]), statistics=nodes, attachment=attachment),
                "export_cpu_time": Figure(
                    facts["export_cpu_seconds"], statistics=facts["export_steps"], from_cache=cached
                ),
                "export_peak_memory": Figure(facts["export_peak_bytes"] / 1e9, from_cache=cached),
            }

        return self.recorder.block(cell, {"route": route}).take(take, names=names, quick=True)

    # ------------------------------------------------------------------------------------------ speed and memory

    def llm_runner(self, cell: Cell, route: str) -> dict[str, Measurement]:
        """Measure a program with ExecuTorch's own LLM runner on this machine."""
        wanted = _wanted(cell)

        def take() -> dict[str, Figure]:
            rounds = self._ask(cell, route, "run", **self._lengths(wanted))["rounds"]
            scale = rounds[0]["SCALING_FACTOR_UNITS_PER_SECOND"]
            first = [1000 * (one["first_token_ms"] - one["inference_start_ms"]) / scale for one in rounds]
            return {
                "load_time": Figure((rounds[0]["model_load_end_ms"] - rounds[0]["model_load_start_ms"]) / scale),
                "prefill_throughput": _figure([one["prefill_token_per_sec"] for one in rounds], wanted.warmup),
                "decode_throughput": _figure([one["decode_token_per_sec"] for one in rounds], wanted.warmup),
                "first_token_time": _figure(first, wanted.warmup),
            }

        names = ("load_time", "prefill_throughput", "decode_throughput", "first_token_time")
        parameters: dict[str, Scalar] = {"runner": "TextLLMRunner", "route": route, **_shape(wanted)}
        return self.recorder.block(cell, parameters, inputs=self.flow.checkpoints.program(cell, route).key).take(
            take, names=names
        )

    def operators(self, cell: Cell) -> dict[str, Measurement]:
        """Profile a program's operators on this machine and record how much of the time is not in a delegate."""
        wanted = _wanted(cell)

        def take() -> dict[str, Figure]:
            lengths = self._lengths(wanted)
            answer = self._ask(
                cell,
                PORTABLE,
                "profile",
                text=lengths["text"],
                prompt_tokens=wanted.prompt_tokens,
                new_tokens=min(8, wanted.new_tokens),
            )
            spent = {name: milliseconds for name, milliseconds, _ in answer["operators"]}
            portable = sum(value for name, value in spent.items() if name.startswith("native_call_"))
            delegated = spent.get("DELEGATE_CALL", 0.0)
            answer["operators"] = [row for row in answer["operators"] if row[0] not in _OUTER]
            attachment = self.recorder.attach(f"{cell.id}-operators", answer)
            whole = portable + delegated
            if not whole:
                raise HarnessError(f"the profile of {cell.id} holds no operator: was ExecuTorch built with its tracer?")
            return {"fallback_time": Figure(portable / whole, attachment=attachment)}

        parameters: dict[str, Scalar] = {"prompt_tokens": wanted.prompt_tokens}
        return self.recorder.block(cell, parameters, inputs=self.flow.checkpoints.program(cell, PORTABLE).key).take(
            take, names=("fallback_time",), quick=True
        )

    def on_device(self, cell: Cell, route: str, device: DeviceRunner) -> dict[str, Measurement]:
        """Run a program on a device: peak memory and, unless it is emulated, the time to load it and its speed."""
        if isinstance(device, Ios):
            return self._told(cell, device)
        wanted = _wanted(cell)
        program = self.flow.checkpoints.program(cell, route)
        names = metrics_on(device, route)
        states: list[dict[str, Scalar]] = []

        def state() -> dict[str, Scalar]:
            states.append(device.state())
            return states[-1]

        def take() -> dict[str, Figure]:
            self._tell(device, cell)
            reading = device.run(_file(program), self._request(cell, route, device), None, _limit(cell))
            void = device.throttled(states[-1] if states else {}, device.state())
            name = f"{cell.id}-{route}-{device.name}"
            attachment = self.recorder.attach(name, reading.model_dump()) if reading.new_counts else ""
            return _figures(reading, names, void, attachment)

        parameters: dict[str, Scalar] = {"runner": _kind(device), **_by(route)}
        if isinstance(device, Adb) and device.is_llama_main:
            # It counts the tokens of a text itself, and may end its answer early: see the records' statistics.
            parameters |= {"prompt_words": _words(wanted), "max_new_tokens": wanted.new_tokens}
        else:
            parameters |= _shape(wanted) if device.speed else {"prompt_tokens": 16, "new_tokens": 4}
        where = device.device()
        inputs = _inputs(program.key, device.runner_key())
        found = self.recorder.block(cell, parameters, inputs=inputs, device=where).take(take, names=names, state=state)
        if void := next((record.discarded for record in found.values() if record.discarded), ""):
            raise HarnessError(
                f"{cell.id} on {device.name}: {void}; its speed is kept as discarded. Let it cool, then --resume"
            )
        return found

    def _told(self, cell: Cell, device: Ios) -> dict[str, Measurement]:
        """Record what a file of an iPhone says; nothing is exported for it, and nothing of this machine counts."""
        told = device.told()
        figures = {"generate_throughput": _figure(told.rates, 0)}
        if told.peak_bytes:
            figures["peak_memory"] = Figure(told.peak_bytes / 1e9)
        inputs = file_digest(device.file)[:16]
        return self.recorder.block(cell, {"runner": "ios"}, inputs=inputs, device=device.device()).take(
            lambda: figures, names=list(figures), quick=True, state=device.state
        )

    # ---------------------------------------------------------------------------------------------- agreement

    def agreement(self, cell: Cell, route: str, device: DeviceRunner) -> dict[str, Measurement]:
        """Hold what a device computes against the eager checkpoint in float32, teacher-forced over real text."""
        wanted = _wanted(cell)
        program = self.flow.checkpoints.program(cell, route)
        windows = wanted.windows if device.speed else min(wanted.windows, wanted.emulated_windows)
        text = self.flow.checkpoints.prompts()
        where, binary = device.device(), device.runner_key()
        sizes: dict[str, Any] = {
            "text": str(text.folder / "text.txt"),
            "windows": windows,
            "window_tokens": wanted.window_tokens,
        }

        def ask() -> dict[str, Any]:
            ids = self._ask(cell, route, "windows", **sizes)["windows"]
            request = Request(ids[0][:8], 1, 0, 1, windows=ids)
            with tempfile.TemporaryDirectory(dir=self.recorder.run.folder) as folder:
                logits = Path(folder) / "logits.bin"
                device.run(_file(program), request, logits, _limit(cell))
                return self._ask(cell, route, "agreement", logits=str(logits), **sizes)

        def take() -> dict[str, Figure]:
            key: dict[str, Any] = {
                "program": program.key,
                "text": text.key,
                "device": where.name,
                "runner": _inputs(device.name, binary),
            }
            key |= {"windows": windows, "tokens": wanted.window_tokens, "version": METRICS["program_kl"].version}
            artifact = self.flow.checkpoints.evaluated(cell, f"agreement on {device.name}", {"agreement": key}, ask)
            found, cached = artifact.facts["windows"], not artifact.made
            nll, eager = statistics.fmean(found["nll"]), statistics.fmean(found["eager_nll"])
            perplexity = {"eager_perplexity": math.exp(eager)}
            return {
                "program_kl": Figure(statistics.fmean(found["kl"]), found["kl"], from_cache=cached),
                "program_top1": Figure(statistics.fmean(found["top1"]), found["top1"], from_cache=cached),
                "program_perplexity": Figure(math.exp(nll), statistics=perplexity, from_cache=cached),
                "program_perplexity_change": Figure(abs(math.expm1(nll - eager)), from_cache=cached),
                "logit_difference": Figure(artifact.facts["largest_difference"], from_cache=cached),
            }

        names = ("program_kl", "program_top1", "program_perplexity", "program_perplexity_change", "logit_difference")
        parameters: dict[str, Scalar] = {"runner": _kind(device), "windows": windows}
        parameters |= {"window_tokens": wanted.window_tokens, **_by(route)}
        return self.recorder.block(cell, parameters, inputs=_inputs(program.key, text.key, binary), device=where).take(
            take, names=names, quick=True, state=device.state
        )

    def task(self, cell: Cell, task: str, through: str) -> dict[str, Measurement]:
        """Evaluate a task over the program, or over its eager checkpoint in float32."""
        program = self.flow.checkpoints.program(cell, PORTABLE)

        def ask(data: str | None, limit: int | None, options: dict[str, Any]) -> dict[str, Any]:
            told = {"names": [task], "data": data, "limit": limit, "options": options}
            return self._ask(cell, PORTABLE, "tasks", eager=through == "eager", **told)

        key = {"program": program.key, **versions.in_key("tasks", versions.PROGRAM_TASKS)}
        return task_through(self.recorder, cell, task, through, key, ask)

    # ------------------------------------------------------------------------------------------------- helpers

    def _ask(self, cell: Cell, route: str, command: str, **arguments: Any) -> dict[str, Any]:
        limits = cell.measurements.time_limits
        limit = limits.measure if command == "run" else limits.evaluate
        return self.flow.fleet.executorch(cell, route).ask(command, limit, **arguments)

    def _lengths(self, wanted: Mobile) -> dict[str, Any]:
        text = str(self.flow.checkpoints.prompts().folder / "text.txt")
        names = ("prompt_tokens", "new_tokens", "warmup", "rounds")
        return {"text": text, **{name: getattr(wanted, name) for name in names}}

    def _request(self, cell: Cell, route: str, device: DeviceRunner) -> Request:
        wanted = _wanted(cell)
        sizes = _EMULATED if not device.speed else {name: getattr(wanted, name) for name in _EMULATED}
        text = str(self.flow.checkpoints.prompts().folder / "text.txt")
        tokens = wanted.prompt_tokens

        def ask() -> dict[str, Any]:
            return self._ask(cell, route, "windows", text=text, windows=1, window_tokens=tokens)

        artifact = self.flow.checkpoints.prompt(cell, route, tokens, ask)
        return Request(
            artifact.facts["windows"][0][: sizes["prompt_tokens"]],
            sizes["new_tokens"],
            sizes["warmup"],
            sizes["rounds"],
        )

    def _tell(self, device: DeviceRunner, cell: Cell) -> None:
        """Tell a phone's llama_main what it needs besides tokens."""
        if isinstance(device, Adb) and device.is_llama_main:
            device.tokenizer = self.flow.checkpoints.of(cell).folder / "tokenizer.json"
            text = (self.flow.checkpoints.prompts().folder / "text.txt").read_text(encoding="utf-8")
            words = re.findall(r"\S+", text)[: _words(_wanted(cell))]
            device.prompt_text = " ".join(words)


def metrics_on(device: DeviceRunner, route: str) -> list[str]:
    """Return the metrics that a run on a device gives: of an emulator no time at all.

    Here the custom SDPA of the published route comes with PyTorch, whose memory and loading are not the program's;
    llama_main does not tell its memory.
    """
    if not device.speed:
        return ["peak_memory"]
    rates = ["prefill_throughput", "decode_throughput", "generate_throughput"]
    if isinstance(device, Adb) and device.is_llama_main:
        return ["load_time", *rates]
    if isinstance(device, Host) and route != PORTABLE:
        return rates
    return ["peak_memory", "load_time", *rates]


def fallbacks(facts: dict[str, Any]) -> str:
    """Return in one line what of an export was delegated, what fell back, and what was widened."""
    most = ", ".join(f"{name} {count}" for name, count in list(facts["fallbacks"].items())[:6])
    text = (
        f"{facts['delegated_nodes']} nodes and {facts['arithmetic_share']:.1%} of the arithmetic went to "
        f"{', '.join(facts['delegates']) or 'no delegate'}; {facts['fallback_nodes']} nodes fell back ({most})"
    )
    if facts["fallback_products"]:
        text += f"; matrix products among them: {facts['fallback_products']}"
    if facts["widened_to_float32"]:
        text += f"; widened to float32 from {', '.join(facts['checkpoint_dtypes'])}"
    return text


def _kind(device: DeviceRunner) -> str:
    """Return what kind of device ran a program, as records name it: host, qemu, ssh, adb."""
    return device.name.partition(":")[0]


def _inputs(*keys: str) -> str:
    return " ".join(filter(None, keys))


def _wanted(cell: Cell) -> Mobile:
    if cell.measurements.mobile is None:
        raise HarnessError(f"{cell.id}: the matrix has no measurements.{cell.hardware}.mobile")
    return cell.measurements.mobile


def _limit(cell: Cell) -> float:
    return cell.measurements.time_limits.measure


def _shape(wanted: Mobile) -> dict[str, Scalar]:
    return {"prompt_tokens": wanted.prompt_tokens, "new_tokens": wanted.new_tokens}


def _by(route: str) -> dict[str, Scalar]:
    """Return what records of a route's program say besides; those of the one for any device say nothing."""
    return {} if route == PORTABLE else {"route": route}


def _file(program: Artifact) -> Path:
    return program.folder / str(program.facts["file"])


def _figure(values: list[float], warmup: int, void: str = "") -> Figure:
    samples = values[warmup:] or values
    return Figure(
        statistics.median(samples), samples, values[: len(values) - len(samples)], percentiles(samples), discarded=void
    )


def _words(wanted: Mobile) -> int:
    """Return how many words stand for a prompt's tokens where only the phone has the tokenizer."""
    return wanted.prompt_tokens * 3 // 4


def _figures(reading: Reading, names: list[str], void: str, attachment: str) -> dict[str, Figure]:
    counts = {}
    if reading.new_counts:
        counts = {"prompt_tokens": float(statistics.median(reading.prompt_counts[reading.warmup :]))}
        counts |= {"new_tokens": float(statistics.median(reading.new_counts[reading.warmup :]))}
    if reading.threads:
        counts["threads"] = float(reading.threads)

    def rates(values: list[float]) -> Figure:
        figure = _figure(values, reading.warmup, void)
        return replace(figure, statistics=figure.statistics | counts, attachment=attachment)

    made: Mapping[str, Callable[[], Figure]] = {
        "peak_memory": lambda: Figure((reading.peak_bytes or 0) / 1e9),
        "load_time": lambda: Figure(reading.load_seconds or 0.0, discarded=void),
        "prefill_throughput": lambda: rates(reading.prefill_rates),
        "decode_throughput": lambda: rates(reading.decode_rates),
        "generate_throughput": lambda: rates(reading.whole_rates),
    }
    told = {"peak_memory": reading.peak_bytes, "load_time": reading.load_seconds}
    return {name: made[name]() for name in names if told.get(name, True)}
