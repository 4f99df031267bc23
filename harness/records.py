"""The record's schema, and an append-only store of records that survives a kill."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from harness.errors import RecordError
from harness.migrations import SCHEMA_VERSION, migrate

Scalar = str | int | float | bool


class _Frozen(BaseModel):
    # Infinity and NaN are written as words, which are read again; as null they would break the line.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


# How the note of a model begins whose weights were quantized before it was measured.
CAME_QUANTIZED = "came quantized, with "


class ModelIdentity(_Frozen):
    """Which weights were measured."""

    name: str = Field(description="The model's name in the matrix, or what was given on the command line.")
    source: str = Field(description="hub:ID, package:REQUIREMENT, folder:NAME or random:SHAPE.")
    revision: str = Field(description="Commit of the hub, or a digest of the weights or of the shape and seed.")
    weights: Literal["pretrained", "random"] = Field(description="random weights never carry accuracy.")
    note: str = Field(
        default="", description="What a reader must know, e.g. that the source was already quantized once."
    )

    @property
    def came_quantized(self) -> bool:
        """Whether what was measured is a quantized checkpoint as it is, and no unquantized weights are known."""
        return self.note.startswith(CAME_QUANTIZED)


class RecipeIdentity(_Frozen):
    """Which quantization was applied."""

    name: str
    hash: str = Field(description="Digest of the serialized configuration: the recipe's identity.")
    config: dict[str, Any] = Field(description="The configuration: class and arguments; empty for the baseline.")
    baseline: bool = False


class Device(_Frozen):
    """What the measurement ran on."""

    name: str
    detail: dict[str, Scalar] = Field(default_factory=dict, description="Cores, memory, driver, and the like.")


class Cell(_Frozen):
    """One model x recipe x hardware, on one server: what a record is about."""

    model: ModelIdentity
    recipe: RecipeIdentity
    hardware: str
    server: str = Field(description="transformers, vllm, sglang or executorch; empty where no server is involved.")


# The last second of the year 9999: what comes later has no date in the calendar of Python or of most databases.
_LAST_SECOND = 253_402_300_799


class _Line(_Frozen):
    schema_version: int = SCHEMA_VERSION
    time: FiniteFloat = Field(
        default_factory=time.time,
        ge=0,
        le=_LAST_SECOND,
        description="Seconds since the epoch when the line was written; at most the end of the year 9999.",
    )


class Header(_Line):
    """First line of a run, repeated when a run is resumed: how it was started and in what."""

    kind: Literal["header"] = "header"
    run: str
    command: list[str]
    packages: dict[str, str] = Field(description="Every installed distribution of the planner's environment.")
    device: Device
    harness: str = Field(default="", description="Version of the harness, with its commit where it is a checkout.")


class Measurement(_Line):
    """One metric of one cell with its raw samples and all that is needed to trust it."""

    kind: Literal["measurement"] = "measurement"
    metric: str
    unit: str
    direction: Literal["lower", "higher", "none"]
    definition: int = Field(description="Version of the metric's definition; see harness.metrics.")
    parameters: dict[str, Scalar] = Field(default_factory=dict, description="E.g. batch_size, num_prompts, task.")
    value: FiniteFloat
    samples: list[FiniteFloat] = Field(
        default_factory=list, description="Raw samples behind the value, in the metric's unit."
    )
    warmup: list[FiniteFloat] = Field(default_factory=list, description="Samples taken before, not counted.")
    statistics: dict[str, FiniteFloat] = Field(default_factory=dict, description="Further figures, e.g. p99 or stderr.")
    cell: Cell
    packages: dict[str, str] = Field(description="Versions of what decides the result, in the worker's environment.")
    device: Device
    flags: dict[str, Scalar] = Field(default_factory=dict, description="Options and environment of engine or server.")
    state_before: dict[str, Scalar] = Field(default_factory=dict)
    state_after: dict[str, Scalar] = Field(default_factory=dict)
    attachment: str = Field(
        default="", description="File beside the records with bulky detail, e.g. per-document results."
    )
    from_cache: bool = Field(
        default=False, description="Reused from the artifact of an identical, deterministic evaluation."
    )
    discarded: str = Field(default="", description="Why the measurement must not be used; empty if it may.")


class Failure(_Line):
    """A stage that did not give a result, with the end of its log."""

    kind: Literal["failure"] = "failure"
    cell: Cell
    stage: str
    failure: str = Field(description="exception, crash, timeout, out_of_memory, start or http.")
    message: str
    log_tail: str = ""


class Judgement(_Line):
    """One threshold held against one measurement."""

    kind: Literal["judgement"] = "judgement"
    cell: Cell
    metric: str
    parameters: dict[str, Scalar] = Field(default_factory=dict)
    passed: bool
    measured: float = Field(description="The value, or its ratio to or difference from the baseline.")
    limit: float
    comparison: str = Field(description="max, min, max_ratio, min_ratio, max_difference or min_difference.")
    origin: str = Field(description="Where the limit comes from: published, stored baseline, or chosen.")
    published: float | None = None


class Timing(_Line):
    """Where the session's time went: one stage of one cell."""

    kind: Literal["timing"] = "timing"
    cell: Cell | None = None
    stage: str = Field(description="setup, quantize, export, engine start, compile, measure, evaluate or idle.")
    seconds: float


