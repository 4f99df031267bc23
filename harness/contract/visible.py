"""Which GPU of this machine is measured, as its driver's management library (NVML) knows it."""

from __future__ import annotations

import os
from typing import Any

ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Has CUDA count GPUs as NVML and nvidia-smi do, not the fastest first."""


class NoGPU(LookupError):
    """CUDA_VISIBLE_DEVICES hides every GPU, or names one that is not here."""


def used() -> Any:
    """Return NVML's handle of the GPU that CUDA programs with :data:`ORDER` see as their first.

    CUDA_VISIBLE_DEVICES chooses it by number or by UUID (CUDA C++ Programming Guide, environment variables), without
    it it is the first of all. NVML must be initialized. Raises NoGPU, or NVMLError if the driver refuses.
    """
    import pynvml

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    first = visible.split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return pynvml.nvmlDeviceGetHandleByUUID(_whole(first))
    if not first.isdecimal() or int(first) >= pynvml.nvmlDeviceGetCount():
        raise NoGPU(f"CUDA_VISIBLE_DEVICES={visible!r} leaves none of the {pynvml.nvmlDeviceGetCount()} GPUs here")
    return pynvml.nvmlDeviceGetHandleByIndex(int(first))


def count() -> int:
    """Return how many GPUs CUDA_VISIBLE_DEVICES leaves; NVML must be initialized."""
    import pynvml

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return int(pynvml.nvmlDeviceGetCount()) if visible is None else len([it for it in visible.split(",") if it.strip()])


def _whole(start: str) -> str:
    """Return the UUID that begins so: CUDA takes as much of it as is unique, NVML only the whole."""
    import pynvml

    handles = (pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount()))
    return next((uuid for uuid in map(str, map(pynvml.nvmlDeviceGetUUID, handles)) if uuid.startswith(start)), start)
