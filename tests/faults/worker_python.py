"""What stands in for the interpreter of workers: the harness's own worker code, without torch, over a small backend.

Run as ``worker_python -m MODULE ARGUMENTS...``; the campaign writes a file with a first line that starts this one.
"""

from __future__ import annotations

import importlib.abc
import os
import runpy
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

HEAVY = {"torch", "torchao", "transformers", "vllm", "sglang", "lm_eval", "executorch", "accelerate", "tokenizers"}
BACKEND = "harness.worker.small"
# Replies that are none, as raw lines.
RAW = {
    "garbage": b"\x00\xff not a reply\n",
    "half": b'{"kind": "result", "value": {"val',
    "deep": b"[" * 100_000 + b"\n",
    "other": b'{"kind": "ready", "value": {}}\n',
    "unasked": b'{"kind": "error", "value": {}}\n',
    "long": b'{"kind": "result", "value": ' + b"9" * 50_000 + b"}\n",
}


class Absent(importlib.abc.MetaPathFinder):
    """Says of heavy packages that they are not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def contents(number: int) -> bytes:
    """Return what an artifact of that number holds."""
    return bytes((number * 37 + index * 11) % 256 for index in range(20_000))


def value(unit: int) -> float:
    """Return what a unit measures."""
    return 1.0 + unit / 7


def _backend() -> types.ModuleType:
    from harness.worker.backend import Backend

    class Small(Backend):
        commands = ("measure", "make", "exhaust", "raw", "hang", "die", "environ")

        def open(self, **specification: Any) -> dict[str, Any]:
            return specification

        def measure(self, unit: int, seconds: float) -> dict[str, Any]:
            held = bytearray(32 << 20)  # what a model would take, so that want of memory shows
            time.sleep(seconds)
            return {"value": value(unit) + held[0]}

        def make(self, number: int, folder: str) -> dict[str, Any]:
            Path(folder, "model.safetensors").write_bytes(contents(number))
            return {}

        def exhaust(self) -> dict[str, Any]:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
            return {"bytes": len(bytearray(8 << 30))}

        def raw(self, how: str) -> dict[str, Any]:
            os.write(int(os.environ["HARNESS_REPLIES_FD"]), RAW[how])
            if how == "half":
                os._exit(3)
            return {"value": -1.0}

        def environ(self) -> dict[str, Any]:
            return {"environ": dict(os.environ)}

        def hang(self) -> dict[str, Any]:
            time.sleep(600)
            return {}

        def die(self, number: int) -> dict[str, Any]:
            os.kill(os.getpid(), number)
            signal.pause()
            return {}

    module = types.ModuleType(BACKEND)
    module.BACKEND = Small  # type: ignore[attr-defined]
    return module


def main() -> None:
    sys.meta_path.insert(0, Absent())
    sys.modules[BACKEND] = _backend()
    _, _, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
