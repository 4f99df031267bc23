"""A node's session tells its planner what it measured and how each test ended, as it happens."""

from __future__ import annotations

import pytest

from harness.cluster.node import Events
from harness.plugin.stash import session_key
from harness.records.run import Run
from harness.records.schema import Line


class Stream:
    """A plugin that writes events to its node; see :mod:`harness.plugin.far`."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._events = Events()
        self._say = self._events.say

    def pytest_harness_record(self, line: Line, run: Run) -> None:
        self._events.record(line.model_dump_json(), run.folder, getattr(line, "attachment", ""))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._say("report", test=report.nodeid, report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        session = self._config.stash.get(session_key, None)
        judge = getattr(session, "judge", None)
        if judge is not None and judge.waits:
            judge.waits = False
            self._say("later", test=nodeid)
            return
        self._say("done", test=nodeid)

    def pytest_sessionfinish(self) -> None:
        session = self._config.stash.get(session_key, None)
        if session is not None:
            told = session.told
            self._say("told", failures=told.failures, known=told.known, unjudged=told.unjudged, shown=told.shown)

    def pytest_unconfigure(self) -> None:
        self._events.close()
