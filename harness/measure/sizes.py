"""How large a checkpoint is, and how many of its layers are quantized."""

from __future__ import annotations

from harness.matrix.plan import Cell
from harness.measure.figures import Figure
from harness.measure.recorder import Recorder
from harness.records.schema import Measurement


def checkpoint(recorder: Recorder, cell: Cell) -> dict[str, Measurement]:
    """Record the sizes of a cell's checkpoint and how many of its layers are quantized tensors."""

    def take() -> dict[str, Figure]:
        facts = recorder.flow.checkpoints.facts(cell)
        quantized = sum(layer["quantized"] for layer in facts["layers"].values())
        return {
            "checkpoint_size": Figure(float(facts["checkpoint_bytes"])),
            "weight_size": Figure(float(facts["weight_bytes"])),
            "quantized_layers": Figure(float(quantized)),
        }

    return recorder.take(cell, {}, take, names=("checkpoint_size", "weight_size", "quantized_layers"), quick=True)
