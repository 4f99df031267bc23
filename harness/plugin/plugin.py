"""The pytest plugin: options, markers, matrix -> parametrized tests, fixtures and the terminal summary; little else."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from harness.base.errors import HarnessError, ThresholdFailure, Unsuitable, WorkerError, WrongKernels, nearest
from harness.contract import visible
from harness.machine import probe
from harness.matrix.plan import Cell
from harness.plugin import hooks
from harness.plugin.collect import (
    _PARAMETERS,
    _add_baselines,
    _check_given,
    _check_hardware,
    _check_installed,
    _order,
    _parameters,
)
from harness.plugin.options import pytest_addoption as pytest_addoption
from harness.plugin.progress import Progress, terminal
from harness.plugin.stash import (
    _matrix,
    _stage,
    cell_key,
    environments_of,
    nightly_key,
    problem_key,
    progress_key,
    refusal_key,
    reports_key,
    results_of,
    running_key,
    session_key,
    summaries_key,
)
from harness.records.metrics import STAGES
from harness.records.run import Run
from harness.records.schema import Line
from harness.servers.registry import SERVERS
from harness.servers.registry import names as server_names

if TYPE_CHECKING:
    from harness.devices import DeviceRunner
    from harness.judge.limits import Judge
    from harness.measure.measure import Measure
    from harness.measure.mobile import MeasureMobile
    from harness.plugin.nightly import Nightly
    from harness.plugin.session import HarnessSession


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hooks)


def pytest_configure(config: pytest.Config) -> None:
    for more in config.hook.pytest_harness_servers():
        SERVERS.update(more)
    for name in config.getoption("--server") or ():
        if name not in server_names():
            raise pytest.UsageError(f"--server {name!r} is no server; {nearest(name, server_names())}")
    for name, meaning in probe.NAMES.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    config.addinivalue_line("markers", "stage(name): which stage of a flow the test needs: " + ", ".join(STAGES))
    if config.getoption("--against") and not config.option.collectonly:
        from harness.plugin.nightly import Nightly

        nightly = Nightly(config, results_of(config) / "baselines")
        config.stash[nightly_key] = nightly
        config.pluginmanager.register(nightly, "torchao-harness-nightly")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" not in metafunc.fixturenames:
        return
    names = [name for name in _PARAMETERS if name in metafunc.fixturenames]
    try:
        params = _parameters(metafunc, names)
    except (HarnessError, pytest.UsageError) as error:
        # Raised from here, it would be a traceback for every file; the session ends with it after the collection.
        metafunc.config.stash.setdefault(problem_key, str(error))
        params = []
    metafunc.parametrize(("cell", *names), params, indirect=["cell"], scope="session")


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    if problem := config.stash.get(problem_key, ""):
        raise pytest.UsageError(problem)
    everything = list(items)
    yield
    for item in everything:
        callspec = getattr(item, "callspec", None)
        if callspec and isinstance(callspec.params.get("cell"), Cell):
            item.stash[cell_key] = callspec.params["cell"]
    if _workers(config) > 1:
        _measure_nothing(config, items)
        return
    _add_baselines(everything, items)
    _order(everything, items)
    _check_hardware(config, items)
    _check_given(config, items)
    _check_installed(config, items)
    if nightly_key in config.stash:
        cells = {item: item.stash[cell_key] for item in everything if cell_key in item.stash}
        config.stash[nightly_key].plan(cells, items)


def _workers(config: pytest.Config) -> int:
    """Return how many pytest-xdist workers run tests beside each other, this one among them; 1 without it."""
    return int(getattr(config, "workerinput", {}).get("workercount", 1))


def _measure_nothing(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out whatever measures, and let the process that has the terminal say so once."""
    measuring = [item for item in items if cell_key in item.stash]
    if not measuring:
        return
    config.hook.pytest_deselected(items=measuring)
    items[:] = [item for item in items if cell_key not in item.stash]
    config.workeroutput["harness_refusal"] = (  # type: ignore[attr-defined]
        f"-n {_workers(config)}: {len(measuring)} tests measure, and would measure each other where {_workers(config)} "
        "workers run at once. Nothing was measured: leave out -n, or give -n 1."
    )


