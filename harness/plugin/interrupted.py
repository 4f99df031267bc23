"""What Ctrl-C, SIGTERM and SIGHUP do to a session: it ends with its summary, and says how to go on with it."""

from __future__ import annotations

from typing import Any

import pytest

from harness.base.interruption import Interruption
from harness.base.text import going_on
from harness.plugin.command_line import CommandLine
from harness.plugin.stash import session_key


class Interrupted:
    """A plugin that takes the signals for as long as pytest is configured."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._interruption = Interruption(self._last_words)
        self._interruption.__enter__()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Let what ends by itself end: workers, tables and the summary."""
        self._interruption.ending()

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.INTERRUPTED and (goes_on := self._goes_on()):
            by = self._interruption.by
            terminalreporter.section(f"interrupted by {by}" if by else "interrupted")
            terminalreporter.write_line(goes_on)

    def pytest_unconfigure(self) -> None:
        self._interruption.__exit__()

    def _last_words(self) -> str:
        words, goes_on = "ended at once, as asked a second time", self._goes_on()
        return f"{words}; what was measured is kept\n{goes_on}" if goes_on else words

    def _goes_on(self) -> str:
        """Return the command that goes on with this session's run, or an empty text where it has none."""
        session = self._config.stash.get(session_key, None)
        if session is None:
            return ""
        return f"go on with: {going_on(CommandLine.of(self._config).words, session.run.name)}"
