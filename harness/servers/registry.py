"""The servers by name."""

from __future__ import annotations

from collections.abc import Mapping

from harness.matrix.hardware import Hardware
from harness.matrix.plan import Cell
from harness.matrix.schema import Model
from harness.records.metric import Stage
from harness.records.metrics import GATED
from harness.servers.base import ByHand, ServerBackend
from harness.servers.sglang import SGLang
from harness.servers.vllm import VLLM

SERVERS: dict[str, ServerBackend] = {"vllm": VLLM(), "sglang": SGLang()}
"""Every server that a cell may name, beside plain Transformers and ExecuTorch."""

TRANSFORMERS, EXECUTORCH = "transformers", "executorch"
"""What a cell may go through without a server."""


def names() -> tuple[str, ...]:
    """Return what a cell or a recipe may name as a server."""
    return (TRANSFORMERS, *SERVERS, EXECUTORCH)


def at(stage: str) -> tuple[str, ...]:
    """Return what a stage of the suites goes through: one of these for each of its tests."""
    return {"transformers": (TRANSFORMERS,), "export": (EXECUTORCH,)}.get(stage, tuple(SERVERS))


def gated() -> dict[str, Mapping[Stage, frozenset[str]]]:
    """Return what may be gated: by server, the metrics of each stage."""
    return {
        TRANSFORMERS: {"transformers": GATED["transformers"]},
        **{name: server.stages for name, server in SERVERS.items()},
    }


def client() -> ServerBackend:
    """Return the server whose serving benchmark asks them all."""
    return next(server for server in SERVERS.values() if server.client)


def tutorial() -> str:
    """Return the name of the server that the published tutorial measures through."""
    return next(name for name, server in SERVERS.items() if server.tutorial)


def by_hand() -> dict[str, ByHand]:
    """Return how checkpoints are served and measured without this harness, by server; of some there is no way."""
    return {name: server.by_hand for name, server in SERVERS.items() if server.by_hand}


def unsupported(server: str, on: Hardware, gpus: int = 1) -> str:
    """Return why a server cannot run on a hardware, or not on so many GPUs at once; an empty string if it can."""
    if problem := SERVERS[server].unsupported(on) if server in SERVERS else "":
        return problem
    if gpus == 1 or not server or (server in SERVERS and SERVERS[server].several):
        return ""
    able = " or ".join(name for name, it in SERVERS.items() if it.several)
    return f"{server} holds a model on one GPU; {gpus} GPUs share one through {able}"


def partial(server: str, model: Model) -> str:
    """Return why a server has no use for a model of which files have one layer, or an empty string."""
    able = [name for name, it in SERVERS.items() if it.reads_one_layer]
    if not server or not model.one_layer or server in able:
        return ""
    return f"of {model.name} one layer lies in files, which {' or '.join(able)} alone reads for each"


def refusal(cell: Cell, server: str) -> str:
    """Return why a cell does not go through a server: it cannot, or the matrix does not send it. Else nothing."""
    return unsupported(server, cell.hardware, cell.gpus) or partial(server, cell.model) or cell.refusal(server)


def distributions() -> dict[str, str]:
    """Return the packages that may hold a server, each with its repository."""
    return {name: server.repository for server in SERVERS.values() for name in server.distributions}
