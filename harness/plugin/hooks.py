"""Hooks by which a conftest.py or a pytest plugin extends the harness, as pytest itself is extended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.devices import DeviceRunner
    from harness.matrix.schema import Recipe
    from harness.records.run import Run
    from harness.records.schema import Line
    from harness.servers.base import ServerBackend


@pytest.hookspec
def pytest_harness_servers() -> Mapping[str, ServerBackend]:  # type: ignore[empty-body]
    """Return further servers by the name that matrix.toml and ``--server`` give them; see harness.servers."""


@pytest.hookspec(firstresult=True)
def pytest_harness_recipe(name: str) -> Recipe | None:
    """Return the recipe that ``--recipe`` names, or None where it is not this plugin's.

    It needs ``kernels`` to be looked for, or ``known_fallback``.
    """


@pytest.hookspec(firstresult=True)
def pytest_harness_device(name: str) -> DeviceRunner | None:
    """Return the device that ``--device`` names, or None where it is not this plugin's; see harness.devices."""


@pytest.hookspec
def pytest_harness_record(line: Line, run: Run) -> None:
    """Take a line that was just written to the records of a run, for a dashboard or a database.

    It is on the disk by then: an exception raised here becomes a warning and loses nothing.
    """
