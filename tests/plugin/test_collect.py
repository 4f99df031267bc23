"""What is collected and in which order, as plain functions over a matrix and a command line: no pytest runs below."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from harness.base.errors import HarnessError, MatrixError
from harness.matrix.load import load
from harness.matrix.plan import Matrix
from harness.plugin import collect
from harness.plugin.collect import Claim
from harness.plugin.command_line import CommandLine
from harness.records.metric import STAGES
from harness.servers.registry import SERVERS
from tests.plugin.test_plugin import MATRIX, only_a_processor

TESTS = {"checkpoint": "quantize", "generate": "transformers", "latency": "engine", "serving": "server"}
ASKS = {"latency": ["batch_size"], "serving": ["num_prompts"]}
HERE = Path("suites")


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    path = tmp_path_factory.mktemp("matrix") / "matrix.toml"
    path.write_text(MATRIX, encoding="utf-8")
    return load(path)


def asked(**given: Any) -> CommandLine:
    return CommandLine(HERE / "matrix.toml", HERE / "results", **given)


def claims(matrix: Matrix, given: CommandLine, hardware: str | None = "cpu") -> list[Claim]:
    """The tests that a suite of four functions gives, in the order in which pytest collects them."""
    return [
        Claim(
            HERE / "test.py", test, stage, case.cell, dict(zip(names, case.values, strict=True)), bool(case.cell.skip)
        )
        for test, stage in reversed(TESTS.items())
        for names in [ASKS.get(test, [])]
        for case in collect.cases(matrix, stage, names, given)
        if hardware in (None, case.cell.hardware.name)
    ]


def named(claims: list[Claim]) -> list[str]:
    return [f"{claim.function}[{claim.cell.id}]" for claim in claims]


def test_cases_are_the_cells_through_each_server_with_each_value(matrix: Matrix) -> None:
    given = asked(models=("small",), recipes=("int8wo",))
    found = [
        case for case in collect.cases(matrix, "engine", ["batch_size"], given) if case.cell.hardware.name == "cpu"
    ]
    assert [case.id for case in found] == [
        f"small-{recipe}-cpu-vllm-{batch}" for recipe in ("bf16", "int8wo") for batch in (1, 8)
    ]
    assert [case.values for case in found] == [(1,), (8,), (1,), (8,)]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"models": ("smal",)}, MatrixError, "--model 'smal' is neither"),
        ({"recipes": ("int8w0",)}, MatrixError, "--recipe 'int8w0' is neither"),
        ({"data": Path("nowhere")}, HarnessError, "--data nowhere: there is no such folder"),
    ],
)
def test_what_there_is_not_is_refused(matrix: Matrix, given: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        list(collect.cases(matrix, "quantize", [], asked(**given)))


def test_a_server_that_cannot_serve_the_hardware_is_skipped_if_it_was_asked_for(matrix: Matrix) -> None:
    given = asked(models=("small",), recipes=("int8wo",), servers=("sglang",))
    reasons = {
        case.cell.skip for case in collect.cases(matrix, "engine", [], given) if case.cell.hardware.name == "cpu"
    }
    assert reasons == {"SGLang is served on an NVIDIA GPU of capability >=8.0, not on cpu"}


def test_the_order_is_by_cell_then_server_then_stage(matrix: Matrix) -> None:
    everything = claims(matrix, asked(models=("small",), recipes=("int8wo",)))
    planned = collect.plan(everything, everything)
    names = ["checkpoint", "generate", "latency", "latency", "serving", "serving"]
    assert [claim.function for claim in planned] == names * 2
    assert [claim.cell.recipe.name for claim in planned] == ["bf16"] * 6 + ["int8wo"] * 6


@hypothesis_given(st.sets(st.integers(0, 60)), st.randoms(use_true_random=False))
def test_a_plan_is_the_choice_with_its_baselines_whatever_was_chosen(
    matrix: Matrix, chosen: set[int], order: random.Random
) -> None:
    everything = claims(matrix, asked(), hardware=None)
    picked = [claim for index, claim in enumerate(everything) if index in chosen]
    shuffled = list(picked)
    order.shuffle(shuffled)
    planned = collect.plan(everything, shuffled)
    assert planned == collect.plan(everything, picked), "the order of the choice does not matter"
    assert len(planned) == len(set(planned))
    assert set(picked) <= set(planned)
    beside = {claim.beside_recipe for claim in picked}
    assert all(it.cell.recipe.baseline and it.beside_recipe in beside for it in set(planned) - set(picked))
    there = {claim.beside_recipe for claim in planned if claim.cell.recipe.baseline}
    possible = {claim.beside_recipe for claim in everything if claim.cell.recipe.baseline}
    assert beside & possible <= there
    cells = [claim.of_cell for claim in planned]
    assert len([1 for a, b in zip([None, *cells], cells, strict=False) if a != b]) == len(set(cells)), "cells in a row"
    keys = [
        (cell, claim.cell.server if claim.cell.server in SERVERS else "")
        for cell, claim in zip(cells, planned, strict=True)
    ]
    assert len([1 for a, b in zip([None, *keys], keys, strict=False) if a != b]) == len(set(keys)), "started once"
    for key in set(keys):
        stages = [STAGES.index(claim.stage) for at, claim in zip(keys, planned, strict=True) if at == key]
        assert stages == sorted(stages)


def test_workers_are_asked_for_in_order_and_never_for_what_is_skipped(matrix: Matrix) -> None:
    everything = claims(matrix, asked(models=("small",), recipes=("float8dq",)))
    planned = collect.plan(everything, everything)
    assert {claim.cell.recipe.name for claim in planned} == {"bf16", "float8dq"}
    bases = [base for base, _ in collect.workers(planned)]
    assert bases == [claim.cell.base for claim in planned if not claim.cell.skip]
    assert [str(base) for base in bases] == ["small/bf16 on cpu"] * 6


def test_missing_hardware_is_an_error_only_where_it_was_asked_for(
    matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_a_processor(monkeypatch)
    everything = claims(matrix, asked(), hardware=None)
    with pytest.raises(HarnessError, match=r"-m selects \d+ tests for h100, which is not here: there is no h100"):
        collect.absent(everything, asked(markers="h100"))
    for given in (asked(markers="cpu"), asked(markers="h100", allow_missing_hardware=True)):
        reasons = collect.absent(everything, given)
        assert {claim.cell.hardware.name for claim, reason in reasons.items() if "is not here" in reason} == {
            "h100",
            "arm-mobile",
        }


def test_a_server_that_is_not_installed_is_an_error_only_where_it_was_asked_for(
    matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_a_processor(monkeypatch)
    monkeypatch.setattr(type(SERVERS["vllm"]), "distributions", ("no-such-server",))
    everything = claims(matrix, asked(models=("small",), recipes=("int8wo",)))
    reasons = collect.absent(everything, asked())
    assert {claim.cell.server for claim in reasons} == {"vllm"}
    assert all(reason.startswith("no-such-server is not installed") for reason in reasons.values())
    with pytest.raises(HarnessError, match="--server vllm: no-such-server is not installed"):
        collect.absent(everything, asked(servers=("vllm",)))
    skipped = [replace(claim, skipped=True) for claim in everything]
    assert collect.absent(skipped, asked(servers=("vllm",))) == {}


def test_programs_are_those_that_a_device_can_run(matrix: Matrix) -> None:
    (case,) = [it for it in collect.cases(matrix, "quantize", [], asked()) if it.cell.hardware.name == "arm-mobile"]

    def claim(route: str, device: str, skipped: bool = False) -> Claim:
        return Claim(HERE, "program", "export", case.cell, {"route": route, "device": device}, skipped)

    def lacks(device: str, route: str) -> str:
        if device == "unknown":
            raise MatrixError("no such device")
        return "no operators of its own" if (device, route) == ("qemu", "llama") else ""

    def routes(*claims: Claim) -> list[str]:
        return [route for _, route in collect.programs(claims, lacks)]

    assert routes(claim("llama", "qemu"), claim("transformers", "qemu")) == ["transformers"]
    assert routes(claim("llama", "host"), claim("llama", "qemu")) == ["llama"]
    assert routes(claim("transformers", "ios:bf16=x.json"), claim("llama", "unknown")) == []
    assert routes(claim("llama", "host", skipped=True)) == []


def test_only_what_runs_counts_for_where_it_is_measured(matrix: Matrix) -> None:
    everything = claims(matrix, asked(), hardware=None)
    assert {claim.cell.hardware.name for claim in everything} >= {"cpu", "h100"}
    assert collect.only_hardware(everything) is None
    h100 = [replace(it, skipped=it.cell.hardware.name != "h100") for it in everything]
    assert collect.only_hardware(h100) == matrix.hardware["h100"]


@pytest.mark.parametrize("given", ["sglang", "sglang=", "transformers=/x"])
def test_an_environment_is_given_by_server(given: str) -> None:
    with pytest.raises(HarnessError, match=f"--environment {given}: give SERVER=PATH"):
        asked(environments=(given,)).own_environments()
