"""How close prefill and decode come to what the device can do at best."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable
from typing import Any

from harness.base.errors import TooNoisy
from harness.base.reading import json_file
from harness.contract import repeated
from harness.machine import probe
from harness.matrix.plan import Cell
from harness.measure import roofline
from harness.measure.engine import latency_parameters
from harness.measure.figures import Figure, in_a_row, percentiles
from harness.measure.recorder import Block, Recorder
from harness.measure.rounds import check
from harness.measure.undisturbed import undisturbed
from harness.records.schema import Measurement, Scalar


class Limits:
    """Holds batches against the device's ceilings, which are measured once a session."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._ceilings: dict[str, dict[str, Any]] = {}

    def speed_of_light(self, cell: Cell, batch_size: int) -> dict[str, Measurement]:
        """Split a batch's latency into prefill and decode, and hold both against what the device can do at best."""
        wanted = cell.measurements.latency
        parameters = latency_parameters(cell, batch_size)
        # Before the device is measured for a recipe that the model does not suit.
        shape = self._shape(cell)
        ceiling = self._ceiling(cell)
        names = ("prefill_time", "decode_step_time")
        block = self._recorder.block(cell, parameters, engine=True)
        found = block.take(lambda: self._steps(block, cell, batch_size), names=names)
        context = wanted.input_len + wanted.output_len / 2
        for phase, cost, measured in (
            ("prefill", roofline.prefill(shape, batch_size, wanted.input_len), found["prefill_time"].value),
            ("decode", roofline.decode_step(shape, batch_size, context), found["decode_step_time"].value / 1000),
        ):
            # At best as many GPUs do it in as many parts of the time; what they tell each other is not counted.
            memory, arithmetic = (seconds / cell.gpus for seconds in cost.seconds(ceiling))
            told = {
                "bytes": cost.bytes,
                "operations": cost.operations,
                "memory_seconds": memory,
                "arithmetic_seconds": arithmetic,
                "measured_seconds": measured,
            }
            figure = Figure(max(memory, arithmetic) / measured, statistics=told)
            of: dict[str, Scalar] = {**parameters, "phase": phase}
            found[f"limit_fraction {phase}"] = self._recorder.note(cell, of, "limit_fraction", figure, engine=True)
        return found

    def _steps(self, block: Block, cell: Cell, batch_size: int) -> dict[str, Figure]:
        """Measure reading the prompts, and take the rest of the batch's latency for the decoding steps."""
        wanted = cell.measurements.latency
        first = self._seconds(block, cell, batch_size, 1)
        latency = self._latency(cell, batch_size) or self._seconds(block, cell, batch_size, wanted.output_len)[1:]
        start = statistics.median(first[1:])
        steps = [(seconds - start) / max(1, wanted.output_len - 1) for seconds in latency]
        step = statistics.median(steps)
        if step <= 0:
            raise TooNoisy(
                f"decode_step_time of {cell.id}: {wanted.output_len} tokens took no longer than the first one; "
                "the machine is too noisy for so short an answer: raise latency.output_len or rounds"
            )
        return {
            "prefill_time": Figure(start, first[1:], first[:1], statistics=percentiles(first[1:])),
            "decode_step_time": Figure(1000 * step, [1000 * it for it in steps]),
        }

    def _seconds(self, block: Block, cell: Cell, batch_size: int, output_len: int) -> list[float]:
        """Return the seconds of a round to warm up and of those that count."""
        wanted = cell.measurements.latency
        engine = self._recorder.flow.fleet.engine(cell)
        ask = functools.partial(engine.ask, "latency", cell.measurements.time_limits.measure)
        sizes = {"batch_size": batch_size, "input_len": wanted.input_len, "output_len": output_len}
        rule = block.rule("prefill_time", statistics.median, wanted.rounds)
        found: list[float] = []

        def once() -> None:
            check(rule, found[1:])
            found.append(ask(**sizes)["seconds"])

        in_a_row(once, wanted.rounds, 1)
        return found

    def _latency(self, cell: Cell, batch_size: int) -> list[float]:
        """Return what this session has measured of the whole batch, if it has."""
        own, parameters = self._recorder.flow.cell_identity(cell), latency_parameters(cell, batch_size)
        for other in reversed(self._recorder.measurements):
            same = (other.metric, other.cell, other.parameters) == ("latency", own, parameters)
            if same and not other.discarded:
                return other.samples
        return []

    def _ceiling(self, cell: Cell) -> roofline.Ceiling:
        """Return the device's measured ceilings for the recipe's arithmetic, measured once a session."""
        name, store = cell.hardware.name, self._recorder.flow.kept
        asked = {"ceilings": _asked(cell), "device": probe.device(cell.hardware).name}
        kept = store.place(cell, asked, f"the limits of {name}") if store else None
        if name not in self._ceilings:
            before = kept.find() if kept else {}
            self._ceilings[name] = self._standing(cell) or _of(before.values()) or self._measure(cell)
        found = self._ceilings[name]
        rates, told = found["rates"], {"kept_from": found["kept_from"], "kept_time": found["kept_time"]}
        noted = {"copy": self._recorder.note(cell, {}, "copy_bandwidth", Figure(found["bandwidth"] / 1e9, **told))}
        for name, rate in rates.items():
            noted[name] = self._recorder.note(cell, {"dtype": name}, "matrix_rate", Figure(rate / 1e12, **told))
        if kept and found.pop("quiet", False):
            kept.keep(noted)
        return roofline.Ceiling(found["bandwidth"], rates.get(cell.recipe.arithmetic, rates["bfloat16"]))

    def _measure(self, cell: Cell) -> dict[str, Any]:
        device = {"device": cell.hardware.torch_device}
        # Idle workers may stay beside.
        ask = functools.partial(self._recorder.flow.workers.once, "limits", device, "measure", cell)
        return undisturbed(
            self._recorder.flow,
            cell,
            "copy_bandwidth, matrix_rate",
            lambda: ask(**_asked(cell)),
            lambda found, *told: {**found, "kept_from": "", "kept_time": None, "quiet": not any(told[2:])},
            functools.partial(probe.state, cell.hardware),
        )

    def _standing(self, cell: Cell) -> dict[str, Any] | None:
        """Return the ceilings that a resumed run has measured on this device, if it has."""
        device = probe.device(cell.hardware).name
        return _of(row for row in self._recorder.standing() if row.device.name == device)

    def _shape(self, cell: Cell) -> roofline.Shape:
        checkpoints = self._recorder.flow.checkpoints
        linear = checkpoints.facts(cell)["linear"]
        config = repeated.whole(json_file(checkpoints.of(cell).folder / "config.json"))
        return roofline.Shape.of(config, linear["bytes"], linear["weights"])


def _asked(cell: Cell) -> dict[str, Any]:
    """Return what a device is asked for its ceilings: rounds, arithmetic and sizes."""
    sizes = {"copy_bytes": 1 << 30, "size": 8192} if cell.hardware.is_gpu else {"copy_bytes": 1 << 28, "size": 1024}
    return {"rounds": 5, "arithmetic": list(cell.hardware.arithmetic), **sizes}


def _of(records: Iterable[Measurement]) -> dict[str, Any] | None:
    """Return the ceilings that records tell of, and where these are from; None where they do not tell of all."""
    rows = list(records)
    bandwidths = [row for row in rows if row.metric == "copy_bandwidth"]
    rates = {str(row.parameters["dtype"]): row.value * 1e12 for row in rows if row.metric == "matrix_rate"}
    if not bandwidths or "bfloat16" not in rates:
        return None
    told = {"kept_from": bandwidths[0].kept_from, "kept_time": bandwidths[0].kept_time}
    return {"bandwidth": bandwidths[0].value * 1e9, "rates": rates, **told}
