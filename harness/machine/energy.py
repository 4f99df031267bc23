"""The energy that a device has taken: a GPU's by its vendor's counter, a processor's by RAPL where it may be read."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from harness.machine.vendor import Unseen, over
from harness.machine.vendors import VENDORS
from harness.matrix.hardware import Hardware

RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Reading:
    """Counters in joules by name, each with where it starts again (0 if it does not), and when they were read."""

    joules: dict[str, tuple[float, float]]
    at: float


class Meter:
    """Reads the counters of one hardware, of all GPUs that share a model; ``source`` names them.

    Raises Unseen, which says why, where there is none that may be read.
    """

    def __init__(self, hardware: Hardware, rapl: Path = RAPL, *, gpus: int = 1) -> None:
        self._gpus = gpus
        self._vendor = VENDORS[hardware.vendor] if hardware.is_gpu else None
        self._rapl = rapl
        self.source = (
            f"the counter{'s' if gpus > 1 else ''} of the {self._vendor.title} GPU{'s' if gpus > 1 else ''}"
            if self._vendor
            else "RAPL of the processor packages"
        )
        self.read()

    def read(self) -> Reading:
        if self._vendor is not None:
            return Reading({"gpu": (self._vendor.energy(*over(self._gpus)), 0.0)}, time.monotonic())
        return Reading(_packages(self._rapl), time.monotonic())


def taken(before: Reading, after: Reading) -> float:
    """Return the joules between two readings; a counter that started again counts on from there."""
    total = 0.0
    for name, (value, _) in after.joules.items():
        start, wraps = before.joules[name]
        total += value - start if value >= start else value - start + wraps
    return total


def _packages(root: Path) -> dict[str, tuple[float, float]]:
    """Return the counters of whole packages; of their cores and memory they are the sum already."""
    found = {}
    try:
        zones = sorted(zone for zone in root.glob("*rapl:*") if zone.name.count(":") == 1)
        for zone in zones:
            most = float((zone / "max_energy_range_uj").read_text()) / 1e6
            found[zone.name] = (float((zone / "energy_uj").read_text()) / 1e6, most)
    except PermissionError as error:
        raise Unseen(f"RAPL's counters may not be read here ({error.filename}: only by root)") from error
    except (OSError, ValueError) as error:
        raise Unseen(f"RAPL's counters cannot be read here ({error})") from error
    if not found:
        raise Unseen(f"this machine has no RAPL counters ({root})")
    return found
