"""Reads a job, opens its backend, answers requests until there are no more; nothing else."""

from __future__ import annotations

import importlib
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from harness.contract.protocol import REFUSED, REPLIES_FD, REQUESTS_FD, Job, Reply, Request, written
from harness.contract.weights import Unusable
from harness.worker import lean
from harness.worker.backend import Backend

# As torch's allocator of a CPU, a thread, a library and the system say it.
_NO_MEMORY = re.compile(r"an(no|')t allocate memory|can't start new thread|failed to map segment")


def main() -> int:
    requests = os.fdopen(int(os.environ.pop(REQUESTS_FD)), "rb")
    replies_fd = int(os.environ.pop(REPLIES_FD))
    for fd in (requests.fileno(), replies_fd):
        os.set_inheritable(fd, False)
    replies = os.fdopen(replies_fd, "wb", buffering=0)

    def send(kind: Any, value: dict[str, Any]) -> None:
        replies.write(written(Reply(kind=kind, value=value)))

    try:
        job = Job.model_validate_json(requests.readline())
        # A backend of another package, which a server of its own brought along, has its whole name.
        name = job.backend if "." in job.backend else f"harness.worker.{job.backend}"
        with lean.imports(job.whole):
            module = importlib.import_module(name)
        backend: Backend = module.BACKEND(lambda value: send("progress", value))
    except BaseException as error:
        traceback.print_exc()
        send("error", _describe(error))
        return 1
    return backend.attend(job.specification, lambda: _answer(backend, job, requests, send))


def _answer(backend: Backend, job: Job, requests: BinaryIO, send: Callable[[Any, dict[str, Any]], None]) -> int:
    """Open a backend and answer requests until there are no more; returns the exit status."""
    try:
        opened = backend.open(**job.specification)
        send("ready", {**opened, "ready_at": time.monotonic()})
    except BaseException as error:
        traceback.print_exc()
        send("error", _describe(error))
        return 1
    for line in requests:
        request = Request.model_validate_json(line)
        try:
            if request.command not in backend.commands:
                raise ValueError(f"{job.backend} has no command {request.command!r}")
            send("result", getattr(backend, request.command)(**request.arguments))
        except Exception as error:
            traceback.print_exc()
            send("error", _describe(error))
    backend.close()
    return 0


def _describe(error: BaseException) -> dict[str, Any]:
    """Return kind and message of the error that started it all, not of its last wrapper.

    A refusal says all that there is to say.
    """
    if isinstance(error, Unusable):
        return {"kind": REFUSED, "message": str(error)}
    root = error
    while root.__cause__ or (root.__context__ and not root.__suppress_context__):
        root = root.__cause__ or root.__context__  # type: ignore[assignment]
    memory = any(
        isinstance(link, MemoryError) or type(link).__name__ == "OutOfMemoryError" or _NO_MEMORY.search(str(link))
        for link in (error, root)
    )
    words = f"{type(root).__name__}: {root}"
    if root is not error:
        words += f" (seen as {type(error).__name__}: {str(error)[:300]})"
    return {"kind": "out_of_memory" if memory else "exception", "message": words}


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Interpreter shutdown of the engines' threads can hang or crash; everything worth keeping has been sent.
    os._exit(status)
