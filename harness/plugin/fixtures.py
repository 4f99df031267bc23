"""What the suites' tests ask for: the session, the cell, and what measures, records and judges."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from harness.base.errors import HarnessError
from harness.matrix.plan import Cell
from harness.plugin.command_line import CommandLine
from harness.plugin.progress import Progress, terminal
from harness.plugin.stash import (
    baseline_key,
    claim_key,
    claims_of,
    matrix_of,
    name_of,
    progress_key,
    running_key,
    session_key,
    started_for,
)
from harness.plugin.terminal import foot
from harness.records.run import Run
from harness.records.schema import Line

if TYPE_CHECKING:
    from harness.devices import DeviceRunner
    from harness.judge.limits import Judge
    from harness.measure.measure import Measure
    from harness.measure.mobile import MeasureMobile
    from harness.plugin.session import HarnessSession


@pytest.fixture(scope="session")
def harness_session(request: pytest.FixtureRequest) -> Iterator[HarnessSession]:
    """The session's run folder, artifact store and flow; every worker ends with it."""
    from harness.plugin.session import HarnessSession

    config = request.config
    progress = Progress(terminal(config))
    claims = claims_of(request.session.items)
    try:
        session = HarnessSession.start(
            matrix_of(config),
            CommandLine.of(config),
            claims,
            progress,
            lambda name: config.hook.pytest_harness_device(name=name),
        )
    except HarnessError as error:
        # No test can run without it: said once, and not by each of them.
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    if baseline_key in config.stash:
        config.stash[baseline_key].attach(session)
    session.run.written = lambda line: hand_on(config, line, session.run)
    items = {name_of(item): item for item in request.session.items if claim_key in item.stash}
    estimate = session.estimate()
    estimate.place({name: started_for(item) for name, item in items.items()})
    progress.plan(list(items), estimate)
    progress.begin(name_of(config.stash[running_key]))
    progress.foot = foot(config, progress)
    config.stash[progress_key] = progress
    config.stash[session_key] = session
    yield session
    if progress.foot:
        progress.foot.close()
        progress.foot = None
    session.close()


def hand_on(config: pytest.Config, line: Line, run: Run) -> None:
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
def runs_on(request: pytest.FixtureRequest, device: str, harness_session: HarnessSession) -> DeviceRunner:
    """The device that the test is about; one that was asked for and is not here fails, any other skips."""
    found = harness_session.devices(device)
    if problem := found.missing():
        if CommandLine.of(request.config).devices:
            raise HarnessError(f"--device {device}: {problem}")
        pytest.skip(f"device {device} is not here: {problem}")
    return found


@pytest.fixture(scope="session")
def judge(harness_session: HarnessSession) -> Judge:
    """Holds measurements against the matrix's thresholds; see harness.judge.limits.Judge."""
    return harness_session.judge


@pytest.fixture
def pretrained(cell: Cell, harness_session: HarnessSession) -> None:
    """Skips what random weights cannot answer: their accuracy is left out rather than invented."""
    if harness_session.flow.checkpoints.plain(cell.model, cell.hardware).model.weights == "random":
        pytest.skip(f"{cell.model.name} has random weights here: accuracy is left out rather than invented")


@pytest.fixture
def chats(cell: Cell, harness_session: HarnessSession) -> None:
    """Skips the chat of a model whose tokenizer has no chat template: a base model is not made for it."""
    if not harness_session.flow.checkpoints.plain(cell.model, cell.hardware).chats:
        pytest.skip(f"the tokenizer of {cell.model.name} has no chat template")


@pytest.fixture
def timed(benchmark: Any, cell: Cell) -> Callable[[Callable[[], None], int, int], int]:
    """Times a function through pytest-benchmark: ``timed(function, rounds, warmup_rounds)``, which returns their sum.

    It is less where the function says that further rounds are not needed; pytest-benchmark has those that were.

    pytest-benchmark takes one timing a test: that of a second block is in the records alone. Where it is disabled, by
    ``--benchmark-disable`` or in a worker of pytest-xdist, it would call the function once: the records get all rounds.
    """
    from harness.measure.figures import Enough, in_a_row

    taken = bool(benchmark.disabled)

    def run(function: Callable[[], None], rounds: int, warmup: int) -> int:
        nonlocal taken
        if taken:
            return in_a_row(function, rounds, warmup)
        taken = True
        calls = 0

        def counted() -> None:
            nonlocal calls
            function()
            calls += 1

        benchmark.group = f"{cell.model.name} on {cell.hardware}"
        benchmark.extra_info.update(
            model=cell.model.name, recipe=cell.recipe.name, hardware=cell.hardware.name, server=cell.server
        )
        if cell.gpus > 1:
            benchmark.extra_info["gpus"] = cell.gpus
        try:
            benchmark.pedantic(counted, rounds=rounds, warmup_rounds=warmup, iterations=1)
        except Enough:
            return calls
        return warmup + rounds

    return run
