"""The code on a model card makes the very config that the harness quantizes with."""

from __future__ import annotations

import ast
import importlib

import pytest

from harness.contract import notation
from harness.matrix.config_text import parse_config
from harness.matrix.plan import Matrix
from harness.publish import recipe_code
from harness.worker import recipe as recipes


@pytest.mark.models
def test_code_makes_the_same_config(suites_matrix: Matrix) -> None:
    torch = pytest.importorskip("torch")
    serialized = pytest.importorskip("torchao.core.config")
    quantization = pytest.importorskip("torchao.quantization")
    compared = 0
    for recipe in suites_matrix.recipes.values():
        if recipe.baseline:
            continue
        config = recipe.identity.config
        expression = recipe_code.expression(config, steps=True)
        if recipe.name == "gptq-int4wo":  # which torchao makes only beside the package mslk
            continue
        names = {node.id for node in ast.walk(ast.parse(expression)) if isinstance(node, ast.Name)} - {"torch"}
        imported = {name: getattr(importlib.import_module(notation.module_of(name)), name, None) for name in names}
        made = eval(expression, {"torch": torch, **vars(quantization), **{k: v for k, v in imported.items() if v}})
        built = recipes.build(config["config"], config["arguments"])
        assert serialized.config_to_dict(made) == serialized.config_to_dict(built)
        assert type(made).__name__ == recipe.config
        compared += 1
    assert compared >= 7


@pytest.mark.models
@pytest.mark.parametrize(
    "text",
    [
        "FqnToConfig(fqn_to_config={'re:.*q_proj': None, '_default': Int8WeightOnlyConfig()})",
        "FqnToConfig(fqn_to_config={'_default': Int8WeightOnlyConfig(granularity=PerGroup(group_size=32))})",
        "Float8DynamicActivationFloat8WeightConfig(granularity=[PerRow(), PerRow()])",
        "Int8WeightOnlyConfig(granularity=PerRow(dim=-1))",
        "IntxWeightOnlyConfig(weight_dtype=torch.int4, mapping_type=MappingType.ASYMMETRIC)",
        "Float8DynamicActivationFloat8WeightConfig(kernel_preference=KernelPreference.TORCH)",
        "Int4WeightOnlyConfig(int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D)",
        "Int4WeightOnlyConfig(int4_packing_format='tile_packed_to_4d')",
        "IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(axis=0))",
    ],
)
def test_a_config_of_the_command_line_is_the_one_that_python_makes_of_it(text: str) -> None:
    """By the harness's worker, and by the code that a card prints, with its imports, as by Python itself."""
    torch = pytest.importorskip("torch")
    serialized = pytest.importorskip("torchao.core.config")
    parsed = parse_config(text)
    names: dict[str, object] = {}
    script = recipe_code.quantization(parsed, "them/model", "out")
    imports = [line for line in script.splitlines() if line.startswith(("from torchao", "import torch"))]
    exec("\n".join(imports), names)
    told = serialized.config_to_dict(eval(text, names))
    assert serialized.config_to_dict(recipes.build(parsed["config"], parsed["arguments"])) == told
    assert serialized.config_to_dict(eval(recipe_code.expression(parsed), names)) == told
    assert names["torch"] is torch


@pytest.mark.models
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("PerGroup(x)", "'PerGroup.x.' is not of the form"),
        ("PerGroup(1, 2)", "'PerGroup.1, 2.':.*argument"),
        ("PerBlok(1)", "is not a granularity of torchao"),
        ("MappingTyp.SYMMETRIC", "torchao has no enum MappingTyp"),
        ("MappingType.SYMETRIC", "MappingType has SYMMETRIC, "),
        ("torch.int99", "is not a torch dtype"),
    ],
)
def test_a_value_that_torchao_does_not_have_is_named(value: str, words: str) -> None:
    pytest.importorskip("torchao")
    with pytest.raises(ValueError, match=words):
        recipes.build("IntxWeightOnlyConfig", {"mapping_type": [value]})


@pytest.mark.models
def test_names_are_where_the_code_imports_them_from() -> None:
    pytest.importorskip("torchao")
    for name, module in notation._ELSEWHERE.items():
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"
