"""Several GPUs that share a model: which cells there are, what servers are told, and what is said of too few."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import MatrixError
from harness.contract import visible
from harness.machine import energy, probe, watch
from harness.machine.vendor import joined
from harness.matrix.load import load
from harness.matrix.plan import Matrix
from harness.records.place import Place, gather, spread
from harness.servers.registry import SERVERS, unsupported
from tests.laws import examples
from tests.machine.drivers import Driver, Smi
from tests.matrix.test_matrix import H100, TEXT, written

CELLS = """
[[cells]]
hardware = "h100"
models = ["big"]
recipes = ["bf16", "int8wo"]
servers = ["vllm"]
gpus = 2

[[cells]]
hardware = "h100"
models = ["big"]
recipes = ["int8wo"]
servers = ["vllm"]
gpus = 1

[measurements.h100]
like = "cpu"
"""
QUICK = examples(50)


def on(matrix: Matrix, **asked: object) -> list[tuple[str, int]]:
    found = matrix.cells(["big"], **asked)  # type: ignore[arg-type]
    return [(cell.recipe.name, cell.gpus) for cell in found if cell.hardware.name == "h100"]


@pytest.fixture
def matrix(tmp_path: Path) -> Matrix:
    return load(written(tmp_path, TEXT + CELLS))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Two H100s, as their driver tells of them."""
    found = Driver("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    monkeypatch.setitem(sys.modules, "pynvml", found)  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(probe, "unfit", lambda vendor: "")
    cached = [it for module in (probe, watch) for it in vars(module).values() if hasattr(it, "cache_clear")]
    for it in cached:
        it.cache_clear()
    yield found
    for it in cached:
        it.cache_clear()


# --------------------------------------------------------------------------------------------------------- cells


def test_tables_say_on_how_many_gpus_each_recipe_runs(matrix: Matrix) -> None:
    """A baseline that needs two is not run on one for a recipe's sake, which says that it has none there."""
    assert on(matrix) == [("bf16", 2), ("int8wo", 2), ("int8wo", 1)]
    cells = {cell.id: cell for cell in matrix.cells(["big"]) if cell.hardware.name == "h100"}
    assert set(cells) == {"big-bf16-h100-2gpus", "big-int8wo-h100-2gpus", "big-int8wo-h100"}
    assert cells["big-int8wo-h100"].no_baseline == "no bf16 runs on as many GPUs (1)"
    assert not cells["big-int8wo-h100-2gpus"].no_baseline


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"": [1]}, [("bf16", 1), ("int8wo", 1)]),
        ({"": [1, 2]}, [("bf16", 1), ("int8wo", 1), ("bf16", 2), ("int8wo", 2)]),
        ({"bf16": [4]}, [("bf16", 4), ("int8wo", 2), ("int8wo", 1)]),
        ({"bf16": [2], "": [1]}, [("bf16", 2), ("int8wo", 1)]),
    ],
)
def test_a_command_line_says_otherwise(matrix: Matrix, asked: dict[str, list[int]], found: list[object]) -> None:
    assert sorted(on(matrix, gpus=asked), key=str) == sorted(found, key=str)


def test_a_model_says_what_its_tables_leave_out(tmp_path: Path) -> None:
    text = (TEXT + CELLS).replace('[models.big]\nhub = "owner/big"', '[models.big]\nhub = "owner/big"\ngpus = [2, 4]')
    found = load(written(tmp_path, text.replace("\ngpus = 2\n", "\n").replace("\ngpus = 1\n", "\n")))
    assert on(found) == [("bf16", 2), ("int8wo", 2), ("bf16", 4), ("int8wo", 4)]


@pytest.mark.parametrize("value", ["0", "-1", "[]", '"2"', "1.5", "[2, 0]", "true"])
def test_a_number_that_is_none_is_named(tmp_path: Path, value: str) -> None:
    path = written(tmp_path, TEXT + CELLS.replace("gpus = 2", f"gpus = {value}"))
    with pytest.raises(MatrixError, match=r"matrix\.toml, line 84: cells\.2\.gpus"):
        load(path)


def test_a_processor_shares_no_model(matrix: Matrix) -> None:
    cells = [cell for cell in matrix.cells(gpus={"": [2]}) if cell.hardware.name == "cpu"]
    assert {cell.skip for cell in cells if cell.recipe.name == "int8wo"} == {
        "2 GPUs share the model of this cell, and cpu has none"
    }


def test_places_on_one_and_two_gpus_are_two_and_files_tell_of_two_alone(matrix: Matrix) -> None:
    one, two = Place(model="big", hardware="h100"), Place(model="big", hardware="h100", gpus=2)
    assert one.digest != two.digest
    assert "gpus" not in spread({"place": dict_of(one)})
    assert spread({"place": dict_of(two)})["gpus"] == 2
    assert gather({"model": "big", "hardware": "h100"})["place"].get("gpus", 1) == 1
    assert str(two) == "big on 2 x h100"


