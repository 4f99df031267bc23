"""AMD GPUs through amdsmi: which one is measured, its state, and whether torch is built for it.

amdsmi comes with ROCm; the shapes of its answers are those of its Python interface, version 7.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from harness.machine.vendor import State, Unseen, Vendor, answers, joined, torch_built_for
from harness.matrix.hardware import Arithmetic
from harness.records.schema import Scalar

# What makes a measurement void: slowdowns for heat or by the board, not the power cap under which a busy GPU runs.
_SLOWDOWNS = {
    "active_prochot_thrm": "hardware slowdown",
    "active_socket_thrm": "socket thermal slowdown",
    "active_vr_thrm": "voltage regulator thermal slowdown",
    "active_hbm_thrm": "memory thermal slowdown",
}
# What ROCr leaves is counted anew by HIP, which takes CUDA's name for its variable too.
_VISIBLE = (("ROCR_VISIBLE_DEVICES",), ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"))
_WITH_FLOAT8 = ("gfx94", "gfx95", "gfx12")


class AMD(Vendor):
    title = "AMD"
    choice = "HIP_VISIBLE_DEVICES"

    def product(self) -> str:
        with _library() as smi:
            return str(smi.amdsmi_get_gpu_asic_info(_used(smi))["market_name"])

    def capability(self) -> str:
        with _library() as smi:
            return str(smi.amdsmi_get_gpu_asic_info(_used(smi))["target_graphics_version"])

    def arithmetic(self, capability: str) -> tuple[Arithmetic, ...]:
        return ("bfloat16", "int8", "float8") if capability.startswith(_WITH_FLOAT8) else ("bfloat16", "int8")

    def uuids(self, gpus: int = 1) -> list[str]:
        with _library() as smi:
            return [str(smi.amdsmi_get_gpu_device_uuid(handle)) for handle in _first(smi, gpus)]

    def count(self) -> int:
        with _library() as smi:
            return len(_left(smi))

    def unfit(self) -> str:
        version, built = torch_built_for(("hip",))
        return f"torch {version} is not built for ROCm: install one that is" if version and not built else ""

    def detail(self) -> State:
        with _library() as smi:
            handle = _used(smi)
            return {
                "driver": str(smi.amdsmi_get_gpu_driver_info(handle)["driver_version"]),
                "gpu_memory_gb": round(smi.amdsmi_get_gpu_memory_total(handle, smi.AmdSmiMemoryType.VRAM) / 1e9, 1),
            }

    def state(self, gpus: int = 1) -> State:
        with _library() as smi:
            handles = _first(smi, gpus)
            of_all: dict[str, Callable[[], Scalar]] = {
                "other_gpus_in_use": lambda: _others_in_use(smi, handles),
                "gpu": lambda: ", ".join(str(smi.amdsmi_get_gpu_device_uuid(handle)) for handle in handles),
            }
            return joined([_state(smi, handle, of_all if handle is handles[0] else {}) for handle in handles])

    def energy(self, gpus: int = 1) -> float:
        with _library() as smi:
            found = [smi.amdsmi_get_energy_count(handle) for handle in _first(smi, gpus)]
            # A count of units of so many microjoules.
            return sum(float(it["energy_accumulator"]) * float(it["counter_resolution"]) for it in found) / 1e6

    def slowed(self, gpus: int = 1) -> list[str]:
        with _library() as smi:
            return list(dict.fromkeys(it for handle in _first(smi, gpus) for it in _slowdowns(smi, handle)))

    def processes(self, gpus: int = 1) -> list[int]:
        with _library() as smi:
            of = [smi.amdsmi_get_gpu_process_list(handle) for handle in _first(smi, gpus)]
            return list(dict.fromkeys(int(it["pid"]) for them in of for it in them))


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    """Give amdsmi, ready to be asked. Raises Unseen for what is not here and what it refuses."""
    try:
        import amdsmi
    except (ImportError, OSError) as error:
        # Without ROCm's library the package is there and cannot be imported.
        raise Unseen(f"amdsmi, a part of ROCm, cannot be imported, so AMD GPUs cannot be seen ({error})") from error
    try:
        amdsmi.amdsmi_init()
        yield amdsmi
    except amdsmi.AmdSmiException as error:
        raise Unseen(f"no AMD GPU can be seen here ({_words(error)})") from error


def _words(error: Exception) -> str:
    return str(getattr(error, "err_info", "") or error)


def _used(smi: Any) -> Any:
    """Return the GPU that HIP programs see as their first."""
    return _first(smi, 1)[0]


def _first(smi: Any, gpus: int) -> list[Any]:
    """Return the first ``gpus`` GPUs that HIP programs see. Raises Unseen where there are fewer."""
    found = _left(smi)
    if len(found) < gpus:
        raise Unseen(f"{gpus} GPUs are needed, and {len(found)} {'is' if len(found) == 1 else 'are'} here")
    return found[:gpus]


def _left(smi: Any) -> list[Any]:
    """Return the GPUs that HIP programs see: in HIP's order, of those that the variables leave."""
    handles = smi.amdsmi_get_processor_handles()
    told = [smi.amdsmi_get_gpu_enumeration_info(handle) for handle in handles]
    left = sorted(range(len(handles)), key=lambda index: int(told[index]["hip_id"]))
    if not left:
        raise Unseen("no AMD GPU can be seen here")
    for names in _VISIBLE:
        given = next(((name, os.environ[name]) for name in names if name in os.environ), None)
        if given is None:
            continue
        chosen = (_chosen(word.strip(), left, told) for word in given[1].split(","))
        # What names none ends the list, as in CUDA's.
        left = list(_until_none(chosen))
        if not left:
            raise Unseen(f"{given[0]}={given[1]!r} leaves none of the {len(handles)} GPUs here")
    return [handles[index] for index in left]


