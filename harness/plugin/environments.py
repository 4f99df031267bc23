"""Which environments tests run in, and what is not there: said once, before anything is measured."""

from __future__ import annotations

from collections.abc import Callable

from harness.base.errors import HarnessError
from harness.base.shipped import installing
from harness.matrix.hardware import Hardware
from harness.plugin.command_line import CommandLine
from harness.records.run import Run
from harness.runtime.environment import WORKERS_NEED, Environment


def check_packages(hardware: Hardware, given: CommandLine) -> None:
    """Refuse an environment without what every worker needs: once, rather than with a traceback in every test."""
    base = Environment(python=given.python) if given.python else Environment()
    if problem := base.without(*WORKERS_NEED):
        raise HarnessError(f"{problem}, and every worker needs them: {installing(hardware.install)}")


def check_given(given: CommandLine) -> None:
    """Refuse a run, an interpreter or a task that is not there: once, rather than in every test."""
    checks: tuple[tuple[str, str | None, Callable[[str], object]], ...] = (
        ("--python", given.python, lambda it: Environment(python=it).packages()),
        ("--resume", given.resume, lambda it: Run.open(given.results / "runs", it)),
    )
    for option, value, check in checks:
        if value:
            try:
                check(value)
            except HarnessError as error:
                raise HarnessError(f"{option} {value}: {error}") from error
    if given.tasks:
        # Not at the top: most sessions name no task.
        from harness.runtime import task_names

        task_names.check(given.tasks, Environment(python=given.python) if given.python else Environment())
