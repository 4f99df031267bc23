"""Stand-ins for the libraries of GPUs' vendors, with the answers that the real ones were seen to give."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """As pynvml has it."""


class Driver(SimpleNamespace):
    """Stands in for pynvml: one GPU, whose clocks and processes a test sets."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, *names: str, cuda: int = 13000) -> None:
        super().__init__(names=names, cuda=cuda, reasons=0, pids=[], others=[], here=True, seen=threading.Event())
        self.capability = (9, 0)

    def nvmlInit(self) -> None:
        if not self.here:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}a5c-77"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        found = [index for index in range(len(self.names)) if self.nvmlDeviceGetUUID(index) == uuid]
        if not found:
            raise NVMLError("Not Found")
        return found[0]

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return self.capability

    def nvmlDeviceGetName(self, handle: int) -> str:
        return str(self.names[handle])

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return int(self.cuda)

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.1"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=80e9, used=1e9)

    def nvmlDeviceGetClockInfo(self, handle: int, clock: int) -> int:
        return 1980

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 40

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        raise NVMLError("Not Supported")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        reasons = int(self.reasons)
        if reasons:
            self.seen.set()
        return reasons

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in (self.others if handle else self.pids)]


class AmdSmiException(Exception):
    """As amdsmi has it."""


class AmdSmiLibraryException(AmdSmiException):
    def __init__(self, info: str) -> None:
        super().__init__(2)
        self.err_info = info


class Smi(SimpleNamespace):
    """Stands in for amdsmi 7: GPUs, each a dictionary, whose slowdowns and processes a test sets."""

    AmdSmiException = AmdSmiException
    AmdSmiClkType = SimpleNamespace(GFX="gfx", MEM="mem")
    AmdSmiTemperatureType = SimpleNamespace(HOTSPOT="hotspot")
    AmdSmiTemperatureMetric = SimpleNamespace(CURRENT="current")
    AmdSmiMemoryType = SimpleNamespace(VRAM="vram")

    def __init__(self, *names: str) -> None:
        gpus = [
            {"name": name, "hip_id": index, "uuid": f"GPU-{index}5f2c77", "pids": [], "slow": {}}
            for index, name in enumerate(names)
        ]
        super().__init__(gpus=gpus, here=True, tells=True, gfx="gfx942", seen=threading.Event())

    def amdsmi_init(self) -> None:
        if not self.here:
            raise AmdSmiLibraryException("AMDSMI_STATUS_DRIVER_NOT_LOADED - Driver not loaded")

    def amdsmi_get_processor_handles(self) -> list[dict[str, Any]]:
        return list(self.gpus)

    def amdsmi_get_gpu_enumeration_info(self, gpu: dict[str, Any]) -> dict[str, Any]:
        return {"drm_render": 128, "drm_card": 1, "hsa_id": 1, "hip_id": gpu["hip_id"], "hip_uuid": gpu["uuid"]}

    def amdsmi_get_gpu_asic_info(self, gpu: dict[str, Any]) -> dict[str, Any]:
        return {"market_name": gpu["name"], "vendor_id": "0x1002", "target_graphics_version": self.gfx}

    def amdsmi_get_gpu_device_uuid(self, gpu: dict[str, Any]) -> str:
        return f"9eff74a1-0000-1000-80{gpu['uuid'][4:6]}"

    def amdsmi_get_gpu_driver_info(self, gpu: dict[str, Any]) -> dict[str, str]:
        return {"driver_name": "amdgpu", "driver_version": "6.12.12", "driver_date": "2015/01/01 00:00"}

    def amdsmi_get_gpu_memory_total(self, gpu: dict[str, Any], kind: str) -> int:
        return 206_141_652_992

    def amdsmi_get_gpu_memory_usage(self, gpu: dict[str, Any], kind: str) -> int:
        return 296_910_848

    def amdsmi_get_clock_info(self, gpu: dict[str, Any], kind: str) -> dict[str, Any]:
        return {"clk": {"gfx": 2100, "mem": 1300}[kind], "min_clk": 132, "max_clk": 2100, "clk_locked": False}

    def amdsmi_get_temp_metric(self, gpu: dict[str, Any], sensor: str, metric: str) -> int:
        return 41

    def amdsmi_get_power_info(self, gpu: dict[str, Any]) -> dict[str, Any]:
        raise AmdSmiLibraryException("AMDSMI_STATUS_NOT_SUPPORTED - Feature not supported")

    def amdsmi_get_violation_status(self, gpu: dict[str, Any]) -> dict[str, Any]:
        if not self.tells:
            raise AmdSmiLibraryException("AMDSMI_STATUS_NOT_SUPPORTED - Feature not supported")
        names = ("prochot_thrm", "ppt_pwr", "socket_thrm", "vr_thrm", "hbm_thrm", "gfx_clk_below_host_limit")
        if gpu["slow"]:
            self.seen.set()
        return {f"active_{name}": gpu["slow"].get(name, "N/A" if name == "vr_thrm" else False) for name in names}

    def amdsmi_get_gpu_process_list(self, gpu: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"name": "N/A", "pid": pid, "mem": 0, "cu_occupancy": "N/A"} for pid in gpu["pids"]]


def use(nvidia: Driver | None = None, amd: Smi | None = None) -> None:
    """Put stand-ins in the place of the vendors' libraries for good: for a process of its own."""
    sys.modules["pynvml"] = nvidia  # type: ignore[assignment]
    sys.modules["amdsmi"] = amd  # type: ignore[assignment]
