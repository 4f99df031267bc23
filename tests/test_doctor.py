"""What doctor says of the matrix, without looking at the machine."""

from __future__ import annotations

from harness.doctor import recipes, rendered
from harness.matrix import Matrix


def test_recipes_that_a_server_cannot_take_are_listed_with_the_reason(suites_matrix: Matrix) -> None:
    lines = rendered(recipes(suites_matrix))
    assert lines[0] == "recipes"
    assert len(lines) == 1 + sum(not recipe.baseline for recipe in suites_matrix.recipes.values())
    (line,) = [line for line in lines[1:] if line.split()[1] == "8da4w-int8emb"]
    assert "on cpu, arm-mobile through transformers, executorch; not on h100, through vllm, through sglang: " in line
    assert line.endswith(suites_matrix.recipe("8da4w-int8emb").reason)
