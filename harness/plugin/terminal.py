"""pytest's terminal in a run of the suites: how wide it is, and what stands at its end."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Any

import pytest

from harness.base.foot import Foot
from harness.base.terminal import Folded, columns, fold
from harness.plugin.progress import Progress

_ANY_WIDTH = 10**9
# Options of pytest-benchmark that ask for its own table.
_OF_ITS_TABLE = ("columns", "compare", "cprofile", "group-by", "histogram", "name", "sort", "time-unit", "verbose")
NOISY_STATUS = 8
"""The exit status where nothing failed, and of something it was too noisy to say; pytest's own are below it."""

_WORDS: dict[int, tuple[str, str]] = {
    pytest.ExitCode.OK: ("passed", "green"),
    pytest.ExitCode.TESTS_FAILED: ("failed", "red"),
    pytest.ExitCode.INTERRUPTED: ("interrupted", "yellow"),
    NOISY_STATUS: ("too noisy to say", "yellow"),
}
_COUNTED = ("passed", "failed", "error", "xfailed", "xpassed", "noisy", "skipped")


def narrow(reporter: Any) -> None:
    """Let pytest write no line wider than the terminal, or than 100 columns, unless --wide is given.

    The names of tests that are only listed stay whole with -q: other programs read them.
    """
    option = reporter.config.getoption
    wide = option("--wide", False)
    if option("collectonly", False) and reporter.config.option.verbose < 0:
        return
    writer = reporter._tw
    if not wide:
        writer.fullwidth = min(writer.fullwidth, columns())
    if not isinstance(writer._file, Folded):
        writer._file = Folded(writer._file, _ANY_WIDTH if wide else columns())


def foot(config: pytest.Config, progress: Progress) -> Foot | None:
    """Return a line at the foot of pytest's terminal that shows a session's progress; None where there is no terminal.

    It is gone whenever pytest writes something.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    stream = getattr(getattr(reporter, "_tw", None), "_file", None)
    if capture is None or not isinstance(stream, Folded) or config.option.verbose < 0:
        return None
    # What a test prints is caught at standard output's descriptor, and this is not to be.
    with capture.global_and_fixture_disabled():
        if not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb":
            return None
        own = open(os.dup(stream.fileno()), "w", encoding="utf-8", errors="replace")  # noqa: SIM115
    found = Foot(own, progress.work, lambda: stream.column)
    stream.before = found.hide
    return found


def folded_errors(config: pytest.Config, error: pytest.UsageError) -> list[str]:
    """Return what an error of usage says, no line of it wider than the terminal with what pytest puts before it."""
    texts = [str(it) for it in error.args]
    if config.getoption("--wide", False):
        return texts
    return ["\n".join(fold(text, columns() - len("ERROR: "))) for text in texts]


def quiet_benchmarks(config: pytest.Config) -> None:
    """Leave out pytest-benchmark's own table, unless one of its options asks for it."""
    session = getattr(config, "_benchmarksession", None)
    asked = any(word.startswith(f"--benchmark-{name}") for word in _words(config) for name in _OF_ITS_TABLE)
    if session is not None and not asked:
        session.quiet = True


def verdict(exit_status: int, stats: dict[str, list[Any]]) -> tuple[str, str]:
    """Return how a session ended, in one line, and its colour."""
    # pytest has the exit status from before it was changed.
    exit_status = NOISY_STATUS if exit_status == pytest.ExitCode.OK and stats.get("noisy") else exit_status
    word, colour = _WORDS.get(exit_status, ("stopped", "red"))
    counts = ", ".join(f"{len(stats[name])} {name}" for name in _COUNTED if stats.get(name))
    return f"{word}: {counts or 'no test ran'}", colour


def write_brief(reporter: Any, config: pytest.Config, brief: Sequence[Sequence[str]]) -> None:
    """Write a screen of a summary as the last thing that is said; pytest's list of tests makes way for it.

    One that -r asks for stays.
    """
    if not any(word.startswith("-r") and not word.startswith("--") for word in _words(config)):
        reporter.reportchars = ""
    reporter.section("summary")
    for line, colour in brief:
        reporter.write_line(line, **({colour: True} if colour else {}))


def _words(config: pytest.Config) -> list[str]:
    added = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
    return [*added, *map(str, config.invocation_params.args)]
