"""Hardware: what is missing is said with its reason, and a GPU's heat and neighbours are seen while it is measured."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.contract import visible as gpus
from harness.machine import probe
from harness.machine import watch as machine_watch
from harness.matrix.hardware import Hardware
from harness.matrix.plan import Matrix

CPU = Hardware(name="cpu", meaning="runs here")
H100 = Hardware(name="h100", meaning="an H100", vendor="nvidia", match=r"\bH100\b", capability="9.0")
MOBILE = Hardware(
    name="arm-mobile", meaning="ARM", runs="programs", needs=("executorch",), install="pip install '.[mobile]'"
)


class NVMLError(Exception):
    """As pynvml has it."""


class Driver(SimpleNamespace):
    """Stands in for pynvml: one GPU, whose clocks and processes a test sets."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, *names: str, cuda: int = 13000) -> None:
        super().__init__(names=names, cuda=cuda, reasons=0, pids=[], others=[], here=True, seen=threading.Event())

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


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What is cached of this machine, and of the stand-ins, is forgotten before and after each test."""
    cached = [value for value in vars(probe).values() if hasattr(value, "cache_clear")]
    for value in cached:
        value.cache_clear()
    yield
    for value in cached:
        value.cache_clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = Driver("NVIDIA H100 80GB HBM3")
    monkeypatch.setitem(sys.modules, "pynvml", driver)  # type: ignore[arg-type]
    return driver


@pytest.fixture
def torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``torch(line)`` has torch 2.13.0 installed, with ``line`` in its version.py."""

    def install(line: str) -> None:
        metadata = tmp_path / "torch-2.13.0.dist-info" / "METADATA"
        for path, text in ((metadata, "Name: torch\nVersion: 2.13.0\n"), (tmp_path / "torch/version.py", line + "\n")):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])

    return install


# ------------------------------------------------------------------------------------------------------ what is missing


def test_a_processor_is_always_there() -> None:
    assert probe.missing(CPU) == ""
    device = probe.host()
    assert device.name
    assert int(device.detail["cores"]) >= 1
    assert float(device.detail["memory_gb"]) > 0
    assert {"load_1min", "memory_available_gb"} <= probe.state(CPU).keys()


def test_every_hardware_has_a_meaning_and_an_answer(gpu: Driver, suites_matrix: Matrix) -> None:
    for hardware in suites_matrix.hardware.values():
        assert hardware.meaning
        assert hardware.install
        assert isinstance(probe.missing(hardware), str)
        assert hardware.torch_device == ("cuda" if hardware.vendor in ("nvidia", "amd") else "cpu")


def test_an_h100_is_recognised(gpu: Driver, torch: Callable[[str], None]) -> None:
    torch("cuda = '12.8'")
    assert probe.missing(H100) == ""
    assert probe.device(H100).name == "NVIDIA H100 80GB HBM3"
    assert probe.device(H100).detail["gpu_memory_gb"] == 80.0
    assert gpus.uuid() == "GPU-0a5c-77"
    state = probe.state(H100)
    assert (state["sm_mhz"], state["temperature_c"]) == (1980, 40)
    assert state["power_w"] == "not available: Not Supported"


def test_other_gpus_that_are_in_use_are_counted_in_the_state(gpu: Driver) -> None:
    gpu.names = ("NVIDIA H100 80GB HBM3",) * 3
    gpu.pids = [1]
    assert probe.state(H100)["other_gpus_in_use"] == 0
    gpu.others = [2]
    assert probe.state(H100)["other_gpus_in_use"] == 2


