"""gate.json: the one schema that a gate writes it in and everything else reads it by."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, WrapSerializer

from harness.base.errors import HarnessError
from harness.base.files import is_folder, json_finite
from harness.base.reading import json_file
from harness.base.secrets import cleaned
from harness.base.text import quoted, redact
from harness.judge.migrations import GATE_SCHEMA, migrate_gate
from harness.judge.rules import EVENTS, Margins
from harness.judge.verdict import Verdict
from harness.records.metrics import METRICS
from harness.records.place import OF_CELL, Place, gather, spread
from harness.records.stored import disagreement, implausible, misplaced

EXIT = {"pass": 0, "regressed": 1, "error": 2, "inconclusive": 3}
# The worst of several verdicts decides; what could not be judged outweighs what is not certain yet.
_WORST = ("regressed", "error", "inconclusive", "pass")

State = Literal["works", "at load", "fails", "not tried"]
"""How a stage went; "at load": that version saves no quantized checkpoint, and quantizes a model as it is loaded."""


class GateError(HarnessError):
    """A gate.json cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Options:
    """What a gate is asked for; kept in gate.json so that a resumed gate is the same gate."""

    old: str
    new: str
    hardware: str
    models: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    keyword: str = ""
    tasks: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    data: str = ""
    limit: int | None = None
    budget: float = 1800.0
    blocks: int | None = None
    """The most blocks of each unit."""
    margins: tuple[str, ...] = ()
    seed: int = 0

    @property
    def tolerances(self) -> Margins:
        """The margins in force. Raises HarnessError for one that is none."""
        return Margins(self.margins)

    def command(self, *more: str) -> str:
        """Return the command that asks for a gate like this one, and ``more`` beside it."""
        return " ".join(quoted(redact(word)) for word in ("python", "-m", *self.words(), *more))

    def words(self) -> list[str]:
        """Return the words that ask for a gate like this one, after ``python -m``."""
        words = ["harness", "gate", self.old, self.new, "-m", self.hardware]
        several = {"--model": self.models, "--recipe": self.recipes, "--server": self.servers, "--task": self.tasks}
        several |= {"--workload": self.workloads, "--set": self.settings}
        for option, values in (several | {"--margin": self.margins}).items():
            words += [word for value in values for word in (option, value)]
        once = {"-k": self.keyword, "--data": self.data, "--limit": self.limit, "--blocks": self.blocks}
        for name, value in (once | {"--seed": self.seed, "--budget": f"{self.budget:g}s"}).items():
            words += [name, str(value)] if value else []
        return words

    def changed(self, stored: Options) -> list[str]:
        """Return what differs from a stored gate's options; more time or blocks are no difference."""
        # What is stored has no credential of an address any more.
        then, now = (cleaned(json.loads(json.dumps(asdict(it)))) for it in (stored, self))
        return [
            f"{name}: {then[name]!r} then, {value!r} now"
            for name, value in now.items()
            if name not in ("budget", "blocks") and then[name] != value
        ]


@dataclass(frozen=True)
class Works:
    """One line of the compatibility matrix: a cell at one of the stages of judge.rules.STAGES, before and after."""

    place: Place
    stage: str
    old: State = "not tried"
    new: State = "not tried"
    error: str | None = None


@dataclass(frozen=True)
class Difference:
    """Something of a cell that is not the same before and after: a tensor class, a kernel."""

    place: Place
    what: str
    old: str
    new: str


@dataclass(frozen=True)
class ProfileChange:
    """What the kernels of a cell's engine took before and after: milliseconds of a phase by kind, and in words."""

    place: Place
    phase: str
    old: dict[str, float]
    new: dict[str, float]
    words: str


@dataclass(frozen=True)
class UnitState:
    """How far a unit of a gate had come: a cell through one server at one stage."""

    place: Place
    done: int = 0
    """Blocks that count."""
    seconds: float = 0.0
    """What the last block took, without what it took once."""
    measuring: float = 0.0
    lost: int = 0
    closed: bool = False
    reason: str = ""
    problem: str = ""
    first: float = 0.0
    """What the first block took, with what it took once."""


_OF_UNIT = (*OF_CELL, "stage")


def _verdict(value: Any, handler: Any) -> dict[str, Any]:
    """Return a verdict as gate.json holds it: with what follows from its place, for those who read JSON alone."""
    found = spread(handler(value))
    found["server"] = found["server"] or None
    return found | {"task": value.task, "label": value.label}


def _works(value: Any, handler: Any) -> dict[str, Any]:
    found = spread(handler(value), OF_CELL)
    return found | {"server": found["server"] or None}


def _of_figure(data: Any) -> Any:
    return gather(data)


def _of_cell(data: Any) -> Any:
    return gather(data, OF_CELL)


def _of_unit(data: Any) -> Any:
    return gather(data, _OF_UNIT)


StoredVerdict = Annotated[Verdict, BeforeValidator(_of_figure), WrapSerializer(_verdict)]
StoredWorks = Annotated[Works, BeforeValidator(_of_cell), WrapSerializer(_works)]
StoredDifference = Annotated[
    Difference, BeforeValidator(_of_cell), WrapSerializer(lambda it, to: spread(to(it), OF_CELL))
]
StoredProfile = Annotated[
    ProfileChange, BeforeValidator(_of_cell), WrapSerializer(lambda it, to: spread(to(it), OF_CELL))
]
StoredUnit = Annotated[UnitState, BeforeValidator(_of_unit), WrapSerializer(lambda it, to: spread(to(it), _OF_UNIT))]