def _chosen(word: str, left: list[int], told: list[dict[str, Any]]) -> int | None:
    if word.isdecimal():
        return left[int(word)] if int(word) < len(left) else None
    return next((index for index in left if word and str(told[index]["hip_uuid"]).startswith(word)), None)


def _until_none(found: Iterator[int | None]) -> Iterator[int]:
    for index in found:
        if index is None:
            return
        yield index


def _slowdowns(smi: Any, handle: Any) -> list[str]:
    status = smi.amdsmi_get_violation_status(handle)
    return [name for key, name in _SLOWDOWNS.items() if status[key] is True]


def _state(smi: Any, handle: Any, more: Mapping[str, Callable[[], Scalar]]) -> State:
    sensor, now = smi.AmdSmiTemperatureType.HOTSPOT, smi.AmdSmiTemperatureMetric.CURRENT
    memory = smi.AmdSmiMemoryType.VRAM
    return answers(
        {
            "sm_mhz": lambda: smi.amdsmi_get_clock_info(handle, smi.AmdSmiClkType.GFX)["clk"],
            "memory_mhz": lambda: smi.amdsmi_get_clock_info(handle, smi.AmdSmiClkType.MEM)["clk"],
            "temperature_c": lambda: smi.amdsmi_get_temp_metric(handle, sensor, now),
            "power_w": lambda: smi.amdsmi_get_power_info(handle)["current_socket_power"],
            "throttle_reasons": lambda: ", ".join(_slowdowns(smi, handle)),
            "gpu_processes": lambda: len(smi.amdsmi_get_gpu_process_list(handle)),
            "gpu_memory_used_gb": lambda: round(smi.amdsmi_get_gpu_memory_usage(handle, memory) / 1e9, 2),
            **more,
        },
        smi.AmdSmiException,
        _words,
    )


def _others_in_use(smi: Any, handles: Sequence[Any]) -> int:
    """Return how many other GPUs of this machine run something: they share its processors, memory and power."""
    own = {smi.amdsmi_get_gpu_device_uuid(handle) for handle in handles}
    others = [it for it in smi.amdsmi_get_processor_handles() if smi.amdsmi_get_gpu_device_uuid(it) not in own]
    return sum(bool(smi.amdsmi_get_gpu_process_list(it)) for it in others)
