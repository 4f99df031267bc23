"""NVIDIA GPUs through NVML: which one is measured, its state, and whether the driver fits torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from harness.contract import visible
from harness.machine.vendor import State, Unseen, Vendor, answers, joined, torch_built_for
from harness.matrix.hardware import Arithmetic
from harness.records.schema import Scalar

# Reasons for lowered clocks that make a measurement void: slowdowns for heat or by the board, not the power cap under
# which a busy GPU always runs. Values: NVML's nvmlClocksEventReasons.
_THROTTLING = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


class NVIDIA(Vendor):
    title = "NVIDIA"
    choice = "CUDA_VISIBLE_DEVICES"

    def product(self) -> str:
        with _library() as nvml:
            return str(nvml.nvmlDeviceGetName(visible.used()))

    def capability(self) -> str:
        with _library() as nvml:
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(visible.used())
            return f"{major}.{minor}"

    def arithmetic(self, capability: str) -> tuple[Arithmetic, ...]:
        return ("bfloat16", "int8", "float8") if _version(capability) >= (8, 9) else ("bfloat16", "int8")

    def uuids(self, gpus: int = 1) -> list[str]:
        with _library() as nvml:
            return [str(nvml.nvmlDeviceGetUUID(handle)) for handle in visible.first(gpus)]

    def count(self) -> int:
        with _library():
            return visible.count()

    def unfit(self) -> str:
        version, built = torch_built_for(("cuda",))
        with _library() as nvml:
            supported = int(nvml.nvmlSystemGetCudaDriverVersion())
            if not built or supported >= _version(built["cuda"])[0] * 1000:
                return ""
            driver = f"{nvml.nvmlSystemGetDriverVersion()} supports CUDA {supported // 1000}.{supported % 1000 // 10}"
            return (
                f"driver {driver}, but torch {version} is built for CUDA {built['cuda']}: update the driver or install "
                "torch for the older CUDA"
            )

    def detail(self) -> State:
        with _library() as nvml:
            return {
                "driver": str(nvml.nvmlSystemGetDriverVersion()),
                "gpu_memory_gb": round(nvml.nvmlDeviceGetMemoryInfo(visible.used()).total / 1e9, 1),
            }

    def state(self, gpus: int = 1) -> State:
        with _library() as nvml:
            handles = visible.first(gpus)
            of_all: dict[str, Callable[[], Scalar]] = {
                "other_gpus_in_use": lambda: _others_in_use(nvml, handles),
                "gpu": lambda: ", ".join(_which(nvml, handles)),
            }
            return joined([_state(nvml, handle, of_all if handle == handles[0] else {}) for handle in handles])

    def energy(self, gpus: int = 1) -> float:
        with _library() as nvml:
            # In millijoules, of the whole board.
            return sum(int(nvml.nvmlDeviceGetTotalEnergyConsumption(it)) for it in visible.first(gpus)) / 1000

    def slowed(self, gpus: int = 1) -> list[str]:
        with _library() as nvml:
            reasons = [int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(it)) for it in visible.first(gpus)]
            return [name for bit, name in _THROTTLING.items() if any(it & bit for it in reasons)]

    def processes(self, gpus: int = 1) -> list[int]:
        with _library() as nvml:
            of = [nvml.nvmlDeviceGetComputeRunningProcesses(handle) for handle in visible.first(gpus)]
            return list(dict.fromkeys(int(it.pid) for them in of for it in them))


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    """Give pynvml, ready to be asked. Raises Unseen for what is not here and what the driver refuses."""
    try:
        import pynvml
    except ImportError as error:
        raise Unseen("the package nvidia-ml-py is not installed, so GPUs cannot be seen") from error
    try:
        pynvml.nvmlInit()
        yield pynvml
    except pynvml.NVMLError as error:
        raise Unseen(f"no NVIDIA GPU can be seen here ({error})") from error
    except visible.NoGPU as error:
        raise Unseen(str(error)) from error


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")[:2]))


def _state(nvml: Any, handle: Any, more: Mapping[str, Callable[[], Scalar]]) -> State:
    return answers(
        {
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power_w": lambda: round(nvml.nvmlDeviceGetPowerUsage(handle) / 1000, 1),
            "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
            "gpu_processes": lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
            "gpu_memory_used_gb": lambda: round(nvml.nvmlDeviceGetMemoryInfo(handle).used / 1e9, 2),
            **more,
        },
        nvml.NVMLError,
    )


def _which(nvml: Any, handles: Sequence[Any]) -> list[str]:
    """Return the number and the UUID of GPUs, as the driver counts all that are here."""
    every = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    numbers = {nvml.nvmlDeviceGetUUID(handle): number for number, handle in enumerate(every)}
    uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
    return [f"{numbers[uuid]} ({uuid})" if uuid in numbers else str(uuid) for uuid in uuids]


def _others_in_use(nvml: Any, handles: Sequence[Any]) -> int:
    """Return how many other GPUs of this machine run something: they share its processors, memory and power."""
    own = {nvml.nvmlDeviceGetUUID(handle) for handle in handles}
    every = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    others = [other for other in every if nvml.nvmlDeviceGetUUID(other) not in own]
    return sum(bool(nvml.nvmlDeviceGetComputeRunningProcesses(other)) for other in others)
