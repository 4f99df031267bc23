"""Turns the answers of a flow's workers into records: one function a claim of the suites."""

from __future__ import annotations

import functools
import itertools
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.base.errors import HarnessError, WorkerError, WrongKernels
from harness.contract.tutorial import CHAT, PROMPT
from harness.machine import probe
from harness.matrix.plan import Cell
from harness.measure import roofline
from harness.measure.flow import Flow
from harness.measure.quality import Quality
from harness.measure.recorder import Figure, percentiles, thinned
from harness.records.run import Run
from harness.records.schema import Measurement, Scalar
from harness.servers.base import SERVED_NAME

# Each is one step of the model, so every linear layer multiplies once in it: the prompt, then each further token.
_PROFILED_STEPS = 4


class Measure(Quality):
    """Measures checkpoints, Transformers, engines and servers, and the quality of what they predict."""

    def __init__(self, flow: Flow, run: Run, tags: dict[str, Scalar] | None = None) -> None:
        super().__init__(flow, run, tags)
        self._ceilings: dict[str, dict[str, Any]] = {}

    # -------------------------------------------------------------------------------------------- quantization

    def checkpoint(self, cell: Cell) -> dict[str, Measurement]:
        """Record the sizes of a cell's checkpoint and how many of its layers are quantized tensors."""

        def take() -> dict[str, Figure]:
            facts = self.flow.facts(cell)
            quantized = sum(layer["quantized"] for layer in facts["layers"].values())
            return {
                "checkpoint_size": Figure(float(facts["checkpoint_bytes"])),
                "weight_size": Figure(float(facts["weight_bytes"])),
                "quantized_layers": Figure(float(quantized)),
            }

        return self.take(cell, {}, take, names=("checkpoint_size", "weight_size", "quantized_layers"), quick=True)

    # -------------------------------------------------------------------------------------------- transformers

    def peak_memory(self, cell: Cell) -> Measurement:
        """Measure the published peak memory in a process that has done nothing else."""
        tokens = cell.measurements.memory.max_new_tokens

        def take() -> dict[str, Figure]:
            # A process's memory is its own, whatever starts beside it.
            worker = self.flow.transformers(cell, settled=False)
            if worker.asked:
                self.flow.renew(cell, "transformers")
                worker = self.flow.transformers(cell, settled=False)
            answer = worker.ask("peak_memory", cell.measurements.time_limits.measure, max_new_tokens=tokens)
            gigabytes = answer["peak_bytes"] / 1e9
            self._note(cell, {"kind": "transformers"}, "engine_start", Figure(worker.start_seconds))
            return {
                "peak_memory": Figure(
                    gigabytes,
                    [gigabytes],
                    statistics={"new_tokens": float(answer["new_tokens"]), "seconds": answer["seconds"]},
                )
            }

        return self.take(cell, {"max_new_tokens": tokens}, take, names=("peak_memory",))["peak_memory"]

    def generate(self, cell: Cell, time: Callable[..., int]) -> Measurement:
        """Measure Transformers' generate throughput; ``time(function, rounds, warmup)`` calls and times it.

        It returns how many calls it meant to make.
        """
        wanted = cell.measurements.generate

        def take() -> dict[str, Figure]:
            worker = self.flow.transformers(cell)
            seconds: list[float] = []

            def once() -> None:
                answer = worker.ask(
                    "generate",
                    cell.measurements.time_limits.measure,
                    prompt=PROMPT,
                    max_new_tokens=wanted.max_new_tokens,
                )
                seconds.append(answer["seconds"])

            calls = time(once, wanted.rounds, wanted.warmup)
            rates = [wanted.max_new_tokens / value for value in seconds]
            warmup, samples = _split(rates, wanted.warmup)
            note = _cut_short(seconds, calls)
            middle = statistics.median(samples)
            return {"generate_throughput": Figure(middle, samples, warmup, percentiles(samples), discarded=note)}

        parameters: dict[str, Scalar] = {"max_new_tokens": wanted.max_new_tokens, "batch_size": 1}
        return self.take(cell, parameters, take, names=("generate_throughput",))["generate_throughput"]

    # -------------------------------------------------------------------------------------------------- vLLM

    def engine(self, cell: Cell) -> dict[str, Measurement]:
        """Record the offline engine's start, its compile time, its KV-cache capacity and its quantized layers.

        Raises HarnessError naming the linear layers that the engine holds unquantized though the recipe means them.
        """

        tries = itertools.count()

        def take() -> dict[str, Figure]:
            if next(tries):
                # The block is discarded, and the start with it.
                self.flow.renew(cell, "engine")
            worker = self.flow.engine(cell)
            layers = worker.info["layers"]
            plain = [name for name, tensor in layers.items() if tensor == "Tensor"]
            if not layers and not cell.recipe.baseline:
                raise HarnessError(f"engine of {cell.id} tells of no linear layer, so none is known to be quantized")
            if plain and not cell.recipe.baseline:
                shown = ", ".join(plain[:6]) + (f" and {len(plain) - 6} more" if len(plain) > 6 else "")
                raise HarnessError(f"engine of {cell.id} holds {len(plain)} linear layers unquantized: {shown}")
            quantized = sum(tensor != "Tensor" for tensor in layers.values())
            return {
                "engine_start": Figure(worker.start_seconds, [worker.start_seconds]),
                "kv_cache_capacity": Figure(float(worker.info["kv_cache_tokens"])),
                "quantized_layers": Figure(float(quantized), statistics={"layers": float(len(layers))}),
                **({"compile_time": Figure(worker.info["compile_seconds"])} if compiles else {}),
            }

        compiles = self.flow.backend(cell).compiles
        names = ("engine_start", "kv_cache_capacity", "quantized_layers", *(["compile_time"] if compiles else []))
        return self.take(cell, {"kind": "engine"}, take, names=names, engine=True)

    def server(self, cell: Cell) -> Measurement:
        """Record the start of the HTTP server."""

        tries = itertools.count()

        def take() -> dict[str, Figure]:
            if next(tries):
                self.flow.renew(cell, "server")
            seconds = self.flow.server(cell).start_seconds
            client = self.flow.client(cell).start_seconds
            self._note(cell, {"kind": "client"}, "engine_start", Figure(client), engine=True)
            return {"engine_start": Figure(seconds, [seconds])}

        return self.take(cell, {"kind": "server"}, take, names=("engine_start",), engine=True)["engine_start"]

    def latency(self, cell: Cell, batch_size: int, time: Callable[..., int]) -> Measurement:
        """Measure the published latency; ``time`` as in generate."""
        wanted = cell.measurements.latency

        def take() -> dict[str, Figure]:
            engine = self.flow.engine(cell)
            seconds: list[float] = []

            def once() -> None:
                answer = engine.ask(
                    "latency",
                    cell.measurements.time_limits.measure,
                    batch_size=batch_size,
                    input_len=wanted.input_len,
                    output_len=wanted.output_len,
                )
                seconds.append(answer["seconds"])

            calls = time(once, wanted.rounds, wanted.warmup)
            warmup, samples = _split(seconds, wanted.warmup)
            note = _cut_short(seconds, calls)
            return {"latency": Figure(statistics.fmean(samples), samples, warmup, percentiles(samples), discarded=note)}

        parameters = _latency_parameters(cell, batch_size)
        return self.take(cell, parameters, take, names=("latency",), engine=True)["latency"]

    def kernels(self, cell: Cell) -> dict[str, Measurement]:
        """Profile a batch of the engine: which kernels did its work, and the share of the recipe's own.

        Raises WrongKernels when the recipe's own kernels ran less often than once a quantized layer and step, or in
        further steps not for every layer, or when the matrix names none for this hardware; the message names what ran,
        the longest first. The baseline, which has none of its own, is profiled alone.
        """
        pattern = cell.kernels
        wanted = cell.measurements.latency

        def take() -> dict[str, Figure]:
            engine = self.flow.engine(cell)
            answer = engine.ask(
                "kernels",
                cell.measurements.time_limits.measure,
                batch_size=1,
                input_len=wanted.input_len,
                output_len=_PROFILED_STEPS,
            )
            ran: list[tuple[str, float, int]] = answer["kernels"]
            attachment = self._attach(f"{cell.id}-kernels", answer)
            total = sum(seconds for _, seconds, _ in ran)
            found = {"kernel_time": Figure(1000 * total, attachment=attachment)}
            if pattern:
                own = [(seconds, calls) for name, seconds, calls in ran if re.search(pattern, name)]
                layers = sum(tensor != "Tensor" for tensor in engine.info["layers"].values())
                found["quantized_kernel_share"] = Figure(
                    sum(seconds for seconds, _ in own) / total if total else 0.0,
                    statistics={
                        "calls": float(sum(calls for _, calls in own)),
                        "calls_due": float(_PROFILED_STEPS * layers),
                    },
                    attachment=attachment,
                )
            return found

        names = ("kernel_time", "quantized_kernel_share") if pattern else ("kernel_time",)
        found = self.take(cell, {"pattern": pattern}, take, names=names, engine=True, quick=True)
        if not cell.recipe.baseline:
            self._check_kernels(cell, pattern, found)
        return found

    def _check_kernels(self, cell: Cell, pattern: str, found: Mapping[str, Measurement]) -> None:
        if pattern:
            share = found["quantized_kernel_share"]
            calls, due = (share.statistics.get(name, 0.0) for name in ("calls", "calls_due"))
            # An engine may go a step further than it was asked to, but every layer goes with it.
            if share.value and due and calls >= due and calls % (due / _PROFILED_STEPS) == 0:
                return
            wrong = (
                f"{calls:g} calls of kernels that match {pattern!r}, {due:g} are due, one a quantized layer and step"
                f"{' (or whole steps more)' if calls > due else ''}; what ran instead"
            )
        else:
            wrong = (
                f"the matrix names no kernels of {cell.recipe.name} on {cell.hardware} (recipes.{cell.recipe.name}."
                "kernels), so that none can be told from a fallback; what ran"
            )
        attached = self.run.folder / found["kernel_time"].attachment
        ran = json.loads(attached.read_text(encoding="utf-8"))["kernels"] if attached.is_file() else []
        longest = ", ".join(f"{name[:80]} ({calls} calls, {seconds * 1e3:.2f} ms)" for name, seconds, calls in ran[:5])
        raise WrongKernels(
            f"{cell.id}: {wrong}, longest first: {longest or f'see {attached}'}", cell.recipe.known_fallback
        )

    def speed_of_light(self, cell: Cell, batch_size: int) -> dict[str, Measurement]:
        """Split a batch's latency into prefill and decode, and hold both against what the device can do at best."""
        wanted = cell.measurements.latency
        parameters = _latency_parameters(cell, batch_size)
        # Before the device is measured for a recipe that the model does not suit.
        shape = self._shape(cell)
        ceiling = self._ceiling(cell)

        def seconds(output_len: int, rounds: int) -> list[float]:
            engine = self.flow.engine(cell)
            ask = functools.partial(engine.ask, "latency", cell.measurements.time_limits.measure)
            values = [
                ask(batch_size=batch_size, input_len=wanted.input_len, output_len=output_len)["seconds"]
                for _ in range(rounds + 1)
            ]
            return list(values)

        def take() -> dict[str, Figure]:
            first = seconds(1, wanted.rounds)
            latency = (
                next(
                    (
                        other.samples
                        for other in reversed(self.measurements)
                        if other.metric == "latency"
                        and other.cell == self.flow.identity(cell)
                        and not other.discarded
                        and other.parameters == parameters
                    ),
                    None,
                )
                or seconds(wanted.output_len, wanted.rounds)[1:]
            )
            start = statistics.median(first[1:])
            step = (statistics.median(latency) - start) / max(1, wanted.output_len - 1)
            if step <= 0:
                raise HarnessError(
                    f"decode_step_time of {cell.id}: {wanted.output_len} tokens took no longer than the first one; "
                    "the machine is too noisy for so short an answer: raise latency.output_len or rounds"
                )
            return {
                "prefill_time": Figure(start, first[1:], first[:1], statistics=percentiles(first[1:])),
                "decode_step_time": Figure(1000 * step),
            }

        found = self.take(cell, parameters, take, names=("prefill_time", "decode_step_time"), engine=True)
        context = wanted.input_len + wanted.output_len / 2
        for phase, cost, measured in (
            ("prefill", roofline.prefill(shape, batch_size, wanted.input_len), found["prefill_time"].value),
            ("decode", roofline.decode_step(shape, batch_size, context), found["decode_step_time"].value / 1000),
        ):
            memory, arithmetic = cost.seconds(ceiling)
            figure = Figure(
                max(memory, arithmetic) / measured,
                statistics={
                    "bytes": cost.bytes,
                    "operations": cost.operations,
                    "memory_seconds": memory,
                    "arithmetic_seconds": arithmetic,
                    "measured_seconds": measured,
                },
            )
            of: dict[str, Scalar] = {**parameters, "phase": phase}
            found[f"limit_fraction {phase}"] = self._note(cell, of, "limit_fraction", figure, engine=True)
        return found

    def _ceiling(self, cell: Cell) -> roofline.Ceiling:
        """Return the device's measured ceilings for the recipe's arithmetic, measured once a session."""
        if cell.hardware.name not in self._ceilings:
            self._ceilings[cell.hardware.name] = self._standing_ceilings(cell) or self._measure_ceilings(cell)
        found = self._ceilings[cell.hardware.name]
        rates = found["rates"]
        self._note(cell, {}, "copy_bandwidth", Figure(found["bandwidth"] / 1e9))
        for name, rate in rates.items():
            self._note(cell, {"dtype": name}, "matrix_rate", Figure(rate / 1e12))
        return roofline.Ceiling(found["bandwidth"], rates.get(cell.recipe.arithmetic, rates["bfloat16"]))

    def _measure_ceilings(self, cell: Cell) -> dict[str, Any]:
        sizes = {"copy_bytes": 1 << 30, "size": 8192} if cell.hardware.is_gpu else {"copy_bytes": 1 << 28, "size": 1024}
        return self.undisturbed(
            cell,
            "copy_bandwidth, matrix_rate",
            lambda: self.flow.limits(cell, rounds=5, arithmetic=list(cell.hardware.arithmetic), **sizes),
            lambda found, *_: found,
            functools.partial(probe.state, cell.hardware),
        )

    def _standing_ceilings(self, cell: Cell) -> dict[str, Any] | None:
        """Return the ceilings that a resumed run has measured on this device, if it has."""
        here = [row for row in self._standing.values() if row.device.name == probe.device(cell.hardware).name]
        bandwidths = [row.value * 1e9 for row in here if row.metric == "copy_bandwidth"]
        rates = {str(row.parameters["dtype"]): row.value * 1e12 for row in here if row.metric == "matrix_rate"}
        return {"bandwidth": bandwidths[0], "rates": rates} if bandwidths and rates else None

    def _shape(self, cell: Cell) -> roofline.Shape:
        checkpoint = self.flow.checkpoint(cell)
        linear = self.flow.facts(cell)["linear"]
        config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
        return roofline.Shape.of(config, linear["bytes"], linear["weights"])

    def chat(self, cell: Cell) -> dict[str, Any]:
        """Ask the server the tutorial's chat completion and return its answer."""

        def take() -> dict[str, Figure]:
            server = self.flow.server(cell)
            body = {"model": SERVED_NAME, "max_tokens": cell.measurements.serving.chat_tokens, **CHAT}
            answer = server.post("/v1/chat/completions", body, cell.measurements.time_limits.measure)
            attachment = self._attach(f"{cell.id}-chat", answer)
            return {"chat_tokens": Figure(float(answer["usage"]["completion_tokens"]), attachment=attachment)}

        parameters: dict[str, Scalar] = {"max_tokens": cell.measurements.serving.chat_tokens}

        def asked() -> Measurement:
            return self.take(cell, parameters, take, names=("chat_tokens",), engine=True, quick=True)["chat_tokens"]

        found = asked()
        if not (self.run.folder / found.attachment).is_file():
            # A resumed run that is kept without its attachments.
            self.forget(found)
            found = asked()
        answer: dict[str, Any] = json.loads((self.run.folder / found.attachment).read_text(encoding="utf-8"))
        return answer

    def serving(self, cell: Cell, num_prompts: int, time: Callable[..., int] | None = None) -> dict[str, Measurement]:
        """Measure the published serving benchmark; ``time(function, rounds, warmup)``, if given, calls each round.

        The prefix cache is emptied before every round. Some versions of the benchmark then send their first prompt once
        to see whether the server answers, so that prompt's prefix is warm, by hand as here.
        """
        wanted = cell.measurements.serving
        names = ("request_throughput", "output_throughput", "ttft", "tpot", "itl")

        def take() -> dict[str, Figure]:
            prompts = self.flow.prompts().folder / "prompts.json"
            server = self.flow.server(cell)
            client = self.flow.client(cell)
            rounds: list[dict[str, Any]] = []

            def once() -> None:
                number = len(rounds) + 1
                self.flow.progress(f"serving {num_prompts} prompts of {cell.id}: round {number} of {wanted.rounds}")
                server.tell(self.flow.backend(cell).empty_cache, 60)
                try:
                    answer = client.ask(
                        "serving",
                        cell.measurements.time_limits.measure,
                        url=server.url,
                        model=SERVED_NAME,
                        tokenizer=str(self.flow.served(cell).folder),
                        dataset=str(prompts),
                        num_prompts=num_prompts,
                        output_len=wanted.output_len,
                        trust_remote_code=cell.model.trust_remote_code,
                    )
                except WorkerError:
                    server.check_alive(f"serving {num_prompts} prompts, round {number}")
                    raise
                rounds.append(answer)

            (time or _in_a_row)(once, wanted.rounds, 0)
            found = {}
            for name in names[:2]:
                samples = [answer[name] for answer in rounds]
                found[name] = Figure(statistics.median(samples), samples, statistics=percentiles(samples))
            for name in names[2:]:
                samples = [value for answer in rounds for value in answer[name]]
                if samples:
                    found[name] = Figure(statistics.median(samples), thinned(samples), statistics=percentiles(samples))
            return found

        parameters: dict[str, Scalar] = {"num_prompts": num_prompts, "dataset": "ShareGPT"}
        if wanted.output_len is not None:
            parameters["output_len"] = wanted.output_len
        return self.take(cell, parameters, take, names=names, engine=True, inputs=self.flow.prompts().key)


def _latency_parameters(cell: Cell, batch_size: int) -> dict[str, Scalar]:
    wanted = cell.measurements.latency
    return {"batch_size": batch_size, "input_len": wanted.input_len, "output_len": wanted.output_len}


def _in_a_row(function: Callable[[], None], rounds: int, warmup: int) -> int:
    for _ in range(warmup + rounds):
        function()
    return warmup + rounds


def _split(values: list[float], warmup: int) -> tuple[list[float], list[float]]:
    """Return warm-up and counted values; with too few calls (timing disabled) all count."""
    return (values[:warmup], values[warmup:]) if len(values) > warmup else ([], values)


def _cut_short(values: Sequence[float], wanted: int) -> str:
    """Return why a timing must not be used that ran fewer rounds than it should have, or an empty string."""
    return "" if len(values) >= wanted else f"timing was disabled: {len(values)} of {wanted} rounds ran"
