"""A model that came quantized, with real workers: what is the recipe's checkpoint, what is not, and a run of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import WorkerError
from harness.contract import quantized as held
from harness.contract.weights import Unusable
from harness.machine import probe
from harness.matrix.plan import Matrix
from harness.matrix.schema import Recipe
from harness.plugin import session
from harness.records.run import Run
from harness.records.schema import Measurement
from harness.worker import recipe as recipes

INT8 = "Int8WeightOnlyConfig"


# ------------------------------------------------------------------------------------------- the recipe's checkpoint


@pytest.fixture
def taken(quantizing: Any, suites_matrix: Matrix) -> Callable[..., dict[str, Any]]:
    """``taken(folder, recipe)`` asks for the facts of a folder that is taken for that recipe's checkpoint."""

    def ask(folder: Path, recipe: str) -> dict[str, Any]:
        config = suites_matrix.recipe(recipe).identity.config
        wanted = {name: config[name] for name in ("config", "arguments", "quantizes")}
        found: dict[str, Any] = quantizing.worker.ask(
            "facts", 60, checkpoint=str(folder), trust_remote_code=False, **wanted
        )
        return found

    return ask


@pytest.mark.parametrize("recipe", ["int8wo", "8da4w-int8emb"])
def test_a_checkpoint_of_the_recipe_has_the_facts_of_its_making(quantizing: Any, taken: Any, recipe: str) -> None:
    made = quantizing.by(recipe)
    assert taken(made.folder, recipe) == made.facts
    assert any(layer["quantized"] for layer in made.facts["weights"].values())


def test_other_arguments_are_an_error_that_names_them(quantizing: Any, taken: Any) -> None:
    with pytest.raises(
        WorkerError,
        match=rf"quantized with another {INT8}: granularity PerRow\(dim=-1\) where .* PerGroup\(group_size=32\)\. M",
    ) as it:
        taken(quantizing.by("int8wo").folder, f"{INT8}(granularity=PerGroup(32))")
    assert (it.value.stage, it.value.kind) == ("facts", "refused")
    assert str(it.value).endswith("Measure it by a recipe with the same arguments")


def test_layers_that_the_recipe_means_and_the_checkpoint_left_plain_are_named(
    quantizing: Any, taken: Any, suites_matrix: Matrix
) -> None:
    spared = ["model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj"]
    config = suites_matrix.recipe("int8wo").identity.config
    made = quantizing.ask(**config | {"plain": spared})
    assert {layer for layer, one in made.layers("linear").items() if not one["quantized"]} == set(spared)
    with pytest.raises(WorkerError, match=f"{INT8} left 2 of 14 .*, 12.0% .*: .*o_proj, .*down_proj .*To leave"):
        taken(made.folder, "int8wo")


def test_layers_that_the_recipe_leaves_plain_and_the_checkpoint_holds_quantized_are_named(
    quantizing: Any, suites_matrix: Matrix
) -> None:
    config = suites_matrix.recipe("8da4w-int8emb").identity.config
    wanted = {"config": config["config"], "arguments": config["arguments"], "quantizes": ["linear"]}
    folder = str(quantizing.by("8da4w-int8emb").folder)
    with pytest.raises(
        WorkerError,
        match=r"holds 1 quantized weights .*plain, 22\.0% .*: lm_head \(.*has .*\(--quantize head\)",
    ):
        quantizing.worker.ask("facts", 60, checkpoint=folder, trust_remote_code=False, **wanted)


# ---------------------------------------------------------------------------------------------------- what differs


def written(config: str, arguments: dict[str, Any]) -> Any:
    """Return a config as it stands in config.json."""
    serialized = pytest.importorskip("torchao.core.config")
    return json.loads(json.dumps(serialized.config_to_dict(recipes.build(config, arguments))))


