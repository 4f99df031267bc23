"""Which kernels did the work of an engine, or of Transformers, and whether the recipe's own were among them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.base.errors import HarnessError, WrongKernels
from harness.matrix.plan import Cell
from harness.measure.figures import Figure
from harness.measure.recorder import Recorder
from harness.records.schema import Measurement
from harness.servers.registry import TRANSFORMERS

# Each is one step of the model, so every linear layer multiplies once in it: the prompt, then each further token.
_PROFILED_STEPS = 4


def kernels(recorder: Recorder, cell: Cell) -> dict[str, Measurement]:
    """Profile a batch of the cell's engine, or of Transformers: which kernels ran, and the share of the recipe's own.

    Raises WrongKernels when the recipe's own kernels ran less often than once a quantized layer and step, or in
    further steps not for every layer, or when the matrix names none for this hardware; the message names what ran,
    the longest first. The baseline, which has none of its own, is profiled alone.
    """
    pattern, engine = cell.kernels, cell.server != TRANSFORMERS

    def take() -> dict[str, Figure]:
        fleet = recorder.flow.fleet
        worker = fleet.engine(cell) if engine else fleet.transformers(cell)

        def profiled(steps: int) -> dict[str, Any]:
            sizes = {"batch_size": 1, "input_len": cell.measurements.latency.input_len, "output_len": steps}
            return worker.ask("kernels", cell.measurements.time_limits.measure, **sizes)

        # The prompt by itself, so that it can be told from what each further token of an engine takes.
        prefill = profiled(1) if engine else {}
        found_of_all = profiled(_PROFILED_STEPS)
        ran: list[tuple[str, float, int]] = found_of_all["kernels"]
        answer: dict[str, Any] = {"kernels": ran}
        if engine:
            answer["prefill"] = prefill["kernels"]
        if "ran" in found_of_all:
            answer |= {"ran": found_of_all["ran"], "layers": fleet.depth(cell)}
        attachment = recorder.attach(f"{cell.id}-kernels", answer)
        total = sum(seconds for _, seconds, _ in ran)
        found = {"kernel_time": Figure(1000 * total, attachment=attachment)}
        if pattern:
            own = [(seconds, calls) for name, seconds, calls in ran if re.search(pattern, name)]
            products = found_of_all["due"] if "due" in found_of_all else _PROFILED_STEPS * _quantized(worker.info)
            due = {"calls": float(sum(calls for _, calls in own)), "calls_due": float(products)}
            share = sum(seconds for seconds, _ in own) / total if total else 0.0
            found["quantized_kernel_share"] = Figure(share, statistics=due, attachment=attachment)
        return found

    names = ("kernel_time", "quantized_kernel_share") if pattern else ("kernel_time",)
    found = recorder.block(cell, {"pattern": pattern}, engine=engine).take(take, names=names, quick=True, fixed=True)
    if not cell.recipe.baseline:
        _check(recorder, cell, pattern, found)
    return found


def _quantized(info: Mapping[str, Any]) -> int:
    """Return how many of an engine's linear layers are quantized."""
    return sum(tensor != "Tensor" for tensor in info["layers"].values())


def _check(recorder: Recorder, cell: Cell, pattern: str, found: Mapping[str, Measurement]) -> None:
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
    attached = recorder.run.folder / found["kernel_time"].attachment
    try:
        ran = recorder.run.attached(found["kernel_time"].attachment)["kernels"][:5]
        longest = ", ".join(f"{name[:80]} ({calls} calls, {seconds * 1e3:.2f} ms)" for name, seconds, calls in ran)
    except (HarnessError, ValueError, KeyError, TypeError):
        longest = ""  # A resumed run that is kept without its attachments.
    told = f"{wrong}, {WrongKernels.LONGEST}{longest or f'see {attached}'}"
    raise WrongKernels(f"{cell.id}: {told}", cell.recipe.known_fallback)
