"""Model cards: torchao's layout, figures out of records alone, and a card that holds whatever the names hold."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from harness.contract import calibrated
from harness.matrix.plan import Matrix
from harness.measure.recorder import record_of
from harness.publish import recipe_code, reproduction
from harness.publish.card import Contents, write_card
from harness.records.published import Documented
from harness.records.schema import Cell, Device, Judgement, Measurement, ModelIdentity, RecipeIdentity, Scalar
from harness.report.rendering import render
from harness.report.tables import published_tables
from harness.servers.base import ByHand
from harness.servers.registry import by_hand
from tests.laws import examples

MODEL = ModelIdentity(name="Tiny", source="hub:them/Tiny", revision="abc", weights="pretrained")
BASE = RecipeIdentity(name="bf16", hash="0000", config={}, baseline=True)
CONFIG = {
    "config": "Int8WeightOnlyConfig",
    "arguments": {},
    "quantizes": ["linear"],
    "transformers_options": {},
    "untie_embeddings": False,
}
RECIPE = RecipeIdentity(name="int8wo", hash="1111", config=CONFIG)
LATENCY = {"batch_size": 1, "input_len": 256, "output_len": 256}
SECTIONS = [
    "Inference with vLLM",
    "Inference with Transformers",
    "Quantization Recipe",
    "Model Quality",
    "Peak Memory Usage",
    "Model Performance",
    "How It Was Measured",
    "Disclaimer",
]


def measured(
    metric: str,
    value: float,
    of: RecipeIdentity = RECIPE,
    *,
    server: str = "vllm",
    model: ModelIdentity = MODEL,
    parameters: Mapping[str, Scalar] | None = None,
    statistics: Mapping[str, float] | None = None,
    discarded: str = "",
    device: str = "NVIDIA H100",
    hardware: str = "h100",
    flags: Mapping[str, Scalar] | None = None,
    packages: Mapping[str, str] | None = None,
    time: float = 1.7e9,
) -> Measurement:
    return record_of(
        metric,
        value,
        samples=[value],
        parameters=dict(parameters or {}),
        statistics=dict(statistics or {}),
        cell=Cell(model=model, recipe=of, hardware=hardware, server=server),
        packages=dict(
            packages or {"torch": "2.11.0+cu130", "torchao": "0.18.0", "transformers": "5.17.0", "vllm": "0.26.0"}
        ),
        device=Device(name=device, **({"vendor": "nvidia", "torch_device": "cuda"} if hardware == "h100" else {})),
        flags=dict(flags or {}),
        discarded=discarded,
        time=time,
    )


def everything() -> list[Measurement]:
    """Records of every section, of recipe and baseline."""
    found = []
    for recipe, scale in ((BASE, 2.0), (RECIPE, 1.0)):
        found += [
            measured("peak_memory", 4.0 * scale, recipe, server="transformers", parameters={"max_new_tokens": 128}),
            measured("checkpoint_size", 4e9 * scale, recipe, server=""),
            measured("latency", 1.25 * scale, recipe, parameters=LATENCY, flags={"max_model_len": 4096, "VLLM_X": "0"}),
            measured("request_throughput", 3 / scale, recipe, parameters={"num_prompts": 1, "dataset": "ShareGPT"}),
            measured("ttft", 20 * scale, recipe, parameters={"num_prompts": 1}, statistics={"p99": 31 * scale}),
            measured(
                "perplexity", 10.5 - scale / 8, recipe, server="transformers", parameters={"text": "ShareGPT answers"}
            ),
            measured(
                "accuracy",
                0.4 + scale / 100,
                recipe,
                server="transformers",
                parameters={"task": "hellaswag", "task_metric": "acc_norm,none", "documents": 400},
                statistics={"stderr": 0.02},
            ),
        ]
    return found


def contents(measurements: list[Measurement], **more: Any) -> Contents:
    given: dict[str, Any] = {"repository": "me/Tiny-int8wo", "model": MODEL, "recipe": RECIPE, "config": {}}
    given["servers"] = by_hand()
    return Contents(measurements=measurements, **(given | more))


def card(measurements: list[Measurement], **more: Any) -> ModelCard:
    return ModelCard(write_card(contents(measurements, **more), Documented()))


def tokens(text: str) -> list[Any]:
    return MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(text)


def headings(text: str, level: int) -> list[str]:
    found = tokens(text)
    return [found[n + 1].content for n, it in enumerate(found) if it.type == "heading_open" and it.tag == f"h{level}"]


def section(text: str, name: str) -> str:
    return text.split(f"\n## {name}\n")[1].split("\n## ")[0]


# ---------------------------------------------------------------------------------------------------------- layout


def test_sections_stand_in_torchaos_order() -> None:
    text = card(everything(), base_model="them/Tiny").text
    assert headings(text, 1) == ["int8wo them/Tiny model"]
    assert headings(text, 2) == SECTIONS


def test_tables_are_those_of_the_table_command() -> None:
    """The card has no figures of its own: each row is a row of the tables that the same records give."""
    text = card(everything(), base_model="them/Tiny").text
    rows = [
        line for line in render(published_tables(everything(), Documented()), "md").splitlines() if line[:2] == "| "
    ]
    figures = [re.sub(r"\s+", " ", row) for row in rows if not row.startswith("| Benchmark")]
    assert len(figures) == 6
    assert all(row in re.sub(r"[ \t]+", " ", text) for row in figures)
    header = next(line for line in section(text, "Peak Memory Usage").splitlines() if line.startswith("| Benchmark"))
    assert header.split() == ["|", "Benchmark", "|", "them/Tiny", "|", "me/Tiny-int8wo", "|"]
    assert "2.00x speedup" in section(text, "Model Performance")
    assert "### Results (NVIDIA H100)" in section(text, "Model Performance")


def test_what_was_not_measured_is_left_out() -> None:
    lone = [
        measured("latency", 2, BASE, parameters=LATENCY | {"batch_size": 128}),
        measured("peak_memory", 8, BASE, server=""),
    ]
    found = card([measured("latency", 1, parameters=LATENCY), *lone])
    assert headings(found.text, 2) == [it for it in SECTIONS if it not in ("Model Quality", "Peak Memory Usage")]
    assert "batch_size=128" not in found.text
    assert "num-prompts" not in found.text
    assert "model-index" not in found.content


def test_without_vllm_there_is_no_section_for_it() -> None:
    alone = measured("peak_memory", 1, server="transformers", hardware="cpu", packages={"torch": "2.13.0"})
    text = card([alone]).text
    assert "vllm" not in text.casefold()


def test_each_server_that_reads_a_checkpoint_has_its_section_and_its_commands() -> None:
    """One that cannot read it by itself has none, whatever was measured through it."""
    twin = ByHand("Twin", ("twin",), "twin up $MODEL", "twin batch $MODEL", "twin load $MODEL")
    lines = [
        measured("latency", 1.0, server=server, parameters=LATENCY, packages={"twin": "3.1", "sglang": "0.5"})
        for server in ("twin", "sglang")
    ]
    lines.append(measured("request_throughput", 3, server="twin", parameters={"num_prompts": 1}))
    text = card(lines, servers=by_hand() | {"twin": twin}).text
    assert "Inference with Twin" in headings(text, 2)
    assert not [it for it in headings(text, 2) if "SGLang" in it or "vLLM" in it]
    for words in (
        "pip install twin==3.1\n",
        "twin up $MODEL\n",
        "twin batch $MODEL --input-len 256",
        "twin load $MODEL",
    ):
        assert words in text
    assert "pip install sglang" not in text


def test_no_records_at_all() -> None:
    text = card([]).text
    assert headings(text, 2) == ["Inference with Transformers", "Quantization Recipe", "Disclaimer"]


def test_missing_baseline_leaves_one_column_and_no_ratios() -> None:
    text = card([it for it in everything() if not it.cell.recipe.baseline]).text
    results = section(text, "Model Performance").split("<details>")[0]
    assert "| Benchmark               | me/Tiny-int8wo |" in results
    assert "speedup" not in text


def test_baseline_from_elsewhere_does_not_go_under_the_hubs_name() -> None:
    packaged = MODEL.model_copy(update={"source": "package:tiny==1", "note": "has been through 4 bits once"})
    records = [it.model_copy(update={"cell": it.cell.model_copy(update={"model": packaged})}) for it in everything()]
    text = card(records, model=packaged, base_model="them/Tiny").text
    assert "| Benchmark        | Tiny " in section(text, "Peak Memory Usage")
    assert "weights from package:tiny==1" in text
    assert text.count("has been through 4 bits once") == 1


def test_every_device_has_a_table() -> None:
    both = [
        measured("peak_memory", 4),
        measured("peak_memory", 1, hardware="cpu", device="EPYC", server="transformers"),
    ]
    assert headings(section(card(both).text, "Peak Memory Usage"), 3) == ["Results (NVIDIA H100)", "Results (EPYC)"]


# -------------------------------------------------------------------------------------------------------- metadata


def test_evaluation_results_are_the_records_values() -> None:
    found = card(everything(), base_model="them/Tiny", license="mit", config={"model_type": "llama"}).data
    assert (found.base_model, found.license, found.pipeline_tag) == ("them/Tiny", "mit", "text-generation")
    assert found.tags == ["torchao", "int8wo", "llama"]
    assert found.model_name == "Tiny-int8wo"
    results = {(it.dataset_name, it.metric_type): it for it in found.eval_results}
    assert set(results) == {("hellaswag", "acc_norm"), ("ShareGPT answers", "perplexity")}
    hellaswag = results["hellaswag", "acc_norm"]
    assert hellaswag.metric_value == everything()[-1].value
    assert hellaswag.metric_args == {"documents": 400, "device": "NVIDIA H100", "stderr": 0.02}


def test_random_weights_have_no_evaluation_results() -> None:
    random = MODEL.model_copy(update={"weights": "random", "source": "random:tiny.json"})
    records = [it.model_copy(update={"cell": it.cell.model_copy(update={"model": random})}) for it in everything()]
    found = card(records, model=random)
    assert found.data.eval_results is None
    assert "Model Quality" not in found.text
    assert "these weights are random" in found.text.split("## ")[0]


def test_discarded_and_failed_are_said_at_the_top() -> None:
    disturbed = measured("perplexity", 9, server="transformers", discarded="another process ran")
    failed = Judgement(
        cell=disturbed.cell,
        metric="latency",
        parameters=LATENCY,
        passed=False,
        measured=1.2,
        limit=1.0,
        comparison="max_ratio",
        origin="chosen",
    )
    found = card([disturbed], failed=[failed])
    top = found.text.split("\n## ")[0]
    assert "disturbed machine: another process ran" in top
    assert "max_ratio 1.2, limit 1 (chosen)" in top
    assert "| 9.00 " in section(found.text, "Model Quality")
    assert found.data.eval_results is None


# ---------------------------------------------------------------------------------------------------- reproduction


def test_commands_have_the_records_parameters() -> None:
    text = card(everything(), base_model="them/Tiny").text
    options = "--num-iters-warmup 0 --num-iters 1 --max-model-len 4096"
    assert (
        f"VLLM_X=0 vllm bench latency --model $MODEL --input-len 256 --output-len 256 --batch-size 1 {options}" in text
    )
    assert "--num-prompts 1\n" in text
    tasks = "dtype=bfloat16 --tasks hellaswag --limit 400 --device cuda:0"
    assert f"lm_eval --model hf --model_args pretrained=them/Tiny,{tasks}" in text
    assert f"lm_eval --model hf --model_args pretrained=me/Tiny-int8wo,{tasks}" in text
    assert "pytest suites -m h100 --model them/Tiny --recipe int8wo" in text
    assert "pip install torch==2.11.0 torchao==0.18.0 transformers==5.17.0" in text


def test_python_on_the_card_is_python() -> None:
    text = card([*everything(), measured("peak_memory", 1, hardware="cpu", parameters={"max_new_tokens": 8})]).text
    scripts = [it.content for it in tokens(text) if it.type == "fence" and it.info == "Py"]
    assert len(scripts) == 4
    for script in scripts:
        ast.parse(script)
        assert not re.search(r"MODEL_ID|BASELINE|DEVICE|TOKENS|RESET|READ\b", script)


@pytest.mark.parametrize(
    ("source", "recipe", "command"),
    [
        ("hub:them/Tiny", RECIPE, "--model them/Tiny --recipe int8wo"),
        ("folder:my model", RECIPE, "--model './my model' --recipe int8wo"),
        ("package:tiny==1", RECIPE, "--model Tiny --recipe int8wo"),
        (
            "hub:them/Tiny",
            RECIPE.model_copy(
                update={
                    "name": "Int8WeightOnlyConfig_x",
                    "config": CONFIG | {"arguments": {"granularity": "PerGroup(32)"}},
                }
            ),
            "--model them/Tiny --recipe 'Int8WeightOnlyConfig(granularity=PerGroup(32))'",
        ),
    ],
)
def test_the_harness_command_names_what_was_measured(source: str, recipe: RecipeIdentity, command: str) -> None:
    found = reproduction.suite(MODEL.model_copy(update={"source": source}), recipe, "cpu")
    assert found == f"pytest suites -m cpu {command}"


def test_the_command_reads_back_as_the_recipe(suites_matrix: Matrix) -> None:
    """What the card says to give to --recipe is the recipe again."""
    given = "Int8WeightOnlyConfig(granularity=PerGroup(32), set_inductor_config=False)"
    recipe = suites_matrix.recipe(given)
    expression = recipe_code.expression(recipe.identity.config)
    assert suites_matrix.recipe(expression).identity == recipe.identity.model_copy(
        update={"name": suites_matrix.recipe(expression).name}
    )


# ---------------------------------------------------------------------------------------------------- hostile names

HOSTILE = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            "a|b\nc",
            "---\nlicense: evil\n---",
            "```\n# broke out",
            "</details>",
            "[x](javascript:alert(1))",
            "*bold* `code` # h",
            "\n\n# Heading\n",
            "'; rm -rf / #",
            "$(reboot)",
            '"""\nimport os',
            ": {}[]&*!|>'\"%@`",
            "\u2028\u202egnp",
            "- list\n1. more",
            "<!-- open",
            "&lt;b&gt;",
            "\\",
            "~~~",
        ]
    ),
)


