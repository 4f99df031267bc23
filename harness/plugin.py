"""The pytest plugin: options, markers, matrix -> parametrized tests, fixtures and the terminal summary; little else."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness import gpu, hardware, hooks
from harness.environment import Environment, at
from harness.errors import HarnessError, ThresholdFailure, Unsuitable, WorkerError, WrongKernels, nearest
from harness.expressions import asked_for
from harness.matrix import STAGES, Cell, Matrix, load
from harness.progress import Progress, terminal
from harness.records import Line, Run
from harness.servers import SERVERS
from harness.servers import names as server_names

if TYPE_CHECKING:
    from harness.devices import DeviceRunner
    from harness.judge import Judge
    from harness.measure import Measure
    from harness.mobile import MeasureMobile
    from harness.nightly import Nightly
    from harness.session import HarnessSession

_PARAMETERS = ("batch_size", "num_prompts", "task", "route", "device", "through")
_DEVICES = ("host", "qemu")

_matrix_key = pytest.StashKey[Matrix]()
_session_key = pytest.StashKey["HarnessSession"]()
_cell_key = pytest.StashKey[Cell]()
_problem_key = pytest.StashKey[str]()
_nightly_key = pytest.StashKey["Nightly"]()
_progress_key = pytest.StashKey[Progress]()
_running_key = pytest.StashKey[pytest.Item]()
_reports_key = pytest.StashKey[list[pytest.TestReport]]()
_refusal_key = pytest.StashKey[str]()
_summaries_key = pytest.StashKey[list[Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("torchao harness")
    group.addoption(
        "--model",
        action="append",
        metavar="NAME|FOLDER|HUB_ID",
        help="run the suites on this model instead of the matrix's; repeatable",
    )
    group.addoption(
        "--recipe",
        action="append",
        metavar="NAME|CONFIG",
        help="run this recipe of the matrix, or a torchao config such as "
        "'Int8WeightOnlyConfig(granularity=PerGroup(32))'; repeatable; the baseline always runs beside it",
    )
    group.addoption(
        "--server",
        action="append",
        metavar="NAME",
        help=f"only this server ({', '.join(sorted(server_names()))}); repeatable",
    )
    group.addoption(
        "--task",
        action="append",
        default=[],
        metavar="NAME",
        help="evaluate this lm-evaluation-harness task; repeatable; with --data all of that folder's by default",
    )
    group.addoption("--limit", type=int, metavar="N", help="evaluate only the first N documents of each task")
    group.addoption(
        "--data",
        type=Path,
        metavar="DIR",
        help="read tasks' documents from DIR/TASK.jsonl, and ShareGPT from there if it is there, instead of the hub",
    )
    group.addoption(
        "--swap",
        metavar="REQUIREMENT",
        help="run the workers with one package swapped, e.g. torchao==0.17.0, installed alone into a cached folder",
    )
    group.addoption(
        "--python", metavar="FILE", help="run the workers with this interpreter, e.g. of a virtual environment"
    )
    group.addoption(
        "--environment",
        action="append",
        default=[],
        metavar="SERVER=PATH",
        help="run this server in an environment of its own: PATH is the interpreter of a virtual environment, or a "
        "folder of packages to stand before the workers'; repeatable",
    )
    group.addoption(
        "--device",
        action="append",
        metavar="NAME",
        help="run ExecuTorch programs there: host, qemu, ssh:HOST, adb:SERIAL or ios:[RECIPE=]FILE; repeatable "
        "(default: host, qemu)",
    )
    group.addoption(
        "--phone-runner", type=Path, metavar="FILE", help="the runner that adb puts on a phone; see the README"
    )
    group.addoption("--matrix", type=Path, metavar="FILE", help="another matrix.toml than suites/matrix.toml")
    group.addoption("--cache", type=Path, metavar="DIR", help="where checkpoints and other artifacts are kept")
    group.addoption("--results", type=Path, metavar="DIR", help="where runs and tables are written (default: results)")
    group.addoption(
        "--resume",
        nargs="?",
        const="last",
        metavar="RUN",
        help="go on with a run (default: the last): what it measured stands and is not measured again",
    )
    group.addoption(
        "--against",
        metavar="BASELINE",
        help="hold every figure against a stored baseline: its hardware's name (results/baselines/NAME.json) or a file",
    )
    group.addoption(
        "--allow-missing-hardware",
        action="store_true",
        help="skip, rather than fail, when -m asks for hardware that is not here",
    )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hooks)


def pytest_configure(config: pytest.Config) -> None:
    for more in config.hook.pytest_harness_servers():
        SERVERS.update(more)
    for name in config.getoption("--server") or ():
        if name not in server_names():
            raise pytest.UsageError(f"--server {name!r} is no server; {nearest(name, server_names())}")
    for name, meaning in hardware.NAMES.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    config.addinivalue_line("markers", "stage(name): which stage of a flow the test needs: " + ", ".join(STAGES))
    if config.getoption("--against") and not config.option.collectonly:
        from harness.nightly import Nightly

        nightly = Nightly(config, _results(config) / "baselines")
        config.stash[_nightly_key] = nightly
        config.pluginmanager.register(nightly, "torchao-harness-nightly")


# ------------------------------------------------------------------------------------------------------- matrix


def _matrix(config: pytest.Config) -> Matrix:
    if _matrix_key not in config.stash:
        path = config.getoption("--matrix") or config.rootpath / "suites" / "matrix.toml"
        try:
            matrix = load(path)
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from error
        for name in config.getoption("--recipe") or ():
            if found := config.hook.pytest_harness_recipe(name=name):
                matrix.recipes[name] = found
        config.stash[_matrix_key] = matrix
    return config.stash[_matrix_key]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" not in metafunc.fixturenames:
        return
    names = [name for name in _PARAMETERS if name in metafunc.fixturenames]
    try:
        params = _parameters(metafunc, names)
    except (HarnessError, pytest.UsageError) as error:
        # Raised from here, it would be a traceback for every file; the session ends with it after the collection.
        metafunc.config.stash.setdefault(_problem_key, str(error))
        params = []
    metafunc.parametrize(("cell", *names), params, indirect=["cell"], scope="session")


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


def _environments(config: pytest.Config) -> dict[str, Path]:
    """Return the environments of the command line by server."""
    found = {}
    for given in config.getoption("--environment"):
        name, equals, path = given.partition("=")
        if not equals or not path or name not in SERVERS:
            raise pytest.UsageError(
                f"--environment {given}: give SERVER=PATH, where SERVER is one of {', '.join(SERVERS)}"
            )
        found[name] = Path(path)
    return found


def _tasks(config: pytest.Config) -> list[str]:
    chosen: list[str] = config.getoption("--task")
    data: Path | None = config.getoption("--data")
    if data is not None and not data.is_dir():
        raise pytest.UsageError(f"--data {data}: there is no such folder")
    if not chosen and data is not None:
        return sorted(path.stem for path in data.glob("*.jsonl"))
    return chosen


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    if problem := config.stash.get(_problem_key, ""):
        raise pytest.UsageError(problem)
    everything = list(items)
    yield
    for item in everything:
        callspec = getattr(item, "callspec", None)
        if callspec and isinstance(callspec.params.get("cell"), Cell):
            item.stash[_cell_key] = callspec.params["cell"]
    if _workers(config) > 1:
        _measure_nothing(config, items)
        return
    _add_baselines(everything, items)
    _order(everything, items)
    _check_hardware(config, items)
    _check_given(config, items)
    _check_installed(config, items)
    if _nightly_key in config.stash:
        cells = {item: item.stash[_cell_key] for item in everything if _cell_key in item.stash}
        config.stash[_nightly_key].plan(cells, items)


def _workers(config: pytest.Config) -> int:
    """Return how many pytest-xdist workers run tests beside each other, this one among them; 1 without it."""
    return int(getattr(config, "workerinput", {}).get("workercount", 1))


def _measure_nothing(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out whatever measures, and let the process that has the terminal say so once."""
    measuring = [item for item in items if _cell_key in item.stash]
    if not measuring:
        return
    config.hook.pytest_deselected(items=measuring)
    items[:] = [item for item in items if _cell_key not in item.stash]
    config.workeroutput["harness_refusal"] = (  # type: ignore[attr-defined]
        f"-n {_workers(config)}: {len(measuring)} tests measure, and would measure each other where {_workers(config)} "
        "workers run at once. Nothing was measured: leave out -n, or give -n 1."
    )


