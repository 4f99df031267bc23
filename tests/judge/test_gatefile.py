"""gate.json: what was written is read again, whatever schema it is of, and what cannot be judged is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.gate.noise import summarise
from harness.judge import gatefile
from harness.judge.calibration import Calibration, Noise, Steady
from harness.judge.gatefile import Difference, GateError, GateFile, Options, UnitState, Works
from harness.judge.migrations import parameters_of
from harness.judge.rules import EVENTS, RULES, Margins
from harness.judge.series import Series
from harness.judge.verdict import judge
from harness.records.metric import STAGES
from harness.records.place import PARTS, Place
from harness.records.run import Run
from harness.records.schema import Measurement
from harness.report import gate_report, gate_words, junit

CELL = Place(model="m", revision="1", recipe="r", recipe_hash="2", hardware="cpu", server="vllm")
GATES = ("20261128-082255", "20261128-083821")


def gate(**more: Any) -> GateFile:
    values = {"old": [1.0, 1.1, 0.9], "new": [1.0, 1.2, 0.9]}
    given: dict[str, Any] = {
        "finished": True,
        "package": "torchao",
        "old": "torchao==1",
        "new": "torchao==2",
        "hardware": "cpu",
        "created": "2026-01-01T00:00:00+00:00",
        "seconds": 10.5,
        "verdicts": [judge(Series(CELL.at("latency", {"batch_size": 8}, 1), values), Margins())],
        "compatibility": [Works(CELL, "serve", "works", "fails", "new: no")],
        "kernels": [Difference(CELL.without("server"), "kernels", "a", "b")],
        "exit_status": 1,
        "options": Options("torchao==1", "torchao==2", "cpu", recipes=("r",)),
        "units": {"m-r-cpu-vllm": UnitState(Place(model="m", server="vllm", stage="engine"), done=3)},
    }
    return GateFile(**given | more)


def written(folder: Path, data: Any) -> Path:
    path = folder / "gate.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_what_a_gate_writes_is_what_is_read(tmp_path: Path) -> None:
    made = gate()
    written(tmp_path, made.text())
    assert gatefile.load(tmp_path) == made
    assert gatefile.load(tmp_path / "gate.json").text() == made.text()


def test_the_file_says_what_it_is_about_in_plain_names() -> None:
    data = json.loads(gate().text())
    (verdict,) = data["verdicts"]
    about = {"model": "m", "revision": "1", "recipe": "r", "recipe_hash": "2", "hardware": "cpu", "server": "vllm"}
    told = {"stage": "engine", "metric": "latency", "definition": 1, "parameters": {"batch_size": 8}}
    told |= {"label": "batch_size=8", "task": None}
    assert verdict.items() >= (about | told).items()
    assert data["compatibility"] == [about | {"stage": "serve", "old": "works", "new": "fails", "error": "new: no"}]
    assert data["kernels"] == [about | {"server": "", "what": "kernels", "old": "a", "new": "b"}]
    assert (data["schema"], data["finished"]) == (2, True)


# ------------------------------------------------------------------------------------------------------ older schemas


@pytest.mark.parametrize("name", GATES)
def test_gates_of_the_first_schema_say_what_they_said(repository: Path, name: str) -> None:
    folder = repository / "results" / "gates" / name
    data = json.loads((folder / "gate.json").read_text(encoding="utf-8"))
    assert data["schema"] == 1
    found = gatefile.load(folder)
    assert (found.version, found.finished) == (2, None), "whether it was finished was not said"
    again = json.loads(found.text())
    for kind in ("verdicts", "compatibility", "kernels"):
        assert len(again[kind]) == len(data[kind])
        for before, after in zip(data[kind], again[kind], strict=True):
            assert before.items() <= after.items(), "every field is what it was"
    assert data["options"].items() <= again["options"].items()
    for unit, kept in data["units"].items():
        assert kept.items() <= again["units"][unit].items()
        assert again["units"][unit]["stage"] in ("transformers", "engine", "server")
    assert found.title == f"{data['old']} to {data['new']} on cpu"
    assert gate_report.text(found) == (folder / "report.md").read_text(encoding="utf-8")
    told = gate_words.told(found)
    folded = sum(len(it.members) - 1 for it in told)
    assert junit.junit([found]).count(b"<testcase ") == len(data["verdicts"]) - folded


@pytest.mark.parametrize("name", GATES)
def test_what_a_gate_of_the_first_schema_was_about_is_what_its_records_are_about(repository: Path, name: str) -> None:
    """As far as a label told; what it did not tell of is not known."""
    folder = repository / "results" / "gates" / name
    lines = [line for line in Run(folder).lines() if isinstance(line, Measurement)]
    told = ("batch_size", "num_prompts", "kind", "max_new_tokens")
    places = {Place.of(line).named for line in lines}
    short = {
        place.without_parameters(*(it for it in place.parameters if it not in told or (it == "batch_size" and mine)))
        for place in places
        for mine in [place.metric != "latency"]
    } | {place.without("parameters") for place in places}
    for verdict in gatefile.load(folder).verdicts:
        if verdict.metric in RULES:
            assert verdict.place.named in short, str(verdict.place)
            assert verdict.place.stage in STAGES
        else:
            assert verdict.metric in EVENTS


def test_noise_can_be_found_in_gates_of_the_first_schema(repository: Path, tmp_path: Path) -> None:
    gates = [gatefile.load(repository / "results" / "gates" / name) for name in GATES]
    made = summarise(gates, "cpu", 1800.0)
    assert {it.place.stage for it in made.noise} == {"transformers", "engine", "server"}
    rounds = {it.metric for it in made.noise if it.best_rounds}
    assert rounds == {"generate_throughput", "latency", "request_throughput"}, "prompts and tokens a round are known"
    path = made.write(tmp_path)
    assert Calibration.find(tmp_path, "cpu", made.device) == made

    def first(it: Noise | Steady) -> dict[str, Any]:
        """Return it in the first schema: with a label in place of what it is about."""
        names = {name: getattr(it.place, name) for name in ("model", "recipe", "server", "metric")}
        rest = {name: value for name, value in it.model_dump().items() if name not in PARTS}
        return rest | names | {"label": it.label}

    both = {"noise": [first(it) for it in made.noise], "steady": [first(it) for it in made.steady]}
    path.write_text(json.dumps(made.model_dump() | both | {"schema_version": 1}), encoding="utf-8")
    found = Calibration.find(tmp_path, "cpu", made.device)
    assert found is not None
    for one, again in zip([*made.noise, *made.steady], [*found.noise, *found.steady], strict=True):
        assert again.place.without("parameters") == one.place.without("parameters")
        assert first(again) == first(one)


@pytest.mark.parametrize(
    ("label", "parameters"),
    [
        ("", {}),
        ("batch_size=8", {"batch_size": 8}),
        ("num_prompts=1000", {"num_prompts": 1000}),
        ("kind=server", {"kind": "server"}),
        ("server", {}),
        ("task=mmlu, task_metric=acc,none", {"task": "mmlu", "task_metric": "acc,none"}),
        ("mean of 3 tasks", {"mean_of_tasks": 3}),
    ],
)
def test_the_labels_of_the_first_schema(label: str, parameters: dict[str, Any]) -> None:
    assert parameters_of(label) == parameters


# ----------------------------------------------------------------------------------------------------------- refusals

FIRST = {
    "schema": 1,
    "package": "torchao",
    "old": "a",
    "new": "b",
    "hardware": "cpu",
    "created": "",
    "seconds": 1.0,
    "verdicts": [],
    "exit_status": 0,
}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{", "not JSON"),
        ("[]", "an object is expected, not list"),
        (FIRST | {"schema": 3}, r"schema 3 is newer than this harness reads \(2\); upgrade it"),
        (FIRST | {"schema": 0}, "schema 0 does not exist"),
        (FIRST | {"schema": "1"}, "schema '1' does not exist"),
        (FIRST | {"verdicts": None}, "."),
        (FIRST | {"verdicts": [None]}, "verdicts.0"),
        (FIRST | {"verdicts": [{"metric": "latency"}]}, "verdicts.0"),
        (FIRST | {"units": {"x": None}}, "."),
        ({"schema": 2}, "package: Field required"),
    ],
)
def test_a_file_that_is_no_gate_is_named(tmp_path: Path, data: Any, words: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(GateError, match=words) as caught:
        gatefile.load(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


def paths(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where the floating-point numbers of JSON stand."""
    if isinstance(data, float):
        return [at]
    parts = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [found for key, part in parts for found in paths(part, (*at, key))]


