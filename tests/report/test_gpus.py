"""Figures on one GPU and on several stand in columns of their own, each held against the baseline on as many."""

from __future__ import annotations

import pytest

from harness.records.published import Documented
from harness.records.schema import Measurement
from harness.report import tables
from harness.report.plots import colours, improvements
from tests.report.test_tables import LATENCY, RANDOM, measured


def on(gpus: int, record: Measurement) -> Measurement:
    return record.model_copy(update={"cell": record.cell.model_copy(update={"gpus": gpus})})


@pytest.fixture(scope="module")
def records() -> list[Measurement]:
    def latency(value: float, recipe: str) -> Measurement:
        return measured("latency", value, recipe, parameters=LATENCY, model=RANDOM)

    return [
        on(2, latency(4.0, "bf16")),
        on(2, latency(2.0, "float8dq")),
        latency(3.0, "float8dq"),
        on(2, latency(5.0, "int4wo")),
    ]


def test_columns_say_how_many_gpus(records: list[Measurement]) -> None:
    (table,) = tables.published_tables(records, Documented.load())
    assert table.header == (
        "Benchmark",
        "Phi-4-mini-instruct (2 GPUs)",
        "Phi-4-mini-instruct-float8dq (2 GPUs)",
        "Phi-4-mini-instruct-float8dq",
        "Phi-4-mini-instruct-int4wo (2 GPUs)",
    )
    (row,) = table.rows
    assert row[1:] == ("4.00s", "2.00s (2.00x speedup)", "3.00s", "5.00s (1.25x slowdown)")


def test_what_is_on_other_gpus_is_held_against_nothing(records: list[Measurement]) -> None:
    (table,) = tables.main_tables(records, Documented.load())
    assert [row[0] for row in table.rows] == [
        "bf16 (2 GPUs)",
        "float8dq (2 GPUs)",
        "float8dq",
        "int4wo (2 GPUs)",
    ]
    (subject,) = tables.collect(records)
    assert set(colours(subject)) == {row[0] for row in table.rows}
    (plot,) = improvements(subject)
    assert "on 2 GPUs" in plot.svg