def dict_of(place: Place) -> dict[str, object]:
    return {name: getattr(place, name) for name in Place.__dataclass_fields__}


# ------------------------------------------------------------------------------------------------------- servers


def test_servers_are_told_to_cut_the_model(suites_matrix: Matrix) -> None:
    (cell,) = [it for it in suites_matrix.cells(["Phi-4-mini-instruct"], ["bf16"]) if it.hardware.name == "h100"]
    for name, option in (("vllm", "tensor_parallel_size"), ("sglang", "tp_size")):
        one, two = (SERVERS[name].options(replace(cell, gpus=gpus), 4096) for gpus in (1, 2))
        assert two == one | {option: 2}
        flags = SERVERS[name].arguments(cell, Path("/weights"), two, 8000)
        assert flags[flags.index("--" + option.replace("_", "-")) + 1] == "2"
        by_hand = SERVERS[name].by_hand
        assert by_hand is None or option in by_hand.options
        assert unsupported(name, cell.hardware, 2) == ""
    assert unsupported("transformers", cell.hardware, 2) == (
        "transformers holds a model on one GPU; 2 GPUs share one through vllm or sglang"
    )
    assert unsupported("transformers", cell.hardware) == ""


# ------------------------------------------------------------------------------------------------------- machine


def test_as_many_gpus_are_asked_as_share_a_model(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe.missing(H100, 2) == ""
    assert probe.missing(H100, 4) == "it takes 4 GPUs, and 2 are here"
    assert probe.gpu_uuids(H100, 2) == ["GPU-0a5c-77", "GPU-1a5c-77"]
    assert probe.state(H100)["gpu"] == "0 (GPU-0a5c-77)"
    state = probe.state(H100, 2)
    assert (state["gpu"], state["gpu_memory_used_gb"]) == ("0 (GPU-0a5c-77), 1 (GPU-1a5c-77)", 2.0)
    driver.others = [1]
    assert (probe.state(H100)["other_gpus_in_use"], probe.state(H100, 2)["other_gpus_in_use"]) == (1, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert probe.state(H100)["gpu"] == "1 (GPU-1a5c-77)"
    assert probe.missing(H100, 2) == "it takes 2 GPUs, and 1 is here"


def test_both_gpus_are_watched_and_their_energy_is_added(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.others = [1]
    with watch.Watch(H100) as one, watch.Watch(H100, 2) as two:
        pass
    assert one.problems == []
    assert two.problems == ["shared: process 1 is on the GPU too"]
    driver.nvmlDeviceGetTotalEnergyConsumption = lambda handle: 1000 * (1 + handle)
    assert energy.Meter(H100).read().joules == {"gpu": (1.0, 0.0)}
    assert energy.Meter(H100, gpus=2).read().joules == {"gpu": (3.0, 0.0)}


@pytest.mark.parametrize(
    ("variable", "left"), [("1,0", [1, 0]), ("1,9,0", [1]), ("", []), ("GPU-1a5c,0", [1, 0]), ("-1", [])]
)
def test_what_the_variable_leaves_is_counted_as_cuda_counts_it(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, variable: str, left: list[int]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible.count() == len(left)
    with pytest.raises(visible.NoGPU, match="CUDA_VISIBLE_DEVICES"):
        visible.first(len(left) + 1)
    assert visible.first(len(left)) == left if left else True


def test_amd_gpus_are_asked_alike(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    smi = Smi("AMD Instinct MI300X", "AMD Instinct MI300X")
    monkeypatch.setitem(sys.modules, "amdsmi", smi)  # type: ignore[arg-type]
    for name in ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    mi300 = H100.model_copy(update={"vendor": "amd", "match": "MI300", "capability": "gfx942", "name": "mi300"})
    assert probe.missing(mi300, 2) == ""
    assert len(probe.gpu_uuids(mi300, 2)) == 2
    assert probe.state(mi300, 2)["other_gpus_in_use"] == 0
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    assert probe.missing(mi300, 2) == "it takes 2 GPUs, and 1 is here"


@QUICK
@given(st.lists(st.fixed_dictionaries({"power_w": st.floats(0, 700), "sm_mhz": st.integers(1, 3000)}), min_size=1))
def test_the_slowest_clock_and_all_power_are_the_state_of_several(states: list[dict[str, float]]) -> None:
    found = joined(states)  # type: ignore[arg-type]
    assert found["sm_mhz"] == min(it["sm_mhz"] for it in states)
    assert float(found["power_w"]) == pytest.approx(sum(it["power_w"] for it in states), abs=0.01)
