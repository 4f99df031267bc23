"""What is collected and in which order: cells as parameters of the suites' tests, planned without pytest."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError, MatrixError, nearest
from harness.base.expressions import asked_for
from harness.cluster.units import Unit
from harness.machine import here, probe
from harness.matrix.config_text import with_calibration, with_rules
from harness.matrix.hardware import Hardware
from harness.matrix.measurements import Measurements
from harness.matrix.plan import Cell, Matrix
from harness.matrix.schema import PORTABLE, ROUTES
from harness.plugin import environments
from harness.plugin.command_line import CommandLine
from harness.records.metric import STAGES
from harness.records.place import Place
from harness.runtime import environment
from harness.runtime.environment import Environment
from harness.servers.registry import EXECUTORCH, SERVERS, at, refusal, unsupported

PARAMETERS = ("batch_size", "num_prompts", "workload", "task", "route", "device", "through")
"""What a suite's test may ask for beside ``cell``, in the order of its id."""
DEVICES = ("host", "qemu")
"""Where programs run unless ``--device`` says otherwise."""


@dataclass(frozen=True)
class Case:
    """One set of parameters of a test: a cell through a server, and a value for each of the names it asks for."""

    cell: Cell
    values: tuple[Any, ...]
    groups: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """Its hardware, and the groups that this stands for."""
        return (self.cell.hardware.name, *self.groups)

    @property
    def id(self) -> str:
        return "-".join(map(str, (self.cell.id, *self.values)))


@dataclass(frozen=True, eq=False)
class Claim:
    """A collected test of a cell; ``values`` are its further parameters, ``skipped`` says that it will not run."""

    file: Path
    function: str
    stage: str
    cell: Cell
    values: Mapping[str, Any] = field(default_factory=dict)
    skipped: bool = False

    @property
    def of_cell(self) -> Place:
        """The cell without its server."""
        return self.cell.base

    @property
    def beside_recipe(self) -> tuple[Any, ...]:
        """What a test of a recipe and the same test of its baseline have in common."""
        values = tuple(str(value) for _, value in sorted(self.values.items()))
        return (self.file, self.function, self.cell.place.without("recipe", "recipe_hash"), values)


# ---------------------------------------------------------------------------------------------------- parameters


def check(matrix: Matrix, given: CommandLine) -> None:
    """Raise HarnessError for a model, recipe or data folder of the command line that there is none of."""
    _cells(matrix, given)
    given.chosen_tasks()
    for name in given.workloads:
        matrix.workload(name)


def cases(matrix: Matrix, stage: str, names: Sequence[str], given: CommandLine) -> Iterator[Case]:
    """Yield the cases of a test of a stage: its cells through each server, and the values of each of ``names``.

    Raises HarnessError for a model, recipe or data folder of the command line that there is none of.
    """
    standing = here.standing(matrix)
    cells = _cells(matrix, given, here.meant(matrix, standing, given.named(matrix.hardware)))
    tasks = given.chosen_tasks()
    for cell in cells:
        groups = tuple(group for group, it in standing.items() if it == cell.hardware)
        for through in _through(cell, stage, given.servers):
            values: dict[str, Sequence[Any]] = {
                "batch_size": cell.measurements.latency.batch_sizes,
                "num_prompts": cell.measurements.serving.num_prompts,
                "workload": _workloads(matrix, through, given) if "workload" in names else (),
                "task": tasks or _matrix_tasks(through),
                "route": ROUTES if cell.model.executorch else [PORTABLE],
                "device": _devices(given.devices, cell, cells),
                "through": ["eager", "program"],
            }
            for chosen in itertools.product(*(values[name] for name in names)):
                yield Case(through, chosen, groups)


def _cells(matrix: Matrix, given: CommandLine, on: Mapping[str, Collection[str]] | None = None) -> list[Cell]:
    models, recipes = given.models, given.recipes
    named = (None if models is None else list(models), None if recipes is None else list(recipes))
    found = matrix.cells(*named, on, _gpus(matrix, given, recipes))
    found = [replace(cell, recipe=with_rules(cell.recipe, given.quantize, given.leave_plain)) for cell in found]
    if any(cell.recipe.calibration for cell in found):
        asked = given.calibrated_on()
        found = [replace(cell, recipe=with_calibration(cell.recipe, asked)) for cell in found]
    if given.text_windows:
        found = [replace(cell, measurements=_over(cell.measurements, given.text_windows)) for cell in found]
    return found