# What torchao cannot save it cannot read either: they are quantized as a model is loaded, or are steps of which another
# config's tensors come.
UNSAVED = (
    *("int4wo-opaque", "int4wo-opaque-hqq", "awq-int4wo-opaque", "awq-int4wo-opaque-g32", "nf4wo", "codebook4wo"),
    *("da8w4", "float8dq-opaque", "gptq-int8wo", "gptq-nvfp4", "qat-8da4w"),
)


def buildable(recipe: Recipe) -> bool:
    """Whether torchao makes the recipe's config with the packages that are here; it may want a kernel's."""
    assert recipe.config
    try:
        recipes.build(recipe.config, recipe.arguments)
    except (ImportError, ValueError) as error:
        if "is not installed" not in str(error):
            raise
        return False
    return True


@pytest.mark.models
def test_every_recipe_of_the_matrix_equals_itself_and_no_other(suites_matrix: Matrix) -> None:
    quantized = [recipe for recipe in suites_matrix.recipes.values() if not recipe.baseline and buildable(recipe)]
    assert len(quantized) > 40
    for recipe in quantized:
        assert recipe.config
        stored = written(recipe.config, recipe.arguments)
        if recipe.name in UNSAVED:
            with pytest.raises(Unusable, match="cannot read the checkpoint's own config"):
                recipes.differences(recipe.config, recipe.arguments, stored)
            continue
        assert recipes.differences(recipe.config, recipe.arguments, stored) == []
        for other in quantized:
            assert other.config
            # Some are one config, served or observed otherwise.
            same = (other.config, other.arguments) == (recipe.config, recipe.arguments)
            assert (recipes.differences(other.config, other.arguments, stored) == []) is same, (recipe.name, other.name)


@pytest.mark.parametrize("recipe", ["int8wo", "int8dq", "8da4w", "8da4w-int8emb"])
def test_what_transformers_saved_is_the_recipe(quantizing: Any, suites_matrix: Matrix, recipe: str) -> None:
    config = suites_matrix.recipe(recipe).identity.config
    stored = held.quant_type(quantizing.by(recipe).folder)
    assert recipes.differences(config["config"], config["arguments"], stored) == []


GROUPS = {"granularity": "PerGroup(32)"}
PART = {"config": INT8, "arguments": GROUPS}
ROWS = ["PerRow()", "PerRow()"]


@pytest.mark.models
@pytest.mark.parametrize(
    ("config", "held", "asked", "words"),
    [
        (INT8, GROUPS, {"granularity": "PerGroup(64)"}, ["granularity.group_size 32 where the recipe has 64"]),
        (
            "Int8DynamicActivationIntxWeightConfig",
            {"weight_dtype": "torch.int4"},
            {"weight_dtype": "torch.int8"},
            ["weight_dtype 'int4' where the recipe has 'int8'"],
        ),
        (
            "FqnToConfig",
            {"fqn_to_config": {"re:.*": PART}},
            {"fqn_to_config": {"re:.*": PART | {"arguments": {"granularity": "PerGroup(64)"}}}},
            [
                f"{where}.re:.*.granularity.group_size 32 where the recipe has 64"
                for where in ("fqn_to_config", "module_fqn_to_config")
            ],
        ),
        (
            "Float8DynamicActivationFloat8WeightConfig",
            {"granularity": ROWS},
            {"granularity": ROWS, "activation_value_lb": 0.5, "set_inductor_config": False},
            ["activation_value_lb None where the recipe has 0.5"],
        ),
        (INT8, {"set_inductor_config": False}, {}, []),
        # torchao's default rises with its releases; a recipe that names one means it.
        ("Float8WeightOnlyConfig", {"version": 1}, {}, []),
        ("Float8WeightOnlyConfig", {"version": 1}, {"version": 2}, ["_version 1 where the recipe has 2"]),
        # Both spellings are torchao's.
        (
            "Int4WeightOnlyConfig",
            {"int4_packing_format": "Int4PackingFormat.TILE_PACKED_TO_4D"},
            {"int4_packing_format": "tile_packed_to_4d"},
            [],
        ),
        (
            "Int4WeightOnlyConfig",
            {"int4_packing_format": "Int4PackingFormat.PLAIN"},
            {"int4_packing_format": "tile_packed_to_4d"},
            ["int4_packing_format Int4PackingFormat.PLAIN where the recipe has 'tile_packed_to_4d'"],
        ),
    ],
)
def test_what_differs_is_named_by_where_it_is(
    config: str, held: dict[str, Any], asked: dict[str, Any], words: list[str]
) -> None:
    assert recipes.differences(config, asked, written(config, held)) == words


