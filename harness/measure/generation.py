"""Transformers' generate: its peak memory in a process of its own, and its throughput."""

from __future__ import annotations

import statistics

from harness.base.errors import HarnessError
from harness.contract.tutorial import PROMPT
from harness.matrix.plan import Cell
from harness.measure.figures import Figure, Timer, cut_short, percentiles, split, warmed
from harness.measure.recorder import Recorder
from harness.records.schema import Measurement, Scalar


def peak_memory(recorder: Recorder, cell: Cell) -> Measurement:
    """Measure the published peak memory in a process that has done nothing else."""
    name = "peak_memory"

    def parameters(of: Cell) -> dict[str, Scalar]:
        return {"max_new_tokens": of.measurements.memory.max_new_tokens}

    def due(other: Cell) -> bool:
        try:
            return not recorder.block(other, parameters(other)).keeps((name,))
        except HarnessError:
            # What cannot be had fails its own tests.
            return True

    def take() -> dict[str, Figure]:
        peak = recorder.flow.memory.peak(cell, due)
        answer, gigabytes = peak.answer, peak.answer["peak_bytes"] / 1e9
        told = {"new_tokens": float(answer["new_tokens"]), "seconds": answer["seconds"], "start": peak.start_seconds}
        return {name: Figure(gigabytes, [gigabytes], statistics=told)}

    found = recorder.block(cell, parameters(cell)).take(take, names=(name,), fixed=True)[name]
    # Of its process; runs of before have it beside the figure alone.
    if (start := found.statistics.get("start")) is not None:
        figure = Figure(start, kept_from=found.kept_from, kept_time=found.kept_time)
        recorder.note(cell, {"kind": "transformers"}, "engine_start", figure)
    return found


def generate(recorder: Recorder, cell: Cell, timer: Timer) -> Measurement:
    """Measure Transformers' generate throughput, a round a call of the timer."""
    wanted = cell.measurements.generate

    def take() -> dict[str, Figure]:
        worker = recorder.flow.fleet.transformers(cell)
        seconds: list[float] = []
        made: list[int] = []
        warming = recorder.warming(wanted.warmup_tokens, wanted.max_new_tokens)

        def once() -> None:
            made.append(wanted.max_new_tokens if len(seconds) >= wanted.warmup else warming)
            answer = worker.ask(
                "generate",
                cell.measurements.time_limits.measure,
                prompt=PROMPT,
                max_new_tokens=made[-1],
            )
            seconds.append(answer["seconds"])

        calls = timer(once, wanted.rounds, wanted.warmup)
        rates = [tokens / value for tokens, value in zip(made, seconds, strict=True)]
        warmup, samples = split(rates, wanted.warmup)
        note = cut_short(seconds, calls)
        middle, told = statistics.median(samples), percentiles(samples) | warmed(warming, wanted.max_new_tokens)
        return {"generate_throughput": Figure(middle, samples, warmup, told, discarded=note)}

    parameters: dict[str, Scalar] = {"max_new_tokens": wanted.max_new_tokens, "batch_size": 1}
    return recorder.block(cell, parameters).take(take, names=("generate_throughput",))["generate_throughput"]