def _gpus(matrix: Matrix, given: CommandLine, recipes: Sequence[str] | None) -> dict[str, list[int]]:
    """Return what --gpus asks: numbers by the recipe's name, and by an empty one for all others."""
    known = {matrix.recipe(it).name for it in recipes or ()} | {*matrix.recipes}
    found: dict[str, list[int]] = {}
    for recipe, number in given.gpus:
        if recipe and recipe not in known:
            raise MatrixError(f"--gpus {recipe}={number}: there is no such recipe; {nearest(recipe, known)}")
        found.setdefault(recipe, []).append(number)
    return found


def _over(wanted: Measurements, windows: int) -> Measurements:
    return wanted.model_copy(update={"text": wanted.text.model_copy(update={"windows": windows})})


def _devices(given: Sequence[str], cell: Cell, cells: Sequence[Cell]) -> list[str]:
    """Return the devices that a cell's program runs on; an iPhone's file is of one cell alone."""
    devices = list(given or DEVICES)
    if EXECUTORCH not in cell.servers or not any(name.startswith("ios:") for name in devices):
        return devices
    return [name for name in devices if not name.startswith("ios:") or _counts_for(name, cell, cells)]


def _counts_for(name: str, cell: Cell, cells: Sequence[Cell]) -> bool:
    """Return whether the JSON of ``ios:[RECIPE=]FILE`` is of this cell, which it is of exactly one of ``cells``.

    Without a recipe it is of the only one that is no baseline. Raises MatrixError where none or several could be meant.
    """
    # Not at the top: most sessions collect no program.
    from harness.devices import named

    recipe, file = named(name.partition(":")[2])
    programs = [one for one in cells if EXECUTORCH in one.servers]
    fitting = [one for one in programs if (one.recipe.name == recipe if recipe else not one.recipe.baseline)]
    if len(fitting) != 1:
        what = ", ".join(f"{one.model.name} {one.recipe.name}" for one in (fitting or programs)) or "no program"
        raise MatrixError(
            f"--device {name}: the file is of one program on one iPhone, and {len(fitting)} of the selected cells "
            f"could be meant ({what}): say which by --device ios:RECIPE={file}, or select one with --model and --recipe"
        )
    return fitting[0] == cell


def _through(cell: Cell, stage: str, only: Sequence[str]) -> list[Cell]:
    """Return the cell once for every server that the stage runs on."""
    if stage == "quantize":
        asked = [through.stages for through in cell.servers.values()]
        return [cell] if not asked or any("quantize" in stages for stages in asked) else []
    fitting = at(stage)
    wanted = [name for name in cell.servers if not only or name in only]
    # One that was asked for is not left out in silence.
    wanted += [name for name in only if name not in wanted and unsupported(name, cell.hardware)]
    names = [
        name for name in wanted if name in fitting and (name not in cell.servers or stage in cell.servers[name].stages)
    ]
    return [replace(cell, server=name, skip=cell.skip or refusal(cell, name)) for name in names]


def _matrix_tasks(cell: Cell) -> list[str]:
    """Return the tasks that the matrix names for the cell through its server."""
    return list(cell.servers[cell.server].tasks) if cell.server in cell.servers else []


def _workloads(matrix: Matrix, cell: Cell, given: CommandLine) -> list[str]:
    """Return the workloads to measure: those named, or where load is asked for those of the hardware; else none."""
    for name in given.workloads:
        matrix.workload(name)
    if given.workloads or not given.asks_for_load:
        return list(given.workloads)
    return list(cell.measurements.load.workloads)


# --------------------------------------------------------------------------------------------------------- order


