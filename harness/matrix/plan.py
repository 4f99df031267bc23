"""matrix.toml -> models, recipes, cells, measurements and thresholds, checked, with the line at fault in the error."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.base.errors import MatrixError, nearest
from harness.base.files import is_folder
from harness.contract.quantized import BY_NAME
from harness.matrix.arithmetic import OF_ARITHMETIC
from harness.matrix.config_text import parse_config
from harness.matrix.hardware import Hardware
from harness.matrix.measurements import Measurements
from harness.matrix.schema import CellEntry, Model, Recipe, TaskOptions, Threshold
from harness.matrix.several import listed_baseline, on_gpus, too_many
from harness.matrix.workload import Workload
from harness.records.metric import STAGES
from harness.records.place import Place


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

    ``gpus`` is how many GPUs share the model, each layer's weights cut into as many parts (tensor parallel).
    ``servers`` are all that the matrix sends it through, each with what is done there.
    """

    model: Model
    recipe: Recipe
    hardware: Hardware
    server: str
    servers: Mapping[str, Through]
    measurements: Measurements
    skip: str = ""
    gpus: int = 1
    no_baseline: str = ""
    """Why the matrix has no baseline that it could be held against; empty where it has one."""

    def refusal(self, server: str) -> str:
        """Return why the matrix does not send it through a server, or an empty string if it does."""
        listed = self.servers[server].skip if server in self.servers else ""
        return self.skip or listed or self.recipe.refusal(self.hardware, server)

    @property
    def kernels(self) -> str:
        """What the names of the recipe's own kernels match on its hardware; empty if none are known."""
        return self.hardware.pick(self.recipe.kernels) or ""

    @property
    def place(self) -> Place:
        """The cell as figures have it; which weights they are of is known once these are here."""
        recipe = self.recipe.identity
        return Place(
            model=self.model.name,
            recipe=recipe.name,
            recipe_hash=recipe.hash,
            hardware=self.hardware.name,
            server=self.server,
            gpus=self.gpus,
        )

    @property
    def base(self) -> Place:
        """The cell without its server: what one checkpoint is made for."""
        return self.place.without("server")

    @property
    def id(self) -> str:
        parts = [self.model.name, self.recipe.name, self.hardware.name]
        parts += [f"{self.gpus}gpus"] if self.gpus > 1 else []
        return "-".join([*parts, self.server] if self.server else parts)