class Outcome(_Line):
    """One test of the suites as it ended: what a later session's estimate of the time left is made of."""

    kind: Literal["outcome"] = "outcome"
    test: str = Field(description="File, test and parameters, e.g. test_engine.py::test_latency[cell-8].")
    cell: Cell | None = None
    outcome: Literal["passed", "failed", "skipped", "xfailed", "error"]
    seconds: float = Field(description="Wall time of the test with its set-up and tear-down.")
    reason: str = Field(default="", description="Why it was skipped, or the first line of what it failed with.")
    known: str = Field(default="", description="Why one that xfailed was expected to, as the matrix has it.")


Line = Annotated[Header | Measurement | Failure | Judgement | Timing | Outcome, Field(discriminator="kind")]
_LINE: TypeAdapter[Line] = TypeAdapter(Line)


def identity(measurement: Measurement) -> str:
    """Return a digest of everything that makes two measurements the same measurement.

    Time, values and machine state are left out: two records with one identity are repeats of each other.
    """
    parts = {
        "metric": measurement.metric,
        "definition": measurement.definition,
        "parameters": measurement.parameters,
        "cell": measurement.cell.model_dump(),
        "packages": measurement.packages,
        "device": measurement.device.name,
        "flags": measurement.flags,
    }
    return digest(parts)


def describe(it: Measurement | Judgement) -> str:
    """Return a metric with its parameters, as errors name it."""
    if not it.parameters:
        return it.metric
    parameters = ", ".join(f"{name}={value}" for name, value in it.parameters.items())
    return f"{it.metric} ({parameters})"


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# With an ending and a number it stays below the 255 bytes that file systems take.
_LONGEST_NAME = 200


