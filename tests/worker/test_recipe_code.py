"""The code on a model card makes the very config that the harness quantizes with."""

from __future__ import annotations

import pytest

from harness import recipe_code
from harness.matrix import Matrix
from harness.worker import recipe as recipes


def test_code_makes_the_same_config(suites_matrix: Matrix) -> None:
    torch = pytest.importorskip("torch")
    serialized = pytest.importorskip("torchao.core.config")
    quantization = pytest.importorskip("torchao.quantization")
    compared = 0
    for recipe in suites_matrix.recipes.values():
        if recipe.baseline:
            continue
        config = recipe.identity.config
        made = eval(recipe_code.expression(config), {"torch": torch, **vars(quantization)})
        built = recipes.build(config["config"], config["arguments"])
        assert serialized.config_to_dict(made) == serialized.config_to_dict(built)
        assert type(made).__name__ == recipe.config
        compared += 1
    assert compared >= 7
