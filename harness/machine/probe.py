"""What this machine is, whether a hardware marker's device is here, and its state around a measurement."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from pathlib import Path

import psutil

from harness.contract import visible
from harness.machine.nvidia import _gpu, driver_too_old, gpu_state
from harness.machine.watch import strangers
from harness.records.schema import Device, Scalar

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
        return driver_too_old()
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


def gpu_uuid() -> str:
    """Return the UUID of the GPU that is measured here."""
    return visible.uuid()


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
    handle = visible.used()
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
        found |= gpu_state()
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
