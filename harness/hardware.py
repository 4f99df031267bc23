"""What this machine is, whether a hardware marker's device is here, and its state around a measurement."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import threading
from pathlib import Path
from typing import Any

import psutil

from harness import gpu
from harness.records import Device, Scalar
from harness.warden import descendants

NAMES = {
    "cpu": "runs on this machine's processor",
    "h100": "needs an NVIDIA H100 GPU",
    "arm-mobile": "exports to ExecuTorch and runs on ARM: a phone, an ARM Linux host, or the emulator",
}


def missing(hardware: str) -> str:
    """Return why ``hardware`` is not here, or an empty string if it is."""
    if hardware == "cpu":
        return ""
    if hardware == "h100":
        name, problem = _gpu()
        if problem:
            return problem
        if "H100" not in name:
            return f"the GPU here is {name}, not an H100; with several, CUDA_VISIBLE_DEVICES chooses"
        strangers()
        return _driver_too_old()
    if hardware == "arm-mobile":
        # Each device says by itself whether it is here; without ExecuTorch there is nothing to run on any.
        try:
            importlib.metadata.version("executorch")
        except importlib.metadata.PackageNotFoundError:
            return "ExecuTorch is not installed; pip install '.[mobile]', or tox run -e mobile"
        return ""
    raise ValueError(f"unknown hardware {hardware!r}")


def torch_device(hardware: str) -> str:
    """Return the torch device type that a worker uses on ``hardware``."""
    return "cuda" if hardware == "h100" else "cpu"


@functools.cache
def device(hardware: str) -> Device:
    """Return what measurements on ``hardware`` run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    detail: dict[str, Scalar] = {
        "processor": _processor(),
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if hardware != "h100":
        return Device(name=f"{detail['processor']} ({cores} cores)", detail=detail)
    import pynvml

    pynvml.nvmlInit()
    handle = gpu.used()
    detail |= {
        "driver": str(pynvml.nvmlSystemGetDriverVersion()),
        "gpu_memory_gb": round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / 1e9, 1),
    }
    return Device(name=str(pynvml.nvmlDeviceGetName(handle)), detail=detail)


def state(hardware: str) -> dict[str, Scalar]:
    """Return the machine's state now: load, memory, and on a GPU clocks, throttling, temperature, power, tenants."""
    memory = psutil.virtual_memory()
    found: dict[str, Scalar] = {
        "load_1min": round(os.getloadavg()[0], 2),
        "memory_available_gb": round(memory.available / 1e9, 2),
    }
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    if frequency and frequency.current:
        found["cpu_mhz"] = round(frequency.current)
    if hardware == "h100":
        found |= _gpu_state()
    return found


# Reasons for lowered clocks that make a measurement void: slowdowns for heat or by the board, not the power cap under
# which a busy GPU always runs. Values: NVML's nvmlClocksEventReasons.
_THROTTLING = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


class Watch:
    """Watches the machine during a block of measurement: throttling, and processes of others on the GPU.

    A context manager; ``problems`` afterwards says what makes the block void. On hardware without NVML there is
    nothing to watch. Settings are only read, never changed.
    """

    INTERVAL = 0.5

    def __init__(self, hardware: str) -> None:
        self._watched = hardware == "h100"
        self._seen: set[str] = set()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def problems(self) -> list[str]:
        return sorted(self._seen)

    def __enter__(self) -> Watch:
        if self._watched:
            self._look()
            self._thread = threading.Thread(target=self._run, name="hardware-watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread:
            self._thread.join()
            self._look()

    def _run(self) -> None:
        while not self._done.wait(self.INTERVAL):
            self._look()

    def _look(self) -> None:
        import pynvml

        try:
            pynvml.nvmlInit()
            handle = gpu.used()
            reasons = int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
            processes = [int(process.pid) for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        except pynvml.NVMLError:
            return
        self._seen |= {f"throttled: {name}" for bit, name in _THROTTLING.items() if reasons & bit}
        self._seen |= {f"shared: process {pid} is on the GPU too" for pid in foreign(processes)}


@functools.cache
def strangers() -> frozenset[int]:
    """Return the processes that were on the GPU when this was first asked, before there were workers of our own.

    One of another container has an id of the host's here, which cannot be told later from that of a worker.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        return frozenset(int(it.pid) for it in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu.used()))
    except pynvml.NVMLError:
        return frozenset()


def foreign(processes: list[int]) -> list[int]:
    """Return those process ids that are neither this process nor its descendants.

    They exist here, or were on the GPU before the session's own: a container sees its workers under ids of the host's.
    """
    ours = {os.getpid(), *descendants(os.getpid())}
    return [pid for pid in processes if pid not in ours and (pid in strangers() or Path(f"/proc/{pid}").exists())]


def _gpu_state() -> dict[str, Scalar]:
    import pynvml

    pynvml.nvmlInit()
    handle = gpu.used()
    found: dict[str, Scalar] = {}
    questions: dict[str, Any] = {
        "sm_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
        "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "power_w": lambda: round(pynvml.nvmlDeviceGetPowerUsage(handle) / 1000, 1),
        "throttle_reasons": lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        "gpu_processes": lambda: len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
        "other_gpus_in_use": lambda: _others_in_use(handle),
        "gpu_memory_used_gb": lambda: round(pynvml.nvmlDeviceGetMemoryInfo(handle).used / 1e9, 2),
    }
    for name, question in questions.items():
        try:
            found[name] = question()
        except pynvml.NVMLError as error:
            found[name] = f"not available: {error}"
    return found


def _others_in_use(handle: Any) -> int:
    """Return how many other GPUs of this machine run something: they share its processors, memory and power."""
    import pynvml

    own = pynvml.nvmlDeviceGetUUID(handle)
    every = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    others = [other for other in every if pynvml.nvmlDeviceGetUUID(other) != own]
    return sum(bool(pynvml.nvmlDeviceGetComputeRunningProcesses(other)) for other in others)


@functools.cache
def _gpu() -> tuple[str, str]:
    """Return the name of the GPU that would be measured, and why there is none."""
    try:
        import pynvml
    except ImportError:
        return "", "the package nvidia-ml-py is not installed, so GPUs cannot be seen"
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlDeviceGetName(gpu.used())), ""
    except pynvml.NVMLError as error:
        return "", f"no NVIDIA GPU can be seen here ({error})"
    except gpu.NoGPU as error:
        return "", str(error)


def _driver_too_old() -> str:
    """Return why the driver cannot run this environment's torch, or an empty string."""
    import pynvml

    try:
        torch = importlib.metadata.distribution("torch")
        built = Path(str(torch.locate_file("torch/version.py"))).read_text(encoding="utf-8")
    except (importlib.metadata.PackageNotFoundError, OSError):
        return ""
    match = re.search(r"^cuda\b[^=]*= '(\d+)\.(\d+)", built, re.MULTILINE)
    supported = int(pynvml.nvmlSystemGetCudaDriverVersion())
    if match and supported < int(match.group(1)) * 1000:
        driver = pynvml.nvmlSystemGetDriverVersion()
        return (
            f"driver {driver} supports CUDA {supported // 1000}.{supported % 1000 // 10}, but torch {torch.version} is "
            f"built for CUDA {match.group(1)}.{match.group(2)}: update the driver or install torch for the older CUDA"
        )
    return ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
