"""Transformers' generate: its peak memory in a process of its own, and its throughput."""

from __future__ import annotations

import statistics

from harness.contract.tutorial import PROMPT
from harness.matrix.plan import Cell
from harness.measure.figures import Figure, Timer, cut_short, percentiles, split
from harness.measure.recorder import Recorder
from harness.records.schema import Measurement, Scalar


def peak_memory(recorder: Recorder, cell: Cell) -> Measurement:
    """Measure the published peak memory in a process that has done nothing else."""
    tokens = cell.measurements.memory.max_new_tokens

    def take() -> dict[str, Figure]:
        peak = recorder.flow.memory.peak(cell)
        answer, gigabytes = peak.answer, peak.answer["peak_bytes"] / 1e9
        recorder.note(cell, {"kind": "transformers"}, "engine_start", Figure(peak.start_seconds))
        told = {"new_tokens": float(answer["new_tokens"]), "seconds": answer["seconds"]}
        return {"peak_memory": Figure(gigabytes, [gigabytes], statistics=told)}

    return recorder.take(cell, {"max_new_tokens": tokens}, take, names=("peak_memory",))["peak_memory"]


def generate(recorder: Recorder, cell: Cell, timer: Timer) -> Measurement:
    """Measure Transformers' generate throughput, a round a call of the timer."""
    wanted = cell.measurements.generate

    def take() -> dict[str, Figure]:
        worker = recorder.flow.fleet.transformers(cell)
        seconds: list[float] = []

        def once() -> None:
            answer = worker.ask(
                "generate",
                cell.measurements.time_limits.measure,
                prompt=PROMPT,
                max_new_tokens=wanted.max_new_tokens,
            )
            seconds.append(answer["seconds"])

        calls = timer(once, wanted.rounds, wanted.warmup)
        rates = [wanted.max_new_tokens / value for value in seconds]
        warmup, samples = split(rates, wanted.warmup)
        note = cut_short(seconds, calls)
        middle = statistics.median(samples)
        return {"generate_throughput": Figure(middle, samples, warmup, percentiles(samples), discarded=note)}

    parameters: dict[str, Scalar] = {"max_new_tokens": wanted.max_new_tokens, "batch_size": 1}
    return recorder.take(cell, parameters, take, names=("generate_throughput",))["generate_throughput"]
