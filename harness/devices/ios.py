"""An iPhone: what ExecuTorch's XCTest benchmark measured there, read from its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.devices.base import DeviceError, DeviceRunner, Reading, Request
from harness.records import Device

# Names of the metrics of ExecuTorch's iOS benchmark app (LLaMA.swift, MetricsTests), and of XCTest's own.
_RATE = "tokens per second"
_MEMORY = ("memory peak physical", "peak memory", "memory physical, peak")


class Ios(DeviceRunner):
    """The JSON of one benchmark's measurements, e.g. ``xcrun xcresulttool get test-results metrics``.

    Read: per test run the device, and for each metric its name, unit and measurements. Nothing is run from here; the
    program and lengths of the phone's run are the user's to match.
    """

    def __init__(self, file: Path) -> None:
        self.name = f"ios:{file.name}"
        self.file = file

    @property
    def logits(self) -> bool:
        return False

    def missing(self) -> str:
        return "" if self.file.is_file() else f"{self.file} is not there: export it with xcrun xcresulttool"

    def device(self) -> Device:
        found = next((run["device"] for run in self._runs() if isinstance(run.get("device"), dict)), None)
        if not found:
            raise DeviceError(f"{self.file.name} names no device", stage="read")
        name = found.get("deviceName") or found.get("modelName") or "iPhone"
        return Device(name=str(name), detail={"system": f"iOS {found.get('osVersion', 'unknown')}"})

    def run(self, program: Path, request: Request, logits: Path | None, timeout: float) -> Reading:
        rates = self._measurements(lambda name: _RATE in name)
        peaks = self._measurements(lambda name: name in _MEMORY)
        if not rates:
            known = ", ".join(sorted({str(metric.get("displayName")) for metric in self._metrics()})) or "none"
            raise DeviceError(
                f"{self.file.name} has no metric {_RATE!r}; it has: {known}. It is ExecuTorch's LLM benchmark that "
                "measures it",
                stage="read",
            )
        values, _ = rates
        peak = int(max(peaks[0]) * _BYTES[peaks[1]]) if peaks else None
        decode = [(request.new_tokens - 1) / value for value in values]
        return Reading(
            peak_bytes=peak,
            prompt_tokens=len(request.prompt),
            new_tokens=request.new_tokens,
            warmup=0,
            prefill_seconds=[],
            decode_seconds=decode,
        )

    def _measurements(self, wanted: Any) -> tuple[list[float], str] | None:
        for metric in self._metrics():
            if wanted(str(metric.get("displayName", "")).lower()):
                values = [float(value) for value in metric.get("measurements", [])]
                unit = str(metric.get("unitOfMeasurement", ""))
                if not values or min(values) <= 0:
                    raise DeviceError(
                        f"{self.file.name}: {metric.get('displayName')} has no positive measurement", stage="read"
                    )
                return values, unit
        return None

    def _metrics(self) -> list[dict[str, Any]]:
        return [metric for run in self._runs() for metric in run.get("metrics", [])]

    def _runs(self) -> list[dict[str, Any]]:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            tests = found if isinstance(found, list) else [found]
            return [run for test in tests for run in test["testRuns"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DeviceError(
                f"{self.file.name} is not the JSON of `xcrun xcresulttool get test-results metrics` ({error!r})",
                stage="read",
            ) from error


_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}
