"""All that the suites measure, as one object: a method a claim, which its own module makes good."""

from __future__ import annotations

from typing import Any

from harness.matrix.plan import Cell
from harness.measure import engine, generation, kernels, quality, serving, sizes
from harness.measure.figures import Timer, in_a_row
from harness.measure.limits import Limits
from harness.measure.loads import Loads
from harness.measure.recorder import Recorder
from harness.records.schema import Measurement


class Measure:
    """Measures checkpoints, Transformers, engines and servers, and the quality of what they predict."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._limits = Limits(recorder)
        self._loads = Loads(recorder)

    def checkpoint(self, cell: Cell) -> dict[str, Measurement]:
        """See :func:`harness.measure.sizes.checkpoint`."""
        return sizes.checkpoint(self.recorder, cell)

    def peak_memory(self, cell: Cell) -> Measurement:
        """See :func:`harness.measure.generation.peak_memory`."""
        return generation.peak_memory(self.recorder, cell)

    def generate(self, cell: Cell, timer: Timer) -> Measurement:
        """See :func:`harness.measure.generation.generate`."""
        return generation.generate(self.recorder, cell, timer)

    def text_quality(self, cell: Cell) -> dict[str, Measurement]:
        """See :func:`harness.measure.quality.text_quality`."""
        return quality.text_quality(self.recorder, cell)

    def agreement(self, cell: Cell) -> dict[str, Measurement]:
        """See :func:`harness.measure.quality.agreement`."""
        return quality.agreement(self.recorder, cell)

    def task(self, cell: Cell, task: str) -> dict[str, Measurement]:
        """See :func:`harness.measure.quality.task`."""
        return quality.task(self.recorder, cell, task)

    def engine(self, cell: Cell) -> dict[str, Measurement]:
        """See :func:`harness.measure.engine.engine`."""
        return engine.engine(self.recorder, cell)

    def latency(self, cell: Cell, batch_size: int, timer: Timer) -> Measurement:
        """See :func:`harness.measure.engine.latency`."""
        return engine.latency(self.recorder, cell, batch_size, timer)

    def speed_of_light(self, cell: Cell, batch_size: int) -> dict[str, Measurement]:
        """See :meth:`harness.measure.limits.Limits.speed_of_light`."""
        return self._limits.speed_of_light(cell, batch_size)

    def kernels(self, cell: Cell) -> dict[str, Measurement]:
        """See :func:`harness.measure.kernels.kernels`."""
        return kernels.kernels(self.recorder, cell)

    def server(self, cell: Cell) -> Measurement:
        """See :func:`harness.measure.serving.server`."""
        return serving.server(self.recorder, cell)

    def chat(self, cell: Cell) -> dict[str, Any]:
        """See :func:`harness.measure.serving.chat`."""
        return serving.chat(self.recorder, cell)

    def serving(self, cell: Cell, num_prompts: int, timer: Timer = in_a_row) -> dict[str, Measurement]:
        """See :func:`harness.measure.serving.serving`."""
        return serving.serving(self.recorder, cell, num_prompts, timer)

    def load(self, cell: Cell, workload: str) -> dict[str, Measurement]:
        """See :meth:`harness.measure.loads.Loads.load`."""
        return self._loads.load(cell, workload)

    def has_limits(self, workload: str) -> bool:
        """Return whether a workload has limits, within which there is a capacity."""
        return bool(self._loads.workload(workload).slo)

    def capacity(self, cell: Cell, workload: str) -> dict[str, Measurement]:
        """See :meth:`harness.measure.loads.Loads.capacity`."""
        return self._loads.capacity(cell, workload)
