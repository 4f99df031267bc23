"""What is collected and in which order: cells as parameters of the suites' tests."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import HarnessError
from harness.base.expressions import asked_for
from harness.machine import probe
from harness.matrix.plan import Cell
from harness.plugin.stash import _matrix, _stage, cell_key, environments_of, results_of
from harness.records.metrics import STAGES
from harness.records.run import Run
from harness.runtime.environment import Environment, at
from harness.servers.registry import SERVERS

_PARAMETERS = ("batch_size", "num_prompts", "task", "route", "device", "through")


_DEVICES = ("host", "qemu")


def _parameters(metafunc: pytest.Metafunc, names: list[str]) -> list[Any]:
    """Return a test's cells through each server, and the values of the further parameter that it names."""
    config = metafunc.config
    matrix = _matrix(config)
    marker = metafunc.definition.get_closest_marker("stage")
    stage = marker.args[0] if marker and marker.args else None
    if stage not in STAGES:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: needs @pytest.mark.stage with one of {STAGES}")
    cells = matrix.cells(config.getoption("--model"), config.getoption("--recipe"))
    tasks = _tasks(config)
    params = []
    for cell in cells:
        for through in _through(cell, stage, config.getoption("--server")):
            values: dict[str, list[Any]] = {
                "batch_size": list(cell.measurements.latency.batch_sizes),
                "num_prompts": list(cell.measurements.serving.num_prompts),
                "task": tasks or _matrix_tasks(through),
                "route": ["transformers", "llama"] if cell.model.executorch else ["transformers"],
                "device": _devices(config, cell, cells) if "device" in names else [],
                "through": ["eager", "program"],
            }
            marks: list[pytest.MarkDecorator] = [getattr(pytest.mark, cell.hardware)]
            if through.skip:
                marks.append(pytest.mark.skip(reason=through.skip))
            for chosen in itertools.product(*(values[name] for name in names)):
                identity = "-".join(map(str, (through.id, *chosen)))
                params.append(pytest.param(through, *chosen, id=identity, marks=marks))
    return params


def _devices(config: pytest.Config, cell: Cell, cells: list[Cell]) -> list[str]:
    """Return the devices that a cell's program runs on; an iPhone's file is of one cell alone."""
    given: list[str] = config.getoption("--device") or list(_DEVICES)
    if "executorch" not in cell.servers or not any(name.startswith("ios:") for name in given):
        return given
    from harness.devices import counts_for

    return [name for name in given if not name.startswith("ios:") or counts_for(name, cell, cells)]


def _through(cell: Cell, stage: str, only: list[str] | None) -> list[Cell]:
    """Return the cell once for every server that the stage runs on."""
    if stage == "quantize":
        asked = [through.stages for through in cell.servers.values()]
        return [cell] if not asked or any("quantize" in stages for stages in asked) else []
    fitting = {"transformers": ["transformers"], "export": ["executorch"]}.get(stage, list(SERVERS))
    wanted = [name for name in cell.servers if not only or name in only]
    # One that was asked for is not left out in silence.
    wanted += [name for name in only or () if name not in wanted and _unsupported(cell, name)]
    names = [
        name for name in wanted if name in fitting and (name not in cell.servers or stage in cell.servers[name].stages)
    ]
    return [
        replace(cell, server=name, skip=cell.skip or _unsupported(cell, name) or cell.refusal(name)) for name in names
    ]


def _matrix_tasks(cell: Cell) -> list[str]:
    """Return the tasks that the matrix names for the cell through its server."""
    return list(cell.servers[cell.server].tasks) if cell.server in cell.servers else []


def _unsupported(cell: Cell, server: str) -> str:
    return SERVERS[server].unsupported(cell.hardware) if server in SERVERS else ""


def _tasks(config: pytest.Config) -> list[str]:
    chosen: list[str] = config.getoption("--task")
    data: Path | None = config.getoption("--data")
    if data is not None and not data.is_dir():
        raise pytest.UsageError(f"--data {data}: there is no such folder")
    if not chosen and data is not None:
        return sorted(path.stem for path in data.glob("*.jsonl"))
    return chosen