def test_another_gpu_is_named(gpu: Driver) -> None:
    gpu.names = ("NVIDIA A100", "NVIDIA L4")
    assert probe.missing(H100).startswith("the GPU here is NVIDIA A100, not h100; ")


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("1", "NVIDIA H100 80GB HBM3"),
        ("1,0", "NVIDIA H100 80GB HBM3"),
        ("GPU-1a5c-77", "NVIDIA H100 80GB HBM3"),
        ("GPU-1", "NVIDIA H100 80GB HBM3"),
        ("0", "the GPU here is NVIDIA A100, not h100"),
        ("GPU-9", "no NVIDIA GPU can be seen here (Not Found)"),
        ("", "CUDA_VISIBLE_DEVICES='' leaves none of the 2 GPUs"),
        ("-1", "CUDA_VISIBLE_DEVICES='-1' leaves none"),
        ("2", "CUDA_VISIBLE_DEVICES='2' leaves none"),
    ],
)
def test_the_gpu_that_cuda_is_given_is_the_one_that_counts(
    gpu: Driver, torch: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, visible: str, found: str
) -> None:
    torch("cuda = None")
    gpu.names = ("NVIDIA A100", "NVIDIA H100 80GB HBM3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert (probe.missing(H100) or probe.device(H100).name).startswith(found)


def test_no_gpu_is_said_in_the_drivers_words(gpu: Driver) -> None:
    gpu.here = False
    assert probe.missing(H100) == "no NVIDIA GPU can be seen here (Driver Not Loaded)"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py is not installed" in probe.missing(H100)


@pytest.mark.parametrize(
    ("cuda", "driver", "missing"),
    [
        (
            "cuda: Optional[str] = '13.0'",
            12080,
            "CUDA 12.8, but torch 2.13.0 is built for CUDA 13.0: update the driver",
        ),
        ("cuda: Optional[str] = '13.0'", 13000, ""),
        ("cuda = '12.8'", 12040, ""),
        ("cuda: Optional[str] = None", 12040, ""),
    ],
)
def test_a_driver_too_old_for_torch_is_said(
    gpu: Driver, torch: Callable[[str], None], cuda: str, driver: int, missing: str
) -> None:
    """Torch's version on PyPI does not name its CUDA; what it was built with stands in its version.py."""
    torch(cuda)
    gpu.cuda = driver
    found = probe.missing(H100)
    assert missing in found
    assert bool(found) == bool(missing)


def test_executorch_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phones need ExecuTorch; whether a phone is there each device says by itself."""
    installed = {"executorch": "1.5.1"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    assert probe.missing(MOBILE) == ""
    installed.clear()
    assert "pip install '.[mobile]'" in probe.missing(MOBILE)


# --------------------------------------------------------------------------------------------------------------- watch


def test_a_quiet_gpu_is_no_problem(gpu: Driver) -> None:
    gpu.reasons = 0x1 | 0x4  # idle, and the power cap under which a busy GPU always runs
    gpu.pids = [os.getpid()]
    with machine_watch.Watch(H100) as watch:
        pass
    assert watch.problems == []


@pytest.mark.parametrize("reason", [0x8, 0x20, 0x40, 0x80])
def test_slowed_clocks_are_seen_though_they_recover(gpu: Driver, monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
    monkeypatch.setattr(machine_watch.Watch, "INTERVAL", 0.001)
    with machine_watch.Watch(H100) as watch:
        gpu.reasons = reason
        assert gpu.seen.wait(10)
        gpu.reasons = 0
    (problem,) = watch.problems
    assert problem.startswith("throttled: ")


def test_a_stranger_on_the_gpu_is_seen_and_the_own_worker_is_none(gpu: Driver) -> None:
    assert probe.missing(H100) == ""
    with subprocess.Popen(["sleep", "600"]) as own:
        with machine_watch.Watch(H100) as watch:
            gpu.pids = [os.getpid(), own.pid, 1, 2**22 + 1]
        own.kill()
    assert watch.problems == ["shared: process 1 is on the GPU too"]


def test_what_was_on_the_gpu_before_the_session_is_a_stranger_under_whatever_id(gpu: Driver) -> None:
    """In a container neither another one's process nor the own worker has an id that exists here."""
    elsewhere, worker = 2**22 + 1, 2**22 + 2
    gpu.pids = [elsewhere]
    assert probe.missing(H100) == ""
    with machine_watch.Watch(H100) as watch:
        gpu.pids = [elsewhere, worker]
    assert watch.problems == [f"shared: process {elsewhere} is on the GPU too"]
    with machine_watch.Watch(H100) as watch:
        gpu.pids = [worker]
    assert f"shared: process {worker} is on the GPU too" not in watch.problems


def test_where_there_is_no_gpu_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with machine_watch.Watch(CPU) as watch:
        pass
    assert watch.problems == []
