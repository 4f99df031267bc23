"""A gate through a server that applies the recipe itself, and through one that is installed only elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.__main__ import parser
from harness.base.errors import HarnessError
from harness.commands.workplace import Workplace, given
from harness.gate.plan import units
from harness.judge.gatefile import Options
from harness.matrix.plan import Matrix
from harness.runtime.environment import Environment
from harness.runtime.environment_pair import Pair
from harness.runtime.store import Store
from harness.servers.registry import SERVERS
from harness.servers.vllm import VLLM
from tests.fake_gate import Machine, make

OPTIONS = Options("a", "b", "cpu", models=("SmolLM2-135M-Instruct",), recipes=("int8wo",), servers=("sglang",))


class Anywhere(VLLM):
    """A server as SGLang is, which runs on a CPU too; its packages are those of ``here``."""

    at_load = own_environment = True
    compiles = False
    here = ("filelock",)

    @property
    def distributions(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.here


@pytest.fixture
def matrix(suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> Matrix:
    """The project's matrix, whose cells on a CPU go through SGLang as well, which can be run there."""
    monkeypatch.setitem(SERVERS, "sglang", Anywhere())
    entries = [
        entry.model_copy(update={"servers": [*entry.servers, "sglang"]}) if entry.hardware == "cpu" else entry
        for entry in suites_matrix.entries
    ]
    return replace(suites_matrix, entries=entries)


def test_what_applies_the_recipe_itself_is_measured_and_given_no_checkpoint(
    tmp_path: Path, matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nothing is quantized for it, and no checkpoint of the old version is carried to the new one."""
    machine = Machine()
    outcome = make(tmp_path, matrix, monkeypatch, machine, OPTIONS)()
    assert machine.asked == [("", "facts")], "the plain weights are looked over once, by neither side"
    measured = {(it.place.server, it.metric) for it in outcome.verdicts}
    assert {("sglang", metric) for metric in ("latency", "request_throughput", "engine_start")} <= measured
    assert {(row.place.server, row.stage) for row in outcome.file.compatibility} == {
        ("sglang", "load and run"),
        ("sglang", "serve"),
    }


def test_beside_others_it_needs_no_quantization_that_works(
    tmp_path: Path, matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(side: str, command: str) -> HarnessError | None:
        return HarnessError("quantize: it broke") if command == "quantize" else None

    options = replace(OPTIONS, servers=("transformers", "sglang"))
    outcome = make(tmp_path, matrix, monkeypatch, Machine(broken=broken), options)()
    works = {(row.place.server, row.stage): row.new for row in outcome.file.compatibility}
    assert works["", "quantize and save"] == "fails"
    assert works["sglang", "load and run"] == works["sglang", "serve"] == "works"
    assert "latency" in {it.metric for it in outcome.verdicts if it.place.server == "sglang"}


def test_a_server_of_another_environment_is_left_out_of_a_gate_that_does_not_name_it(
    tmp_path: Path, matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    place = Workplace(Store(tmp_path), tmp_path, matrix, matrix.hardware["cpu"], Environment(), told.append)
    every = replace(OPTIONS, servers=())
    assert "sglang" in {unit.cell.server for unit in place.units(every)}
    assert not told
    monkeypatch.setattr(Anywhere, "here", ("no-such-server",))
    assert "sglang" not in {unit.cell.server for unit in place.units(every)}
    (line,) = told
    assert line.startswith("left out: sglang: no-such-server is not installed in ")
    pair = Pair("torchao", Environment(), Environment(), ())
    with pytest.raises(HarnessError, match=r"--server sglang: no-such-server is not installed in .* with --python"):
        place.gate(OPTIONS, given(pair), calibrated=False)
    assert not [*tmp_path.rglob("records.jsonl")], "nothing was begun"


@pytest.mark.parametrize("command", ["gate", "bisect", "calibrate"])
def test_the_commands_take_every_server_that_says_what_it_can_be_gated_on(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = parser()
    more = {"gate": ["torchao==1", "torchao==2"], "bisect": ["torchao", "1..2", "--metric", "latency"]}.get(command, [])
    asked = known.parse_args([command, *more, "-m", "cpu", "--server", "sglang", "--server", "vllm"])
    assert asked.server == ["sglang", "vllm"]
    with pytest.raises(SystemExit):
        known.parse_args([command, *more, "-m", "cpu", "--server", "executorch"])
    assert "choose from transformers, vllm, sglang" in capsys.readouterr().err.replace("'", "")


def test_cells_that_a_server_cannot_run_are_not_gated(suites_matrix: Matrix) -> None:
    """On a GPU SGLang is measured at both of its stages, and has no compile time; on a CPU it is not."""

    def through(matrix: Matrix, on: str) -> dict[tuple[str, str], frozenset[str]]:
        found = units(matrix, Options("a", "b", on, recipes=("int8wo",)))
        return {(unit.cell.server, unit.stage): unit.metrics for unit in found if unit.cell.server == "sglang"}

    assert through(suites_matrix, "h100") == {
        ("sglang", "engine"): {"engine_start", "latency"},
        ("sglang", "server"): {"engine_start", "request_throughput", "ttft", "tpot", "itl"},
    }
    everywhere = [it.model_copy(update={"servers": ["transformers", "vllm", "sglang"]}) for it in suites_matrix.entries]
    assert through(replace(suites_matrix, entries=everywhere), "cpu") == {}
