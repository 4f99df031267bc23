"""What config.json says of a checkpoint's quantization, in every form that it comes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.contract import quantized as held

INT8 = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {"granularity": {"_type": "PerRow", "_data": {}}}}
NAMED = {"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": {"re:.*": INT8, "_default": None}}}


def folder(path: Path, quantized: Any = None) -> Path:
    """Write a config.json with that ``quantization_config``."""
    config = {"hidden_size": 8} | ({} if quantized is None else {"quantization_config": quantized})
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.mark.parametrize("quantized", [None, {}])
def test_a_plain_checkpoint_holds_nothing(tmp_path: Path, quantized: Any) -> None:
    found = folder(tmp_path, quantized)
    assert (held.method(found), held.config_class(found), held.quant_type(found)) == ("", "", None)


def test_a_folder_without_a_configuration_holds_nothing(tmp_path: Path) -> None:
    assert (held.method(tmp_path), held.config_class(tmp_path), held.quant_type(tmp_path)) == ("", "", None)


@pytest.mark.parametrize("config", [INT8, NAMED])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_torchao_config_is_known_by_its_outermost_class(tmp_path: Path, config: Any, wrapped: bool) -> None:
    """As Transformers writes it today, by the name of all modules, or without one."""
    found = folder(tmp_path, {"quant_method": "torchao", "quant_type": {"default": config} if wrapped else config})
    assert held.method(found) == held.TORCHAO
    assert held.config_class(found) == config["_type"]
    assert held.quant_type(found) == config


@pytest.mark.parametrize("name", ["ModuleFqnToConfig", "AOPerModuleConfig"])
def test_a_class_that_torchao_has_renamed_is_known_by_its_name_of_today(tmp_path: Path, name: str) -> None:
    found = folder(tmp_path, {"quant_method": "torchao", "quant_type": {"default": NAMED | {"_type": name}}})
    assert held.config_class(found) == "FqnToConfig"


def test_classes_are_those_of_nested_configs_too() -> None:
    assert list(held.classes({"default": NAMED})) == ["FqnToConfig", "Int8WeightOnlyConfig", "PerRow"]
    assert list(held.classes([INT8, "int8_weight_only", None])) == ["Int8WeightOnlyConfig", "PerRow"]


@pytest.mark.parametrize(
    ("quantized", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "other", "quant_type": "int8"}, "other"),
        ({"bits": 4}, "an unnamed method"),
    ],
)
def test_another_method_is_named_and_has_no_class_of_torchao(tmp_path: Path, quantized: Any, method: str) -> None:
    found = folder(tmp_path, quantized)
    assert (held.method(found), held.config_class(found)) == (method, "")


@pytest.mark.parametrize(
    ("quant_type", "said"),
    [("int8_weight_only", "int8_weight_only"), ({"a": INT8, "b": INT8}, "several configs"), (None, "")],
)
def test_what_stands_in_place_of_a_class_is_said(tmp_path: Path, quant_type: Any, said: str) -> None:
    found = folder(tmp_path, {"quant_method": "torchao", "quant_type": quant_type})
    assert (held.method(found), held.config_class(found)) == ("torchao", said)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("{", r"cannot be read \("),
        ("\xff", r"cannot be read \("),
        ("[1]", "is not a table"),
        ('"torchao"', "is not a table"),
        ('{"quantization_config": "torchao"}', "is not a table"),
    ],
)
def test_a_damaged_configuration_is_named(tmp_path: Path, text: str, wrong: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    for ask in (held.method, held.quant_type, held.config_class):
        with pytest.raises(ValueError, match=rf"{wrong}.*: it is damaged; save the model again") as caught:
            ask(tmp_path)
        assert str(path) in str(caught.value)
