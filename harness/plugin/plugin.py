"""The pytest plugin's hooks: markers, matrix -> parametrized tests, their order, outcomes, and the terminal summary."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest

from harness.base import room, threads
from harness.base.errors import HarnessError, ThresholdFailure, TooNoisy, Unsuitable, WorkerError, WrongKernels
from harness.base.secrets import without_secrets
from harness.matrix.plan import Cell
from harness.plugin import collect, hooks, refused
from harness.plugin.collect import Claim
from harness.plugin.command_line import CommandLine
from harness.plugin.interrupted import Interrupted
from harness.plugin.stash import (
    baseline_key,
    cell_of,
    claim_key,
    claims_of,
    matrix_of,
    name_of,
    problem_key,
    progress_key,
    refusal_key,
    reports_key,
    running_key,
    session_key,
    summary_key,
)
from harness.plugin.terminal import NOISY_STATUS, folded_errors, narrow, quiet_benchmarks, verdict, write_brief
from harness.records.metric import STAGES
from harness.servers.registry import SERVERS

pytest_plugins = ["harness.plugin", "harness.plugin.options", "harness.plugin.fixtures"]


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hooks)


def pytest_configure(config: pytest.Config) -> None:
    for more in config.hook.pytest_harness_servers():
        SERVERS.update(more)
    given = CommandLine.of(config)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Interrupted(config), "torchao-harness-interrupted")
    if given.of_a_node:
        from harness.plugin.stream import Stream

        # What this session starts is no node's.
        config.pluginmanager.register(Stream(config), "torchao-harness-stream")
    elif given.on and not given.only_collect:
        from harness.plugin.far import Far, on_ray

        config.pluginmanager.register(Far(config, given, on_ray), "torchao-harness-far")
    # A matrix that cannot be read is told of where a test of a cell is collected, and is no matter for others.
    with contextlib.suppress(pytest.UsageError):
        for name, meaning in matrix_of(config).markers.items():
            config.addinivalue_line("markers", f"{name}: {meaning}")
    config.addinivalue_line("markers", "stage(name): which stage of a flow the test needs: " + ", ".join(STAGES))
    if given.against and not given.only_collect:
        from harness.plugin.baseline_hooks import BaselineHooks

        config.stash[baseline_key] = BaselineHooks(config, given)
        config.pluginmanager.register(config.stash[baseline_key], "torchao-harness-baseline")


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, Any, Any]:
    try:
        with threads.begun(), room.kept():
            return (yield)
    except pytest.UsageError as error:
        raise pytest.UsageError(*folded_errors(config, error)) from error


def pytest_plugin_registered(plugin: object, plugin_name: str) -> None:
    if plugin_name == "terminalreporter":
        narrow(plugin)


# ---------------------------------------------------------------------------------------------------- collecting


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Refuse names of the command line that there are none of before anything is collected by them."""
    given = CommandLine.of(session.config)
    if given.models or given.recipes or given.data or given.workloads:
        try:
            collect.check(matrix_of(session.config), given)
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" not in metafunc.fixturenames:
        return
    names = [name for name in collect.PARAMETERS if name in metafunc.fixturenames]
    try:
        stage = _stage(metafunc.definition)
        params = [
            pytest.param(case.cell, *case.values, id=case.id, marks=_marks(case))
            for case in collect.cases(matrix_of(metafunc.config), stage, names, CommandLine.of(metafunc.config))
        ]
    except (HarnessError, pytest.UsageError) as error:
        # Raised from here, it would be a traceback for every file; the session ends with it after the collection.
        metafunc.config.stash.setdefault(problem_key, str(error))
        params = []
    metafunc.parametrize(("cell", *names), params, indirect=["cell"], scope="session")


def _stage(item: pytest.Item) -> str:
    marker = item.get_closest_marker("stage")
    stage = marker.args[0] if marker and marker.args else None
    if stage not in STAGES:
        raise pytest.UsageError(f"{item.nodeid}: needs @pytest.mark.stage with one of {STAGES}")
    return str(stage)


