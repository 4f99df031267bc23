"""Turns the answers of a flow's workers into records: one function a claim of the suites."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import hardware, roofline
from harness.artifacts import Artifact, file_digest
from harness.errors import HarnessError, WorkerError
from harness.flow import Flow
from harness.matrix import Cell
from harness.metrics import METRICS
from harness.records import Device, Measurement, Run, Scalar, identity
from harness.servers import SERVED_NAME


class WrongKernels(HarnessError):
    """A recipe's quantized kernels did not run."""


# The tutorial's chat completion.
CHAT = {
    "messages": [{"role": "user", "content": "Give me a short introduction to large language models."}],
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
}
GENERATE_PROMPT = "Give me a short introduction to large language models."

# A record of everything would be out of proportion for the intervals of a thousand streamed answers.
MAX_SAMPLES = 5000


@dataclass(frozen=True)
class Figure:
    """What one metric of a block came to, before it is a record."""

    value: float
    samples: Sequence[float] = ()
    warmup: Sequence[float] = ()
    statistics: dict[str, float] = field(default_factory=dict)
    attachment: str = ""
    from_cache: bool = False
    discarded: str = ""


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """Return mean, standard deviation (n - 1) and p50, p90, p99 (linear interpolation) of samples."""
    ordered = sorted(samples)
    found = {"mean": statistics.fmean(ordered), "n": float(len(ordered))}
    if len(ordered) > 1:
        found["stdev"] = statistics.stdev(ordered)
    for percent in (50, 90, 99):
        position = (len(ordered) - 1) * percent / 100
        low, high = math.floor(position), math.ceil(position)
        found[f"p{percent}"] = ordered[low] + (ordered[high] - ordered[low]) * (position - low)
    return found