@pytest.mark.parametrize("schema", [1, 2])
@given(st.data(), st.sampled_from(["NaN", "Infinity", "-Infinity", "1e999"]))
def test_a_number_that_is_none_is_refused_by_name_wherever_it_stands(
    tmp_path_factory: pytest.TempPathFactory, schema: int, draw: st.DataObject, number: str
) -> None:
    data = json.loads(gate().text()) | {"schema": schema}
    where = draw.draw(st.sampled_from(paths(data)))
    part = data
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = "THE NUMBER"
    folder = tmp_path_factory.mktemp("gate")
    written(folder, json.dumps(data).replace('"THE NUMBER"', number))
    name = ".".join(map(str, where))
    value = {"NaN": "nan", "-Infinity": "-inf"}.get(number, "inf")
    with pytest.raises(GateError, match=rf"gate\.json: {name} is {value}: not a number that can be judged"):
        gatefile.load(folder)


def test_what_has_no_ratio_is_written_as_null() -> None:
    about = Series(CELL.at("token_flips"), {"old": [0.0] * 16, "new": [0.1] * 16})
    verdict = judge(about, Margins())
    assert verdict.ratio is not None
    assert math.isnan(verdict.ratio)
    found = gatefile.parse(json.loads(gate(verdicts=[verdict]).text()), "here")
    assert (found.verdicts[0].ratio, found.verdicts[0].verdict) == (None, "regressed")