def _marks(case: collect.Case) -> list[pytest.MarkDecorator]:
    marks: list[pytest.MarkDecorator] = [getattr(pytest.mark, name) for name in case.markers]
    return [*marks, pytest.mark.skip(reason=case.cell.skip)] if case.cell.skip else marks


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    if problem := config.stash.get(problem_key, ""):
        items.clear()
        raise pytest.UsageError(problem)
    everything = list(items)
    try:
        yield
    except pytest.UsageError as error:
        # --collect-only lists what there is, whatever is wrong with -m or -k.
        items.clear()
        raise pytest.UsageError(f"{error}{refused.meant(config)}") from error
    for item in everything:
        if claim := _claim(item):
            item.stash[claim_key] = claim
    if _workers(config) > 1:
        _measure_nothing(config, items)
        return
    given = CommandLine.of(config)
    item_of = {item.stash[claim_key]: item for item in everything if claim_key in item.stash}
    try:
        refused.check_keyword(config.getoption("keyword", ""), everything)
    except HarnessError as error:
        items.clear()
        raise pytest.UsageError(str(error)) from error
    planned = collect.plan(list(item_of), claims_of(items))
    items[:] = [item for item in items if claim_key not in item.stash] + [item_of[claim] for claim in planned]
    if given.only_collect:
        try:
            refused.check(config, given)
        except HarnessError as error:
            items.clear()
            raise pytest.UsageError(str(error)) from error
        return
    if given.on:
        # What is here is no matter: nodes say what they have.
        return
    # A test may have been marked since it was collected.
    planned = [_noted(item_of[claim]) for claim in planned]
    try:
        absent = collect.absent(planned, given)
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error
    for item in items:
        if reason := absent.get(item.stash[claim_key], "") if claim_key in item.stash else "":
            item.add_marker(pytest.mark.skip(reason=reason))
            _noted(item)
    if baseline_key in config.stash:
        cells = {item: cell for item in everything if (cell := cell_of(item))}
        config.stash[baseline_key].plan(matrix_of(config), cells, items)


def _claim(item: pytest.Item) -> Claim | None:
    callspec = getattr(item, "callspec", None)
    if callspec is None or not isinstance(callspec.params.get("cell"), Cell):
        return None
    return Claim(
        file=item.path,
        function=getattr(item, "originalname", item.name),
        stage=_stage(item),
        cell=callspec.params["cell"],
        values={name: value for name, value in callspec.params.items() if name != "cell"},
    )


def _noted(item: pytest.Item) -> Claim:
    """Note whether a test will be skipped; returns its claim."""
    claim = replace(item.stash[claim_key], skipped=item.get_closest_marker("skip") is not None)
    item.stash[claim_key] = claim
    return claim


def _workers(config: pytest.Config) -> int:
    """Return how many pytest-xdist workers run tests beside each other, this one among them; 1 without it."""
    return int(getattr(config, "workerinput", {}).get("workercount", 1))


