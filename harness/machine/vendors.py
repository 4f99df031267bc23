"""The vendors of GPUs by the name that a matrix gives them."""

from __future__ import annotations

from harness.machine.amd import AMD
from harness.machine.nvidia import NVIDIA
from harness.machine.vendor import Vendor

VENDORS: dict[str, Vendor] = {"nvidia": NVIDIA(), "amd": AMD()}
