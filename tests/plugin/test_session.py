"""What a session says at its end, of records that are there: no worker is started."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.measure.recorder import record_of
from harness.plugin.session import HarnessSession
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Cell, Device, Measurement, ModelIdentity, Outcome, RecipeIdentity

MODEL = ModelIdentity(name="a-model", source="random:shape", revision="r", weights="random")


def cell(server: str = "vllm", recipe: str = "bf16") -> Cell:
    identity = RecipeIdentity(name=recipe, hash=recipe, config={}, baseline=recipe == "bf16")
    return Cell(model=MODEL, recipe=identity, hardware="h100", server=server)


def fraction(value: float, server: str, *, bound: str = "memory", discarded: str = "", **more: Any) -> Measurement:
    seconds = {"memory_seconds": 0.9, "arithmetic_seconds": 0.1, "measured_seconds": 1.0}
    if bound == "overhead":
        seconds["measured_seconds"] = 9.0
    return record_of(
        "limit_fraction",
        value,
        cell=cell(server),
        parameters={"batch_size": 1, "input_len": 256, "output_len": 256, "phase": "decode"},
        statistics=seconds,
        packages={},
        device=Device(name="NVIDIA H100"),
        discarded=discarded,
        **more,
    )


@pytest.fixture
def session(tmp_path: Path) -> HarnessSession:
    """A session that has a run, where to put tables and no limits; it has nothing to measure with."""
    nothing: Any = SimpleNamespace(
        failures=[], known=[], unjudged=[], shown=[], checkpoints=SimpleNamespace(models=SimpleNamespace(names=[]))
    )
    return HarnessSession(
        run=Run.create(tmp_path / "runs"),
        flow=nothing,
        devices=nothing,
        measure=nothing,
        mobile=nothing,
        judge=nothing,
        documented=Documented(),
        lock=nothing,
        started=time.monotonic(),
        problems=[],
    )


def section(session: HarnessSession, title: str) -> list[str]:
    return dict(session.summary([])).get(title, [])


def test_the_speed_of_light_names_the_server_and_the_last_good_record_of_each(session: HarnessSession) -> None:
    for record in (
        fraction(0.5, "vllm", bound="overhead"),
        fraction(0.7, "sglang"),
        fraction(0.9, "vllm"),
        fraction(0.1, "vllm", discarded="throttled"),
    ):
        session.run.append(record)
    assert section(session, "speed of light") == [
        "a-model bf16 through vllm on h100, batch 1, decode: 90% of the limit, limited by memory",
        "a-model bf16 through sglang on h100, batch 1, decode: 70% of the limit, limited by memory",
    ]


def test_without_a_good_record_nothing_is_said_of_the_speed_of_light(session: HarnessSession) -> None:
    session.run.append(fraction(0.1, "vllm", discarded="throttled"))
    assert section(session, "speed of light") == []


def test_the_kernels_of_each_cell_are_named_by_their_share(session: HarnessSession) -> None:
    ran = [["nvjet_qq", 0.006, 8], ["copy", 0.003, 4], ["norm", 0.0005, 2], ["tail", 0.0005, 1]]
    attachment = session.run.attach("kernels", {"kernels": ran})
    at = {"cell": cell("vllm", "float8dq"), "packages": {}, "device": Device(name="NVIDIA H100"), "parameters": {}}
    session.run.append(record_of("kernel_time", 10.0, attachment=attachment, **at))
    assert section(session, "kernels that took longest") == [
        "a-model float8dq through vllm on h100: nvjet_qq 60%, copy 30%, norm 5%"
    ]


def skipped(test: str, of: Cell | None, reason: str, outcome: str = "skipped") -> Outcome:
    known = "too small a batch" if outcome == "xfailed" else ""
    return Outcome.model_validate(
        {"test": test, "cell": of, "outcome": outcome, "seconds": 0.1, "reason": reason, "known": known}
    )


@pytest.mark.parametrize(("known", "outcome"), [("a small model", "xfailed"), (None, "skipped")])
def test_an_expected_failure_is_no_skip(session: HarnessSession, known: str | None, outcome: str) -> None:
    report: Any = SimpleNamespace(outcome="skipped", skipped=True, when="call", duration=0.5, longrepr="")
    report.longreprtext = "17\nand more"
    if known:
        report.wasxfail = known
    of: Any = cell()
    assert session.record_outcome("test_engine.py::test_latency[a]", of, [report]) == outcome
    (line,) = session.run.read()[0]
    assert isinstance(line, Outcome)
    assert (line.outcome, line.reason, line.known) == (outcome, "17", known or "")


def test_the_written_table_names_what_cannot_work_and_why(session: HarnessSession) -> None:
    where = "test_engine.py::"
    for line in (
        fraction(0.5, "vllm"),
        skipped(f"{where}test_engine[a-model-8da4w-h100-vllm]", cell(recipe="8da4w"), "no kernel on a GPU"),
        skipped(f"{where}test_latency[a-model-8da4w-h100-vllm-1]", cell(recipe="8da4w"), "no kernel on a GPU"),
        skipped(f"{where}test_latency[a-model-8da4w-h100-vllm-128]", cell(recipe="8da4w"), "no kernel on a GPU"),
        skipped(f"{where}test_engine[a-model-bf16-h100-sglang]", cell("sglang"), "SGLang is not installed"),
        skipped(f"{where}test_kernels[a-model-bf16-h100-vllm]", cell(), "", "passed"),
        skipped(f"{where}test_speed_of_light[a-model-bf16-h100-vllm-1]", cell(), "measured 0.5, limit 0.6", "xfailed"),
        skipped(f"{where}test_chat[a-model-bf16-h100-vllm]", cell(), "the tokenizer has no chat template"),
        skipped(f"{where}test_engine[a-model-bf16-h100-sglang]", cell("sglang"), "", "passed"),
    ):
        session.run.append(line)
    session.summary([])
    text = (session.run.folder / "tables" / "h100.md").read_text(encoding="utf-8")
    expected, shown = (
        [[one.strip() for one in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
        for part in text.partition("Failed as expected")[2].split("Skipped")
    )
    assert expected[2:] == [
        ["a-model x bf16 on h100 through vllm: test_speed_of_light", "measured 0.5, limit 0.6", "too small a batch"]
    ]
    assert shown[2:] == [
        ["a-model x 8da4w on h100 through vllm: test_engine, test_latency", "no kernel on a GPU"],
        ["a-model x bf16 on h100 through vllm: test_chat", "the tokenizer has no chat template"],
    ]
