"""The record's schema, and an append-only store of records that survives a kill."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter

from harness.base.text import digest
from harness.records.migrations import SCHEMA_VERSION

Scalar = str | int | float | bool


class _Frozen(BaseModel):
    # Infinity and NaN are written as words, which are read again; as null they would break the line.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class ModelIdentity(_Frozen):
    """Which weights were measured."""

    name: str = Field(description="The model's name in the matrix, or what was given on the command line.")
    source: str = Field(description="hub:ID, package:REQUIREMENT, folder:NAME or random:SHAPE.")
    revision: str = Field(description="Commit of the hub, or a digest of the weights or of the shape and seed.")
    weights: Literal["pretrained", "random"] = Field(description="random weights never carry accuracy.")
    note: str = Field(
        default="", description="What a reader must know, e.g. that the source was already quantized once."
    )
    came_quantized: bool = Field(
        default=False, description="It is a quantized checkpoint as it is, of which no unquantized weights are known."
    )


class RecipeIdentity(_Frozen):
    """Which quantization was applied."""

    name: str
    hash: str = Field(description="Digest of the serialized configuration: the recipe's identity.")
    config: dict[str, Any] = Field(description="The configuration: class and arguments; empty for the baseline.")
    baseline: bool = False


class Device(_Frozen):
    """What the measurement ran on."""

    name: str
    vendor: str = Field(default="none", description="Vendor of the GPU: nvidia or amd; none where none was measured.")
    torch_device: str = Field(
        default="cpu", description="Torch's type of the device that models ran on; empty of what runs programs alone."
    )
    detail: dict[str, Scalar] = Field(default_factory=dict, description="Cores, memory, driver, and the like.")

    @property
    def makes_on(self) -> str:
        """Torch's type of the device that checkpoints for it are made on."""
        return self.torch_device or "cpu"


class Cell(_Frozen):
    """One model x recipe x hardware, on one server: what a record is about."""

    model: ModelIdentity
    recipe: RecipeIdentity
    hardware: str
    server: str = Field(description="transformers, vllm, sglang or executorch; empty where no server is involved.")
    gpus: int = Field(default=1, ge=1, description="GPUs that share its model (tensor parallel); 1 of a processor.")

    @property
    def on(self) -> str:
        """Its hardware in words, with how many GPUs of it share the model where they are several."""
        return f"{self.gpus} x {self.hardware}" if self.gpus > 1 else self.hardware


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
    python: str = Field(default="", description="Version of the Python that workers run in, as 3.12.4; empty before.")


class Measurement(_Line):
    """One metric of one cell with its raw samples and all that is needed to trust it."""

    kind: Literal["measurement"] = "measurement"
    metric: str
    unit: str
    direction: Literal["lower", "higher", "none"]
    definition: int = Field(description="Version of the metric's definition; see harness.records.metrics.")
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
    kept_from: str = Field(
        default="", description="The run that measured it, where that is another one; empty if this one did."
    )
    kept_time: FiniteFloat | None = Field(
        default=None, ge=0, le=_LAST_SECOND, description="When that run measured it, in seconds since the epoch."
    )
    discarded: str = Field(default="", description="Why the measurement must not be used; empty if it may.")
    disturbed: str = Field(
        default="", description="What the machine was doing besides, in spite of which the measurement stands."
    )

    @property
    def own(self) -> bool:
        """Whether its run measured it and it may be used."""
        return not (self.discarded or self.kept_from)


class Failure(_Line):
    """A stage that did not give a result, with the end of its log."""

    kind: Literal["failure"] = "failure"
    cell: Cell
    stage: str
    failure: str = Field(description="exception, refused, crash, timeout, out_of_memory, start or http.")
    message: str
    log_tail: str = ""
    worker: str = Field(default="", description="What failed: transformers, engine, server, client, quantize, ...")
    repeated: bool = Field(default=False, description="It had failed before in its session and was not tried again.")


class Judgement(_Line):
    """One threshold held against one measurement."""

    kind: Literal["judgement"] = "judgement"
    cell: Cell
    metric: str
    parameters: dict[str, Scalar] = Field(default_factory=dict)
    passed: bool
    noisy: bool = Field(
        default=False, description="The limit is within low to high: too noisy to say, so neither held nor failed."
    )
    measured: float = Field(description="The value, or its ratio to or difference from the baseline.")
    low: float | None = Field(default=None, description="What it may be at least, by its rounds; none where unknown.")
    high: float | None = Field(default=None, description="What it may be at most.")
    limit: float
    comparison: str = Field(description="max, min, max_ratio, min_ratio, max_difference or min_difference.")
    origin: str = Field(description="Where the limit comes from: published, stored baseline, or chosen.")
    published: float | None = None
    known: str = Field(default="", description="Why one that does not hold was expected to, as the matrix has it.")


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
    outcome: Literal["passed", "failed", "skipped", "xfailed", "noisy", "error"]
    seconds: float = Field(description="Wall time of the test with its set-up and tear-down.")
    reason: str = Field(default="", description="Why it was skipped, or the first line of what it failed with.")
    known: str = Field(default="", description="Why one that xfailed was expected to, as the matrix has it.")


Line = Annotated[Header | Measurement | Failure | Judgement | Timing | Outcome, Field(discriminator="kind")]


LINE: TypeAdapter[Line] = TypeAdapter(Line)
"""One line of a record file."""


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
