"""Hardware: what is missing is said with its reason, and a GPU's heat and neighbours are seen while it is measured."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.base.errors import DeviceLost, MatrixError
from harness.machine import here, probe
from harness.machine import watch as machine_watch
from harness.matrix.hardware import Hardware
from harness.matrix.plan import Matrix
from tests.machine.drivers import Driver, NVMLError, Smi

CPU = Hardware(name="cpu", meaning="runs here")
H100 = Hardware(name="h100", meaning="an H100", vendor="nvidia", match=r"\bH100\b", capability="9.0")
MI300 = Hardware(name="mi300", meaning="an MI300", vendor="amd", match=r"\bMI300[AX]\b", capability="gfx942")
MOBILE = Hardware(
    name="arm-mobile", meaning="ARM", runs="programs", needs=("executorch",), install="pip install '.[mobile]'"
)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What is cached of this machine, and of the stand-ins, is forgotten before and after each test."""
    cached = [value for module in (probe, machine_watch) for value in vars(module).values()]
    cached = [value for value in cached if hasattr(value, "cache_clear")]
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
def amd(monkeypatch: pytest.MonkeyPatch) -> Smi:
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    library = Smi("AMD Instinct MI300X")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "amdsmi", library)  # type: ignore[arg-type]
    return library


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
    assert probe.gpu_uuid(H100) == "GPU-0a5c-77"
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


# ----------------------------------------------------------------------------------------------------------------- AMD