def plan(everything: Sequence[Claim], chosen: Sequence[Claim]) -> list[Claim]:
    """Return the chosen tests with the baseline's that their ratios need, in the order in which they run.

    Sorted by cell and stage, in the matrix's order, every engine is started once.
    """
    needed = {claim.beside_recipe for claim in chosen}
    taken = set(chosen)
    found = list(chosen)
    found += [
        claim
        for claim in everything
        if claim.cell.recipe.baseline and claim not in taken and claim.beside_recipe in needed
    ]
    position = {claim: index for index, claim in enumerate(everything)}
    cells: dict[Place, int] = {}
    for claim in everything:
        cells.setdefault(claim.of_cell, len(cells))

    def key(claim: Claim) -> tuple[int, str, int, int]:
        server = claim.cell.server if claim.cell.server in SERVERS else ""
        return (cells[claim.of_cell], server, STAGES.index(claim.stage), position[claim])

    return sorted(found, key=key)


def workers(claims: Iterable[Claim]) -> list[tuple[Place, str]]:
    """Return which kind of worker each test needs, in order, as (cell without its server, stage)."""
    return [(claim.cell.base, claim.stage) for claim in claims if not claim.cell.skip]


def programs(claims: Iterable[Claim], lacks: Callable[[str, str], str]) -> list[tuple[Cell, str]]:
    """Return the programs that tests run, as (cell, route); what an iPhone measured needs none.

    ``lacks(device, route)`` says why a device cannot run a route's programs.
    """
    found: dict[tuple[str, str], tuple[Cell, str]] = {}
    for claim in claims:
        if claim.stage != "export" or claim.skipped:
            continue
        route, device = claim.values.get("route", PORTABLE), claim.values.get("device", "")
        if (claim.cell.id, route) in found or device.startswith("ios:"):
            continue
        # A device that does not exist fails its own tests.
        with contextlib.suppress(HarnessError):
            if not device or not lacks(device, route):
                found[claim.cell.id, route] = (claim.cell, route)
    return list(found.values())


def memories(claims: Iterable[Claim]) -> list[Cell]:
    """Return the cells whose peak memory tests ask for, in order; a test tells that by its name."""
    return [
        claim.cell for claim in claims if "peak_memory" in claim.function and not (claim.skipped or claim.cell.skip)
    ]


def units(
    claims: Mapping[str, Claim], seconds: Mapping[str, float | None], apart: Mapping[str, int] | None = None
) -> dict[str, tuple[Unit, Cell]]:
    """Return what goes to one device together, by name: the tests of a cell through a server, and that cell.

    ``claims`` are tests by their ids, in order, ``seconds`` what each is expected to take; one of unknown time takes
    what the others do. What asks for no server goes with the first of its cell. A recipe's unit comes after its
    baseline's, whose records its limits need. ``apart`` are the numbers of devices of the hardware on which serving is
    disturbed by neighbours: there it is a unit of its own, which has all of them.
    """
    known = [it for it in seconds.values() if it is not None]
    usual = sum(known) / len(known) if known else 60.0
    grouped: dict[tuple[Place, str, str], list[str]] = {}
    for test, claim in claims.items():
        part = "server" if claim.stage == "server" and claim.cell.hardware.name in (apart or {}) else ""
        grouped.setdefault((claim.of_cell, claim.cell.server, part), []).append(test)
    for (base, server, part), tests in list(grouped.items()):
        with_server = [key for key in grouped if key[0] == base and key[1]]
        if not server and with_server:
            grouped[with_server[0]] = [*tests, *grouped[with_server[0]]]
            del grouped[base, server, part]
    names = {
        key: "-".join(filter(None, (replace(claims[tests[0]].cell, server=key[1]).id, key[2])))
        for key, tests in grouped.items()
    }
    found = {}
    for key, tests in grouped.items():
        cell = claims[tests[0]].cell
        baselines = [
            names[other]
            for other, others in grouped.items()
            if other[1:] == key[1:] and _is_baseline_of(claims[others[0]].cell, cell)
        ]
        gpus = (apart or {})[cell.hardware.name] if key[2] else cell.gpus
        unit = Unit(
            names[key],
            cell.hardware.name,
            tuple(tests),
            sum(usual if (it := seconds[test]) is None else it for test in tests),
            gpus if cell.hardware.is_gpu else 0,
            next(iter(baselines), ""),
        )
        found[unit.name] = (unit, cell)
    return found


