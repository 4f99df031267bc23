"""The servers by name."""

from __future__ import annotations

from harness.servers.base import ServerBackend
from harness.servers.sglang import SGLang
from harness.servers.vllm import VLLM

SERVERS: dict[str, ServerBackend] = {"vllm": VLLM(), "sglang": SGLang()}
"""Every server that a cell may name, beside plain Transformers and ExecuTorch."""


def names() -> tuple[str, ...]:
    """Return what a cell or a recipe may name as a server."""
    return ("transformers", *SERVERS, "executorch")


def distributions() -> dict[str, str]:
    """Return the packages that may hold a server, each with its repository."""
    return {name: server.repository for server in SERVERS.values() for name in server.distributions}
