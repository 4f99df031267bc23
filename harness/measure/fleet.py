"""TODO"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from harness.matrix.plan import Cell
from harness.records.metric import Stage
from harness.servers import registry
from harness.servers.registry import SERVERS

_WORKER_KINDS = ("transformers", "engine", "server")


# The workers that are forked from a process with Transformers' imports; of a server's its backend says its family.
_WITH_TRANSFORMERS = ("generate", "quantize", "limits", "executorch")


def gated(cell: Cell) -> dict[str, Mapping[Stage, frozenset[str]]]:
    """Return what a gate measures of a cell through each of its servers: metrics by stage.

    A server that the matrix does not send it through, or that cannot run on its hardware, is not among them.
    """
    known = registry.gated()
    return {
        server: known[server]
        for server in cell.servers
        if server in known and not cell.refusal(server) and not registry.unsupported(server, cell.hardware)
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
