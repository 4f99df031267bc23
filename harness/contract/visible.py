"""Which GPU of this machine is measured, as its driver's management library (NVML) knows it."""

from __future__ import annotations

import os
from typing import Any

ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Has CUDA count GPUs as NVML and nvidia-smi do, not the fastest first."""


class NoGPU(LookupError):
    """CUDA_VISIBLE_DEVICES hides every GPU, or as many as are needed, or names one that is not here."""


def used() -> Any:
    """Return NVML's handle of the GPU that CUDA programs with :data:`ORDER` see as their first.

    CUDA_VISIBLE_DEVICES chooses it by number or by UUID (CUDA C++ Programming Guide, environment variables), without
    it it is the first of all. NVML must be initialized. Raises NoGPU, or NVMLError if the driver refuses.
    """
    return first(1)[0]


def first(gpus: int) -> list[Any]:
    """Return NVML's handles of the first ``gpus`` GPUs that CUDA programs see, as :func:`used` does of one."""
    import pynvml

    found = _left()
    if len(found) < gpus:
        visible, here = os.environ.get("CUDA_VISIBLE_DEVICES"), pynvml.nvmlDeviceGetCount()
        if visible is None:
            raise NoGPU(f"{gpus} GPUs are needed, and {here} is here" if here == 1 else f"{here or 'no'} GPUs are here")
        left = f"{len(found) or 'none'} of the {here} GPUs here"
        raise NoGPU(f"CUDA_VISIBLE_DEVICES={visible!r} leaves {left}" + (f", {gpus} are needed" if gpus > 1 else ""))
    return found[:gpus]


def count() -> int:
    """Return how many GPUs CUDA_VISIBLE_DEVICES leaves; NVML must be initialized."""
    return len(_left())


def _left() -> list[Any]:
    """Return NVML's handles of the GPUs that CUDA_VISIBLE_DEVICES leaves: up to the first word that names none."""
    import pynvml

    here = int(pynvml.nvmlDeviceGetCount())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(here)]
    found: list[Any] = []
    for word in map(str.strip, visible.split(",")):
        if word.startswith(("GPU-", "MIG-")):
            try:
                found.append(pynvml.nvmlDeviceGetHandleByUUID(_whole(word)))
            except pynvml.NVMLError:
                if not found:
                    raise
                break
        elif word.isdecimal() and int(word) < here:
            found.append(pynvml.nvmlDeviceGetHandleByIndex(int(word)))
        else:
            break
    return found


def _whole(start: str) -> str:
    """Return the UUID that begins so: CUDA takes as much of it as is unique, NVML only the whole."""
    import pynvml

    handles = (pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount()))
    return next((uuid for uuid in map(str, map(pynvml.nvmlDeviceGetUUID, handles)) if uuid.startswith(start)), start)
