"""What the plugin keeps in pytest's stash."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.base.errors import HarnessError
from harness.matrix.load import load
from harness.matrix.plan import Cell, Matrix
from harness.plugin.progress import Progress
from harness.servers.registry import SERVERS

if TYPE_CHECKING:
    from harness.plugin.nightly import Nightly  # noqa: F401
    from harness.plugin.session import HarnessSession  # noqa: F401

if TYPE_CHECKING:
    pass

matrix_key = pytest.StashKey[Matrix]()
session_key = pytest.StashKey["HarnessSession"]()
cell_key = pytest.StashKey[Cell]()
problem_key = pytest.StashKey[str]()
nightly_key = pytest.StashKey["Nightly"]()
progress_key = pytest.StashKey[Progress]()
running_key = pytest.StashKey[pytest.Item]()
reports_key = pytest.StashKey[list[pytest.TestReport]]()
refusal_key = pytest.StashKey[str]()
summaries_key = pytest.StashKey[list[Any]]()


def _matrix(config: pytest.Config) -> Matrix:
    if matrix_key not in config.stash:
        path = config.getoption("--matrix") or config.rootpath / "suites" / "matrix.toml"
        try:
            matrix = load(path)
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from error
        for name in config.getoption("--recipe") or ():
            if found := config.hook.pytest_harness_recipe(name=name):
                matrix.recipes[name] = found
        config.stash[matrix_key] = matrix
    return config.stash[matrix_key]


def environments_of(config: pytest.Config) -> dict[str, Path]:
    """Return the environments of the command line by server."""
    found = {}
    for given in config.getoption("--environment"):
        name, equals, path = given.partition("=")
        if not equals or not path or name not in SERVERS:
            raise pytest.UsageError(
                f"--environment {given}: give SERVER=PATH, where SERVER is one of {', '.join(SERVERS)}"
            )
        found[name] = Path(path)
    return found


def _stage(item: pytest.Item) -> str:
    marker = item.get_closest_marker("stage")
    assert marker
    return str(marker.args[0])


def results_of(config: pytest.Config) -> Path:
    results: Path = config.getoption("--results") or config.rootpath / "results"
    return results
