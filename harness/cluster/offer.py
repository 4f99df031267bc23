"""What a machine offers to a cluster: devices by the names of the matrix, as Ray's resources and labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

_PREFIX = "harness-"


def resource(hardware: str) -> str:
    """Return Ray's custom resource of a hardware: a node has as much of it as it has such devices."""
    return f"{_PREFIX}{hardware}"


def label(hardware: str) -> str:
    """Return the key of Ray's label whose value is :func:`kind`."""
    return f"{_PREFIX}kind-{hardware}"


def kind(product: str) -> str:
    """Return a label's value for a device's full name: figures are held against a baseline of the same kind alone."""
    return f"k{hashlib.sha256(product.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Device:
    """Devices of one kind: ``hardware`` is the matrix's entry, ``product`` the name that records have, of ``count``."""

    hardware: str
    product: str
    count: int
    gpu: bool = False


@dataclass(frozen=True)
class Offer:
    """What one node gives to a cluster."""

    devices: Sequence[Device]

    @property
    def gpus(self) -> int:
        return sum(device.count for device in self.devices if device.gpu)

    @property
    def resources(self) -> dict[str, float]:
        return {resource(device.hardware): float(device.count) for device in self.devices}

    @property
    def labels(self) -> dict[str, str]:
        return {label(device.hardware): kind(device.product) for device in self.devices}

    def command(self, address: str = "", *, block: bool = False) -> list[str]:
        """Return the words of ``ray start`` that join the cluster of ``address``, or begin one without.

        With ``block`` it stays in the foreground, and the node ends with it.
        """
        joined = ",".join(f"{name}={value}" for name, value in self.labels.items())
        where = [f"--address={address}"] if address else ["--head", "--include-dashboard=false"]
        return [
            "ray",
            "start",
            *where,
            f"--num-gpus={self.gpus}",
            f"--resources={json.dumps(self.resources)}",
            *([f"--labels={joined}"] if joined else []),
            *(["--block"] if block else []),
        ]