def _measure_nothing(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out whatever measures, and let the process that has the terminal say so once."""
    measuring = [item for item in items if claim_key in item.stash]
    if not measuring:
        return
    config.hook.pytest_deselected(items=measuring)
    items[:] = [item for item in items if claim_key not in item.stash]
    config.workeroutput["harness_refusal"] = (  # type: ignore[attr-defined]
        f"-n {_workers(config)}: {len(measuring)} tests measure, and would measure each other where {_workers(config)} "
        "workers run at once. Nothing was measured: leave out -n, or give -n 1."
    )


# ------------------------------------------------------------------------------------------------------- running


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    config = item.config
    config.stash[running_key] = item
    if progress_key in config.stash:
        config.stash[progress_key].begin(name_of(item))
    result = yield
    session = config.stash.get(session_key, None)
    reports = item.stash.get(reports_key, [])
    cell = cell_of(item)
    if session is not None and cell is not None and reports:
        seconds = sum(report.duration for report in reports)
        # A disk that refuses the line has been told of by the test itself.
        with contextlib.suppress(HarnessError):
            outcome = session.record_outcome(name_of(item), cell, reports)
            config.stash[progress_key].end(name_of(item), seconds, outcome == "passed")
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    if progress_key in item.config.stash and (foot := item.config.stash[progress_key].foot):
        foot.show()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash.setdefault(reports_key, []).append(report)
    error = call.excinfo.value if call.excinfo else None
    # What a test printed, and an error of others with all that it came of, goes to the terminal and to JUnit XML.
    report.sections = [(title, without_secrets(text)) for title, text in report.sections]
    if not isinstance(error, HarnessError):
        if report.failed and (kept := without_secrets(report.longreprtext)) != report.longreprtext:
            report.longrepr = kept
        return report
    cell = cell_of(item)
    text = str(error)
    if isinstance(error, WorkerError) and error.log_tail and (item.config.option.verbose > 0 or not error.says_all):
        text += "\n\nthe end of its log:\n" + error.log_tail
    report.longrepr = text
    if isinstance(error, Unsuitable) and not error.nowhere and cell:
        line = (item.location[1] or 0) + 1
        report.outcome, report.longrepr = "skipped", (str(item.path), line, f"Skipped: {text}")
    if isinstance(error, (ThresholdFailure, WrongKernels)) and error.known:
        report.outcome, report.wasxfail = "skipped", error.known
    if isinstance(error, TooNoisy):
        # Not passed, and no failure either: pytest knows no outcome of that kind, but does count one of another word.
        line = (item.location[1] or 0) + 1
        report.outcome, report.longrepr = "skipped", (str(item.path), line, text)
        report.noisy = True  # type: ignore[attr-defined]
    session = item.config.stash.get(session_key, None)
    if session is not None and cell and isinstance(error, WorkerError):
        try:
            session.record_failure(cell, error)
        except HarnessError as unrecorded:
            report.longrepr = f"{text}\n\nand it is not recorded: {unrecorded}"
    return report


def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, Any] | None:
    return ("noisy", "N", ("TOO NOISY", {"yellow": True})) if getattr(report, "noisy", False) else None


# -------------------------------------------------------------------------------------------------------- ending


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Hand a pytest-xdist worker's summary to the process that has the terminal."""
    config = session.config
    if config.stash.get(refusal_key, ""):
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    noisy = reporter is not None and reporter.stats.get("noisy")
    if noisy and session.exitstatus == pytest.ExitCode.OK and not CommandLine.of(config).allow_noisy:
        session.exitstatus = NOISY_STATUS
    ours = config.stash.get(session_key, None)
    if ours is None:
        return
    quiet_benchmarks(config)
    output = getattr(config, "workeroutput", None)
    if output is not None:
        # What skipped and how many passed is the other process's to count.
        brief, sections = ours.brief(("measured by a worker", ""), [], config.rootpath)
        output["harness"] = [brief, [[title, lines] for title, lines in sections]]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})
    if told := output.get("harness"):
        node.config.stash[summary_key] = (told[0], told[1])
    if refusal := output.get("harness_refusal", ""):
        node.config.stash[refusal_key] = refusal


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    if refusal := config.stash.get(refusal_key, ""):
        terminalreporter.write_line(f"ERROR: {refusal}", red=True)
    if nothing := refused.nothing(config, terminalreporter.stats, exitstatus):
        terminalreporter.write_line(nothing, yellow=True)
    session = config.stash.get(session_key, None)
    skipped = {
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    }
    ended = verdict(exitstatus, terminalreporter.stats)
    if session:
        brief, sections = session.brief(ended, sorted(skipped), config.invocation_params.dir)
    elif summary_key in config.stash:
        brief, sections = config.stash[summary_key]
        brief = [(brief[0][0].replace("measured by a worker", ended[0]), ended[1]), *brief[1:]]
    else:
        return
    if config.option.verbose > 0:
        for title, lines in sections:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.write_line(line)
    write_brief(terminalreporter, config, brief)
