"""What a stored file may say of a metric: the metric table alone decides unit, direction and definition."""

from __future__ import annotations

import math
from collections.abc import Iterable

from harness.base.errors import nearest
from harness.records.metrics import METRICS, stage_of
from harness.records.place import Place

LARGEST = 1e18
"""No figure of a machine is larger, in whichever of the table's units; sums and squares of such are still finite."""
_FARTHEST = float(math.floor(math.log(LARGEST)))


def disagreement(
    metric: str, *, unit: str | None = None, direction: str | None = None, definition: int | None = None
) -> str:
    """Return in which point a stored file disagrees with the metric table, or an empty text; None is not said."""
    known = METRICS.get(metric)
    if known is None:
        return f"{metric} is not measured any more: {nearest(metric, METRICS)}"
    if unit is not None and unit != known.unit:
        return f"unit {unit!r} of {metric} must be {known.unit!r}, which the metric table has"
    if direction is not None and direction != known.direction:
        return f"direction {direction!r} of {metric} must be {known.direction!r}, which the metric table has"
    if definition is not None and definition != known.version:
        return (
            f"{metric} was measured by version {definition} of its definition, and today's is version {known.version}: "
            "figures of different definitions are not compared"
        )
    return ""


def misplaced(place: Place) -> str:
    """Return what is wrong with the stage and parameters of a stored figure's place, or an empty text."""
    stage = stage_of(place.metric, place.server, place.parameters)
    if stage is not None and place.stage not in ("", stage):
        return f"{place.metric} is of the stage {place.stage!r} there, and the stage {stage!r} gives it"
    return ""


def implausible(values: Iterable[float]) -> str:
    """Return which of some figures cannot have been measured, or an empty text."""
    for value in values:
        if not math.isfinite(value):
            return f"{value} is not a finite number"
        if abs(value) > LARGEST:
            return f"{value:g} is larger than anything that is measured ({LARGEST:g})"
    return ""


def factor(log: float) -> float:
    """Return e to a power, but none that :func:`implausible` refuses: so far apart two noisy blocks' ends may be."""
    return math.exp(math.copysign(_FARTHEST, log) if abs(log) > _FARTHEST else log)
