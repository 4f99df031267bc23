"""SGLang's merged layers: a recipe applied as they are loaded gives the tensors of the saved checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.matrix import Matrix

MERGED_LAYERS = 2 * 4
SCRIPT = Path(__file__).with_name("merged_model.py")
TENSORS = {"int8dq": "Int8Tensor", "8da4w": "IntxUnpackedToInt8Tensor", "float8wo": "Float8Tensor"}


@pytest.fixture(scope="module")
def found(tiny_model: Any, quantizing: Any, suites_matrix: Matrix, repository: Path) -> dict[str, dict[str, Any]]:
    """What the script says of each recipe."""
    names = [*TENSORS, "8da4w-int8emb"]
    asked = []
    for name in names:
        recipe = suites_matrix.recipe(name)
        checkpoint = quantizing.by(name if name in TENSORS else "int8dq").folder
        asked.append((str(checkpoint), {"config": recipe.config, "arguments": recipe.arguments}))
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(tiny_model.folder)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(repository)},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return dict(zip(names, json.loads(result.stdout), strict=True))


@pytest.mark.parametrize("name", list(TENSORS))
def test_a_recipe_at_load_and_the_saved_checkpoint_are_the_same_tensors(found: Any, name: str) -> None:
    layers = found[name]["layers"]
    assert len(layers) == MERGED_LAYERS
    assert all(layer == [TENSORS[name], True, True] for layer in layers.values()), layers
    assert found[name]["head"] == "Tensor", "the output head is none of the layers that a recipe means"


def test_a_config_that_names_modules_is_refused(found: Any) -> None:
    assert found["8da4w-int8emb"] == {"error": "FqnToConfig names modules, and SGLang's merged ones have other names"}
