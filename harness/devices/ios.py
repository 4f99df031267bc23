"""An iPhone: what ExecuTorch's XCTest benchmark measured there, read from its JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.files import is_file
from harness.base.reading import json_file
from harness.devices.base import DeviceError, DeviceRunner, Reading, Request
from harness.records.schema import Device

# Names of the metrics of ExecuTorch's iOS benchmark app (LLaMA.swift, MetricsTests), and of XCTest's own.
_RATE = "tokens per second"
_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}
_MEMORY = ("memory peak physical", "peak memory", "memory physical, peak")


@dataclass(frozen=True)
class Told:
    """What one benchmark on an iPhone measured.

    ``rates`` are tokens a second of each iteration: new tokens over the whole generate, the prompt's reading included
    (ExecuTorch's LLMTests). ``peak_bytes`` is the highest peak.
    """

    rates: list[float]
    peak_bytes: int | None


def named(which: str) -> tuple[str, Path]:
    """Return recipe and file of ``RECIPE=FILE``; the recipe is empty where a file alone is named."""
    recipe, _, file = which.rpartition("=")
    return ("", Path(which)) if not recipe or is_file(which) else (recipe, Path(file))


class Ios(DeviceRunner):
    """The JSON of one benchmark's measurements, e.g. ``xcrun xcresulttool get test-results metrics``.

    Read: the device of the one test run that measured tokens a second, and for each of its metrics the name, unit and
    measurements. Nothing is run from here, nor exported; the program and lengths of the phone's run are the user's.
    """

    alone = "an iPhone's file is of one program; that of the baseline can be given too: --device ios:BASELINE=FILE"

    def __init__(self, file: Path) -> None:
        self.name = f"ios:{file.name}"
        self.file = file

    @property
    def logits(self) -> bool:
        return False

    def missing(self) -> str:
        return "" if is_file(self.file) else f"{self.file} is not there: export it with xcrun xcresulttool"

    def device(self) -> Device:
        found = self._run().get("device")
        if not isinstance(found, dict):
            raise self._wrong("device", f"is not told: {found!r:.100}")
        # deviceName is what its owner calls it.
        name = found.get("modelName") or "iPhone"
        return Device(name=str(name), torch_device="", detail={"system": f"iOS {found.get('osVersion', 'unknown')}"})

    def run(self, program: Path, request: Request, logits: Path | None, timeout: float) -> Reading:
        raise DeviceError(f"{self.name} is a file of what ran before: nothing can be run there", stage="run")

    def told(self) -> Told:
        """Return what the benchmark measured. Raises DeviceError for any other file, and for one of several runs."""
        run = self._run()
        rates = self._measurements(run, lambda name: _RATE in name)
        peaks = self._measurements(run, lambda name: name in _MEMORY)
        assert rates  # noqa: S101 - for the type alone
        if peaks and peaks[1] not in _BYTES:
            raise self._wrong("unitOfMeasurement", f"has memory in {peaks[1]!r}; known: {', '.join(_BYTES)}")
        return Told(rates[0], int(max(peaks[0]) * _BYTES[peaks[1]]) if peaks else None)

    def _run(self) -> dict[str, Any]:
        """Return the one test run that measured tokens a second."""
        found = [(test, run) for test, run in self._runs() if any(_RATE in name for name in _names(run))]
        if not found:
            known = ", ".join(sorted({name for _, run in self._runs() for name in _names(run)}))
            raise DeviceError(
                f"{self.file.name} has no metric {_RATE!r}; it has: {known or 'none'}. It is ExecuTorch's LLM "
                "benchmark that measures it",
                stage="read",
            )
        if len(found) > 1:
            raise DeviceError(
                f"{self.file.name} holds {len(found)} runs that measured {_RATE} "
                f"({', '.join(dict.fromkeys(test for test, _ in found))}), and a file counts for one program: keep one "
                "(xcresulttool has --test-id)",
                stage="read",
            )
        return found[0][1]

    def _measurements(self, run: dict[str, Any], wanted: Callable[[str], bool]) -> tuple[list[float], str] | None:
        for metric, name in zip(_of(run), _names(run), strict=True):
            if wanted(name):
                values = metric.get("measurements", [])
                if not isinstance(values, list) or not all(_is_number(value) for value in values):
                    raise self._wrong("measurements", f"of {metric['displayName']!r} are not numbers: {values!r:.100}")
                if not values or min(values) <= 0:
                    raise self._wrong("measurements", f"of {metric['displayName']!r} have no positive one")
                return [float(value) for value in values], str(metric.get("unitOfMeasurement", ""))
        return None

    def _runs(self) -> list[tuple[str, dict[str, Any]]]:
        try:
            found = json_file(self.file)
            tests = found if isinstance(found, list) else [found]
            runs = [(str(test.get("testIdentifier", "unnamed")), run) for test in tests for run in test["testRuns"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DeviceError(
                f"{self.file.name} is not the JSON of `xcrun xcresulttool get test-results metrics` ({error!r})",
                stage="read",
            ) from error
        for _, run in runs:
            if not isinstance(run, dict):
                raise self._wrong("testRuns", f"hold {run!r:.100}, which is no run")
            metrics = run.get("metrics", [])
            if not isinstance(metrics, list) or not all(isinstance(metric, dict) for metric in metrics):
                raise self._wrong("metrics", f"of a run are no list of metrics: {metrics!r:.100}")
        return runs

    def _wrong(self, field: str, words: str) -> DeviceError:
        return DeviceError(f"{self.file.name}: {field} {words}", stage="read")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _of(run: dict[str, Any]) -> list[dict[str, Any]]:
    return list(run.get("metrics", []))


def _names(run: dict[str, Any]) -> list[str]:
    return [str(metric.get("displayName", "")).lower() for metric in _of(run)]
