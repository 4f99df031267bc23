"""The place of a figure: what it is of, as one value that can be compared, hashed, written and told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, model_serializer, model_validator
from pydantic_core import CoreSchema, core_schema

from harness.base.text import digest
from harness.records.metrics import stage_of
from harness.records.schema import Cell, Failure, Judgement, Measurement, Scalar


class Parameters(Mapping[str, Scalar]):
    """A figure's parameters, in the order of their names; they can be hashed, and never change.

    Two are equal if they are the same JSON: 1, 1.0 and true are three different values, and NaN is itself.
    """

    __slots__ = ("_text", "_values")

    def __init__(self, values: Mapping[str, Scalar] | None = None) -> None:
        self._values = dict(sorted((values or {}).items()))
        self._text = json.dumps(self._values)

    def __getitem__(self, name: str) -> Scalar:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Mapping):
            return self._text == (other if isinstance(other, Parameters) else Parameters(other))._text
        return NotImplemented

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._values.items())

    def __repr__(self) -> str:
        return f"Parameters({self._values!r})"

    @property
    def text(self) -> str:
        """The parameters as JSON."""
        return self._text

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls,
            handler.generate_schema(dict[str, Scalar]),
            serialization=core_schema.plain_serializer_function_ser_schema(dict),
        )


NO_PARAMETERS = Parameters()


@dataclass(frozen=True, slots=True)
class Place:
    """What a figure is of: the key by which figures are found, paired, followed and compared.

    Two figures of one place are of the same thing, measured again: maybe under other packages, with other options or
    on another device, which a record holds beside. A part that is empty is not known, or does not matter.
    """

    model: str = ""
    revision: str = ""
    """That of the weights."""
    recipe: str = ""
    recipe_hash: str = ""
    """Digest of the configuration."""
    hardware: str = ""
    server: str = ""
    gpus: int = 1
    """GPUs that share the model; 1 of a processor."""
    stage: str = ""
    """One of harness.records.metrics.STAGES; empty for a metric that is not known there."""
    metric: str = ""
    definition: int = 0
    """Version of the metric's definition; 0 where there is none."""
    parameters: Parameters = NO_PARAMETERS

    @classmethod
    def of(cls, it: Measurement | Judgement | Failure | Cell) -> Place:
        """Return the place of a record, or of the cell alone that a failure or a record is of."""
        cell = it if isinstance(it, Cell) else it.cell
        metric, parameters, definition = "", NO_PARAMETERS, 0
        if isinstance(it, (Measurement, Judgement)):
            metric, parameters = it.metric, Parameters(it.parameters) if it.parameters else NO_PARAMETERS
            definition = it.definition if isinstance(it, Measurement) else 0
        return cls(
            model=cell.model.name,
            revision=cell.model.revision,
            recipe=cell.recipe.name,
            recipe_hash=cell.recipe.hash,
            hardware=cell.hardware,
            server=cell.server,
            gpus=cell.gpus,
            stage=(metric and stage_of(metric, cell.server, parameters)) or "",
            metric=metric,
            definition=definition,
            parameters=parameters,
        )

    def at(self, metric: str, parameters: Mapping[str, Scalar] | None = None, definition: int = 0) -> Place:
        """Return the place of a metric of the same cell, at the stage that gives it."""
        return replace(
            self,
            stage=stage_of(metric, self.server, parameters or {}) or "",
            metric=metric,
            definition=definition,
            parameters=Parameters(parameters),
        )

    @property
    def cell(self) -> Place:
        """The model, recipe, hardware, server and number of GPUs alone."""
        return self.without("stage", "metric", "definition", "parameters")

    @property
    def named(self) -> Place:
        """The place by its names: what tells weights, configurations and definitions of one name apart is left out."""
        return self.without("revision", "recipe_hash", "definition")

    def without(self, *names: str) -> Place:
        """Return the place with these parts left empty, so that places which differ in nothing else are equal.

        Raises TypeError for a name that is no part of a place.
        """
        if unknown := set(names) - _EMPTY.keys():
            raise TypeError(f"a place has no {', '.join(sorted(unknown))}; it has {', '.join(_EMPTY)}")
        return replace(self, **{name: _EMPTY[name] for name in names})

    def without_parameters(self, *names: str) -> Place:
        """Return the place without these parameters, where it has them."""
        kept = {name: value for name, value in self.parameters.items() if name not in names}
        return replace(self, parameters=Parameters(kept))

    @property
    def digest(self) -> str:
        """A digest of all its parts."""
        parts = [getattr(self, name) for name in _EMPTY if name != "parameters"]
        return digest([*parts, self.parameters.text])

    def __str__(self) -> str:
        """Tell a figure, as in ``latency (batch_size=1) of SmolLM2/int8wo/vllm on cpu``; nothing is read back."""
        shown = f"{self.metric} ({self.parameters})" if self.parameters else self.metric
        cell = "/".join(filter(None, (self.model, self.recipe, self.server)))
        where = " ".join(filter(None, (f"{self.gpus} x" if self.gpus > 1 else "", self.hardware)))
        return " ".join(filter(None, (shown, f"of {cell}" if cell and shown else cell, f"on {where}" if where else "")))


_EMPTY: dict[str, Any] = {field.name: field.default for field in fields(Place)}


def subject_of(it: Measurement) -> tuple[Place, str, str]:
    """Return what one set of tables is about: a model on a hardware, which kind of weights, and the device's name."""
    return Place.of(it.cell).without("recipe", "recipe_hash", "server", "gpus"), it.cell.model.weights, it.device.name


def figure_of(it: Measurement) -> tuple[Place, str, str]:
    """Return what a figure of a table is of: its place, with the unit and direction that it is told in."""
    return Place.of(it), it.unit, it.direction


def row_of(it: Measurement) -> tuple[Place, str, str]:
    """Return what the figures in one row of a table have in common, and what is compared: all but the recipe."""
    place, unit, direction = figure_of(it)
    return place.without("recipe", "recipe_hash"), unit, direction


PARTS: tuple[str, ...] = tuple(_EMPTY)
"""The names of a place's parts."""

OF_CELL = PARTS[: PARTS.index("stage")]
"""Those of a cell alone."""


def gather(data: Any, parts: Sequence[str] = PARTS) -> Any:
    """Return JSON in which parts of a place stand beside the rest with these under ``place``; null is empty."""
    if not isinstance(data, dict) or "place" in data:
        return data
    rest = {name: value for name, value in data.items() if name not in parts}
    return rest | {"place": {name: data[name] for name in parts if data.get(name) is not None}}


def spread(data: dict[str, Any], parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Return JSON whose ``place`` stands beside the rest, as :func:`gather` takes it; one GPU is not told of."""
    place = data["place"]
    shown = [name for name in parts if name != "gpus" or place[name] != 1]
    return {name: place[name] for name in shown} | {name: it for name, it in data.items() if name != "place"}


class Placed(BaseModel):
    """What is said of one place; in JSON the place's parts stand beside the rest, those that are empty too."""

    place: Place

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        return gather(data)

    @model_serializer(mode="wrap")
    def _spread(self, handler: Any) -> dict[str, Any]:
        return spread(handler(self))
