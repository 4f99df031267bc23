"""Workloads as data, what a command line sets, and a matrix that lays itself over another."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base import shipped
from harness.base.errors import MatrixError
from harness.matrix.load import load
from harness.matrix.workload import named

SHIPPED = shipped.suites() / shipped.MATRIX

PUBLISHED = {"torchao-prefill": (32, 4096, 32), "torchao-decode": (128, 32, 2048)}


@pytest.mark.parametrize("name", ["chat", "summarize", "code", "batch", *PUBLISHED])
def test_the_presets_are_there(name: str) -> None:
    assert load(SHIPPED).workload(name).meaning


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchaos_presets_are_as_published(name: str) -> None:
    found = load(SHIPPED).workload(name)
    assert found.arrival.kind == "at-once"
    assert found.input is not None
    assert found.output is not None
    assert (found.requests, found.input.tokens, found.output.tokens) == PUBLISHED[name]


def test_a_setting_reaches_every_hardware_and_is_told() -> None:
    matrix = load(SHIPPED, settings=["latency.input_len=4096", "workloads.chat.arrival.rate=2"])
    assert {name: it.latency.input_len for name, it in matrix.measurements.items()} == dict.fromkeys(
        matrix.measurements, 4096
    )
    assert matrix.workload("chat").arrival.rate == 2
    assert matrix.settings == ("latency.input_len=4096", "workloads.chat.arrival.rate=2")


def test_a_setting_of_one_hardware_leaves_the_others() -> None:
    before, matrix = load(SHIPPED), load(SHIPPED, settings=["measurements.cpu.serving.rounds=7"])
    assert matrix.measurements["cpu"].serving.rounds == 7
    assert matrix.measurements["h100"] == before.measurements["h100"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("latency.inpt_len=1", r"--set 'latency.inpt_len=1': .*did you mean input_len"),
        ("latncy.input_len=1", r"'latncy' is nothing that can be set; did you mean latency"),
        ("latency.input_len=many", r"--set 'latency.input_len=many': .*integer.*'many'"),
        ("latency.input_len=0", r"--set 'latency.input_len=0': .*greater than 0"),
        ("latency.input_len", r"give PATH=VALUE"),
        ("latency=1", r"--set 'latency=1': .*latency|Latency"),
        ("measurements.cpuu.latency.rounds=1", r"no measurements.cpuu; did you mean cpu"),
        ("workloads.chatt.turns=1", r"no workloads.chatt; did you mean chat"),
        ("workloads.chat.turn=1", r"workloads.chat has no 'turn'; did you mean turns"),
        ("workloads.chat.arrival.rte=1", r"has no 'rte'; did you mean rate"),
        ("workloads.chat.slo.ttft_p98_ms=1", r"'ttft_p98_ms' is no limit; did you mean ttft_p9"),
        ("workloads.chat.arrival.kind=poison", r"--set .*kind=poison.*'poisson'"),
        ("load.workloads=['chatt']", r"'chatt' is not defined; did you mean chat"),
    ],
)
def test_what_does_not_exist_is_answered_by_name_with_the_nearest(setting: str, words: str) -> None:
    with pytest.raises(MatrixError, match=words):
        load(SHIPPED, settings=[setting])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('arrival = { kind = "gamma", rate = 1.0 }\n', "need burstiness"),
        ('arrival = { kind = "poisson", rate = 1.0, burst = 3 }\n', "take no burst"),
        ('arrival = { kind = "at-once" }\nslo = { ttft_p99_ms = 5 }\n', "have not"),
        ('arrival = { kind = "trace", file = "a" }\n', "a trace says itself"),
        ('arrival = { kind = "poisson" }\nslo = { ttft_p99 = 5 }\n', "did you mean ttft_p99_ms"),
        ('arrival = { kind = "poisson" }\nturn = 5\n', "did you mean turns"),
    ],
)
def test_a_workload_that_cannot_be_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    own = tmp_path / "matrix.toml"
    lengths = "input = { tokens = 8 }\noutput = { tokens = 8 }\n"
    own.write_text(f'extends = "shipped"\nschema = 1\n[workloads.mine]\n{text}{lengths}', encoding="utf-8")
    with pytest.raises(MatrixError, match=words) as raised:
        load(own)
    assert f"{own}, line " in str(raised.value)


def test_a_matrix_of_ones_own_lays_itself_over_the_shipped_one(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text(
        """
extends = "shipped"
[measurements.cpu.latency]
input_len = 64
[workloads.mine]
arrival = { kind = "trace", file = "mine.jsonl" }
[[cells]]
hardware = "cpu"
models = ["SmolLM2-135M-Instruct"]
recipes = ["int8wo"]
servers = ["vllm"]
[[thresholds]]
metric = "latency"
max = 9.0
unit = "s"
origin = "mine"
""",
        encoding="utf-8",
    )
    base, matrix = load(SHIPPED), load(own)
    assert matrix.measurements["cpu"].latency.input_len == 64
    assert matrix.measurements["cpu"].latency.rounds == base.measurements["cpu"].latency.rounds
    assert matrix.recipes == base.recipes
    assert [entry.recipes for entry in matrix.entries] == [["int8wo"]]
    assert len(matrix.thresholds) == len(base.thresholds) + 1
    assert matrix.workload("mine").arrival.file == str(tmp_path / "mine.jsonl")
    assert matrix.settings == ("measurements.cpu.latency.input_len=64",)
    shape = matrix.models["Phi-4-mini-instruct"].random
    assert shape is not None
    assert (tmp_path / shape.shape).is_file()


def test_a_mistake_is_told_with_the_file_that_it_is_in(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text('extends = "shipped"\n[measurements.cpu.latency]\ninput_len = "long"\n', encoding="utf-8")
    with pytest.raises(MatrixError, match=rf"{own}, line 3: measurements.cpu.latency.input_len: .*integer"):
        load(own)


def test_files_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.toml").write_text(f'extends = "{other}.toml"\n', encoding="utf-8")
    with pytest.raises(MatrixError, match="is this file, or extends it"):
        load(tmp_path / "a.toml")


def test_limits_have_one_name() -> None:
    assert named({"tpot_p99_ms": 50.0, "ttft_p99_ms": 500.0}) == "ttft p99 500 ms, tpot p99 50 ms"
