"""NVIDIA GPUs through NVML: which one is measured, its state, and whether the driver fits."""

from __future__ import annotations

import functools
import importlib.metadata
import re
from pathlib import Path
from typing import Any

from harness.contract import visible
from harness.records.schema import Scalar


def gpu_state() -> dict[str, Scalar]:
    import pynvml

    pynvml.nvmlInit()
    handle = visible.used()
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
        return str(pynvml.nvmlDeviceGetName(visible.used())), ""
    except pynvml.NVMLError as error:
        return "", f"no NVIDIA GPU can be seen here ({error})"
    except visible.NoGPU as error:
        return "", str(error)


def driver_too_old() -> str:
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