@dataclass(frozen=True)
class Matrix:
    """The whole of matrix.toml. ``groups`` are the names of groups, ``servers`` all that a cell may be sent through.

    ``asked`` is how a command line wants all tasks asked, ``trust_remote_code`` whether the code of models that it
    names by folder or hub id may be run, ``merge_adapter`` whether the adapters beside them are merged into them.
    """

    path: Path
    models: dict[str, Model]
    recipes: dict[str, Recipe]
    hardware: dict[str, Hardware]
    groups: tuple[str, ...]
    entries: list[CellEntry]
    measurements: dict[str, Measurements]
    thresholds: list[Threshold]
    servers: tuple[str, ...]
    workloads: dict[str, Workload] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    """What was set otherwise than the matrix itself, or the one that it extends, has it."""
    tasks: dict[str, TaskOptions] = field(default_factory=dict)
    asked: TaskOptions = field(default_factory=TaskOptions)
    trust_remote_code: bool = False
    merge_adapter: bool = False
    pass_env: tuple[str, ...] = ()
    """Names of environment variables that workers get beside those that they need."""

    def task_options(self, name: str) -> TaskOptions:
        """Return how a task is asked: as its table has it, and as the command line has it beyond that."""
        return self.tasks.get(name, TaskOptions()) | self.asked

    @property
    def baseline(self) -> Recipe:
        return next(recipe for recipe in self.recipes.values() if recipe.baseline)

    def entry_of(self, vendor: str, product: str) -> Hardware | None:
        """Return the entry that is for what a vendor's driver calls ``product``; MatrixError if several are."""
        fitting = [it for it in self.hardware.values() if it.vendor == vendor and it.fits(product)]
        if len(fitting) > 1:
            entries = " and ".join(f"hardware.{it}" for it in fitting)
            raise MatrixError(f"{self.path}: {entries} both match {product!r}, the GPU here; only one may")
        return next(iter(fitting), None)

    def with_hardware(self, hardware: Hardware) -> Matrix:
        """Return the matrix with one more entry, if anything is measured on it: by its groups, or by its name."""
        if hardware.pick(self.measurements) is None:
            return self
        return replace(self, hardware={**self.hardware, hardware.name: hardware})

    @property
    def markers(self) -> dict[str, str]:
        """The names of hardware and groups, by which ``-m`` selects, with what they mean."""
        groups = {name: f"whichever is here of {', '.join(map(str, self.members(name)))}" for name in self.groups}
        return {name: it.meaning for name, it in self.hardware.items()} | groups

    def members(self, name: str) -> list[Hardware]:
        """Return the hardware of that name, or all that belongs to the group of that name, in the order of the file."""
        if name in self.hardware:
            return [self.hardware[name]]
        if name in self.groups:
            return [it for it in self.hardware.values() if name in it.groups]
        known = nearest(name, [*self.hardware, *self.groups])
        raise MatrixError(f"{name!r} is no hardware of {self.path.name}; {known}")

    def model(self, given: str) -> Model:
        """Return the model that a command line names: one of the matrix, a folder, or a hub id."""
        if given in self.models:
            return self.models[given]
        folder = Path(given)
        if is_folder(folder):
            return self._named(Model(name=folder.resolve().name, folder=str(folder.resolve())))
        if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", given) and not given.startswith((".", "/")):
            return self._named(Model(name=given.split("/")[1], hub=given))
        raise MatrixError(
            f"--model {given!r} is neither a model of {self.path.name}, nor a folder, nor a hub id (owner/name); "
            + nearest(given, self.models)
        )

    def workload(self, given: str) -> Workload:
        """Return the workload that a command line names; MatrixError with the nearest if there is none."""
        if given not in self.workloads:
            raise MatrixError(
                f"--workload {given!r} is no workload of {self.path.name}; {nearest(given, self.workloads)}"
            )
        return self.workloads[given]

    def _named(self, model: Model) -> Model:
        """Return a model that a command line names, with what it asks of such models."""
        asked = {"trust_remote_code": self.trust_remote_code, "merge_adapter": self.merge_adapter}
        return model.model_copy(update=asked)

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
                servers=list(self.servers),
            )
        if (written := re.match(r"\s*(\w+)\s*\(", given)) and not written[1].endswith("Config"):
            configs = {recipe.config for recipe in self.recipes.values() if recipe.config}
            told = f"--recipe {given!r}: {written[1]!r} is no config of torchao, whose names end with Config; "
            raise MatrixError(told + nearest(written[1], configs))
        raise MatrixError(
            f"--recipe {given!r} is neither a recipe of {self.path.name} nor a torchao config such as "
            f"'Int8WeightOnlyConfig(granularity=PerGroup(32))'; " + nearest(given, self.recipes)
        )

    def cells(
        self,
        models: list[str] | None = None,
        recipes: list[str] | None = None,
        on: Mapping[str, Collection[str]] | None = None,
        gpus: Mapping[str, Sequence[int]] | None = None,
    ) -> list[Cell]:
        """Return the cells to run, baseline first for each model, not yet through a server.

        ``models`` and ``recipes`` replace those of the matrix. Alone, each keeps to the [[cells]] tables that list it,
        and goes through all of a hardware where none does. A model and a recipe that were both asked for run together
        on every hardware, through the servers of the tables that list both, or else the model, or else the recipe, or
        else through all. The baseline is always among the recipes, since ratios need it.

        A table that is ``on_request`` counts only for ``models`` that it lists.

        ``on`` names for each group those of its members that are meant, which are all if it is left out. ``gpus`` are
        the numbers of GPUs that share a model by the recipe's name, or for all others by an empty one, in place of what
        the tables say. A baseline that tables list runs on as many GPUs as they say, and is added on no others: where
        it needs two, a recipe that needs one is on one by itself.
        """
        chosen: dict[tuple[str, str, str, int], Cell] = {}
        placed = [
            (entry, hardware)
            for entry, hardware in self._placed(on)
            if not entry.on_request or set(models or ()) & set(entry.models)
        ]
        for entry, hardware in placed:
            for model in self._models(entry, hardware, models, together=recipes is not None):
                entry_recipes = self._recipes(entry, hardware, recipes, model if models is not None else None)
                if not entry_recipes:
                    continue
                if all(not recipe.baseline for recipe in entry_recipes):
                    entry_recipes.insert(0, self.baseline)
                entry_recipes.sort(key=lambda recipe: not recipe.baseline)
                listed = listed_baseline(placed, entry, hardware, model, self.baseline.name)
                for recipe, number in on_gpus(entry_recipes, entry.gpus or model.gpus, gpus or {}, listed):
                    key = (hardware.name, model.name, recipe.name, number)
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
                        hardware=hardware,
                        server="",
                        servers={**before, **here},
                        measurements=self.measured_on(hardware),
                        skip=recipe.refusal(hardware) or too_many(hardware, number),
                        gpus=number,
                    )
        bases = {(cell.hardware.name, cell.model.name, cell.gpus) for cell in chosen.values() if cell.recipe.baseline}
        return [
            cell
            if cell.recipe.baseline or (cell.hardware.name, cell.model.name, cell.gpus) in bases
            else replace(cell, no_baseline=f"no {self.baseline.name} runs on as many GPUs ({cell.gpus})")
            for cell in chosen.values()
        ]

    def measured_on(self, hardware: Hardware) -> Measurements:
        """Return what is measured on a hardware: by a table of its own, or of a group that it belongs to."""
        found = hardware.pick(self.measurements)
        if found is None:
            raise MatrixError(f"{self.path}: there is no [measurements.{hardware.name}], nor one of a group of it")
        return found

    def _placed(self, on: Mapping[str, Collection[str]] | None) -> Iterator[tuple[CellEntry, Hardware]]:
        for entry in self.entries:
            for hardware in self.members(entry.hardware):
                if on is None or entry.hardware not in on or hardware.name in on[entry.hardware]:
                    yield entry, hardware

    def _models(self, entry: CellEntry, on: Hardware, given: list[str] | None, *, together: bool) -> list[Model]:
        """Return the models of one [[cells]] table, or those of the given ones that may belong to it."""
        if given is None:
            return [self.models[name] for name in entry.models]
        found = [self.model(name) for name in given]
        return found if together else [it for it in found if self._belongs(entry, on, model=it.name)]

    def _recipes(self, entry: CellEntry, on: Hardware, given: list[str] | None, model: Model | None) -> list[Recipe]:
        """Return the recipes of one [[cells]] table, or those of the given ones that belong to it and the model."""
        if given is None:
            return [self.recipes[name] for name in entry.recipes]
        found = [self.recipe(name) for name in given]
        name = model.name if model else ""
        return [it for it in found if self._belongs(entry, on, model=name, recipe=it.name)]

    def _belongs(self, entry: CellEntry, on: Hardware, *, model: str = "", recipe: str = "") -> bool:
        """Return whether a table is of those of a hardware that fit best what was asked for."""
        here = [other for other in self.entries if on.is_of((other.hardware,))]
        for names in ({"model": model, "recipe": recipe}, {"model": model}, {"recipe": recipe}):
            wanted = {kind: name for kind, name in names.items() if name}
            fitting = [other for other in here if wanted and _lists(other, **wanted)]
            if fitting:
                return entry in fitting
        return True

    def limits(self, cell: Cell, metric: str, parameters: dict[str, Any], *, random: bool = False) -> list[Threshold]:
        """Return the thresholds that are asked of ``metric`` of ``cell``; the baseline has only absolute ones.

        Of a model with ``random`` weights some say nothing: those that are for pretrained ones are left out. Of a model
        that the matrix does not have those are asked that name it or are for every model; one that was chosen on other
        models is not asked. Of a recipe that the matrix does not have, such as one of its own with further rules, those
        for every model are asked that are for its kin.

        Of equal limits one that is known not to hold stands alone, so that it may be so for a part of what the other is
        for.
        """
        return _once(one for one in self._for(cell, metric, parameters, random) if self._asks(one, cell))

    def others(self, cell: Cell, metric: str, parameters: dict[str, Any], *, random: bool = False) -> list[Threshold]:
        """Return the thresholds of ``metric`` that were chosen for other models than the cell's, or other recipes."""
        return _once(one for one in self._for(cell, metric, parameters, random) if not self._asks(one, cell))

    def has(self, model: Model) -> bool:
        """Return whether a model is one of the matrix, and not one of the same name that a command line named."""
        return self.models.get(model.name) == model

    def _asks(self, threshold: Threshold, cell: Cell) -> bool:
        if threshold.chosen_on is not None and cell.model.name not in threshold.chosen_on:
            return False
        if threshold.recipes is not None and cell.recipe.name not in threshold.recipes:
            return threshold.every_model
        return threshold.every_model or threshold.models is not None or self.has(cell.model)

    def kin(self, recipe: Recipe) -> list[str]:
        """Return the recipes of the matrix that have the config class of one that it does not have.

        Configs by name have one class whatever they do: of those they are the ones with the same arguments.
        """
        if recipe.baseline or recipe.name in self.recipes:
            return []
        same = [one for one in self.recipes.values() if one.config == recipe.config]
        return [one.name for one in same if recipe.config != BY_NAME or one.arguments == recipe.arguments]

    def _is_for(self, threshold: Threshold, recipe: Recipe) -> bool:
        """Say whether a limit is for a recipe or its kin, or for every model and what is computed as the recipe is."""
        wanted = threshold.recipes or ()
        if recipe.name in wanted or any(name in wanted for name in self.kin(recipe)):
            return True
        if recipe.name in self.recipes or not threshold.every_model:
            return False
        alike = (self.recipes[name] for name in wanted if not self.recipes[name].baseline)
        return any(one.of_activations == recipe.of_activations for one in alike)

    def _for(self, cell: Cell, metric: str, parameters: dict[str, Any], random: bool) -> list[Threshold]:
        return [
            threshold
            for threshold in (*self.thresholds, *OF_ARITHMETIC)
            if threshold.metric == metric
            and (threshold.models is None or cell.model.name in threshold.models)
            and (threshold.recipes is None or self._is_for(threshold, cell.recipe))
            and (threshold.hardware is None or cell.hardware.is_of(threshold.hardware))
            and (threshold.servers is None or cell.server in threshold.servers)
            and all(parameters.get(name) == value for name, value in threshold.parameters.items())
            and not (threshold.needs_baseline and cell.recipe.baseline)
            and not (threshold.pretrained and random)
        ]


def _once(thresholds: Iterable[Threshold]) -> list[Threshold]:
    found = list(thresholds)
    known = {(one.comparison, one.limit) for one in found if one.known_failure}
    return [one for one in found if one.known_failure or (one.comparison, one.limit) not in known]


def _lists(entry: CellEntry, model: str = "", recipe: str = "") -> bool:
    return (not model or model in entry.models) and (not recipe or recipe in entry.recipes)
