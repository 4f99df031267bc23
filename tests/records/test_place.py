"""The place of a figure: its laws, and that it is the same wherever a record is written or read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from harness.records.metric import STAGES
from harness.records.metrics import METRICS, stage_of
from harness.records.place import Parameters, Place, Placed
from harness.records.schema import LINE, Judgement, Measurement

from .test_records import CELLS, MEASUREMENTS, NAMES, OPTIONS

FIELDS = ("model", "revision", "recipe", "recipe_hash", "hardware", "server", "stage", "metric")
ALL = (*FIELDS, "definition", "parameters")
PLACES = st.builds(
    Place,
    **dict.fromkeys(FIELDS, NAMES),
    definition=st.integers(0, 9),
    parameters=st.builds(Parameters, OPTIONS),
)
SOME = st.lists(st.sampled_from(ALL), max_size=4)
PLACE: TypeAdapter[Place] = TypeAdapter(Place)


class Note(Placed):
    """Something that is said of a place."""

    text: str = ""


@given(PLACES)
def test_a_place_is_written_and_read_again(place: Place) -> None:
    assert PLACE.validate_json(PLACE.dump_json(place)) == place
    assert PLACE.validate_python(json.loads(json.dumps(PLACE.dump_python(place)))) == place
    note = Note(place=place, text="a")
    assert Note.model_validate_json(note.model_dump_json()) == note
    assert note.model_dump().keys() == {*ALL, "text"}


@given(PLACES, PLACES)
def test_places_are_equal_if_all_their_parts_are_and_then_they_are_one_key(one: Place, other: Place) -> None:
    parts = [PLACE.dump_json(it, by_alias=False) for it in (one, other)]
    assert (one == other) == (parts[0] == parts[1]) == (one.digest == other.digest)
    assert len({one, other, PLACE.validate_json(parts[0])}) == (1 if one == other else 2)


@given(PLACES, SOME, SOME)
def test_what_is_left_out_does_not_matter_in_any_order_and_nothing_else_changes(
    place: Place, first: list[str], then: list[str]
) -> None:
    left = place.without(*first)
    assert left.without(*then) == place.without(*then).without(*first) == place.without(*first, *then)
    assert left.without(*first) == left
    assert place.without() == place
    for name in ALL:
        assert getattr(left, name) == getattr(Place() if name in first else place, name)
    assert place.without(*ALL) == Place()


@given(PLACES, PLACES, SOME)
def test_places_are_equal_without_some_parts_if_they_differ_in_these_alone(
    one: Place, other: Place, names: list[str]
) -> None:
    same = all(getattr(one, name) == getattr(other, name) for name in ALL if name not in names)
    assert (one.without(*names) == other.without(*names)) == same


def test_a_part_that_no_place_has_is_refused() -> None:
    with pytest.raises(TypeError, match="a place has no recpie; it has model, revision"):
        Place().without("recpie")


@given(OPTIONS, st.lists(NAMES, max_size=2))
def test_parameters_are_a_mapping_whose_order_does_not_matter(given: dict[str, Any], names: list[str]) -> None:
    parameters = Parameters(given)
    assert dict(parameters) == given
    assert parameters == given
    assert parameters == Parameters(dict(reversed(given.items())))
    assert hash(parameters) == hash(Parameters(dict(reversed(given.items()))))
    left = Place(parameters=parameters).without_parameters(*names).parameters
    assert dict(left) == {name: value for name, value in given.items() if name not in names}


def test_parameters_of_different_types_are_different_and_nan_is_itself() -> None:
    assert len({Parameters({"a": value}) for value in (1, 1.0, True, "1")}) == 4
    assert Parameters({"a": math.nan}) == Parameters({"a": math.nan})
    assert Parameters({"a": 1}) != "a"


@given(MEASUREMENTS)
def test_a_record_has_the_same_place_once_it_is_read_again(measurement: Measurement) -> None:
    place = Place.of(measurement)
    assert Place.of(LINE.validate_json(measurement.model_dump_json())) == place  # type: ignore[arg-type]
    assert place.cell == Place.of(measurement.cell)
    assert place == Place.of(measurement.cell).at(measurement.metric, measurement.parameters, measurement.definition)
    judged = Judgement(
        **measurement.model_dump(include={"cell", "metric", "parameters"}),
        **{"passed": True, "measured": 1.0, "limit": 1.0, "comparison": "max", "origin": ""},
    )
    assert Place.of(judged) == place.without("definition")


@given(CELLS, st.sampled_from(sorted(METRICS)), OPTIONS)
def test_every_metric_is_of_a_stage(cell: Any, metric: str, parameters: dict[str, Any]) -> None:
    assert Place.of(cell).at(metric, parameters).stage in STAGES


@pytest.mark.parametrize(
    ("metric", "server", "parameters", "stage"),
    [
        ("latency", "vllm", {}, "engine"),
        ("request_throughput", "sglang", {"num_prompts": 4}, "server"),
        ("engine_start", "vllm", {"kind": "engine"}, "engine"),
        ("engine_start", "vllm", {"kind": "server"}, "server"),
        ("engine_start", "vllm", {"kind": "client"}, "server"),
        ("engine_start", "transformers", {"kind": "transformers"}, "transformers"),
        ("kernel_time", "vllm", {"pattern": ""}, "engine"),
        ("kernel_time", "transformers", {"pattern": ""}, "transformers"),
        ("quantized_layers", "", {}, "quantize"),
        ("quantized_layers", "vllm", {"kind": "engine"}, "engine"),
        ("accuracy", "transformers", {"task": "a"}, "transformers"),
        ("accuracy", "vllm", {"task": "a", "through": "vllm"}, "server"),
        ("accuracy", "executorch", {"task": "a", "through": "eager"}, "export"),
        ("peak_memory", "executorch", {"runner": "host"}, "export"),
        ("unheard_of", "vllm", {"kind": "engine"}, None),
    ],
)
def test_the_stage_that_gave_a_figure(metric: str, server: str, parameters: dict[str, Any], stage: str | None) -> None:
    assert stage_of(metric, server, parameters) == stage


def test_a_place_in_words() -> None:
    place = Place(model="SmolLM2", recipe="int8wo", server="vllm").at("latency", {"output_len": 8, "batch_size": 1}, 1)
    assert str(place) == "latency (batch_size=1, output_len=8) of SmolLM2/int8wo/vllm"
    assert str(Place(model="m", recipe="r", hardware="cpu").at("weight_size")) == "weight_size of m/r on cpu"
    assert str(Place(model="m", recipe="r")) == "m/r"
    assert str(Place(metric="latency")) == "latency"
