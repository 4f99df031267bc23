"""The published figures: that they are those of the tutorial, that a wrong file is named, and how one is found."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from harness.records.published import Documented, DocumentedError, Publication

PHI = "Phi-4-mini-instruct"


@pytest.fixture(scope="module")
def documented() -> Documented:
    return Documented.load()


@pytest.fixture
def publication() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "publication": "A paper",
        "url": "https://example.org",
        "model": "M",
        "hardware": "h100",
        "device": "H100",
        "figures": [{"recipe": "r", "metric": "latency", "value": 3.1, "text": "3.1", "unit": "s", "section": "4"}],
    }


def folder_of(path: Path, *publications: object) -> Path:
    for number, data in enumerate(publications):
        (path / f"paper{number}.json").write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("recipe", "metric", "parameters", "text"),
    [
        ("bf16", "peak_memory", {}, "8.91"),
        ("float8dq", "peak_memory", {}, "5.70"),
        ("bf16", "latency", {"batch_size": 1, "input_len": 256, "output_len": 256}, "1.64"),
        ("float8dq", "latency", {"batch_size": 1, "input_len": 256, "output_len": 256}, "1.41"),
        ("bf16", "latency", {"batch_size": 128, "input_len": 256, "output_len": 256}, "3.1"),
        ("float8dq", "latency", {"batch_size": 128, "input_len": 256, "output_len": 256}, "2.72"),
        ("bf16", "request_throughput", {"num_prompts": 1}, "1.35"),
        ("float8dq", "request_throughput", {"num_prompts": 1}, "1.57"),
        ("bf16", "request_throughput", {"num_prompts": 1000}, "66.68"),
        ("float8dq", "request_throughput", {"num_prompts": 1000}, "80.53"),
    ],
)
def test_tutorial_figures_on_the_h100(
    documented: Documented, recipe: str, metric: str, parameters: dict[str, int], text: str
) -> None:
    figure = documented.find(PHI, recipe, "h100", metric, parameters)
    assert figure is not None
    assert (figure.text, figure.value) == (text, float(text))
    assert "torchao tutorial, part 3" in figure.source


def test_phone_figures_are_marked_approximate(documented: Documented) -> None:
    memory = documented.find(PHI, "8da4w-int8emb", "arm-mobile", "peak_memory")
    speed = documented.find(PHI, "8da4w-int8emb", "arm-mobile", "generate_throughput")
    assert memory
    assert speed
    assert (memory.text, memory.value, speed.text, speed.value) == ("~3.2", 3.2, "~17", 17)
    assert memory.device == "iPhone 15 Pro"


def test_accuracy_bound_is_data(documented: Documented) -> None:
    (bound,) = documented.bounds(PHI, "8da4w-int8emb", "accuracy")
    assert bound.largest_loss_percent == (5, 10)
    assert documented.bounds(PHI, "float8dq", "accuracy") == []


def test_compile_cache_was_off_for_the_quantized_side_alone(documented: Documented) -> None:
    served = [
        figure
        for recipe in ("bf16", "float8dq")
        for figure in documented.figures(PHI, recipe, "h100")
        if figure.server == "vllm"
    ]
    assert {figure.recipe: figure.environment for figure in served} == {
        "bf16": {},
        "float8dq": {"VLLM_DISABLE_COMPILE_CACHE": "1"},
    }
    assert documented.remarks(PHI, "h100", "latency")
    assert not documented.remarks(PHI, "h100", "peak_memory")


def test_all_own_parameters_must_be_equal_and_more_may_be_asked(documented: Documented) -> None:
    own = {"batch_size": 1, "input_len": 256, "output_len": 256}
    find = (PHI, "bf16", "h100", "latency")
    assert documented.find(*find, own | {"rounds": 10}) is not None
    assert documented.find(*find, own | {"input_len": 64}) is None
    assert documented.find(*find, {"batch_size": 1}) is None
    assert documented.find(*find) is None


def test_a_figure_belongs_to_its_cell_and_server(documented: Documented) -> None:
    one = {"num_prompts": 1}
    assert documented.find(PHI, "bf16", "h100", "request_throughput", one, server="vllm") is not None
    assert documented.find(PHI, "bf16", "h100", "request_throughput", one, server="sglang") is None
    assert documented.find(PHI, "int8wo", "h100", "request_throughput", one) is None
    assert documented.find(PHI, "bf16", "cpu", "request_throughput", one) is None
    assert documented.find("SmolLM2", "bf16", "h100", "request_throughput", one) is None


@pytest.mark.parametrize("name", [PHI, PHI.lower(), f"microsoft/{PHI}"])
def test_model_goes_by_its_published_names(documented: Documented, name: str) -> None:
    assert documented.find(name, "bf16", "h100", "peak_memory") is not None
    assert documented.label(name, "h100") == PHI
    assert documented.label(name, "h100", "memory") == "Phi-4 mini-instruct"


def test_unknown_model_is_labelled_by_its_own_name(documented: Documented) -> None:
    assert documented.label("other", "h100", "memory") == "other"


def test_definition_gathers_published_parameters(documented: Documented) -> None:
    assert documented.definition("latency") == {"batch_size": [1, 128], "input_len": [256], "output_len": [256]}
    assert documented.definition("ttft") == {}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"unit": "ms"}, "must be 's'"),
        ({"metric": "latencies"}, "did you mean latency"),
        ({"text": "3.2"}, "not the value 3.1"),
        ({"text": "about 3.1"}, "write the digits as published"),
        ({"value": -1}, "figures.0.value"),
        ({"colour": "red"}, "figures.0.colour"),
        ({"section": None}, "figures.0.section"),
        ({"parameters": {"batch_size": [1]}}, "figures.0.parameters.batch_size"),
    ],
)
def test_error_names_file_and_key(
    tmp_path: Path, publication: dict[str, Any], change: dict[str, Any], named: str
) -> None:
    publication["figures"][0].update(change)
    with pytest.raises(DocumentedError, match=r"paper0\.json: figures\.0") as raised:
        Documented.load(folder_of(tmp_path, publication))
    assert named in str(raised.value)


@pytest.mark.parametrize("key", ["schema_version", "model", "device", "figures"])
def test_missing_key_of_the_head_is_named(tmp_path: Path, publication: dict[str, Any], key: str) -> None:
    del publication[key]
    with pytest.raises(DocumentedError, match=key):
        Documented.load(folder_of(tmp_path, publication))


def test_file_that_is_no_json_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(DocumentedError, match=r"broken\.json: not JSON"):
        Documented.load(tmp_path)
    (tmp_path / "broken.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(DocumentedError, match=r"broken\.json"):
        Documented.load(tmp_path)


def test_same_figure_in_two_files_is_refused(tmp_path: Path, publication: dict[str, Any]) -> None:
    other = copy.deepcopy(publication)
    with pytest.raises(DocumentedError, match=r"paper1\.json: figures\.0: paper0\.json"):
        Documented.load(folder_of(tmp_path, publication, other))


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DocumentedError, match="nowhere"):
        Documented.load(tmp_path / "nowhere")


def test_default_folder_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Documented.load().publications


def test_bare_collection_knows_nothing(publication: dict[str, Any]) -> None:
    assert Documented().find("M", "r", "h100", "latency") is None
    assert Documented([Publication.model_validate(publication)]).find("m", "r", "h100", "latency") is not None