@pytest.fixture(scope="session")
def harness_session(request: pytest.FixtureRequest) -> Iterator[HarnessSession]:
    """The session's run folder, artifact store and flow; every worker ends with it."""
    from harness.plugin.session import HarnessSession

    config = request.config
    progress = Progress(terminal(config))
    try:
        session = HarnessSession.start(
            matrix=_matrix(config),
            results=results_of(config),
            cache=config.getoption("--cache"),
            data=config.getoption("--data"),
            limit=config.getoption("--limit"),
            resume=config.getoption("--resume"),
            swap=config.getoption("--swap"),
            python=config.getoption("--python"),
            environments=environments_of(config),
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
        if cell_key in item.stash and not (cell := item.stash[cell_key]).skip
    ]
    session.flow.programs = _programs(config, request.session.items, session.mobile)
    nightly: Nightly | None = config.stash.get(nightly_key, None)
    if nightly:
        nightly.attach(session)
    session.run.written = lambda line: _hand_on(config, line, session.run)
    session.flow.waiting = progress.waiting
    tests = [_test(item) for item in request.session.items if cell_key in item.stash]
    progress.plan(tests, session.estimate())
    progress.begin(_test(config.stash[running_key]))
    config.stash[progress_key] = progress
    config.stash[session_key] = session
    yield session
    session.close()


def _only_gpu(items: list[pytest.Item]) -> str:
    """Return the UUID of the GPU on which all is measured, or an empty string if anything is measured elsewhere."""
    measuring = [item for item in items if cell_key in item.stash and not item.get_closest_marker("skip")]
    on = {item.stash[cell_key].hardware for item in measuring}
    return visible.uuid() if {probe.torch_device(name) for name in on} == {"cuda"} else ""


def _programs(config: pytest.Config, items: list[pytest.Item], mobile: MeasureMobile) -> list[tuple[Cell, str]]:
    """Return the programs that tests run, as (cell, route); what an iPhone measured needs none."""
    from harness.measure.mobile import PORTABLE

    found: dict[tuple[str, str], tuple[Cell, str]] = {}
    for item in items:
        if cell_key not in item.stash or _stage(item) != "export" or item.get_closest_marker("skip"):
            continue
        cell, params = item.stash[cell_key], item.callspec.params  # type: ignore[attr-defined]
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
    """Measures and records; see harness.measure.measure.Measure."""
    return harness_session.measure


@pytest.fixture(scope="session")
def mobile(harness_session: HarnessSession) -> MeasureMobile:
    """Measures ExecuTorch programs and records; see harness.measure.mobile.MeasureMobile."""
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
    """Holds measurements against the matrix's thresholds; see harness.judge.limits.Judge."""
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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    config = item.config
    config.stash[running_key] = item
    if progress_key in config.stash:
        config.stash[progress_key].begin(_test(item))
    result = yield
    session = config.stash.get(session_key, None)
    reports = item.stash.get(reports_key, [])
    if session is not None and cell_key in item.stash and reports:
        seconds = sum(report.duration for report in reports)
        # A disk that refuses the line has been told of by the test itself.
        with contextlib.suppress(HarnessError):
            outcome = session.record_outcome(_test(item), item.stash[cell_key], reports)
            config.stash[progress_key].end(_test(item), seconds, outcome == "passed")
    return result


def _test(item: pytest.Item) -> str:
    return f"{item.path.name}::{item.name}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash.setdefault(reports_key, []).append(report)
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, HarnessError):
        text = str(error)
        if isinstance(error, WorkerError) and error.log_tail:
            text += "\n\nthe end of its log:\n" + error.log_tail
        report.longrepr = text
        if isinstance(error, Unsuitable) and not error.nowhere and cell_key in item.stash:
            line = (item.location[1] or 0) + 1
            report.outcome, report.longrepr = "skipped", (str(item.path), line, f"Skipped: {text}")
        if isinstance(error, (ThresholdFailure, WrongKernels)) and error.known:
            report.outcome, report.wasxfail = "skipped", error.known
        session = item.config.stash.get(session_key, None)
        if session is not None and isinstance(error, WorkerError):
            try:
                session.record_failure(item.stash[cell_key], error)
            except HarnessError as unrecorded:
                report.longrepr = f"{text}\n\nand it is not recorded: {unrecorded}"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a pytest-xdist worker's summary to the process that has the terminal."""
    if session.config.stash.get(refusal_key, ""):
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
    output = getattr(session.config, "workeroutput", None)
    ours = session.config.stash.get(session_key, None)
    if output is not None and ours is not None:
        output["harness"] = [[title, lines] for title, lines in ours.summary([])]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})
    node.config.stash.setdefault(summaries_key, []).extend(output.get("harness", []))
    if refusal := output.get("harness_refusal", ""):
        node.config.stash[refusal_key] = refusal


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if refusal := config.stash.get(refusal_key, ""):
        terminalreporter.write_line(f"ERROR: {refusal}", red=True)
    session = config.stash.get(session_key, None)
    skipped = {
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    }
    sections = session.summary(sorted(skipped)) if session else config.stash.get(summaries_key, [])
    for title, lines in sections:
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
