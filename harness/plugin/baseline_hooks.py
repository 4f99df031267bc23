"""What ``--against`` adds to pytest: a session's tests are held against a stored baseline."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.base.errors import HarnessError, ThresholdFailure
from harness.judge import baseline as baselines
from harness.machine import probe
from harness.matrix.plan import Cell, Matrix
from harness.plugin.command_line import CommandLine

if TYPE_CHECKING:
    from harness.plugin.comparison import Comparison
    from harness.plugin.session import HarnessSession


class BaselineHooks:
    """Refuses a baseline that does not fit before anything is measured; then has every test's figures compared."""

    def __init__(self, config: pytest.Config, given: CommandLine) -> None:
        self.config = config
        self.given = given
        self.path = baselines.find(str(given.against), given.results / "baselines")
        self.cells: Mapping[pytest.Item, Cell] = {}
        self.run: Path | None = None
        self.comparison: Comparison | None = None

    def plan(self, matrix: Matrix, cells: Mapping[pytest.Item, Cell], items: Sequence[pytest.Item]) -> None:
        """Read the baseline and note what the session covers: the cells of all tests, and the tests that will run.

        Raises UsageError naming what differs where the two cannot be compared.
        """
        try:
            self.baseline = baselines.load(self.path)
            (hardware,) = matrix.members(self.baseline.hardware)
            if problem := probe.missing(hardware):
                raise HarnessError(f"{self.path} is of {hardware}, which is not here: {problem}")
            baselines.refuse_other(self.baseline, self.path, probe.device(hardware))
        except HarnessError as error:
            raise pytest.UsageError(f"--against: {error}") from error
        self.cells = {item: cell for item, cell in cells.items() if cell.hardware.name == self.baseline.hardware}
        chosen = set(items)
        if not chosen.intersection(self.cells):
            raise pytest.UsageError(
                f"--against: {self.path} is of {self.baseline.hardware}, and no test of it is selected"
            )
        parts = any("::" in argument or argument.endswith(".py") for argument in self.config.args)
        seen = {cell.place.named.cell for cell in self.cells.values()}
        cut = seen
        if not parts:
            cut = {cell.place.named.cell for item, cell in self.cells.items() if item not in chosen}
        narrowed = parts or any((self.given.models, self.given.recipes, self.given.servers))
        self.coverage = baselines.Coverage(seen - cut, seen, narrowed)

    def attach(self, session: HarnessSession) -> None:
        """Compare what this session measures."""
        from harness.plugin.comparison import Comparison

        self.comparison = session.comparison = Comparison(
            self.baseline, self.path, self.coverage, session.measure.recorder
        )
        self.run = session.run.folder

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """Hold what the test measured against the baseline; what is worse there is measured once more."""
        failure: HarnessError | None = None
        try:
            yield
        except HarnessError as error:
            failure = error
        if self.comparison is not None and item in self.cells:
            try:
                self.comparison.check(item.runtest)
            except HarnessError as error:
                if failure is None:
                    raise
                failure.args = (f"{failure}\n{error}",)
                if isinstance(failure, ThresholdFailure):
                    # Worse than the baseline is news, also beside a limit that is known not to hold.
                    failure.known = ""
        if failure is not None:
            raise failure

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a session that has not measured what stands in its baseline, unless it was stopped early."""
        if self.comparison is None or self.run is None:
            return
        whole = not session.shouldstop and not session.shouldfail and session.exitstatus in (0, 1)
        if whole and self.comparison.missing():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self.comparison.write(self.run)
