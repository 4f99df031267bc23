"""Record lines of older schema versions to today's, one step a version; newer ones are refused by name.

Raise SCHEMA_VERSION whenever a line gains, loses or renames a field, and add the step from the version before: a
harness that does not know a field would otherwise leave the whole line out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from harness.base.errors import RecordError

SCHEMA_VERSION = 10

# What an expected failure's reason says, of a limit and of kernels, while it was recorded as a skip.
_EXPECTED = (
    "; the limit's origin: ",
    ", one a quantized layer and step; what ran instead",
    ".kernels), so that none can be told from a fallback; what ran",
)

_CAME_QUANTIZED = "came quantized, with "
_REPEATED = " (it failed before in this session and is not tried again)"
# How a gate said in the message where a worker was lost.
_WHERE = r"^(old|new) side, block \d+, attempt \d+: "


def _from_1(line: dict[str, Any]) -> None:
    """Headers did not say which harness wrote them; what a test cost was not recorded at all."""
    if line.get("kind") == "header":
        line.setdefault("harness", "")


def _from_2(line: dict[str, Any]) -> None:
    """An expected failure of a test was a skip, and why it was expected was not recorded."""
    if line.get("kind") == "outcome":
        line.setdefault("known", "")
        if line.get("outcome") == "skipped" and any(words in str(line.get("reason")) for words in _EXPECTED):
            line["outcome"] = "xfailed"


def _from_3(line: dict[str, Any]) -> None:
    """Of a limit that did not hold it was recorded with its test alone whether that was expected."""
    if line.get("kind") == "judgement":
        line.setdefault("known", "")


def _from_4(line: dict[str, Any]) -> None:
    """That a model came quantized stood in its note, which worker failed and that it was not tried in the message."""
    cell = line.get("cell")
    if isinstance(cell, dict) and isinstance(model := cell.get("model"), dict):
        model.setdefault("came_quantized", str(model.get("note")).startswith(_CAME_QUANTIZED))
    if line.get("kind") == "failure":
        message = str(line.get("message"))
        line["repeated"] = message.endswith(_REPEATED)
        line["message"] = message.removesuffix(_REPEATED)
        line["worker"] = re.sub(_WHERE, "", message).partition(" ")[0].removesuffix(":")


def _from_5(line: dict[str, Any]) -> None:
    """What kind of device it was could be told by the name of its hardware alone, of which there were three."""
    device = line.get("device")
    if isinstance(device, dict):
        gpu = "gpu_memory_gb" in device.get("detail", {})
        programs = line.get("cell", {}).get("hardware") == "arm-mobile"
        device.setdefault("vendor", "nvidia" if gpu else "none")
        device.setdefault("torch_device", "cuda" if gpu else "" if programs else "cpu")


def _from_6(line: dict[str, Any]) -> None:
    """Headers did not say in which Python workers ran."""
    if line.get("kind") == "header":
        line.setdefault("python", "")


def _from_7(line: dict[str, Any]) -> None:
    """How far rounds differed was no part of a judgement, and a processor that others used was not noticed."""
    if line.get("kind") == "judgement":
        line.setdefault("low", None)
        line.setdefault("high", None)
        line.setdefault("noisy", False)
    if line.get("kind") == "measurement":
        line.setdefault("disturbed", "")


def _from_8(line: dict[str, Any]) -> None:
    """Every cell was on one device."""
    if isinstance(cell := line.get("cell"), dict):
        cell.setdefault("gpus", 1)


def _from_9(line: dict[str, Any]) -> None:
    """Every figure was of its own run."""
    if line.get("kind") == "measurement":
        line.setdefault("kept_from", "")
        line.setdefault("kept_time", None)


_STEPS: dict[int, Callable[[dict[str, Any]], None]] = {
    1: _from_1,
    2: _from_2,
    3: _from_3,
    4: _from_4,
    5: _from_5,
    6: _from_6,
    7: _from_7,
    8: _from_8,
    9: _from_9,
}


def migrate(line: Any, where: str) -> dict[str, Any]:
    """Return a decoded line in today's schema, changed in place.

    Raises RecordError, naming ``where``, the version and what to do, if the line is newer than this harness;
    ValueError, KeyError or TypeError if it has no version that there ever was.
    """
    if not isinstance(line, dict):
        raise TypeError(f"a record is an object, not {type(line).__name__}")
    version = line["schema_version"]
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"schema version {version!r} does not exist")
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"{where}: schema version {version} is newer than this harness reads ({SCHEMA_VERSION}); "
            "upgrade the harness to read this run"
        )
    for step in range(version, SCHEMA_VERSION):
        _STEPS[step](line)
    line["schema_version"] = SCHEMA_VERSION
    return line