class Measure:
    """Measures cells and records every figure as it comes; what a resumed run already has is not measured again.

    ``tags`` go into every record's flags: which side and block of a gate it belongs to.
    """

    def __init__(self, flow: Flow, run: Run, tags: dict[str, Scalar] | None = None) -> None:
        self.flow = flow
        self.run = run
        self.tags = tags or {}
        self.measurements: list[Measurement] = []
        self._standing: dict[str, Measurement] = {}
        self._ceilings: dict[str, dict[str, Any]] = {}

    def resume(self) -> None:
        """Take over what the run has already measured."""
        for line in self.run.lines():
            if isinstance(line, Measurement) and not line.discarded:
                self._standing[identity(line)] = line

    def standing(self) -> list[Measurement]:
        """Return the last record of everything that the run has measured, in earlier sessions too."""
        return list(self._standing.values())

    @contextlib.contextmanager
    def second_block(self) -> Iterator[None]:
        """Measure anew whatever is asked for within, in fresh workers and from no cached evaluation."""
        self.flow.close()
        self.flow.block += 1
        standing, self._standing = self._standing, {}
        try:
            yield
        finally:
            self._standing = standing | self._standing
            self.flow.block -= 1

    def baseline_of(self, measurement: Measurement) -> Measurement | None:
        """Return the same metric of the baseline as measured in this run, or None."""
        for other in reversed(self.measurements):
            if (
                other.cell.recipe.baseline
                and not other.discarded
                and other.cell.model == measurement.cell.model
                and other.cell.hardware == measurement.cell.hardware
                and other.cell.server == measurement.cell.server
                and (other.metric, other.definition) == (measurement.metric, measurement.definition)
                and other.parameters == measurement.parameters
                and other.device.name == measurement.device.name
            ):
                return other
        return None

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
            worker = self.flow.transformers(cell)
            if worker.asked:
                self.flow.renew(cell, "transformers")
                worker = self.flow.transformers(cell)
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

    def generate(self, cell: Cell, time: Callable[..., Any]) -> Measurement:
        """Measure Transformers' generate throughput; ``time(function, rounds, warmup)`` calls and times it."""
        wanted = cell.measurements.generate

        def take() -> dict[str, Figure]:
            worker = self.flow.transformers(cell)
            seconds: list[float] = []

            def once() -> None:
                answer = worker.ask(
                    "generate",
                    cell.measurements.time_limits.measure,
                    prompt=GENERATE_PROMPT,
                    max_new_tokens=wanted.max_new_tokens,
                )
                seconds.append(answer["seconds"])

            time(once, wanted.rounds, wanted.warmup)
            rates = [wanted.max_new_tokens / value for value in seconds]
            warmup, samples = _split(rates, wanted.warmup)
            note = _cut_short(seconds, wanted.warmup + wanted.rounds)
            middle = statistics.median(samples)
            return {"generate_throughput": Figure(middle, samples, warmup, percentiles(samples), discarded=note)}

        parameters: dict[str, Scalar] = {"max_new_tokens": wanted.max_new_tokens, "batch_size": 1}
        return self.take(cell, parameters, take, names=("generate_throughput",))["generate_throughput"]

    def text_quality(self, cell: Cell) -> dict[str, Measurement]:
        """Measure perplexity of real text and, for a recipe, its agreement with the baseline over the same text."""
        wanted = cell.measurements.text
        baseline = None if cell.recipe.baseline else self.flow.plain(cell.model, cell.hardware)
        names = ["perplexity"] if baseline is None else ["perplexity", "kl_divergence", "top1_agreement", "token_flips"]
        text = self.flow.prompts()
        key: dict[str, Any] = {"text": text.key, "windows": wanted.windows, "tokens": wanted.window_tokens}
        key |= {"definition": METRICS["perplexity"].version, "baseline": baseline.key if baseline else None}

        def ask() -> dict[str, Any]:
            return self.flow.transformers(cell).ask(
                "text_quality",
                cell.measurements.time_limits.evaluate,
                text=str(text.folder / "text.txt"),
                windows=wanted.windows,
                window_tokens=wanted.window_tokens,
                baseline=str(baseline.folder) if baseline else None,
            )

        def take() -> dict[str, Figure]:
            artifact = self.flow.evaluated(cell, "text quality", {"text_quality": key}, ask)
            windows = artifact.facts["windows"]
            nll = statistics.fmean(windows["nll"])
            per_window = [math.exp(value) for value in windows["nll"]]
            error = _standard_error(windows["nll"]) * math.exp(nll)
            cached = not artifact.made
            found = {"perplexity": Figure(math.exp(nll), per_window, statistics={"stderr": error}, from_cache=cached)}
            for name, column in (("kl_divergence", "kl"), ("top1_agreement", "top1"), ("token_flips", "flips")):
                if values := windows[column]:
                    found[name] = Figure(
                        statistics.fmean(values),
                        values,
                        statistics={"stderr": _standard_error(values)},
                        from_cache=cached,
                    )
            return found

        parameters: dict[str, Scalar] = {
            "text": "ShareGPT answers",
            "windows": wanted.windows,
            "window_tokens": wanted.window_tokens,
        }
        return self.take(cell, parameters, take, names=names, inputs=text.key)

    def task(self, cell: Cell, task: str) -> dict[str, Measurement]:
        """Evaluate one lm-evaluation-harness task, through Transformers or through the served model."""
        data = str(self.flow.data) if self.flow.data else None
        limit = self.flow.limit
        served = cell.server != "transformers"
        batch_size = 64 if hardware.torch_device(cell.hardware) == "cuda" else 8
        key: dict[str, Any] = {
            "task": task,
            "definition": METRICS["accuracy"].version,
            "limit": limit,
            "batch_size": batch_size,
            "data": _data_digest(self.flow.data, task),
        }
        if served:
            packages = self.flow.environment_of(cell).decisive()
            servers = {name: version for name, version in packages.items() if name.startswith(cell.server)}
            key |= {
                "through": cell.server,
                "server": servers,
                **self.flow.engine_options(cell),
                **self.flow.engine_variables(cell),
            }

        def ask() -> dict[str, Any]:
            limits = cell.measurements.time_limits
            if not served:
                return self.flow.transformers(cell).ask(
                    "tasks", limits.evaluate, names=[task], data=data, limit=limit, batch_size=batch_size
                )
            server = self.flow.server(cell)
            return self.flow.client(cell).ask(
                "tasks",
                limits.evaluate,
                url=server.url,
                model=SERVED_NAME,
                tokenizer=str(self.flow.served(cell).folder),
                names=[task],
                data=data,
                limit=limit,
            )

        def evaluate(of: Cell) -> Any:
            return self.flow.evaluated(of, task, key, ask)

        artifact = evaluate(cell)
        return self._record_task(cell, task, artifact, str(key["data"] or "hub")[:16], cell.server if served else "")

    def task_through(
        self,
        cell: Cell,
        task: str,
        through: str,
        key: dict[str, Any],
        ask: Callable[[str | None, int | None], dict[str, Any]],
    ) -> dict[str, Measurement]:
        """Evaluate a task by ``ask(data, limit)``, which ``key`` identifies besides cell, task, data and limit."""
        digest = _data_digest(self.flow.data, task)
        key = {"task": task, "definition": METRICS["accuracy"].version, "limit": self.flow.limit, **key}
        key |= {"data": digest, "through": through}
        data = str(self.flow.data) if self.flow.data else None
        artifact = self.flow.evaluated(cell, f"{task} {through}", key, lambda: ask(data, self.flow.limit))
        return self._record_task(cell, task, artifact, str(digest or "hub")[:16], through)

    def _record_task(
        self, cell: Cell, task: str, artifact: Artifact, inputs: str, through: str
    ) -> dict[str, Measurement]:
        result = artifact.facts[task]
        documents = result["documents"]
        attachment = self._attach("-".join(filter(None, (cell.id, task, through))), result)
        found: dict[str, Measurement] = {}
        for name, value in result["metrics"].items():
            metric = "task_perplexity" if name == "perplexity" else "accuracy"
            if metric == "accuracy" and not name.startswith(("acc", "exact_match", "em", "f1")):
                continue
            parameters: dict[str, Scalar] = {"task": task, "task_metric": name, "documents": len(documents)}
            if through:
                parameters["through"] = through
            error = result["stderr"].get(name)
            figure = Figure(
                value,
                [document[name] for document in documents if isinstance(document.get(name), (int, float))],
                statistics={} if error is None else {"stderr": error},
                attachment=attachment,
                from_cache=not artifact.made,
            )
            found[name] = self._note(cell, parameters, metric, figure, inputs=inputs)
            if metric == "accuracy" and not cell.recipe.baseline:
                self._flips(cell, found[name])
        if not found:
            known = ", ".join(result["metrics"]) or "none"
            raise HarnessError(f"task {task} of {cell.id}: none of its metrics is one that is recorded here ({known})")
        return found

    def _flips(self, cell: Cell, accuracy: Measurement) -> None:
        """Record how many documents changed between right and wrong against the baseline, either way."""
        baseline = self.baseline_of(accuracy)
        if baseline is None or len(baseline.samples) != len(accuracy.samples) or not accuracy.samples:
            return
        pairs = list(zip(baseline.samples, accuracy.samples, strict=True))
        lost = sum(before > after for before, after in pairs)
        won = sum(before < after for before, after in pairs)
        figure = Figure((lost + won) / len(pairs), statistics={"lost": float(lost), "won": float(won)})
        self._note(cell, dict(accuracy.parameters), "answer_flips", figure)

    # -------------------------------------------------------------------------------------------------- vLLM

    def engine(self, cell: Cell) -> dict[str, Measurement]:
        """Record the offline engine's start, its compile time, its KV-cache capacity and its quantized layers.

        Raises HarnessError naming the linear layers that the engine holds unquantized though the recipe means them.
        """

        def take() -> dict[str, Figure]:
            worker = self.flow.engine(cell)
            layers = worker.info["layers"]
            plain = [name for name, tensor in layers.items() if tensor == "Tensor"]
            if plain and not cell.recipe.baseline:
                shown = ", ".join(plain[:6]) + (f" and {len(plain) - 6} more" if len(plain) > 6 else "")
                raise HarnessError(f"engine of {cell.id} holds {len(plain)} linear layers unquantized: {shown}")
            quantized = sum(tensor != "Tensor" for tensor in layers.values())
            return {
                "engine_start": Figure(worker.start_seconds, [worker.start_seconds]),
                "compile_time": Figure(worker.info["compile_seconds"]),
                "kv_cache_capacity": Figure(float(worker.info["kv_cache_tokens"])),
                "quantized_layers": Figure(float(quantized), statistics={"layers": float(len(layers))}),
            }

        names = ("engine_start", "compile_time", "kv_cache_capacity", "quantized_layers")
        return self.take(cell, {"kind": "engine"}, take, names=names, engine=True)

    def server(self, cell: Cell) -> Measurement:
        """Record the start of the HTTP server."""

        def take() -> dict[str, Figure]:
            seconds = self.flow.server(cell).start_seconds
            client = self.flow.client(cell).start_seconds
            self._note(cell, {"kind": "client"}, "engine_start", Figure(client), engine=True)
            return {"engine_start": Figure(seconds, [seconds])}

        return self.take(cell, {"kind": "server"}, take, names=("engine_start",), engine=True)["engine_start"]

    def latency(self, cell: Cell, batch_size: int, time: Callable[..., Any]) -> Measurement:
        """Measure the published latency; ``time(function, rounds, warmup)`` calls and times it."""
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

            time(once, wanted.rounds, wanted.warmup)
            warmup, samples = _split(seconds, wanted.warmup)
            note = _cut_short(seconds, wanted.warmup + wanted.rounds)
            return {"latency": Figure(statistics.fmean(samples), samples, warmup, percentiles(samples), discarded=note)}

        parameters: dict[str, Scalar] = {
            "batch_size": batch_size,
            "input_len": wanted.input_len,
            "output_len": wanted.output_len,
        }
        return self.take(cell, parameters, take, names=("latency",), engine=True)["latency"]

    def kernels(self, cell: Cell) -> dict[str, Measurement]:
        """Profile a batch of the engine: which kernels did its work, and the share of the recipe's own kind.

        Raises WrongKernels when none of the recipe's own kernels ran; the message names what ran instead.
        """
        pattern: str = cell.recipe.kernels[cell.hardware]  # type: ignore[index]
        wanted = cell.measurements.latency
        ran: list[list[Any]] = []

        def take() -> dict[str, Figure]:
            answer = self.flow.engine(cell).ask(
                "kernels",
                cell.measurements.time_limits.measure,
                batch_size=1,
                input_len=wanted.input_len,
                output_len=4,
            )
            ran.extend(answer["kernels"])
            total = sum(seconds for _, seconds, _ in ran)
            own = sum(seconds for name, seconds, _ in ran if re.search(pattern, name))
            attachment = self._attach(f"{cell.id}-kernels", answer)
            return {"quantized_kernel_share": Figure(own / total if total else 0.0, attachment=attachment)}

        found = self.take(cell, {"pattern": pattern}, take, names=("quantized_kernel_share",), engine=True, quick=True)
        if not found["quantized_kernel_share"].value:
            longest = ", ".join(f"{name[:80]} ({seconds * 1e3:.2f} ms)" for name, seconds, _ in ran[:5])
            raise WrongKernels(
                f"{cell.id}: no kernel matched {pattern!r}; what ran instead, longest first: {longest or 'see the run'}"
            )
        return found

    def speed_of_light(self, cell: Cell, batch_size: int) -> dict[str, Measurement]:
        """Split a batch's latency into prefill and decode, and hold both against what the device can do at best."""
        wanted = cell.measurements.latency
        parameters: dict[str, Scalar] = {
            "batch_size": batch_size,
            "input_len": wanted.input_len,
            "output_len": wanted.output_len,
        }
        ceiling = self._ceiling(cell)
        shape = self._shape(cell)

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
        if cell.hardware not in self._ceilings:
            self._ceilings[cell.hardware] = self._standing_ceilings(cell) or self._measure_ceilings(cell)
        found = self._ceilings[cell.hardware]
        rates = found["rates"]
        self._note(cell, {}, "copy_bandwidth", Figure(found["bandwidth"] / 1e9))
        for name, rate in rates.items():
            self._note(cell, {"dtype": name}, "matrix_rate", Figure(rate / 1e12))
        return roofline.Ceiling(found["bandwidth"], rates.get(cell.recipe.arithmetic, rates["bfloat16"]))

    def _measure_ceilings(self, cell: Cell) -> dict[str, Any]:
        gpu = hardware.torch_device(cell.hardware) == "cuda"
        sizes = {"copy_bytes": 1 << 30, "size": 8192} if gpu else {"copy_bytes": 1 << 28, "size": 1024}
        with self.flow.timed("measure", cell):
            return self.flow.limits(cell, rounds=5, **sizes)

    def _standing_ceilings(self, cell: Cell) -> dict[str, Any] | None:
        """Return the ceilings that a resumed run has measured on this device, if it has."""
        here = [row for row in self._standing.values() if row.device.name == hardware.device(cell.hardware).name]
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
        found = self.take(cell, parameters, take, names=("chat_tokens",), engine=True, quick=True)["chat_tokens"]
        answer: dict[str, Any] = json.loads((self.run.folder / found.attachment).read_text(encoding="utf-8"))
        return answer

    def serving(self, cell: Cell, num_prompts: int) -> dict[str, Measurement]:
        """Measure the published serving benchmark.

        The prefix cache is emptied before every round; the benchmark itself then sends its first prompt once to see
        whether the server answers, so that prompt's prefix is warm, by hand as here.
        """
        wanted = cell.measurements.serving
        names = ("request_throughput", "output_throughput", "ttft", "tpot", "itl")

        def take() -> dict[str, Figure]:
            prompts = self.flow.prompts().folder / "prompts.json"
            server = self.flow.server(cell)
            client = self.flow.client(cell)
            rounds = []
            for index in range(wanted.rounds):
                self.flow.progress(f"serving {num_prompts} prompts of {cell.id}: round {index + 1} of {wanted.rounds}")
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
                    server.check_alive(f"serving {num_prompts} prompts, round {index + 1}")
                    raise
                rounds.append(answer)
            found = {}
            for name in names[:2]:
                samples = [answer[name] for answer in rounds]
                found[name] = Figure(statistics.median(samples), samples, statistics=percentiles(samples))
            for name in names[2:]:
                samples = [value for answer in rounds for value in answer[name]]
                if samples:
                    found[name] = Figure(statistics.median(samples), _thinned(samples), statistics=percentiles(samples))
            return found

        parameters: dict[str, Scalar] = {"num_prompts": num_prompts, "dataset": "ShareGPT"}
        if wanted.output_len is not None:
            parameters["output_len"] = wanted.output_len
        return self.take(cell, parameters, take, names=names, engine=True, inputs=self.flow.prompts().key)

    # ------------------------------------------------------------------------------------------------ records

    def take(
        self,
        cell: Cell,
        parameters: dict[str, Scalar],
        take: Callable[[], dict[str, Figure]],
        *,
        names: Sequence[str],
        engine: bool = False,
        quick: bool = False,
        inputs: str = "",
        device: Device | None = None,
        state: Callable[[], dict[str, Scalar]] | None = None,
    ) -> dict[str, Measurement]:
        """Measure one block and record every figure of it, unless the run already has them all.

        ``inputs`` names the data that went in by a digest: other data is another measurement. ``device`` is where it
        runs if not here, ``state`` tells that device's state.
        """
        state = state or functools.partial(hardware.state, cell.hardware)
        flags: dict[str, Scalar] = dict(self.tags)
        if inputs:
            flags["inputs"] = inputs
        if engine:
            flags |= {**self.flow.engine_options(cell), **self.flow.engine_variables(cell)}
        common: dict[str, Any] = {
            "parameters": parameters,
            "cell": self.flow.identity(cell),
            "packages": self.flow.environment_of(cell).decisive(),
            "device": device or hardware.device(cell.hardware),
            "flags": flags,
        }
        standing = {name: self._standing.get(identity(_record(name, 0.0, common))) for name in names}
        if all(standing.values()):
            found = {name: record for name, record in standing.items() if record is not None}
            self.measurements += found.values()
            return found
        if quick:
            with self.flow.timed("measure", cell):
                return self._keep(cell, common, take(), {}, {}, "")
        repeats = cell.measurements.blocks.repeats
        for attempt in range(repeats + 1):
            before = state()
            with self.flow.timed("measure", cell), hardware.Watch(cell.hardware) as watch:
                figures = take()
            after = state()
            found = self._keep(cell, common, figures, before, after, "; ".join(watch.problems))
            if not watch.problems:
                return found
            self.flow.progress(f"discarded a block of {cell.id} ({'; '.join(watch.problems)}), attempt {attempt + 1}")
        raise HarnessError(
            f"{', '.join(names)} of {cell.id}: {repeats + 1} blocks in a row were discarded: "
            f"{'; '.join(watch.problems)}. They are kept as discarded; free or cool the machine and --resume."
        )

    def _attach(self, name: str, data: dict[str, Any]) -> str:
        return self.run.attach("-".join([name, *map(str, self.tags.values())]), data)

    def _note(
        self,
        cell: Cell,
        parameters: dict[str, Scalar],
        metric: str,
        figure: Figure,
        engine: bool = False,
        inputs: str = "",
    ) -> Measurement:
        """Record a figure that is known already."""
        block = {metric: figure}
        return self.take(cell, parameters, lambda: block, names=(metric,), engine=engine, quick=True, inputs=inputs)[
            metric
        ]

    def _keep(
        self,
        cell: Cell,
        common: dict[str, Any],
        figures: dict[str, Figure],
        before: dict[str, Scalar],
        after: dict[str, Scalar],
        discarded: str,
    ) -> dict[str, Measurement]:
        found = {}
        for name, figure in figures.items():
            if not math.isfinite(figure.value):
                raise HarnessError(f"{name} of {cell.id} came out as {figure.value}: not a number that can be recorded")
            record = _record(
                name,
                figure.value,
                common,
                samples=list(figure.samples),
                warmup=list(figure.warmup),
                statistics=figure.statistics,
                attachment=figure.attachment,
                from_cache=figure.from_cache,
                state_before=before,
                state_after=after,
                discarded=discarded or figure.discarded,
            )
            self.run.append(record)
            self.measurements.append(record)
            if not record.discarded:
                self._standing[identity(record)] = record
            found[name] = record
        return found


def _record(name: str, value: float, common: dict[str, Any], **rest: Any) -> Measurement:
    metric = METRICS[name]
    return Measurement(
        metric=name,
        unit=metric.unit,
        direction=metric.direction,
        definition=metric.version,
        value=value,
        **common,
        **rest,
    )


def _thinned(samples: Sequence[float]) -> list[float]:
    """Return at most MAX_SAMPLES samples, evenly over all of them."""
    step = max(1, math.ceil(len(samples) / MAX_SAMPLES))
    return list(samples[::step])


def _split(values: list[float], warmup: int) -> tuple[list[float], list[float]]:
    """Return warm-up and counted values; with too few calls (timing disabled) all count."""
    return (values[:warmup], values[warmup:]) if len(values) > warmup else ([], values)


def _cut_short(values: Sequence[float], wanted: int) -> str:
    """Return why a timing must not be used that ran fewer rounds than it should have, or an empty string."""
    return "" if len(values) >= wanted else f"timing was disabled: {len(values)} of {wanted} rounds ran"


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _data_digest(data: Path | None, task: str) -> str | None:
    file = data / f"{task}.jsonl" if data else None
    return file_digest(file) if file and file.is_file() else None
