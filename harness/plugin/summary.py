"""TODO"""

from __future__ import annotations

from harness.records.schema import Measurement
from harness.report import limited


def speed_of_light(measurements: list[Measurement]) -> list[str]:
    """Say how much of the device's limit each phase reaches, and what limits it, by each one's last good record."""
    lines: dict[str, str] = {}
    for row in measurements:
        if row.metric == "limit_fraction" and not row.discarded:
            cell = row.cell
            of = (
                f"{cell.model.name} {cell.recipe.name} through {cell.server} on {cell.hardware}, "
                f"batch {row.parameters['batch_size']}, {row.parameters['phase']}"
            )
            lines[of] = f"{of}: {row.value:.0%} of the limit, limited by {limited.limited_by(row.statistics)}"
    return list(lines.values())
