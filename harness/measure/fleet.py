"""TODO"""

from __future__ import annotations

from dataclasses import replace

from harness.matrix.plan import Cell
from harness.servers.registry import SERVERS

_WORKER_KINDS = ("transformers", "engine", "server")


# Which fork server's family (harness/worker/forkserver.py) a worker's module belongs to; SGLang's has none.
_FAMILIES = {
    "generate": "transformers",
    "quantize": "transformers",
    "limits": "transformers",
    "executorch": "transformers",
    "vllm": "vllm",
    "client": "vllm",
}


def _base(cell: Cell) -> str:
    return f"{cell.model.name}/{cell.recipe.name}/{cell.hardware}"


def _serving(cell: Cell) -> Cell:
    """Return the cell through a server: its own, or for one through Transformers the first of those it is served by."""
    if cell.server in SERVERS:
        return cell
    return replace(cell, server=next((name for name in cell.servers if name in SERVERS), cell.server))


def _key(cell: Cell, kind: str) -> tuple[str, str]:
    """Return what tells workers apart: model, recipe and hardware; kind, and for an engine or a server its name."""
    return (_base(cell), kind if kind == "transformers" else f"{kind} of {_serving(cell).server}")