NAMED = st.sampled_from(["MappingType.SYMMETRIC", "None.X", "os.SEP", "A.B.C", "PerRow(dim=-1)", "PerRow(open('x'))"])


@examples(60)
@given(st.data())
@pytest.mark.programs
def test_a_card_holds_whatever_the_names_hold(data: st.DataObject) -> None:
    """No name makes a heading, HTML, a link, another table column, or metadata of its own, or ends a code block."""
    text = st.deferred(lambda: HOSTILE)

    def draw() -> str:
        return data.draw(text)

    model = ModelIdentity(
        name=draw(),
        source=data.draw(st.sampled_from(["hub:", "folder:", ""])) + draw(),
        revision=draw(),
        weights="pretrained",
        note=draw(),
    )
    recipe = RecipeIdentity(
        name=draw(), hash=draw() + "1", config=CONFIG | {"config": data.draw(st.sampled_from(["C", draw()]))}
    )
    records = []
    for it in everything():
        of = it.cell.recipe if it.cell.recipe.baseline else recipe
        parameters = {name: value if isinstance(value, int) else draw() for name, value in it.parameters.items()}
        update = {
            "cell": Cell(model=model, recipe=of, hardware="h100", server=it.cell.server),
            "parameters": parameters,
            "device": Device(name=draw()),
            "packages": {"torch": draw(), "vllm": draw()},
            "flags": {draw(): draw()},
        }
        records.append(it.model_copy(update=update))
    failed = Judgement(
        cell=records[-1].cell, metric=draw(), passed=False, measured=1, limit=2, comparison=draw(), origin=draw()
    )
    runs = [draw()]
    found = write_card(
        contents(records, model=model, recipe=recipe, failed=[failed], runs=runs, config={"model_type": draw()}),
        Documented(),
    )
    parsed = ModelCard(found)
    assert parsed.data.license is None
    assert set(parsed.data.to_dict()) <= {"library_name", "pipeline_tag", "tags", "model-index"}
    assert headings(parsed.text, 2) == [it for it in SECTIONS if it in headings(parsed.text, 2)]
    assert len(headings(parsed.text, 1)) == 1
    columns = 0
    for it in tokens(parsed.text):
        if it.type == "html_block":
            assert re.fullmatch(r"<details>\n<summary>[A-Za-z ]+</summary>\n?|</details>\n?", it.content)
        if it.type == "fence":
            assert it.info in ("Py", "Shell")
            assert "\n```" not in it.content
        if it.type in ("table_open", "tr_open"):
            columns = 0 if it.type == "tr_open" else columns
        if it.type in ("td_open", "th_open"):
            columns += 1
            assert columns <= 3
        for inner in it.children or []:
            assert inner.type != "html_inline"
            assert inner.type != "image"
            if inner.type == "link_open":
                assert re.match(r"https://(huggingface\.co|github\.com)/", inner.attrs["href"])
    for it in tokens(parsed.text):
        if it.type == "fence" and it.info == "Py":
            ast.parse(it.content)