def _add_baselines(everything: list[pytest.Item], items: list[pytest.Item]) -> None:
    """Put back the baseline's tests that a ratio of a selected test needs, if -k left them out."""
    chosen = {item.nodeid for item in items}
    needed = {_counterpart(item) for item in items if cell_key in item.stash}
    for item in everything:
        if (
            cell_key in item.stash
            and item.stash[cell_key].recipe.baseline
            and item.nodeid not in chosen
            and _counterpart(item) in needed
        ):
            items.append(item)


def _counterpart(item: pytest.Item) -> tuple[Any, ...]:
    """Return what a test of a recipe and the same test of its baseline have in common."""
    cell = item.stash[cell_key]
    params = item.callspec.params  # type: ignore[attr-defined]
    rest = tuple(str(value) for name, value in sorted(params.items()) if name != "cell")
    return (item.path, getattr(item, "originalname", item.name), cell.model.name, cell.hardware, cell.server, rest)


def _order(everything: list[pytest.Item], items: list[pytest.Item]) -> None:
    """Sort the suites' tests by cell and stage, in the matrix's order, so that every engine is started once."""
    position = {item: index for index, item in enumerate(everything)}
    cells: dict[tuple[str, str, str], int] = {}
    for item in everything:
        if cell_key in item.stash:
            cells.setdefault(_base(item.stash[cell_key]), len(cells))

    def key(item: pytest.Item) -> tuple[int, str, int, int]:
        if cell_key not in item.stash:
            return (-1, "", 0, position.get(item, 0))
        cell = item.stash[cell_key]
        server = cell.server if cell.server in SERVERS else ""
        return (cells[_base(cell)], server, STAGES.index(_stage(item)), position[item])

    items.sort(key=key)


def _base(cell: Cell) -> tuple[str, str, str]:
    return (cell.hardware, cell.model.name, cell.recipe.name)


def _check_hardware(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = asked_for(config.getoption("markexpr", ""), probe.NAMES)
    for name in probe.NAMES:
        needing = [item for item in items if cell_key in item.stash and item.stash[cell_key].hardware == name]
        if not needing or config.option.collectonly:
            continue
        problem = probe.missing(name)
        if not problem:
            continue
        if name in asked and not config.getoption("--allow-missing-hardware"):
            raise pytest.UsageError(
                f"-m selects {len(needing)} tests for {name}, which is not here: {problem}. "
                "Use --allow-missing-hardware to skip them."
            )
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=f"{name} is not here: {problem}"))


def _check_given(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse a run or an interpreter that is not there: once, rather than in every test."""
    measuring = any(cell_key in item.stash and not item.get_closest_marker("skip") for item in items)
    if config.option.collectonly or not measuring:
        return
    for option, check in (
        ("--python", lambda given: Environment(python=given).packages()),
        ("--resume", lambda given: Run.open(results_of(config) / "runs", given)),
    ):
        if given := config.getoption(option):
            try:
                check(given)
            except HarnessError as error:
                raise pytest.UsageError(f"{option} {given}: {error}") from error


def _check_installed(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what goes through a server that is not installed; where the command line names that server, fail."""
    if config.option.collectonly:
        return
    paths = environments_of(config)
    for name, backend in SERVERS.items():
        needing = [item for item in items if cell_key in item.stash and item.stash[cell_key].server == name]
        needing = [item for item in needing if not item.get_closest_marker("skip")]
        if not needing:
            continue
        base = Environment(python=config.getoption("--python")) if config.getoption("--python") else Environment()
        try:
            problem = backend.not_installed(at(paths[name], base) if name in paths else base)
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from error
        if problem and name in (config.getoption("--server") or ()):
            raise pytest.UsageError(f"--server {name}: {problem}; name its environment with --environment {name}=PATH")
        for item in needing if problem else ():
            item.add_marker(pytest.mark.skip(reason=f"{problem}; see --environment"))
