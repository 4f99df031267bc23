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
from harness.matrix.hardware import Hardware
from harness.records.schema import Device, Scalar


def missing(hardware: Hardware) -> str:
    """Return why ``hardware`` is not here, or an empty string if it is."""
    for name in hardware.needs:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return f"{name} is not installed; {hardware.install}"
    if not hardware.is_gpu:
        return ""
    name, problem = _gpu()
    if problem:
        return problem
    if not hardware.fits(name):
        return f"the GPU here is {name}, not {hardware}; with several, CUDA_VISIBLE_DEVICES chooses"
    strangers()
    return driver_too_old()


def gpu_uuid(hardware: Hardware) -> str:
    """Return the UUID of the GPU that is measured as ``hardware``, which is here."""
    return visible.uuid()


@functools.cache
def host() -> Device:
    """Return this machine's processor, with its cores and memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    detail: dict[str, Scalar] = {
        "processor": _processor(),
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return Device(name=f"{detail['processor']} ({cores} cores)", detail=detail)


@functools.cache
def device(hardware: Hardware) -> Device:
    """Return what measurements on ``hardware`` run on."""
    if not hardware.is_gpu:
        return host() if hardware.runs == "models" else host().model_copy(update={"torch_device": ""})
    import pynvml

    pynvml.nvmlInit()
    handle = visible.used()
    detail = host().detail | {
        "driver": str(pynvml.nvmlSystemGetDriverVersion()),
        "gpu_memory_gb": round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / 1e9, 1),
    }
    return Device(
        name=str(pynvml.nvmlDeviceGetName(handle)),
        vendor=hardware.vendor,
        torch_device=hardware.torch_device,
        detail=detail,
    )


def host_state() -> dict[str, Scalar]:
    """Return this machine's load, free memory and clock now."""
    memory = psutil.virtual_memory()
    found: dict[str, Scalar] = {
        "load_1min": round(os.getloadavg()[0], 2),
        "memory_available_gb": round(memory.available / 1e9, 2),
    }
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    if frequency and frequency.current:
        found["cpu_mhz"] = round(frequency.current)
    return found


def state(hardware: Hardware) -> dict[str, Scalar]:
    """Return the machine's state now; on a GPU also its clocks, throttling, temperature, power and tenants."""
    return host_state() | (gpu_state() if hardware.watched else {})


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
