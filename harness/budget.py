"""What a table costs: the machine's minutes of a session against the tutorial's commands run one after another.

The tutorial runs one process for memory, one `vllm bench latency` for each batch size (10 warm-up and 30 counted
iterations, that command's defaults), one server, and one benchmark client for each number of prompts. Each of those
costs is taken from the session's own records, so both sides are on the same machine and stack.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.records import Measurement

TUTORIAL_ITERATIONS = 10 + 30


def tutorial_seconds(measurements: Iterable[Measurement]) -> float:
    """Return the seconds that the tutorial's commands would take for the cells and figures that were measured."""
    rows = [row for row in measurements if not row.discarded]
    total = 0.0
    for row in rows:
        if row.metric == "peak_memory":
            total += _start(rows, row, "transformers") + row.statistics.get("seconds", 0.0)
        elif row.metric == "latency":
            total += _start(rows, row, "engine") + TUTORIAL_ITERATIONS * row.value
        elif row.metric == "request_throughput":
            prompts = float(row.parameters["num_prompts"])
            total += _start(rows, row, "client") + prompts / row.value
        elif row.metric == "engine_start" and row.parameters.get("kind") == "server":
            total += row.value
    return total


def _start(rows: list[Measurement], of: Measurement, kind: str) -> float:
    """Return the start of the process of ``kind`` that belongs to a measurement; a client serves all cells."""
    for row in rows:
        if row.metric == "engine_start" and row.parameters.get("kind") == kind:
            same = (row.cell.model.name, row.cell.recipe.name, row.cell.hardware)
            if kind == "client" or same == (of.cell.model.name, of.cell.recipe.name, of.cell.hardware):
                return row.value
    return 0.0
