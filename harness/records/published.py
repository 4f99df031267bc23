"""The published figures as data: loads, validates and finds them, each with the place it was published in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.base import shipped
from harness.base.errors import HarnessError
from harness.base.reading import json_file
from harness.records.metrics import METRICS
from harness.records.schema import Scalar
from harness.records.stored import LARGEST, disagreement


class DocumentedError(HarnessError):
    """A file of published figures cannot be used; the message names the file and the key."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Figure(_Frozen):
    """One published number. ``model``, ``hardware``, ``device`` and ``publication`` come from its file's head."""

    model: str
    recipe: str
    hardware: str = Field(description="The hardware's marker, e.g. cpu or arm-mobile.")
    device: str = Field(description="The machine as published, e.g. iPhone 15 Pro.")
    server: str = Field("", description="What it was measured through; empty if not published.")
    metric: str = Field(description="A name of harness.records.metrics.METRICS.")
    parameters: dict[str, Scalar] = Field(default_factory=dict)
    value: float = Field(gt=0, le=LARGEST)
    text: str = Field(description="The number with the digits it was published with; '~' before it if approximate.")
    unit: str = Field(description="That of the metric.")
    publication: str
    section: str = Field(description="The publication's section that states it.")
    environment: dict[str, str] = Field(default_factory=dict, description="Variables that the publication set for it.")

    @property
    def source(self) -> str:
        """Publication and section."""
        return f"{self.publication}, {self.section}"

    @property
    def digits(self) -> str:
        """The published number without a mark of approximation."""
        return self.text.removeprefix("~")

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if problem := disagreement(self.metric, unit=self.unit):
            raise ValueError(problem)
        if unknown := set(self.parameters) - set(METRICS[self.metric].parameters):
            raise ValueError(f"{self.metric} has no parameter {', '.join(sorted(unknown))}")
        try:
            same = float(self.digits) == self.value
        except ValueError:
            same = False
        if not same:
            raise ValueError(f"text {self.text!r} is not the value {self.value!r}; write the digits as published")
        return self


class Bound(_Frozen):
    """A published limit rather than a number, e.g. accuracy within 5-10 % of the original's."""

    recipe: str
    metric: str
    largest_loss_percent: tuple[float, float] = Field(description="Published range, in percent of the baseline.")
    text: str = Field(description="As published.")
    section: str

    @model_validator(mode="after")
    def _holds(self) -> Self:
        if problem := disagreement(self.metric):
            raise ValueError(problem)
        least, most = self.largest_loss_percent
        if not 0 <= least <= most <= 100:
            raise ValueError(f"largest_loss_percent {least:g} to {most:g} is no range of per cent")
        return self


class Remark(_Frozen):
    """What a reader of the figures of some metrics must know of how they came about."""

    metrics: list[str]
    text: str

    @model_validator(mode="after")
    def _known(self) -> Self:
        for metric in self.metrics:
            if problem := disagreement(metric):
                raise ValueError(problem)
        return self


class Publication(_Frozen):
    """One file: what one publication says of one model on one device."""

    schema_version: Literal[1]
    publication: str
    url: str
    model: str = Field(description="The model's name as published; it labels the columns of tables.")
    aliases: list[str] = Field(default_factory=list, description="Other names it goes by here, e.g. its hub id.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="What the published table calls the baseline where that differs, by table."
    )
    hardware: str
    device: str
    figures: list[Figure]
    bounds: list[Bound] = Field(default_factory=list)
    remarks: list[Remark] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Hand the file's head on to each figure, so that a figure says by itself what it is of."""
        if not isinstance(data, dict) or not isinstance(data.get("figures"), list):
            return data
        head = {key: data[key] for key in ("model", "hardware", "device", "publication") if key in data}
        figures = [head | figure if isinstance(figure, dict) else figure for figure in data["figures"]]
        return data | {"figures": figures}

    def is_of(self, model: str) -> bool:
        """Whether ``model`` is a name of this publication's model; case does not matter."""
        return model.casefold() in {name.casefold() for name in (self.model, *self.aliases)}


