"""What this machine is, whether a hardware marker's device is here, and its state around a measurement."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import psutil

from harness.base.errors import DeviceLost, HarnessError
from harness.base.shipped import installing
from harness.machine.vendor import Unseen, over
from harness.machine.vendors import VENDORS
from harness.machine.watch import strangers
from harness.matrix.hardware import Hardware
from harness.records.schema import Device, Scalar


def missing(hardware: Hardware, gpus: int = 1) -> str:
    """Return why ``hardware`` is not here, or not ``gpus`` of it; an empty string if it is."""
    for name in hardware.needs:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return f"{name} is not installed; {installing(hardware.install)}"
    if not hardware.is_gpu:
        return ""
    vendor = VENDORS[hardware.vendor]
    name, problem = product(hardware.vendor)
    if problem:
        return problem
    if not hardware.fits(name):
        return f"the GPU here is {name}, not {hardware}; with several, {vendor.choice} chooses"
    strangers(hardware.vendor)
    try:
        if gpus > 1 and (there := vendor.count()) < gpus:
            return f"it takes {gpus} GPUs, and {there} {'is' if there == 1 else 'are'} here"
        return unfit(hardware.vendor)
    except Unseen as error:
        return str(error)


@functools.cache
def product(vendor: str) -> tuple[str, str]:
    """Return the name of the vendor's GPU that would be measured, and why there is none."""
    try:
        return VENDORS[vendor].product(), ""
    except Unseen as error:
        return "", str(error)


@functools.cache
def unfit(vendor: str) -> str:
    """Return why this environment's torch cannot run on the vendor's GPU that is here, or an empty string."""
    return VENDORS[vendor].unfit()


def gpu_uuid(hardware: Hardware) -> str:
    """Return the UUID of the GPU that is measured as ``hardware``, which was here. Raises DeviceLost."""
    return gpu_uuids(hardware)[0]


def gpu_uuids(hardware: Hardware, gpus: int = 1) -> list[str]:
    """Return the UUIDs of the GPUs that are measured as ``hardware``, which were here. Raises DeviceLost."""
    with _asked(hardware):
        return VENDORS[hardware.vendor].uuids(*over(gpus))


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
    """Return what measurements on ``hardware`` run on. Raises DeviceLost for a GPU that was here and is no more."""
    if not hardware.is_gpu:
        return host() if hardware.runs == "models" else host().model_copy(update={"torch_device": ""})
    vendor = VENDORS[hardware.vendor]
    with _asked(hardware):
        return Device(
            name=vendor.product(),
            vendor=hardware.vendor,
            torch_device=hardware.torch_device,
            detail=host().detail | vendor.detail(),
        )


@functools.cache
def boot() -> str:
    """Return what names this machine and its last start, or an empty string where its system has no such name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


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


def state(hardware: Hardware, gpus: int = 1) -> dict[str, Scalar]:
    """Return the machine's state now; on a GPU also its clocks, throttling, temperature, power, tenants and UUID.

    Raises DeviceLost for a GPU that cannot be asked any more.
    """
    if not hardware.watched:
        return host_state()
    with _asked(hardware):
        return host_state() | VENDORS[hardware.vendor].state(*over(gpus))


@contextlib.contextmanager
def _asked(hardware: Hardware) -> Iterator[None]:
    try:
        yield
    except Unseen as error:
        raise lost(hardware, str(error)) from error


@contextlib.contextmanager
def told(hardware: Hardware) -> Iterator[None]:
    """Have a GPU that is gone named, where what failed without it names everything else."""
    try:
        yield
    except HarnessError as error:
        try:
            state(hardware)
        except DeviceLost as gone:
            raise gone from error
        raise


def lost(hardware: Hardware, words: str) -> DeviceLost:
    """Return the error of a GPU that was there when the session began and cannot be asked any more."""
    name, _ = product(hardware.vendor)
    return DeviceLost(
        f"{name or hardware} ({hardware}) cannot be asked any more: {words}. See dmesg; reset the GPU "
        "or restart the machine, then go on with --resume: what was measured stands"
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