@given(
    st.recursive(
        HOSTILE | NAMED | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE | st.just("config"), inner, max_size=3),
        max_leaves=8,
    )
)
def test_a_recipes_code_calls_nothing_but_configs(value: Any) -> None:
    """Whatever a record's arguments are, the code has literals, torch's dtypes, enums and calls by plain names."""
    try:
        source = recipe_code.expression({"config": "Some", "arguments": {"value": value}})
    except ValueError:
        return
    for node in ast.walk(ast.parse(source, mode="eval").body):
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
        if isinstance(node, ast.Attribute):
            assert isinstance(node.value, ast.Name)
            assert node.value.id == "torch" or node.attr.isupper(), "a dtype, or a member of an enum"
    assert "\n" not in source


def test_every_recipe_of_the_matrix_has_code(suites_matrix: Matrix) -> None:
    for recipe in suites_matrix.recipes.values():
        if not recipe.baseline:
            config = json.loads(json.dumps(recipe.identity.config))
            if calibrated.staged(config["config"], config["arguments"]) or recipe.rotations:
                # Its card has no section of code, which would not make what was measured.
                with pytest.raises(ValueError, match=r"is applied in steps|is turned by SpinQuant"):
                    recipe_code.quantization(config, "them/model", "out")
                continue
            script = recipe_code.quantization(config, "them/model", "out")
            ast.parse(script)
            assert ("untied" in script) == recipe.untie_embeddings