@pytest.mark.models
def test_an_argument_that_the_checkpoint_does_not_have_yet_counts_as_its_default() -> None:
    stored = written(INT8, GROUPS)
    del stored["_data"]["set_inductor_config"], stored["_data"]["group_size"]
    assert recipes.differences(INT8, GROUPS, stored) == []


@pytest.mark.models
@pytest.mark.parametrize("stored", ["int8_weight_only", None])
def test_a_name_alone_is_no_recipe(stored: Any) -> None:
    pytest.importorskip("torchao")
    (words,) = recipes.differences(INT8, {}, stored)
    assert words.startswith(f"{stored} by name alone")


@pytest.mark.models
@pytest.mark.parametrize(
    "stored",
    [
        {"_type": "Int9WeightOnlyConfig", "_data": {}},
        {"_type": INT8, "_version": 2, "_data": {"later": 1}},
        {"_type": INT8, "_version": 1, "_data": {}},
        {"one": {}, "two": {}},
    ],
)
def test_a_config_that_this_torchao_cannot_read_is_an_error(stored: Any) -> None:
    pytest.importorskip("torchao")
    with pytest.raises(Unusable, match=r"this torchao cannot read the checkpoint's own config, .*: ") as caught:
        recipes.differences(INT8, {}, stored)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- a run


def test_a_run_measures_it_as_its_recipe_and_skips_the_rest_with_the_reason(
    pytester: pytest.Pytester, repository: Path, quantizing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the suites' own test and matrix; the folder is called after its recipe, as such models are."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(probe, "missing", lambda it: "" if it.name == "cpu" else "not here")
    monkeypatch.setattr(session, "machine_lock", lambda: pytester.path / "lock")
    shutil.copy(repository / "suites" / "test_quantize.py", pytester.path)
    folder = pytester.path / "tiny-int8wo"
    shutil.copytree(quantizing.by("int8wo").folder, folder)
    given = ["-p", "harness.plugin.plugin", "-m", "cpu", "-rs", "--wide", f"--model={folder}", "--results=results"]
    result = pytester.runpytest_inprocess(*given, "--cache=cache", f"--matrix={repository / 'suites' / 'matrix.toml'}")
    assert result.ret == pytest.ExitCode.OK, result.stdout.str()
    result.assert_outcomes(passed=1, skipped=6)
    reason = f"model tiny-int8wo came quantized, with {INT8}: it is measured as it is, by --recipe int8wo or *alone"
    result.stdout.fnmatch_lines(
        [
            "passed: 1 passed, 6 skipped; limits held: 2 of 2",
            "what was quantized:",
            "tiny-int8wo int8wo on cpu: 71.8 % of the parameters and 56.4 % of the bytes are quantized (Int8Tensor)",
            "  plain: 28.2 %, embeddings stay plain, which the recipe does not quantize: model.embed_tokens",
            "  size of the checkpoint: 12,032,976 B, predicted 12,032,976 B",
            f"skipped: {reason}",
            f"SKIPPED [[]6] test_quantize.py:*: {reason}",
        ]
    )
    (records,) = Path("results/runs").iterdir()
    found = [line for line in Run(records).lines() if isinstance(line, Measurement)]
    assert {line.cell.recipe.name for line in found} == {"int8wo"}
    assert {line.metric: line.value for line in found}["quantized_layers"] == 14
    table = Path("results/latest/tables/cpu.md").read_text(encoding="utf-8")
    assert "| tiny-int8wo |" in table
    assert f"came quantized, with {INT8}, and was measured as it is" in table
