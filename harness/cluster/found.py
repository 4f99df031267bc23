"""What this machine has to offer: a node's own session asks nothing of it, and starts sooner without its imports."""

from __future__ import annotations

from harness.cluster.offer import Device, Offer
from harness.machine import here, probe
from harness.machine.vendors import VENDORS
from harness.matrix.plan import Matrix


def of(matrix: Matrix) -> Offer:
    """Return what this machine has of a matrix's hardware, as ``doctor`` finds it; a processor is one device."""
    found = []
    for hardware in here.looked_for(matrix):
        if probe.missing(hardware):
            continue
        count = VENDORS[hardware.vendor].count() if hardware.is_gpu else 1
        found.append(Device(hardware.name, probe.device(hardware).name, count, hardware.is_gpu))
    return Offer(tuple(found))