def _add_baselines(everything: list[pytest.Item], items: list[pytest.Item]) -> None:
    """Put back the baseline's tests that a ratio of a selected test needs, if -k left them out."""
    chosen = {item.nodeid for item in items}
    needed = {_counterpart(item) for item in items if _cell_key in item.stash}
    for item in everything:
        if (
            _cell_key in item.stash
            and item.stash[_cell_key].recipe.baseline
            and item.nodeid not in chosen
            and _counterpart(item) in needed
        ):
            items.append(item)


def _counterpart(item: pytest.Item) -> tuple[Any, ...]:
    """Return what a test of a recipe and the same test of its baseline have in common."""
    cell = item.stash[_cell_key]
    params = item.callspec.params  # type: ignore[attr-defined]
    rest = tuple(str(value) for name, value in sorted(params.items()) if name != "cell")
    return (item.path, getattr(item, "originalname", item.name), cell.model.name, cell.hardware, cell.server, rest)


def _order(everything: list[pytest.Item], items: list[pytest.Item]) -> None:
    """Sort the suites' tests by cell and stage, in the matrix's order, so that every engine is started once."""
    position = {item: index for index, item in enumerate(everything)}
    cells: dict[tuple[str, str, str], int] = {}
    for item in everything:
        if _cell_key in item.stash:
            cells.setdefault(_base(item.stash[_cell_key]), len(cells))

    def key(item: pytest.Item) -> tuple[int, str, int, int]:
        if _cell_key not in item.stash:
            return (-1, "", 0, position.get(item, 0))
        cell = item.stash[_cell_key]
        server = cell.server if cell.server in SERVERS else ""
        return (cells[_base(cell)], server, STAGES.index(_stage(item)), position[item])

    items.sort(key=key)