class GateFile(BaseModel):
    """One gate: what it was asked for, how far it came, and its verdicts, the worst first.

    A gate may say more than is read here.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    version: int = Field(GATE_SCHEMA, alias="schema")
    finished: bool | None = Field(
        None, description="Whether the gate came to its end, rather than being at work or interrupted; null: not known."
    )
    package: str
    old: str
    new: str
    hardware: str
    device: str = ""
    created: str
    budget_seconds: float = 0.0
    seconds: float
    measuring_seconds: float = 0.0
    seed: int = 0
    environments: dict[str, dict[str, str]] = {}
    contents: dict[str, str] = {}
    interpreter: str = ""
    matrix: dict[str, Any] = Field({}, description="Cells, models, recipes and measurements, as the matrix had them.")
    differences: list[str] = []
    verdicts: list[StoredVerdict]
    compatibility: list[StoredWorks] = []
    kernels: list[StoredDifference] = []
    profiles: list[StoredProfile] = Field([], description="Milliseconds of each engine's kernels by phase and kind.")
    exit_status: int = Field(ge=0, le=3, description="0 pass, 1 regressed, 2 could not be judged, 3 inconclusive.")
    options: Options | None = None
    units: dict[str, StoredUnit] = {}
    command: str = Field("", description="The command that asks for this gate, as a shell takes it.")
    remarks: list[str] = Field([], description="What else is to be said: of acceptances that match nothing any more.")

    @property
    def title(self) -> str:
        interrupted = ", not finished" if self.finished is False else ""
        return f"{self.old} to {self.new} on {self.hardware}{interrupted}"

    def text(self) -> str:
        """Return the file's text, without credentials; a number that is not finite is null."""
        return json.dumps(cleaned(json_finite(self.model_dump(by_alias=True))), indent=1, allow_nan=False) + "\n"


VERDICT: TypeAdapter[Verdict] = TypeAdapter(StoredVerdict)
"""A verdict as gate.json holds it."""


def load(path: Path) -> GateFile:
    """Read a gate.json, or that of a gate's folder, of this or an older schema.

    Raises GateError naming the file: for a newer schema, for a number that is not finite or cannot have been measured,
    for a pass that its verdicts do not come to, and for what does not hold.
    """
    file = path / "gate.json" if is_folder(path) else path
    try:
        return parse(json_file(file, once=True), str(file))
    except OSError as error:
        raise GateError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise GateError(f"{file}: not JSON ({error})") from error


def parse(data: Any, where: str) -> GateFile:
    """Return decoded JSON as a gate; raises GateError, which names ``where``, as :func:`load` does."""
    for name, value in _numbers(data):
        if not math.isfinite(value):
            raise GateError(f"{where}: {name} is {value}: not a number that can be judged; run the gate anew")
        if problem := implausible([value]):
            raise GateError(f"{where}: {name}: {problem}; run the gate anew")
    try:
        found = GateFile.model_validate(migrate_gate(data))
    except ValidationError as error:
        first = error.errors()[0]
        raise GateError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GateError(f"{where}: {error}") from error
    for number, verdict in enumerate(found.verdicts):
        if problem := _disagreement(verdict):
            raise GateError(f"{where}: verdicts.{number}: {problem}; run the gate anew")
    if found.exit_status == 0 != (due := exit_status(found.verdicts)):
        raise GateError(f"{where}: exit_status: 0, a pass, and its verdicts come to {due}; run the gate anew")
    if found.finished is False and found.exit_status == 0:
        # Of older harnesses, which took what an interrupted gate had judged for all of it.
        return found.model_copy(update={"exit_status": EXIT["inconclusive"]})
    return found


def _disagreement(verdict: Verdict) -> str:
    """Return in which point a stored verdict disagrees with the metric table, or an empty text."""
    if verdict.metric in EVENTS and verdict.metric not in METRICS:
        said = (verdict.unit, verdict.direction)
        return (
            "" if said == ("", "none") else f"{verdict.metric} has neither unit nor direction, and {said} stands there"
        )
    return disagreement(verdict.metric, unit=verdict.unit, direction=verdict.direction) or misplaced(verdict.place)


def exit_status(verdicts: Iterable[Verdict], *, finished: bool = True) -> int:
    """Return 0 pass, 1 regressed, 2 could not be judged, 3 inconclusive: the worst of the primary verdicts.

    A gate without a single primary verdict has judged nothing: 2. A regression that was accepted fails no gate. One
    that is not ``finished`` is no pass, whatever it has judged.
    """
    found: set[str] = {"pass" if verdict.accepted else verdict.verdict for verdict in verdicts if verdict.primary}
    if not found:
        return EXIT["error"]
    worst = next(worst for worst in _WORST if worst in found)
    return EXIT["inconclusive" if worst == "pass" and not finished else worst]


def _numbers(data: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield every floating-point number of JSON with its dotted name."""
    if isinstance(data, float):
        yield name or "the whole file", data
    elif isinstance(data, (dict, list)):
        for key, part in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _numbers(part, f"{name}.{key}".strip("."))
