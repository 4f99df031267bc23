"""Counters of energy: a GPU's through its vendor's library, a processor's through RAPL, and what is said without."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.machine import energy
from harness.machine.energy import Meter, Reading, taken
from harness.machine.vendor import Unseen
from harness.matrix.hardware import Hardware

CPU = Hardware(name="cpu", meaning="a processor")
GPU = Hardware(name="h100", meaning="a GPU", vendor="nvidia", match="H100", capability="9.0")


def zone(root: Path, name: str, joules: float, most: float = 1000.0) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(str(round(joules * 1e6)), encoding="utf-8")
    (folder / "max_energy_range_uj").write_text(str(round(most * 1e6)), encoding="utf-8")
    return folder


def test_a_processors_energy_is_that_of_its_packages(tmp_path: Path) -> None:
    """Cores and memory, which a package has in it, do not count twice."""
    zone(tmp_path, "intel-rapl:0", 10.0)
    zone(tmp_path, "intel-rapl:1", 20.0)
    zone(tmp_path, "intel-rapl:0:0", 5.0)
    meter = Meter(CPU, tmp_path)
    before = meter.read()
    zone(tmp_path, "intel-rapl:0", 13.0)
    zone(tmp_path, "intel-rapl:1", 21.5)
    assert taken(before, meter.read()) == pytest.approx(4.5)


def test_a_counter_that_starts_again_counts_on() -> None:
    before, after = Reading({"a": (990.0, 1000.0)}, 0.0), Reading({"a": (5.0, 1000.0)}, 1.0)
    assert taken(before, after) == pytest.approx(15.0)


def test_without_a_counter_it_is_said_why(tmp_path: Path) -> None:
    with pytest.raises(Unseen, match="this machine has no RAPL counters"):
        Meter(CPU, tmp_path)


def test_a_counter_for_root_alone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = zone(tmp_path, "intel-rapl:0", 1.0)

    def refused(self: Path, *_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied", str(folder / "energy_uj"))

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(Unseen, match=r"may not be read here \(.*energy_uj: only by root\)"):
        Meter(CPU, tmp_path)


def test_a_gpus_energy_is_its_vendors_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([1.0, 1.0, 4.5])
    monkeypatch.setitem(energy.VENDORS, "nvidia", SimpleNamespace(title="NVIDIA", energy=lambda: next(told)))
    meter = Meter(GPU)
    before = meter.read()
    assert taken(before, meter.read()) == pytest.approx(3.5)
    assert meter.source == "the counter of the NVIDIA GPU"


def test_nvmls_millijoules_are_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.machine.vendors import VENDORS
    from tests.machine.drivers import Driver

    driver = Driver("NVIDIA H100 80GB HBM3")
    driver.nvmlDeviceGetTotalEnergyConsumption = lambda _: 12_500
    monkeypatch.setitem(__import__("sys").modules, "pynvml", driver)
    assert VENDORS["nvidia"].energy() == 12.5