def _base(cell: Cell) -> tuple[str, str, str]:
    return (cell.hardware, cell.model.name, cell.recipe.name)


def _stage(item: pytest.Item) -> str:
    marker = item.get_closest_marker("stage")
    assert marker
    return str(marker.args[0])


def _check_hardware(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = asked_for(config.getoption("markexpr", ""), hardware.NAMES)
    for name in hardware.NAMES:
        needing = [item for item in items if _cell_key in item.stash and item.stash[_cell_key].hardware == name]
        if not needing or config.option.collectonly:
            continue
        problem = hardware.missing(name)
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
    measuring = any(_cell_key in item.stash and not item.get_closest_marker("skip") for item in items)
    if config.option.collectonly or not measuring:
        return
    for option, check in (
        ("--python", lambda given: Environment(python=given).packages()),
        ("--resume", lambda given: Run.open(_results(config) / "runs", given)),
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
    paths = _environments(config)
    for name, backend in SERVERS.items():
        needing = [item for item in items if _cell_key in item.stash and item.stash[_cell_key].server == name]
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


def _results(config: pytest.Config) -> Path:
    results: Path = config.getoption("--results") or config.rootpath / "results"
    return results


# ----------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="session")
def harness_session(request: pytest.FixtureRequest) -> Iterator[HarnessSession]:
    """The session's run folder, artifact store and flow; every worker ends with it."""
    from harness.session import HarnessSession

    config = request.config
    progress = Progress(terminal(config))
    try:
        session = HarnessSession.start(
            matrix=_matrix(config),
            results=_results(config),
            cache=config.getoption("--cache"),
            data=config.getoption("--data"),
            limit=config.getoption("--limit"),
            resume=config.getoption("--resume"),
            swap=config.getoption("--swap"),
            python=config.getoption("--python"),
            environments=_environments(config),
            phone_runner=config.getoption("--phone-runner"),
            gpu=_only_gpu(request.session.items),
            command=["pytest", *config.invocation_params.args],
            progress=progress,
        )
    except HarnessError as error:
        # No test can run without it: said once, and not by each of them.
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    session.flow.plan = [
        ("/".join((cell.model.name, cell.recipe.name, cell.hardware)), _stage(item))
        for item in request.session.items
        if _cell_key in item.stash and not (cell := item.stash[_cell_key]).skip
    ]
    session.flow.programs = _programs(config, request.session.items, session.mobile)
    nightly: Nightly | None = config.stash.get(_nightly_key, None)
    if nightly:
        nightly.attach(session)
    session.run.written = lambda line: _hand_on(config, line, session.run)
    session.flow.waiting = progress.waiting
    tests = [_test(item) for item in request.session.items if _cell_key in item.stash]
    progress.plan(tests, session.estimate())
    progress.begin(_test(config.stash[_running_key]))
    config.stash[_progress_key] = progress
    config.stash[_session_key] = session
    yield session
    session.close()


def _only_gpu(items: list[pytest.Item]) -> str:
    """Return the UUID of the GPU on which all is measured, or an empty string if anything is measured elsewhere."""
    measuring = [item for item in items if _cell_key in item.stash and not item.get_closest_marker("skip")]
    on = {item.stash[_cell_key].hardware for item in measuring}
    return gpu.uuid() if {hardware.torch_device(name) for name in on} == {"cuda"} else ""


def _programs(config: pytest.Config, items: list[pytest.Item], mobile: MeasureMobile) -> list[tuple[Cell, str]]:
    """Return the programs that tests run, as (cell, route); what an iPhone measured needs none."""
    from harness.mobile import PORTABLE

    found: dict[tuple[str, str], tuple[Cell, str]] = {}
    for item in items:
        if _cell_key not in item.stash or _stage(item) != "export" or item.get_closest_marker("skip"):
            continue
        cell, params = item.stash[_cell_key], item.callspec.params  # type: ignore[attr-defined]
        route, device = params.get("route", PORTABLE), params.get("device", "")
        if (cell.id, route) in found or device.startswith("ios:"):
            continue
        # A device that does not exist fails its own tests.
        with contextlib.suppress(HarnessError):
            if not device or not _device(config, device, mobile).lacks(route):
                found[cell.id, route] = (cell, route)
    return list(found.values())


def _device(config: pytest.Config, name: str, mobile: MeasureMobile) -> DeviceRunner:
    found: DeviceRunner = config.hook.pytest_harness_device(name=name) or mobile.device(name)
    return found


def _hand_on(config: pytest.Config, line: Line, run: Run) -> None:
    """Give a record that is on the disk to whoever wants it; whatever that does, measuring goes on."""
    try:
        config.hook.pytest_harness_record(line=line, run=run)
    except Exception as error:
        warnings.warn(pytest.PytestWarning(f"pytest_harness_record: {type(error).__name__}: {error}"), stacklevel=1)


@pytest.fixture(scope="session")
def cell(request: pytest.FixtureRequest) -> Cell:
    """The model x recipe x hardware, through one server where one is involved, that the test is about."""
    found: Cell = request.param
    return found


@pytest.fixture(scope="session")
def measure(harness_session: HarnessSession) -> Measure:
    """Measures and records; see harness.measure.Measure."""
    return harness_session.measure


@pytest.fixture(scope="session")
def mobile(harness_session: HarnessSession) -> MeasureMobile:
    """Measures ExecuTorch programs and records; see harness.mobile.MeasureMobile."""
    return harness_session.mobile


@pytest.fixture
def runs_on(request: pytest.FixtureRequest, device: str, mobile: MeasureMobile) -> DeviceRunner:
    """The device that the test is about; one that was asked for and is not here fails, any other skips."""
    found = _device(request.config, device, mobile)
    if problem := found.missing():
        if request.config.getoption("--device"):
            raise HarnessError(f"--device {device}: {problem}")
        pytest.skip(f"device {device} is not here: {problem}")
    return found


@pytest.fixture(scope="session")
def judge(harness_session: HarnessSession) -> Judge:
    """Holds measurements against the matrix's thresholds; see harness.judge.Judge."""
    return harness_session.judge


@pytest.fixture
def pretrained(cell: Cell, measure: Measure) -> None:
    """Skips what random weights cannot answer: their accuracy is left out rather than invented."""
    if measure.flow.plain(cell.model, cell.hardware).model.weights == "random":
        pytest.skip(f"{cell.model.name} has random weights here: accuracy is left out rather than invented")


@pytest.fixture
def chats(cell: Cell, measure: Measure) -> None:
    """Skips the chat of a model whose tokenizer has no chat template: a base model is not made for it."""
    if not measure.flow.plain(cell.model, cell.hardware).chats:
        pytest.skip(f"the tokenizer of {cell.model.name} has no chat template")


@pytest.fixture
def timed(benchmark: Any, cell: Cell) -> Callable[[Callable[[], None], int, int], int]:
    """Times a function through pytest-benchmark: ``timed(function, rounds, warmup_rounds)``, which returns their sum.

    pytest-benchmark takes one timing a test: that of a second block is in the records alone. Where it is disabled, by
    ``--benchmark-disable`` or in a worker of pytest-xdist, it would call the function once: the records get all rounds.
    """
    taken = bool(benchmark.disabled)

    def run(function: Callable[[], None], rounds: int, warmup: int) -> int:
        nonlocal taken
        if taken:
            for _ in range(warmup + rounds):
                function()
            return warmup + rounds
        taken = True
        benchmark.group = f"{cell.model.name} on {cell.hardware}"
        benchmark.extra_info.update(
            model=cell.model.name, recipe=cell.recipe.name, hardware=cell.hardware, server=cell.server
        )
        benchmark.pedantic(function, rounds=rounds, warmup_rounds=warmup, iterations=1)
        return warmup + rounds

    return run


# ---------------------------------------------------------------------------------------------------- reporting


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    config = item.config
    config.stash[_running_key] = item
    if _progress_key in config.stash:
        config.stash[_progress_key].begin(_test(item))
    result = yield
    session = config.stash.get(_session_key, None)
    reports = item.stash.get(_reports_key, [])
    if session is not None and _cell_key in item.stash and reports:
        seconds = sum(report.duration for report in reports)
        # A disk that refuses the line has been told of by the test itself.
        with contextlib.suppress(HarnessError):
            outcome = session.record_outcome(_test(item), item.stash[_cell_key], reports)
            config.stash[_progress_key].end(_test(item), seconds, outcome == "passed")
    return result


def _test(item: pytest.Item) -> str:
    return f"{item.path.name}::{item.name}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash.setdefault(_reports_key, []).append(report)
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, HarnessError):
        text = str(error)
        if isinstance(error, WorkerError) and error.log_tail:
            text += "\n\nthe end of its log:\n" + error.log_tail
        report.longrepr = text
        if isinstance(error, Unsuitable) and not error.nowhere and _cell_key in item.stash:
            line = (item.location[1] or 0) + 1
            report.outcome, report.longrepr = "skipped", (str(item.path), line, f"Skipped: {text}")
        if isinstance(error, (ThresholdFailure, WrongKernels)) and error.known:
            report.outcome, report.wasxfail = "skipped", error.known
        session = item.config.stash.get(_session_key, None)
        if session is not None and isinstance(error, WorkerError):
            try:
                session.record_failure(item.stash[_cell_key], error)
            except HarnessError as unrecorded:
                report.longrepr = f"{text}\n\nand it is not recorded: {unrecorded}"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a pytest-xdist worker's summary to the process that has the terminal."""
    if session.config.stash.get(_refusal_key, ""):
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
    output = getattr(session.config, "workeroutput", None)
    ours = session.config.stash.get(_session_key, None)
    if output is not None and ours is not None:
        output["harness"] = [[title, lines] for title, lines in ours.summary([])]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})
    node.config.stash.setdefault(_summaries_key, []).extend(output.get("harness", []))
    if refusal := output.get("harness_refusal", ""):
        node.config.stash[_refusal_key] = refusal


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if refusal := config.stash.get(_refusal_key, ""):
        terminalreporter.write_line(f"ERROR: {refusal}", red=True)
    session = config.stash.get(_session_key, None)
    skipped = {
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    }
    sections = session.summary(sorted(skipped)) if session else config.stash.get(_summaries_key, [])
    for title, lines in sections:
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
