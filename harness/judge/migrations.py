"""gate.json and calibrations of older schemas to today's; newer ones are refused by name.

Until the second schema a verdict said what it was about by names and a label for people, a unit by its name alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import Any

from harness.records.metrics import stage_of
from harness.records.schema import Scalar

GATE_SCHEMA = 2
CALIBRATION_SCHEMA = 2

_LABELLED = re.compile(r"(batch_size|num_prompts|kind|task|task_metric)=(.*?)(?=, (?:kind|task|task_metric)=|$)")
_MEAN = re.compile(r"mean of (\d+) tasks")


def migrate_gate(data: dict[str, Any]) -> dict[str, Any]:
    """Return a gate.json of whatever schema in today's. Raises ValueError naming a schema that is not known here."""
    version = _version(data, "schema", GATE_SCHEMA)
    return _gate_from_1(data) if version == 1 else data


def migrate_calibration(data: dict[str, Any]) -> dict[str, Any]:
    """Return a calibration of whatever schema in today's; raises as :func:`migrate_gate` does."""
    version = _version(data, "schema_version", CALIBRATION_SCHEMA)
    if version > 1:
        return data
    hardware = data.get("hardware")
    kinds = {kind: [_placed(it, hardware) for it in data.get(kind, [])] for kind in ("noise", "steady")}
    return data | kinds | {"schema_version": 2}


def _version(data: Any, name: str, newest: int) -> int:
    if not isinstance(data, dict):
        raise ValueError(f"an object is expected, not {type(data).__name__}")
    version = data.get(name, 1)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"schema {version!r} does not exist")
    if version > newest:
        raise ValueError(f"schema {version} is newer than this harness reads ({newest}); upgrade it")
    return version


def _gate_from_1(data: dict[str, Any]) -> dict[str, Any]:
    """It was not said whether a gate was finished."""
    hardware = data.get("hardware")
    measurements = (data.get("matrix") or {}).get("measurements") or {}
    tokens = (measurements.get("generate") or {}).get("max_new_tokens")
    verdicts = [_placed(it, hardware, tokens) for it in data.get("verdicts", [])]
    works = [_here(it, hardware) for it in data.get("compatibility", [])]
    changes = [_here(it, hardware) for it in data.get("kernels", [])]
    units = _units(data.get("units", {}), [*verdicts, *works], data.get("matrix") or {}, hardware)
    migrated = {"verdicts": verdicts, "compatibility": works, "kernels": changes, "units": units}
    return {"finished": None} | data | migrated | {"schema": 2}


def _here(it: Any, hardware: Any) -> Any:
    return it | {"hardware": hardware} if isinstance(it, dict) else it


def _placed(it: Any, hardware: Any, new_tokens: int | None = None) -> Any:
    """Return what was said of a metric with its place, as far as its label told."""
    if not isinstance(it, dict):
        return it
    rest = {name: value for name, value in it.items() if name not in ("label", "task")}
    metric, server = str(it.get("metric")), it.get("server") or ""
    parameters = parameters_of(it.get("label") or "")
    if it.get("task"):
        parameters.setdefault("task", it["task"])
    if metric == "generate_throughput" and new_tokens:
        parameters["max_new_tokens"] = new_tokens
    stage = stage_of(metric, server, parameters) or ("server" if it.get("label") == "server" else "")
    nothing = {"drift_cancelled": False, "samples": {"old": [], "new": []}} if "verdict" in it else {}
    return nothing | rest | {"hardware": hardware, "stage": stage, "parameters": parameters}


def parameters_of(label: str) -> dict[str, Scalar]:
    """Return the parameters that a label of the first schema told, as in ``task=piqa, task_metric=acc``."""
    if mean := _MEAN.fullmatch(label):
        return {"mean_of_tasks": int(mean[1])}
    found: dict[str, Scalar] = dict(_LABELLED.findall(label))
    return found | {name: int(found[name]) for name in ("batch_size", "num_prompts") if name in found}


def _units(units: Mapping[str, Any], told: list[Any], matrix: Mapping[str, Any], hardware: Any) -> dict[str, Any]:
    """Return the units with the place that each one's name was made of, as far as verdicts and the matrix tell."""
    placed = [it for it in told if isinstance(it, dict)]
    models = {str(it.get("model")) for it in placed} | set(matrix.get("models") or ())
    recipes = {str(it.get("recipe")) for it in placed} | set(matrix.get("recipes") or ())
    servers = {str(it["server"]) for it in placed if it.get("server")}
    places = {}
    for model, recipe, server, stage in product(models, recipes, servers, ("engine", "server")):
        if (server, stage) == ("transformers", "engine"):
            stage = server
        place = {"model": model, "recipe": recipe, "hardware": hardware, "server": server, "stage": stage}
        places[f"{model}-{recipe}-{hardware}-{server}" + ("-server" if stage == "server" else "")] = place
    return {name: unit | places.get(name, {}) for name, unit in units.items()}