def file_name(text: str) -> str:
    """Return a text as the name of a file: what systems do not take is replaced, and a long one ends in its digest."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", text)
    return plain if len(plain) <= _LONGEST_NAME else f"{plain[: _LONGEST_NAME - 17]}-{digest(text)}"


TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
_REMOVED = "[token removed]"
_SECRET = re.compile(r"hf_[A-Za-z0-9]{20,}|(?<=[Bb]earer )(?!\[token removed\])\S+")

_ROOT = re.escape(f"{Path(__file__).resolve().parents[1]}/")
_WHERE = re.compile(rf'(?<=File ")(?:[^"\n]*/(?:site|dist)-packages/|{_ROOT})')


def redact(text: str, *secrets: str) -> str:
    """Return ``text`` with hub tokens, bearer credentials and ``secrets`` replaced, as every log tail must be.

    The user's home folder becomes ``~``, and a traceback's files are named from where Python finds them: where either
    lies is nobody else's business.
    """
    for token in (*secrets, *(os.environ.get(name) for name in TOKENS)):
        if token:
            text = text.replace(token, _REMOVED)
    return _SECRET.sub(_REMOVED, _home().sub("~", _WHERE.sub("", text)))


def _home() -> re.Pattern[str]:
    home = os.path.expanduser("~").rstrip("/")
    return re.compile(rf"(?<![\w.~/-]){re.escape(home)}(?![\w.-])" if home.count("/") else r"(?!)")


class Run:
    """A run's folder: ``records.jsonl``, the workers' logs and attachments.

    Lines are only ever appended, each flushed and fsynced before :meth:`append` returns, so that what was
    measured stays whatever happens next.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "records.jsonl"
        self.logs = folder / "logs"
        self.attachments = folder / "attachments"
        # Told of every line once it is on the disk.
        self.written: Callable[[Line], object] = lambda line: None

    @property
    def name(self) -> str:
        return self.folder.name

    @classmethod
    def create(cls, root: Path) -> Run:
        """Make a new run folder under ``root``, named by the time in UTC; RecordError says why there can be none."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        for attempt in range(100):
            folder = root / (stamp if not attempt else f"{stamp}-{attempt}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise RecordError(f"{root}: no run can be kept there ({error.strerror})") from error
            return cls(folder)
        raise RecordError(f"no free run folder under {root} for {stamp}")

    @classmethod
    def open(cls, root: Path, name: str) -> Run:
        """Return the run called ``name`` (or ``last``, or a path to a run folder or its records file)."""
        path = Path(name)
        if path.is_file():
            path = path.parent
        if (path / "records.jsonl").is_file():
            return cls(path)
        runs = sorted(entry.parent for entry in root.glob("*/records.jsonl"))
        if name == "last" and runs:
            return cls(runs[-1])
        if (root / name / "records.jsonl").is_file():
            return cls(root / name)
        names = ", ".join(run.name for run in runs[-5:]) or "none yet"
        raise RecordError(f"no run {name!r} under {root}; the latest are: {names}")

    def append(self, line: Line) -> None:
        """Append one line and wait until it is on the disk.

        Raises RecordError when the disk refuses it; a half-written line is cut off again, so that the file
        keeps whole lines only.
        """
        data = (line.model_dump_json(exclude_defaults=False) + "\n").encode()
        with _kept(self.path, "a record"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                start = file.seek(0, os.SEEK_END)
                if start and not _ends_whole(self.path):
                    data = b"\n" + data
                try:
                    while data:
                        data = data[file.write(data) :]
                    os.fsync(file.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        os.truncate(self.path, start)
                    raise
        self.written(line)

    def read(self) -> tuple[list[Line], list[str]]:
        """Return every whole line of the run and a message for each line that could not be read."""
        return read(self.path)

    def lines(self) -> Iterator[Line]:
        """Yield every whole line, passing over broken ones."""
        yield from self.read()[0]

    def attach(self, name: str, data: Mapping[str, Any] | list[Any]) -> str:
        """Write bulky detail beside the records and return its path relative to the run folder.

        Raises RecordError when the disk refuses it; nothing half-written is left behind.
        """
        target = self.attachments / f"{file_name(name)}.json"
        temporary = target.with_suffix(".tmp")
        with _kept(target, "an attachment"):
            self.attachments.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(json.dumps(data), encoding="utf-8")
                os.replace(temporary, target)
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
        return str(target.relative_to(self.folder))


@contextlib.contextmanager
def _kept(path: Path, what: str) -> Iterator[None]:
    """Turn what the disk says while ``what`` is written into an error that says how to go on."""
    try:
        yield
    except OSError as error:
        raise RecordError(
            f"{path}: cannot write {what} ({error.strerror}); what was recorded before is kept. "
            "Free some space and go on with --resume."
        ) from error


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read(path: Path) -> tuple[list[Line], list[str]]:
    """Read a record file: every whole line, and a message naming each line that is broken.

    A line of a newer schema raises RecordError by name, since leaving it out in silence would change a table.
    """
    lines: list[Line] = []
    problems: list[str] = []
    for number, _, raw in raw_lines(path):
        try:
            lines.append(parse(raw, f"{path}, line {number}"))
        except BrokenLine as error:
            problems.append(str(error))
    return lines, problems


def raw_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number (from 1), the offset in bytes and the bytes of each line that is not blank."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield number, offset, raw
            offset += len(raw)


class BrokenLine(RecordError):
    """A line of a record file is not a record; the message says where and why."""


def parse(raw: bytes, where: str) -> Line:
    """Return one line of a record file, brought to today's schema.

    Raises BrokenLine, which names ``where``, for what is no record, and RecordError for a line of a newer schema,
    since leaving it out in silence would change a table.
    """
    try:
        return _LINE.validate_python(migrate(json.loads(raw), where))
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenLine(f"{where}: left out, {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"key {error} is missing"
    return f"not a whole JSON record ({error})"
