"""A gate of load: asked for by a workload, and measured in turns."""

from __future__ import annotations

from typing import Any

import pytest

from harness.base import shipped
from harness.base.errors import MatrixError
from harness.gate import plan
from harness.gate.blocks import BlockRunner
from harness.judge.gatefile import Options
from harness.matrix.load import load
from harness.records.metrics import OF_LOAD


def units(**given: Any) -> list[plan.Unit]:
    options = Options("torchao==0.17.0", "torchao==0.18.0", "cpu", recipes=("int8wo",), servers=("vllm",), **given)
    return plan.units(load(shipped.suites() / shipped.MATRIX), options)


def test_load_is_gated_where_a_workload_is_named() -> None:
    assert not any(unit.metrics & OF_LOAD for unit in units())
    (server,) = [unit for unit in units(workloads=("small",)) if unit.stage == "server"]
    assert {"capacity", "saturation_throughput"} <= server.metrics
    assert server.workloads == ("small",)


def test_a_keyword_leaves_capacity_alone() -> None:
    (server,) = units(workloads=("small",), keyword="server and capacity")
    assert server.metrics == {"capacity"}


def test_a_workload_that_there_is_not_is_refused() -> None:
    with pytest.raises(MatrixError, match="did you mean small"):
        units(workloads=("smal",))


def test_the_command_of_a_gate_says_its_workloads_and_settings() -> None:
    options = Options("a", "b", "cpu", workloads=("chat",), settings=("load.seconds=3",))
    assert "--workload chat --set load.seconds=3" in options.command()


class Measured:
    """Notes what a block asks for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda cell, what="", *_: self.asked.append(f"{name} {what}".strip())

    def has_limits(self, name: str) -> bool:
        return name == "small"


class OneSide:
    """Turns of a side that is alone."""

    def timer(self, side: str) -> Any:
        return lambda function, rounds, warmup: function()

    def meet(self, side: str) -> None: ...


@pytest.mark.parametrize(
    ("keyword", "expected"),
    [
        ("server and capacity", ["server", "load small", "capacity small"]),
        ("server and saturation", ["server", "load small"]),
        ("server and engine_start", ["server"]),
    ],
)
def test_a_block_measures_what_was_asked_for(keyword: str, expected: list[str]) -> None:
    (server,) = units(workloads=("small",), keyword=keyword)
    measured = Measured()
    BlockRunner._server(None, measured, server, "old", OneSide())  # type: ignore[arg-type]
    assert measured.asked == expected
