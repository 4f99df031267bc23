"""An offline engine: its start and what it holds, and how long a batch takes."""

from __future__ import annotations

import statistics

from harness.base.errors import HarnessError
from harness.matrix.plan import Cell
from harness.measure import served
from harness.measure.figures import Figure, Timer, cut_short, percentiles, split, warmed
from harness.measure.recorder import Recorder
from harness.measure.rounds import check, words
from harness.records.schema import Measurement, Scalar
from harness.runtime.job import Server, Worker


def engine(recorder: Recorder, cell: Cell) -> dict[str, Measurement]:
    """Record an offline engine's start, its compile time, its KV-cache capacity and its quantized layers.

    Raises HarnessError naming the linear layers that the engine holds unquantized though the recipe means them.
    """
    fleet = recorder.flow.fleet
    compiles = fleet.backend(cell).compiles

    def take() -> dict[str, Figure]:
        worker = fleet.engine(cell)
        layers = worker.info["layers"]
        if not layers and not cell.recipe.baseline:
            raise HarnessError(f"engine of {cell.id} tells of no linear layer, so none is known to be quantized")
        weights = {} if cell.recipe.baseline else recorder.flow.checkpoints.served(cell).facts["weights"]
        plain = [] if cell.recipe.baseline else served.unmeant(layers, weights, worker.info.get("merged", {}))
        if plain:
            shown = ", ".join(plain[:6]) + (f" and {len(plain) - 6} more" if len(plain) > 6 else "")
            raise HarnessError(f"engine of {cell.id} holds {len(plain)} linear layers unquantized: {shown}")
        quantized = sum(tensor != "Tensor" for tensor in layers.values())
        return {
            "engine_start": Figure(worker.start_seconds, [worker.start_seconds], statistics=cold(worker, "start")),
            "kv_cache_capacity": Figure(float(worker.info["kv_cache_tokens"])),
            "quantized_layers": Figure(float(quantized), statistics={"layers": float(len(layers))}),
            **(
                {"compile_time": Figure(worker.info["compile_seconds"], statistics=cold(worker, "compile"))}
                if compiles
                else {}
            ),
        }

    names = ("engine_start", "kv_cache_capacity", "quantized_layers", *(["compile_time"] if compiles else []))
    # The start is of the block that is discarded.
    return recorder.block(cell, {"kind": "engine"}, engine=True).take(
        take, names=names, again=lambda: fleet.renew(cell, "engine")
    )


def cold(started: Worker | Server, what: str) -> dict[str, float]:
    """Return what a record's statistics say of a start that found what an earlier one had compiled; else nothing.

    ``cold_start`` and ``cold_compile`` are the seconds of the start that had found nothing.
    """
    found = started.compiled.found if started.compiled else None
    if found is None:
        return {}
    name = f"{what}_seconds"
    return {"kept_compilation": 1.0} | ({f"cold_{what}": found[name]} if name in found else {})


def latency(recorder: Recorder, cell: Cell, batch_size: int, timer: Timer) -> Measurement:
    """Measure the published latency, a batch a call of the timer."""
    wanted = cell.measurements.latency
    block = recorder.block(cell, latency_parameters(cell, batch_size), engine=True)

    def take() -> dict[str, Figure]:
        worker = recorder.flow.fleet.engine(cell)
        seconds: list[float] = []
        warming = recorder.warming(wanted.warmup_tokens, wanted.output_len)
        rule = block.rule("latency", statistics.fmean, wanted.rounds)

        def once() -> None:
            check(rule, seconds[wanted.warmup :])
            tokens = wanted.output_len if len(seconds) >= wanted.warmup else warming
            answer = worker.ask(
                "latency",
                cell.measurements.time_limits.measure,
                batch_size=batch_size,
                input_len=wanted.input_len,
                output_len=tokens,
            )
            seconds.append(answer["seconds"])

        calls = timer(once, wanted.rounds, wanted.warmup)
        warmup, samples = split(seconds, wanted.warmup)
        note, early = cut_short(seconds, calls), rule.told(samples)
        if early:
            recorder.flow.progress(words(f"latency of {cell.id}, batch {batch_size}", early, len(samples)))
        told = percentiles(samples) | early | warmed(warming, wanted.output_len)
        return {"latency": Figure(statistics.fmean(samples), samples, warmup, told, discarded=note)}

    return block.take(take, names=("latency",))["latency"]


def latency_parameters(cell: Cell, batch_size: int) -> dict[str, Scalar]:
    """Return the parameters of a batch's records."""
    wanted = cell.measurements.latency
    return {"batch_size": batch_size, "input_len": wanted.input_len, "output_len": wanted.output_len}
