"""The two sides of a gate on the command line: by their places, or by ``--old`` and ``--new``."""

from __future__ import annotations

import argparse
import re

from harness.base.errors import HarnessError
from harness.base.shipped import installing
from harness.gate.plan import units
from harness.judge.gatefile import Options
from harness.matrix.plan import Matrix
from harness.runtime import asked, task_names
from harness.runtime.environment import WORKERS_NEED, Environment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name both sides."""
    for side in ("old", "new"):
        parser.add_argument(
            f"--{side}", dest=f"{side}_side", nargs="+", metavar="PACKAGE==VERSION|WHEEL|LOCK", help=f"the {side} side"
        )


def of(arguments: argparse.Namespace, example: str = "torchao==0.17.0 torchao==0.18.0") -> tuple[str, str]:
    """Return what both sides are, as the command line names them. Raises HarnessError where one is missing."""
    given = [getattr(arguments, side) for side in ("old", "new")]
    named = [asked.joined(words) if (words := getattr(arguments, f"{side}_side")) else None for side in ("old", "new")]
    if any(given) and any(named):
        raise HarnessError(f"{given[0]!r}: name both sides by their places, or both by --old and --new")
    old, new = named if any(named) else given
    if not (old and new):
        raise HarnessError(f"name two sides, as in {example}, or --old OLD --new NEW")
    return old, new


def check_names(matrix: Matrix, wanted: Options, base: Environment) -> None:
    """Refuse words of -k, models, recipes, workloads and tasks that there are none of, with what was meant."""
    units(matrix, wanted, words=True)
    if wanted.tasks:
        task_names.check(wanted.tasks, base)


def check(matrix: Matrix, wanted: Options, base: Environment) -> None:
    """Refuse what a gate cannot be asked for before another session is waited for, or anything is installed.

    ``base`` is the environment that both sides are made from.
    """
    check_names(matrix, wanted, base)
    bring_torch = any(asked.is_lock(side) or re.search(r"\btorch\b|\bvllm", side) for side in (wanted.old, wanted.new))
    if not bring_torch and (problem := base.without(*WORKERS_NEED[:1])):
        raise HarnessError(f"{problem}, and both sides need it: {installing(matrix.hardware[wanted.hardware].install)}")
    for side in (wanted.old, wanted.new):
        if asked.is_lock(side):
            asked.lock_file(side)
        else:
            asked.parts(side)
