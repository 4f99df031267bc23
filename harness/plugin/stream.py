"""A node's session tells its planner what it measured and how each test ended, as it happens."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import pytest

from harness.plugin.stash import session_key
from harness.records.run import Run
from harness.records.schema import Line


class Stream:
    """A plugin that writes events to a descriptor, one JSON object a line; see :mod:`harness.plugin.far`."""

    def __init__(self, config: pytest.Config, descriptor: int) -> None:
        self._config = config
        self._file = os.fdopen(descriptor, "w", encoding="utf-8")

    def _say(self, kind: str, **what: Any) -> None:
        # A planner that is gone is told nothing; what is measured is in this node's own run until it ends.
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._file.write(json.dumps({"kind": kind, **what}) + "\n")
            self._file.flush()

    def pytest_harness_record(self, line: Line, run: Run) -> None:
        attached = {}
        if name := getattr(line, "attachment", ""):
            attached = {"name": name, "text": (run.folder / name).read_text(encoding="utf-8")}
        self._say("line", line=line.model_dump_json(), attachment=attached)

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
        with contextlib.suppress(OSError):
            self._file.close()
