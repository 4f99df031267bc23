"""Stored baselines: what several runs of one machine measured, with their spread, to hold later runs against."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from harness.base.errors import RecordError, TooFewSamples
from harness.base.files import is_file
from harness.base.reading import json_file
from harness.base.text import file_name
from harness.records import model_file
from harness.records.metrics import stage_of
from harness.records.place import Place, Placed
from harness.records.run import Run
from harness.records.schema import Device, Measurement, Scalar
from harness.records.stored import disagreement, implausible, misplaced

SCHEMA_VERSION = 2


# Two runs give a spread with one degree of freedom, from which nothing can be concluded.
MINIMUM_RUNS = 3


# Where the runs differ by so much that only a larger change could be told, nothing is judged.
MOST_MARGIN = 0.25


class BaselineError(RecordError):
    """A baseline cannot be made from these runs, or not be compared with this session."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaselineEntry(Placed):
    """One metric of one cell over the baseline's runs; figures of other weights are not compared with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: str
    direction: Literal["lower", "higher", "none"]
    flags: dict[str, Scalar]
    values: list[FiniteFloat] = Field(min_length=1, description="One value a run, in the runs' order.")
    samples: list[FiniteFloat] = Field(description="Samples of the last run: documents or windows, to be paired.")
    spread: FiniteFloat | None = Field(
        ge=0, description="Standard deviation (n - 1) of the log values; None where one is not > 0."
    )

    @property
    def label(self) -> str:
        return label(self.place)


class Baseline(_Frozen):
    """The file results/baselines/HARDWARE.json."""

    schema_version: int = SCHEMA_VERSION
    hardware: str
    device: Device
    created: float = Field(description="Seconds since the epoch.")
    runs: list[str]
    packages: dict[str, str] = Field(description="Versions of what decides the results, the same in all runs.")
    entries: list[BaselineEntry]

    def write(self, folder: Path) -> Path:
        """Write the baseline as ``folder``/HARDWARE.json, in one step; BaselineError for what is no file's name."""
        if file_name(self.hardware) != self.hardware:
            raise BaselineError(
                f"{self.hardware!r} is no hardware that a file can be named after: letters, digits, . _ -"
            )
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.hardware}.json"
        return model_file.write(path, self)


def label(place: Place) -> str:
    """Return a figure of a baseline's hardware in words, as in ``latency (batch_size=1) of SmolLM2/int8wo/vllm``."""
    return str(place.without("hardware"))


