"""Which records of a run are of the same thing: a figure and its baseline, its judgement, and what is told from it."""

from __future__ import annotations

from harness.records.place import row_of
from harness.records.schema import Judgement, Measurement


def is_baseline_of(other: Measurement, measurement: Measurement) -> bool:
    """Return whether a record is of the baseline, and otherwise of the very thing that was measured."""
    return (
        other.cell.recipe.baseline
        and not other.discarded
        and other.cell.model == measurement.cell.model
        and row_of(other) == row_of(measurement)
        and other.device.name == measurement.device.name
    )


def is_judged(record: Measurement, judgement: Judgement) -> bool:
    """Return whether a judgement is of this figure, or held against it as its baseline."""
    cell, of = record.cell, judgement.cell
    same = (record.metric, record.parameters, cell.model, cell.hardware, cell.server)
    return same == (judgement.metric, judgement.parameters, of.model, of.hardware, of.server) and (
        cell.recipe == of.recipe or (cell.recipe.baseline and judgement.comparison not in ("max", "min"))
    )


def told_with(other: Measurement, record: Measurement) -> bool:
    """Return whether a record is of the same work of the same cell as another, as steps are of a batch's latency."""
    asked = record.parameters.items()
    return bool(asked) and other.cell == record.cell and asked <= other.parameters.items()
