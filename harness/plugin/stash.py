"""What the plugin keeps in pytest's stash, and what it tells of an item."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from harness.base.errors import HarnessError
from harness.machine import here
from harness.matrix.config_text import parse_limit
from harness.matrix.load import load
from harness.matrix.plan import Cell, Matrix
from harness.plugin import estimate
from harness.plugin.collect import Claim
from harness.plugin.command_line import CommandLine
from harness.plugin.progress import Progress
from harness.servers.registry import names as server_names

if TYPE_CHECKING:
    from harness.plugin.baseline_hooks import BaselineHooks  # noqa: F401
    from harness.plugin.reported import Reported  # noqa: F401
    from harness.plugin.summary import Section

session_key = pytest.StashKey["Reported"]()
claim_key = pytest.StashKey[Claim]()
problem_key = pytest.StashKey[str]()
baseline_key = pytest.StashKey["BaselineHooks"]()
progress_key = pytest.StashKey[Progress]()
running_key = pytest.StashKey[pytest.Item]()
reports_key = pytest.StashKey[list[pytest.TestReport]]()
refusal_key = pytest.StashKey[str]()
summary_key = pytest.StashKey[tuple[list[tuple[str, str]], list["Section"]]]()
"""What a pytest-xdist worker has to say at the end: a screen of lines with their colours, and all sections."""
_matrix_key = pytest.StashKey[Matrix]()


def matrix_of(config: pytest.Config) -> Matrix:
    """Return the session's matrix, with the recipes that other plugins know by the names of the command line."""
    if _matrix_key not in config.stash:
        given = CommandLine.of(config)
        try:
            matrix = here.whole(load(given.matrix, server_names(), given.settings))
            asked = [parse_limit(text) for text in given.require]
            matrix = replace(matrix, thresholds=[*matrix.thresholds, *asked])
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from error
        for name in given.recipes or ():
            if found := config.hook.pytest_harness_recipe(name=name):
                matrix.recipes[name] = found
        config.stash[_matrix_key] = replace(
            matrix,
            asked=given.task_options,
            trust_remote_code=given.trust_remote_code,
            merge_adapter=given.merge_adapter,
        )
    return config.stash[_matrix_key]


def cell_of(item: pytest.Item) -> Cell | None:
    """Return the cell that a test is about, or None for a test that measures nothing."""
    return item.stash[claim_key].cell if claim_key in item.stash else None


def started_for(item: pytest.Item) -> str:
    """Return what names all that is started for a test's cell, as earlier runs are told by it."""
    cell = item.stash[claim_key].cell
    return estimate.cell_of(item.path.name, cell.model.name, cell.recipe.name, cell.hardware.name, cell.server)


def claims_of(items: Iterable[pytest.Item]) -> list[Claim]:
    """Return those of the items that measure."""
    return [item.stash[claim_key] for item in items if claim_key in item.stash]


def name_of(item: pytest.Item) -> str:
    """Return what records call a test: its file's name and its own, parameters included."""
    return f"{item.path.name}::{item.name}"