class Documented:
    """Every published figure that the project knows."""

    def __init__(self, publications: Iterable[Publication] = ()) -> None:
        self.publications = tuple(publications)

    @classmethod
    def load(cls, folder: Path | None = None) -> Documented:
        """Read every ``*.json`` of ``folder``, or of the project's ``results/documented``.

        The project is the one this package lies in, else the working directory. Raises DocumentedError, naming file
        and key, for a folder that is not there, a file that does not hold, and a figure that stands in two files.
        """
        folder = folder if folder is not None else _project_folder()
        if not folder.is_dir():
            raise DocumentedError(f"no folder of published figures at {folder}; name the one to use")
        files = {path: _read(path) for path in sorted(folder.glob("*.json"))}
        _refuse_doubles(files)
        return cls(files.values())

    def find(
        self,
        model: str,
        recipe: str,
        hardware: str,
        metric: str,
        parameters: Mapping[str, Scalar] | None = None,
        *,
        server: str | None = None,
    ) -> Figure | None:
        """Return the published figure, or None where nothing was published.

        All of the figure's own parameters must be equal in ``parameters``, which may hold more. ``server``, if given,
        must be the one that the figure was published for.
        """
        for figure in self.figures(model, recipe, hardware):
            of_server = server is None or figure.server in ("", server)
            if figure.metric == metric and of_server and _covers(parameters or {}, figure.parameters):
                return figure
        return None

    def figures(self, model: str, recipe: str, hardware: str) -> Iterator[Figure]:
        """Yield all that was published of one cell."""
        for publication in self.publications:
            if publication.hardware == hardware and publication.is_of(model):
                yield from (figure for figure in publication.figures if figure.recipe == recipe)

    def bounds(self, model: str, recipe: str, metric: str) -> list[Bound]:
        """Return the published limits of ``metric``, whatever hardware they were published with."""
        return [
            bound
            for publication in self.publications
            if publication.is_of(model)
            for bound in publication.bounds
            if bound.recipe == recipe and bound.metric == metric
        ]

    def remarks(self, model: str, hardware: str, metric: str) -> list[str]:
        """Return what a reader of the published figures of ``metric`` must know."""
        return [
            remark.text
            for publication in self.publications
            if publication.hardware == hardware and publication.is_of(model)
            for remark in publication.remarks
            if metric in remark.metrics
        ]

    def label(self, model: str, hardware: str, table: str = "") -> str:
        """Return what the published ``table`` calls the model on ``hardware``; else ``model`` itself."""
        for publication in self.publications:
            if publication.hardware == hardware and publication.is_of(model):
                return publication.labels.get(table, publication.model)
        return model

    def definition(self, metric: str) -> dict[str, list[Scalar]]:
        """Return the values that each parameter of ``metric`` has among the published figures, ascending."""
        values: dict[str, set[Scalar]] = {}
        for publication in self.publications:
            for figure in publication.figures:
                if figure.metric == metric:
                    for name, value in figure.parameters.items():
                        values.setdefault(name, set()).add(value)
        return {name: sorted(known, key=_order) for name, known in values.items()}


def _project_folder() -> Path:
    candidates = (shipped.documented(), Path.cwd() / "results" / "documented")
    return next((path for path in candidates if path.is_dir()), shipped.documented())


def _read(path: Path) -> Publication:
    try:
        return Publication.model_validate(json_file(path, once=True))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise DocumentedError(f"{path}: {key}: {first['msg']}") from error
    except OSError as error:
        raise DocumentedError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DocumentedError(f"{path}: not JSON ({error})") from error


def _refuse_doubles(files: Mapping[Path, Publication]) -> None:
    seen: dict[object, Path] = {}
    for path, publication in files.items():
        for number, figure in enumerate(publication.figures):
            of = (publication.model.casefold(), figure.recipe, figure.hardware, figure.server, figure.metric)
            key = (of, frozenset(figure.parameters.items()))
            if key in seen:
                raise DocumentedError(f"{path}: figures.{number}: {seen[key].name} states this figure too; keep one")
            seen[key] = path


def _covers(asked: Mapping[str, Scalar], own: Mapping[str, Scalar]) -> bool:
    return all(name in asked and asked[name] == value for name, value in own.items())


def _order(value: Scalar) -> tuple[bool, str | float]:
    return (True, value) if isinstance(value, str) else (False, float(value))