def load(path: Path) -> Baseline:
    """Read a baseline; BaselineError names the file and what is wrong with it.

    What the metric table decides, and what follows from other fields, must be as it is there: a file cannot say which
    way is better, nor how much its own values differ.
    """
    try:
        data = json_file(path, once=True)
        version = data.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise BaselineError(f"{path}: schema version {version} is newer than this harness reads ({SCHEMA_VERSION})")
        found = Baseline.model_validate(_from_1(data) if version == 1 else data)
        if problem := _problem(found):
            raise BaselineError(f"{path}: {problem}; make the baseline anew")
        return found
    except FileNotFoundError as error:
        raise BaselineError(
            f"there is no baseline {path}: make one from {MINIMUM_RUNS} runs or more:\n"
            "python -m harness baseline RUN RUN RUN"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BaselineError(f"{path}: {where}: {first['msg']}; make the baseline anew") from error
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BaselineError(f"{path}: not a baseline ({error}); make it anew") from error


def _problem(found: Baseline) -> str:
    """Return the first point in which a baseline disagrees with the metric table or with itself, or an empty text."""
    if found.schema_version != SCHEMA_VERSION:
        return f"schema version {found.schema_version} does not exist"
    if len(set(found.runs)) < MINIMUM_RUNS or len(set(found.runs)) < len(found.runs):
        return f"runs: {len(set(found.runs))} runs stand behind it, each once, and {MINIMUM_RUNS} are the fewest"
    if not found.entries:
        return "entries: it holds no figure, so nothing can be held against it"
    seen: set[Place] = set()
    for number, entry in enumerate(found.entries):
        problem = _problem_of(entry, found)
        if not problem and entry.place.named in seen:
            problem = "it stands there twice"
        if problem:
            return f"entries.{number} ({entry.label}): {problem}"
        seen.add(entry.place.named)
    return ""


def _problem_of(entry: BaselineEntry, of: Baseline) -> str:
    place = entry.place
    if problem := disagreement(place.metric, unit=entry.unit, direction=entry.direction) or misplaced(place):
        return problem
    if entry.direction == "none":
        return f"of {place.metric} neither more nor less is better, so nothing can be held against it"
    if place.hardware != of.hardware:
        return f"it is of {place.hardware}, and the baseline of {of.hardware}"
    if not MINIMUM_RUNS <= len(entry.values) <= len(of.runs):
        return f"values: {len(entry.values)} of {len(of.runs)} runs; {MINIMUM_RUNS} are the fewest"
    if problem := implausible([*entry.values, *entry.samples]):
        return f"values: {problem}"
    due = _spread(entry.values)
    if (due is None) != (entry.spread is None) or not math.isclose(due or 0, entry.spread or 0, abs_tol=1e-9):
        return f"spread: {entry.spread} there, and by its values it is {due}"
    return ""


def _spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation of the log values, or None where one of them has no log."""
    if min(values) <= 0:
        return None
    from harness.judge.stats import log_sd

    return log_sd(values)


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    """Return a baseline of the first schema, whose entries did not say their hardware and stage, in the second."""
    if not isinstance(data.get("entries"), list):
        return data
    hardware = data.get("hardware")
    entries = []
    for entry in data["entries"]:
        stage = stage_of(entry.get("metric"), entry.get("server"), entry.get("parameters") or {})
        entries.append({"hardware": hardware, "stage": stage or "", **entry})
    return data | {"schema_version": 2, "entries": entries}


def find(name: str, folder: Path) -> Path:
    """Return the file of ``--against NAME``: a path, or the hardware of a baseline in ``folder``."""
    path = Path(name)
    return path if path.suffix == ".json" or is_file(path) else folder / f"{name}.json"


def collect(runs: Sequence[Run]) -> list[Baseline]:
    """Return one baseline for each hardware that the runs measured.

    What fewer than MINIMUM_RUNS of them measured is left out. Raises TooFewSamples for fewer runs, and BaselineError
    naming what differs between runs of one hardware: device, packages, weights, recipe, definition or flags.
    """
    names = [run.name for run in runs]
    if len(set(names)) < MINIMUM_RUNS:
        raise TooFewSamples("a baseline", MINIMUM_RUNS, len(set(names)), "runs")
    if len(set(names)) < len(names):
        raise BaselineError(f"a run counts once in a baseline: {', '.join(sorted(names))}")
    found: dict[str, dict[str, list[Measurement]]] = defaultdict(dict)
    problems: list[str] = []
    for run in runs:
        latest: dict[Place, Measurement] = {}
        for line in run.lines(problems):
            if isinstance(line, Measurement) and line.own and line.direction != "none":
                latest[Place.of(line).named] = line
        for measurement in latest.values():
            found[measurement.cell.hardware].setdefault(run.name, []).append(measurement)
    whole = {hardware: by_run for hardware, by_run in found.items() if len(by_run) >= MINIMUM_RUNS}
    if not whole:
        raise BaselineError(
            f"no hardware was measured in {MINIMUM_RUNS} of the runs {', '.join(names)}: "
            + "; ".join([*(f"{hardware} in {len(by_run)}" for hardware, by_run in found.items()), *problems[:3]])
        )
    return [_baseline(hardware, by_run) for hardware, by_run in sorted(whole.items())]


def _baseline(hardware: str, by_run: Mapping[str, list[Measurement]]) -> Baseline:
    everything = [(name, measurement) for name, rows in by_run.items() for measurement in rows]
    _same("device", ((name, row.device.name) for name, row in everything))
    packages: dict[str, str] = {}
    for package in sorted({package for _, row in everything for package in row.packages}):
        _same(package, ((name, row.packages.get(package, "none")) for name, row in everything))
        packages[package] = everything[0][1].packages.get(package, "")
    series: dict[Place, list[tuple[str, Measurement]]] = defaultdict(list)
    for name, row in everything:
        series[Place.of(row).named].append((name, row))
    entries = [_entry(series[place]) for place in sorted(series, key=_order) if len(series[place]) >= MINIMUM_RUNS]
    last = everything[-1][1]
    return Baseline(
        hardware=hardware,
        device=last.device,
        created=time.time(),
        runs=list(by_run),
        packages=packages,
        entries=entries,
    )


def _order(place: Place) -> tuple[str, ...]:
    return (place.model, place.recipe, place.server, place.metric, place.parameters.text)


def _entry(rows: Sequence[tuple[str, Measurement]]) -> BaselineEntry:
    what = label(Place.of(rows[0][1]))
    for name, of in _IDENTITY.items():
        _same(f"{name} of {what}", ((run, of(row)) for run, row in rows))
    last = rows[-1][1]
    values = [row.value for _, row in rows]
    if problem := disagreement(last.metric, unit=last.unit, direction=last.direction) or implausible(values):
        raise BaselineError(f"these runs do not make a baseline: {what}: {problem}; leave out {rows[-1][0]}")
    return BaselineEntry(
        place=Place.of(last),
        unit=last.unit,
        direction=last.direction,
        flags=last.flags,
        values=values,
        samples=last.samples,
        spread=_spread(values),
    )


_IDENTITY: dict[str, Any] = {
    "definition version": lambda row: row.definition,
    "unit": lambda row: row.unit,
    "weights revision": lambda row: row.cell.model.revision,
    "recipe digest": lambda row: row.cell.recipe.hash,
    "flags": lambda row: json.dumps(row.flags, sort_keys=True),
}


def _same(what: str, found: Iterable[tuple[str, Any]]) -> None:
    seen: dict[Any, str] = {}
    for run, value in found:
        seen.setdefault(value, run)
    if len(seen) > 1:
        shown = ", ".join(f"{value!r} in {run}" for value, run in list(seen.items())[:3])
        raise BaselineError(f"these runs do not make one baseline: the {what} differs: {shown}")


def refuse_other(baseline: Baseline, path: Path, device: Device) -> None:
    """Raise BaselineError naming the difference, if the baseline is of another device or other definitions."""
    if baseline.device.name != device.name:
        raise BaselineError(
            f"{path} was measured on {baseline.device.name}, and this is {device.name}: figures of different hardware "
            "are not compared; make a baseline here:\npython -m harness baseline RUN RUN RUN"
        )
    for entry in baseline.entries:
        if problem := disagreement(entry.place.metric, definition=entry.place.definition):
            raise BaselineError(f"{path}: {problem}; make the baseline anew")


def difference(entry: BaselineEntry, measurement: Measurement) -> str:
    """Return why today's measurement is not of the same thing as the entry, or an empty string."""
    before, now = entry.place, Place.of(measurement)
    pairs = (
        ("weights revision", before.revision, now.revision),
        ("recipe digest", before.recipe_hash, now.recipe_hash),
        ("definition version", before.definition, now.definition),
        ("flags", json.dumps(entry.flags, sort_keys=True), json.dumps(measurement.flags, sort_keys=True)),
    )
    return "; ".join(f"{what} {old} in the baseline and {new} today" for what, old, new in pairs if old != new)


@dataclass(frozen=True)
class Coverage:
    """What a session set out to measure: the cells whose every test runs, those seen at all, and if it was narrowed.

    A cell is one by its names. ``narrowed`` says that options chose models, recipes or servers, so that what
    was not seen was not meant to be.
    """

    whole: Collection[Place]
    seen: Collection[Place]
    narrowed: bool

    def expects(self, entry: BaselineEntry) -> bool:
        cell = entry.place.named.cell
        return cell in self.whole or (cell not in self.seen and not self.narrowed)


def smallest_margin(spread: float, runs: int, confidence: float = 0.9, power: float = 0.9) -> float:
    """Return the smallest margin at which an unchanged metric passes with this power, a block against the runs.

    One block's mean differs from that of ``runs`` by a standard error of spread x sqrt(1 / runs + 1), where a mean
    of ``runs`` blocks would have spread / sqrt(runs).
    """
    from harness.judge.stats import smallest_effect

    return smallest_effect(spread * math.sqrt(runs + 1), runs, confidence, power)