def test_an_amd_gpu_is_recognised(amd: Smi, torch: Callable[[str], None]) -> None:
    torch("hip: Optional[str] = '6.4.43482'")
    assert probe.missing(MI300) == ""
    device = probe.device(MI300)
    assert (device.name, device.vendor, device.torch_device) == ("AMD Instinct MI300X", "amd", "cuda")
    assert (device.detail["driver"], device.detail["gpu_memory_gb"]) == ("6.12.12", 206.1)
    assert probe.gpu_uuid(MI300) == "9eff74a1-0000-1000-8005"
    state = probe.state(MI300)
    assert (state["sm_mhz"], state["temperature_c"], state["gpu_memory_used_gb"]) == (2100, 41, 0.3)
    assert state["power_w"] == "not available: AMDSMI_STATUS_NOT_SUPPORTED - Feature not supported"
    assert (state["gpu_processes"], state["other_gpus_in_use"], state["throttle_reasons"]) == (0, 0, "")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "AMD Instinct MI250X"),
        ({"HIP_VISIBLE_DEVICES": "1"}, "AMD Instinct MI300X"),
        ({"HIP_VISIBLE_DEVICES": "1,0"}, "AMD Instinct MI300X"),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "AMD Instinct MI300X"),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, "AMD Instinct MI250X"),
        ({"ROCR_VISIBLE_DEVICES": "1"}, "AMD Instinct MI300X"),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, "AMD Instinct MI300X"),
        ({"ROCR_VISIBLE_DEVICES": "GPU-15f2c77"}, "AMD Instinct MI300X"),
        ({"ROCR_VISIBLE_DEVICES": "1,7,0", "HIP_VISIBLE_DEVICES": "1"}, "HIP_VISIBLE_DEVICES='1' leaves none of the 2"),
        ({"HIP_VISIBLE_DEVICES": ""}, "HIP_VISIBLE_DEVICES='' leaves none of the 2 GPUs here"),
        ({"HIP_VISIBLE_DEVICES": "-1"}, "HIP_VISIBLE_DEVICES='-1' leaves none"),
        ({"HIP_VISIBLE_DEVICES": "2"}, "HIP_VISIBLE_DEVICES='2' leaves none"),
    ],
)
def test_the_gpu_that_hip_is_given_is_the_one_that_counts(
    amd: Smi, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], found: str
) -> None:
    """HIP's order is its own: here the reverse of the library's."""
    amd.gpus = [*Smi("AMD Instinct MI300X").gpus, *Smi("AMD Instinct MI250X").gpus]
    amd.gpus[0] |= {"hip_id": 1, "uuid": "GPU-15f2c77"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    name, problem = probe.product("amd")
    assert (problem or name).startswith(found)


def test_why_an_amd_gpu_cannot_be_seen(amd: Smi, torch: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    torch("hip: Optional[str] = None")
    assert probe.missing(MI300) == "torch 2.13.0 is not built for ROCm: install one that is"
    amd.gpus[0]["name"] = "AMD Instinct MI250X"
    probe.product.cache_clear()
    assert probe.missing(MI300).startswith("the GPU here is AMD Instinct MI250X, not mi300; with several, HIP_VISIBLE")
    for change, words in (
        ({"gpus": []}, "no AMD GPU can be seen here"),
        ({"here": False}, "no AMD GPU can be seen here (AMDSMI_STATUS_DRIVER_NOT_LOADED - Driver not loaded)"),
    ):
        probe.product.cache_clear()
        vars(amd).update(change)
        assert probe.missing(MI300) == words
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    probe.product.cache_clear()
    assert probe.missing(MI300).startswith("amdsmi, a part of ROCm, cannot be imported")


@pytest.mark.parametrize("slowdown", ["prochot_thrm", "socket_thrm", "hbm_thrm"])
def test_slowdowns_and_strangers_of_an_amd_gpu_are_seen(
    amd: Smi, monkeypatch: pytest.MonkeyPatch, slowdown: str
) -> None:
    """Its power cap is none, and where it tells of no slowdowns it tells of processes all the same."""
    monkeypatch.setattr(machine_watch.Watch, "INTERVAL", 0.001)
    with machine_watch.Watch(MI300) as watch:
        amd.gpus[0]["slow"] = {slowdown: True, "ppt_pwr": True}
        assert amd.seen.wait(10)
        amd.gpus[0]["slow"] = {}
    (problem,) = watch.problems
    assert problem.startswith("throttled: ")
    amd.tells = False
    with machine_watch.Watch(MI300) as watch:
        amd.gpus[0]["pids"] = [os.getpid(), 1]
    assert watch.problems == ["shared: process 1 is on the GPU too"]


# ------------------------------------------------------------------------------------------------------- what is here


@pytest.mark.parametrize(
    ("product", "capability", "name", "arithmetic"),
    [
        ("NVIDIA L40S", (8, 9), "l40s", ("bfloat16", "int8", "float8")),
        ("NVIDIA GeForce RTX 3090", (8, 6), "geforce-rtx-3090", ("bfloat16", "int8")),
        ("Tesla T4", (7, 5), "tesla-t4", ("bfloat16", "int8")),
        ("NVIDIA GH200 480GB", (9, 0), "gh200-480gb", ("bfloat16", "int8", "float8")),
        ("NVIDIA B300 SXM6 AC", (10, 3), "b300-sxm6-ac", ("bfloat16", "int8", "float8")),
        # Names that are taken, though no entry is for these products.
        ("NVIDIA Mi300", (9, 0), "nvidia-mi300", ("bfloat16", "int8", "float8")),
        ("NVIDIA GPU", (9, 0), "nvidia-gpu", ("bfloat16", "int8", "float8")),
    ],
)
def test_a_gpu_that_no_entry_is_for_is_what_its_driver_says(
    gpu: Driver,
    torch: Callable[[str], None],
    suites_matrix: Matrix,
    product: str,
    capability: tuple[int, int],
    name: str,
    arithmetic: tuple[str, ...],
) -> None:
    torch("cuda = None")
    gpu.names, gpu.capability = (product,), capability
    matrix = here.whole(suites_matrix)
    found = here.of_group(matrix, "gpu")
    assert found is not None
    assert (found.name, found.arithmetic) == (name, arithmetic)
    assert found.capability == ".".join(map(str, capability))
    assert here.of_group(matrix, "nvidia") == found
    assert found in here.looked_for(matrix)
    assert [it for it in here.looked_for(matrix) if it.is_gpu] == [found]
    assert probe.missing(found) == ""
    assert matrix.measured_on(found) == matrix.measurements["h100"]
    skipped = {cell.recipe.name for cell in matrix.cells() if cell.hardware == found and cell.skip}
    assert ("float8dq" in skipped) == (capability < (8, 9))
    limits = [limit for limit in matrix.thresholds if limit.hardware and found.is_of(limit.hardware)]
    assert limits
    assert not [limit for limit in limits if "published" in limit.origin], "what was published is asked of H100s alone"


def test_the_entry_that_is_here_stands_for_its_groups(
    gpu: Driver, torch: Callable[[str], None], suites_matrix: Matrix
) -> None:
    torch("cuda = None")
    for product, name in (("NVIDIA A100-SXM4-40GB", "a100"), ("NVIDIA L4", "l4")):
        gpu.names = (product,)
        probe.product.cache_clear()
        matrix = here.whole(suites_matrix)
        assert matrix is suites_matrix
        standing = here.standing(matrix)
        assert (standing["gpu"].name, standing["nvidia"].name, standing["amd"].name) == (name, name, "mi300")
        assert here.meant(matrix, standing, ["h200"])["gpu"] == ["h200", name]


def test_a_gpu_of_two_entries_is_an_error(gpu: Driver, suites_matrix: Matrix) -> None:
    twin = suites_matrix.hardware["h100"].model_copy(update={"name": "twin"})
    with pytest.raises(MatrixError, match=r"hardware\.h100 and hardware\.twin both match 'NVIDIA H100 80GB HBM3'"):
        here.whole(suites_matrix.with_hardware(twin))


def test_nothing_is_made_of_a_gpu_on_which_nothing_is_measured(gpu: Driver, suites_matrix: Matrix) -> None:
    gpu.names = ("NVIDIA L40S",)
    alone = {name: it for name, it in suites_matrix.measurements.items() if name != "gpu"}
    matrix = replace(suites_matrix, measurements=alone)
    assert here.whole(matrix) is matrix
    assert here.of_group(matrix, "gpu") == matrix.hardware["h100"], "the first stands for a group of which none is here"


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


# -------------------------------------------------------------------------------------------------- a GPU that vanishes


def test_a_gpu_that_answers_no_more_is_a_problem_of_the_block_and_one_that_never_told_is_none(gpu: Driver) -> None:
    def refuse(handle: int) -> int:
        raise NVMLError("GPU is lost")

    told = gpu.nvmlDeviceGetCurrentClocksThrottleReasons
    with machine_watch.Watch(H100) as watch:
        vars(gpu)["nvmlDeviceGetCurrentClocksThrottleReasons"] = refuse
    assert watch.problems == ["gone: no NVIDIA GPU can be seen here (GPU is lost)"]
    with machine_watch.Watch(H100) as watch:
        pass
    assert watch.problems == []
    vars(gpu)["nvmlDeviceGetCurrentClocksThrottleReasons"] = told


def test_a_gpu_that_is_gone_is_an_error_that_names_it_and_how_to_go_on(gpu: Driver) -> None:
    assert probe.missing(H100) == ""
    gpu.here = False
    for ask in (probe.state, probe.device, probe.gpu_uuid):
        with pytest.raises(DeviceLost, match=r"H100.*cannot be asked any more: .*Driver Not Loaded.*--resume"):
            ask(H100)
