"""How large a checkpoint is and should be, how much of it is quantized, and which rules leave the rest plain."""

from __future__ import annotations

from harness.matrix.plan import Cell
from harness.measure.figures import Figure
from harness.measure.recorder import Recorder
from harness.records.coverage import Coverage
from harness.records.schema import Measurement

_SIZES = ("checkpoint_size", "weight_size", "quantized_layers", "quantized_parameters", "quantized_bytes")


def checkpoint(recorder: Recorder, cell: Cell) -> dict[str, Measurement]:
    """Record the sizes of a cell's checkpoint, how much of it is quantized, and how far sizes are from arithmetic.

    The statistics of ``quantized_parameters`` are the shares of what is quantized and of what each rule leaves plain;
    its attachment tells of every parameter. There is no ``size_deviation`` of a recipe whose bits are not known.
    """

    def take() -> dict[str, Figure]:
        facts = recorder.flow.checkpoints.facts(cell)
        weights = facts["weights"]
        coverage = Coverage.of(weights)
        attachment = recorder.attach(f"{cell.id}-weights", {"weights": weights, "unpredicted": facts["unpredicted"]})
        share, statistics = coverage.share(coverage.quantized), coverage.statistics()
        return {
            **(
                {"checkpoint_size": Figure(float(written))}
                if (written := facts["checkpoint_bytes"]) is not None
                else {}
            ),
            "weight_size": Figure(float(facts["weight_bytes"])),
            "quantized_layers": Figure(float(sum(weight["quantized"] for weight in weights.values()))),
            "quantized_parameters": Figure(share, statistics=statistics, attachment=attachment),
            "quantized_bytes": Figure(coverage.share_of_bytes(coverage.quantized)),
        }

    found = recorder.block(cell, {}).take(take, names=_SIZES, quick=True)
    for of, size in (("weights", "weight_bytes"), ("checkpoint", "checkpoint_bytes")):

        def deviation(size: str = size) -> dict[str, Figure]:
            facts = recorder.flow.checkpoints.facts(cell)
            if (predicted := facts[f"predicted_{size}"]) is None:
                return {}
            measured = float(facts[size])
            sizes = {"measured": measured, "predicted": float(predicted)}
            return {"size_deviation": Figure(abs(measured / predicted - 1), statistics=sizes)}

        taken = recorder.block(cell, {"of": of}).take(deviation, names=("size_deviation",), quick=True)
        found |= {f"{name} of {of}": record for name, record in taken.items()}
    return found
