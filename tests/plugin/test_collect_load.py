"""Which workloads are collected: those named, those of the hardware where load is asked for, and none otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.base import shipped
from harness.base.errors import MatrixError
from harness.matrix.load import load
from harness.matrix.plan import Matrix
from harness.plugin import collect
from harness.plugin.command_line import CommandLine

SHIPPED = shipped.suites() / shipped.MATRIX


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return load(SHIPPED)


def workloads(matrix: Matrix, **given: Any) -> set[str]:
    asked = CommandLine(SHIPPED, Path("results"), servers=("vllm",), **given)
    cases = collect.cases(matrix, "server", ["workload"], asked)
    return {case.values[0] for case in cases if case.cell.hardware.name == "cpu"}


def test_load_is_measured_where_it_is_asked_for(matrix: Matrix) -> None:
    assert workloads(matrix) == set()
    assert workloads(matrix, words=("-k", "latency"), _chosen=("latency", "test_engine.py::")) == set()
    assert workloads(matrix, _chosen=("capacity and int8wo",)) == {"small"}
    assert workloads(matrix, _chosen=("", "test_load.py::")) == {"small"}
    assert workloads(matrix, workloads=("chat", "batch")) == {"chat", "batch"}


def test_a_workload_that_there_is_not_is_answered_with_the_nearest(matrix: Matrix) -> None:
    with pytest.raises(MatrixError, match=r"--workload 'chta' is no workload of matrix.toml; did you mean chat"):
        collect.check(matrix, CommandLine(SHIPPED, Path("results"), workloads=("chta",)))