def _is_baseline_of(other: Cell, cell: Cell) -> bool:
    same = (other.model, other.hardware, other.gpus) == (cell.model, cell.hardware, cell.gpus)
    return same and other.recipe.baseline and not cell.recipe.baseline


def only_hardware(claims: Iterable[Claim]) -> Hardware | None:
    """Return the hardware on which all is measured that is measured, or None if it is several."""
    found = {claim.cell.hardware for claim in claims if not claim.skipped}
    return found.pop() if len(found) == 1 else None


def most_gpus(claims: Iterable[Claim]) -> int:
    """Return how many GPUs the largest of the cells takes that are measured."""
    return max((claim.cell.gpus for claim in claims if not (claim.skipped or claim.cell.skip)), default=1)


# -------------------------------------------------------------------------------------------------- what is here


def absent(claims: Sequence[Claim], given: CommandLine) -> dict[Claim, str]:
    """Return why tests cannot run here: their hardware, or the server they go through, is not here.

    Raises HarnessError where the command line names that hardware or that server, and for a run or an interpreter
    of the command line that is not there.
    """
    found = _without_hardware(claims, given)
    left = [claim for claim in claims if not claim.skipped and claim not in found]
    if left:
        environments.check_given(given)
    found |= _without_server(left, given)
    own = given.own_environments()
    for claim in left:
        # What an iPhone measured is read without a worker.
        read = str(claim.values.get("device", "")).startswith("ios:")
        if claim not in found and claim.cell.server not in own and not read:
            environments.check_packages(claim.cell.hardware, given)
            break
    return found


def _without_hardware(claims: Sequence[Claim], given: CommandLine) -> dict[Claim, str]:
    found: dict[Claim, str] = {}
    for hardware in dict.fromkeys(claim.cell.hardware for claim in claims):
        needing = [claim for claim in claims if claim.cell.hardware == hardware]
        problem = probe.missing(hardware)
        if not problem:
            continue
        names = (hardware.name, *hardware.groups)
        asked = [name for name in names if name in asked_for(given.markers, names)]
        if given.of_a_node:
            # Skipped here, it would be missing in silence: another node may have it.
            raise HarnessError(f"this node was to have {hardware}: {problem}")
        if asked and not given.allow_missing_hardware:
            raise HarnessError(
                f"-m selects {len(needing)} tests for {asked[0]}, which is not here: {problem}. "
                "Use --allow-missing-hardware to skip them."
            )
        found |= dict.fromkeys(needing, f"{hardware} is not here: {problem}")
    return found | _without_gpus([it for it in claims if it.cell.gpus > 1 and it not in found], given)


def _without_gpus(claims: Sequence[Claim], given: CommandLine) -> dict[Claim, str]:
    """Return why cells that several GPUs share cannot run here: there are too few."""
    found: dict[Claim, str] = {}
    for hardware, gpus in dict.fromkeys((claim.cell.hardware, claim.cell.gpus) for claim in claims):
        if hardware.is_gpu and (problem := probe.missing(hardware, gpus)):
            if given.of_a_node:
                raise HarnessError(f"this node was to have {gpus} x {hardware}: {problem}")
            needing = [claim for claim in claims if (claim.cell.hardware, claim.cell.gpus) == (hardware, gpus)]
            found |= dict.fromkeys(needing, problem)
    return found


def _without_server(claims: Sequence[Claim], given: CommandLine) -> dict[Claim, str]:
    paths = given.own_environments()
    base = Environment(python=given.python) if given.python else Environment()
    found: dict[Claim, str] = {}
    for name, backend in SERVERS.items():
        needing = [claim for claim in claims if claim.cell.server == name]
        if not needing:
            continue
        own = environment.at(paths[name], base) if name in paths else base
        problem = own.lacking(*backend.distributions)
        if problem and name in given.servers:
            raise HarnessError(f"--server {name}: {problem}; name its environment with --environment {name}=PATH")
        if problem:
            found |= dict.fromkeys(needing, f"{problem}; see --environment")
    return found
