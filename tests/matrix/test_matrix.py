"""The matrix: each mistake is named with file, line and key, and a config from the command line is data, never code."""

from __future__ import annotations

import contextlib
import json
import tomllib
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import MatrixError
from harness.matrix.config_text import parse_config, prototypes, with_rules
from harness.matrix.hardware import Hardware, Needs
from harness.matrix.load import load, locate
from harness.matrix.plan import Cell, Matrix, Through
from harness.matrix.schema import Recipe
from harness.records.metrics import METRICS
from harness.records.published import Documented
from harness.records.run import Run, read
from harness.records.schema import Judgement, Measurement
from harness.servers.registry import names as server_names
from tests.laws import examples
from tests.matrices import HARDWARE

TEXT = f"""\
# A small matrix.
schema = 1
{HARDWARE}
[models.small]
hub = "owner/small"

[models.big]
hub = "owner/big"
random = {{ shape = "big.json", tokenizer = "small" }}

[recipes.int8wo]
config = "Int8WeightOnlyConfig"
servers = ["transformers", "vllm"]

[recipes.float8dq]
config = "Float8DynamicActivationFloat8WeightConfig"
arguments = {{ granularity = "PerRow()" }}
needs = {{ vendor = ["nvidia"] }}
servers = ["transformers"]
reason = "float8 needs a GPU"

[recipes.bf16]
baseline = true
servers = ["transformers", "vllm"]

[[cells]]
hardware = "cpu"
models = ["small", "big"]
recipes = ["int8wo", "bf16", "float8dq"]
servers = ["transformers", "vllm"]

[[cells]]
hardware = "cpu"
models = ["small"]
recipes = ["float8dq"]
servers = ["vllm"]

[measurements.cpu]
memory = {{ max_new_tokens = 8 }}
generate = {{ max_new_tokens = 8, rounds = 3 }}
latency = {{ batch_sizes = [1, 8], input_len = 8, output_len = 8, rounds = 3 }}
serving = {{ num_prompts = [1], rounds = 3 }}
text = {{ windows = 2, window_tokens = 16 }}
engine = {{ max_model_len = 64 }}
time_limits = {{ prepare = 1, start = 1, measure = 1, evaluate = 1 }}

[[thresholds]]
metric = "perplexity"
recipes = ["int8wo"]
max_ratio = 1.1
origin = "chosen"

[[thresholds]]
metric = "latency"
parameters = {{ batch_size = 8 }}
max = 2.0
unit = "s"
origin = "published"
"""
SECOND_LIMIT = '[[thresholds]]\nmetric = "latency"'
CPU = Hardware(name="cpu", meaning="runs here")
H100 = Hardware(name="h100", meaning="an H100", vendor="nvidia", match="H100", capability="9.0")
QUICK = examples(50)


def written(folder: Path, text: str) -> Path:
    path = folder / "matrix.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def matrix(tmp_path: Path) -> Matrix:
    return load(written(tmp_path, TEXT))


def line_of(text: str, part: str) -> int:
    """Return the number, from 1, of the line that ``part`` begins in."""
    return text[: text.index(part)].count("\n") + 1


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_the_projects_own_matrix_holds(suites_matrix: Matrix, repository: Path) -> None:
    assert suites_matrix.baseline.name == "bf16"
    assert {cell.hardware.name for cell in suites_matrix.cells()} == suites_matrix.hardware.keys()
    for model in suites_matrix.models.values():
        assert model.random is None or (repository / "suites" / model.random.shape).is_file()


@pytest.mark.parametrize(
    ("old", "new", "at", "key", "words"),
    [
        # a key that does not exist
        ('config = "Int8W', 'confg = "Int8W', "confg", "recipes.int8wo.confg", "did you mean config"),
        ("[models.big]", "[models.big]\nhubb = 1", "hubb", "models.big.hubb", "did you mean hub"),
        ('hardware = "cpu"', 'hardwear = "cpu"', "hardwear", "cells.0.hardwear", "did you mean hardware"),
        ("max_ratio = 1.1", "max_rato = 1.1", "max_rato", "thresholds.0.max_rato", "did you mean max_ratio"),
        ("memory = { max_new", "memory = { max_nw", "memory =", "cpu.memory.max_nw_tokens", "did you mean max_new"),
        ("[models.small]", "[model.small]", "[model.small]", "model", "did you mean models"),
        ("schema = 1", "schema = 1\nshema = 2", "shema", "shema", "did you mean schema"),
        # a wrong type or value
        ("memory = { max_new_tokens = 8", 'memory = { max_new_tokens = "8"', "memory =", "max_new_tokens", "'8'"),
        ("memory = { max_new_tokens = 8", "memory = { max_new_tokens = 0", "memory =", "max_new_tokens", "(it is 0)"),
        ("batch_sizes = [1, 8]", "batch_sizes = [1, 8.5]", "latency =", "latency.batch_sizes.1", "8.5"),
        ("max_ratio = 1.1", "max_ratio = -1.1", "max_ratio", "thresholds.0.max_ratio", "greater than 0"),
        ('hub = "owner/small"', "hub = true", "hub = true", "models.small.hub", "True"),
        ("baseline = true", 'baseline = "yes"', 'baseline = "yes"', "recipes.bf16.baseline", "'yes'"),
        ('servers = ["vllm"]', 'servers = ["vlm"]', '["vlm"]', "cells.1.servers.0", "'vlm'"),
        ('config = "Int8W', 'config = "torchao.Int8W', '"torchao.', "recipes.int8wo.config", "torchao.Int8W"),
        ('OnlyConfig"', 'OnlyConfig(PerRow())"', "PerRow())", "recipes.int8wo.config", "are a table of their"),
        ("schema = 1", "schema = 2", "schema", "schema", "(it is 2)"),
        # what must be there
        ('origin = "chosen"', "", "[[thresholds]]", "thresholds.0.origin", "required"),
        ('hub = "owner/small"', "", "[models.small]", "models.small", "at least one source"),
        ('config = "Int8WeightOnlyConfig"', "", "[recipes.int8wo]", "recipes.int8wo", "needs `config`"),
        ("baseline = true", 'baseline = true\nconfig = "X"', "[recipes.bf16]", "recipes.bf16", "needs `config`"),
        # limits
        ("max_ratio = 1.1", "max_ratio = 1.1\nmin = 1", "[[thresholds]]", "thresholds.0", "min, max_ratio"),
        ("max_ratio = 1.1", "", "[[thresholds]]", "thresholds.0", "it has none"),
        ('unit = "s"', 'unit = "ms"', SECOND_LIMIT, "thresholds.1", "measured in 's', the limit is in 'ms'"),
        ('unit = "s"', "", SECOND_LIMIT, "thresholds.1", "measured in 's', the limit is in None"),
        ("max_ratio = 1.1", 'max_ratio = 1.1\nunit = "1"', "[[thresholds]]", "thresholds.0", "takes no unit"),
        ('metric = "perplexity"', 'metric = "perplexty"', "[[thresholds]]", "thresholds.0", "did you mean perplexity"),
        # names that nothing defines
        ('models = ["small", "big"]', 'models = ["smal", "big"]', '["smal"', "cells.0.models", "did you mean small"),
        ('recipes = ["float8dq"]', 'recipes = ["float8"]', '["float8"]', "cells.1.recipes", "did you mean float8dq"),
        ('hardware = "cpu"', 'hardware = "h100"', 'hardware = "h100"', "cells.0.hardware", "known: cpu"),
        ('recipes = ["int8wo"]', 'recipes = ["int8w"]', '["int8w"]', "thresholds.0.recipes", "did you mean int8wo"),
        ('recipes = ["int8wo"]', 'models = ["bigg"]', '["bigg"]', "thresholds.0.models", "did you mean big"),
        ('tokenizer = "small"', 'tokenizer = "smal"', "random =", "models.big.random", "did you mean small"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_and_key(
    tmp_path: Path, old: str, new: str, at: str, key: str, words: str
) -> None:
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    path = written(tmp_path, text)
    with pytest.raises(MatrixError) as raised:
        load(path, server_names())
    head = f"{path}, line {line_of(text, at)}: "
    messages = [message.removeprefix(head) for message in str(raised.value).splitlines() if message.startswith(head)]
    assert any(key in message.split(": ")[0] and words in message for message in messages), str(raised.value)


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(MatrixError) as raised:
        load(written(tmp_path, TEXT.replace("max_ratio", "max_rato").replace("hub =", "hubb =")))
    assert {"models.small.hubb", "models.big.hubb", "thresholds.0.max_rato"} <= {
        line.split(": ")[1] for line in str(raised.value).splitlines()
    }


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("baseline = true", 'config = "X"', "none"),
        ('config = "Int8WeightOnlyConfig"', "baseline = true", "int8wo.*bf16"),
    ],
)
def test_there_is_exactly_one_baseline(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = written(tmp_path, TEXT.replace(old, new))
    with pytest.raises(MatrixError, match=rf"{path}: recipes: exactly one needs `baseline = true`; have .*{words}"):
        load(path, server_names())


def test_a_syntax_error_is_named_with_its_line(tmp_path: Path) -> None:
    text = TEXT.replace("max_ratio = 1.1", "max_ratio = = 1.1")
    path = written(tmp_path, text)
    with pytest.raises(MatrixError, match=rf"{path}: not valid TOML: .*line {line_of(text, '= = 1.1')}"):
        load(path, server_names())


@pytest.mark.parametrize("content", [None, b"schema = '\xff'"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "matrix.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MatrixError, match=f"{path}: cannot be read"):
        load(path, server_names())


BARE = st.text("abc_-0", min_size=1, max_size=4)
QUOTED = st.sampled_from(["a.b", "Phi-4 mini", "re:.*embed", "x = 1", "[y]", "é", "", "\u2028", "#"])
VALUES = st.sampled_from(
    [
        "1",
        '"text # with = signs"',
        '["a", "b"]',
        '[\n  "x = 1",  # a comment\n  "[y]",\n]',
        "{ a = 1 }",
        "[\n  1,\n  2\n]",
        '"\u2028"',
    ]
)
FILLER = st.sampled_from(["", "\n", "# a = 1\n", "  # [table]\n"])


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[tuple[str | int, ...], int]]:
    """Draw a TOML text and the line of each of its tables and keys."""
    text = ""
    lines: dict[tuple[str | int, ...], int] = {}
    counts: dict[str, int] = {}
    names = st.one_of(BARE, QUOTED)

    def put(path: tuple[str | int, ...], words: str) -> None:
        nonlocal text
        text += draw(FILLER)
        lines[path] = text.count("\n") + 1
        text += words + draw(st.sampled_from(["\n", "  # a comment\n", "\n\n"]))

    def spelt(name: str) -> str:
        return name if name and name.isascii() and name.replace("-", "").replace("_", "").isalnum() else f'"{name}"'

    def fill(path: tuple[str | int, ...]) -> None:
        for key in draw(st.lists(names, max_size=3, unique=True)):
            put((*path, key), f"{spelt(key)} = {draw(VALUES)}")

    for number in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["table", "tables"]))
        if kind == "table":
            name = draw(names)
            path: tuple[str | int, ...] = (f"t{number}", name)
            put(path, f"[t{number}.{spelt(name)}]")
        else:
            name = draw(st.sampled_from(["cells", "thresholds"]))
            counts[name] = counts.get(name, -1) + 1
            path = (name, counts[name])
            put(path, f"[[{name}]]")
        fill(path)
        if kind == "tables" and draw(st.booleans()):
            put((*path, "_inner"), f"[{name}._inner]")
            fill((*path, "_inner"))
    return text, lines


@QUICK
@given(documents())
def test_a_key_is_located_at_its_line(document: tuple[str, dict[tuple[str | int, ...], int]]) -> None:
    text, lines = document
    parsed = tomllib.loads(text)
    for path, line in lines.items():
        found = parsed
        for part in path:
            found = found[part]  # type: ignore[index]
        assert locate(text, path) == line
        assert locate(text, (*path, "not", "there")) == line
    assert locate(text, ("not", "there")) == 1


# -------------------------------------------------------------------------------------------- from the command line


def test_a_model_is_named_by_the_matrix_a_folder_or_the_hub(matrix: Matrix, tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert matrix.model("big") is matrix.models["big"]
    assert matrix.model(str(folder)).folder == str(folder)
    assert matrix.model(str(folder)).name == "my-model"
    hub = matrix.model("microsoft/Phi-4-mini-instruct")
    assert (hub.name, hub.hub, hub.folder) == ("Phi-4-mini-instruct", "microsoft/Phi-4-mini-instruct", None)


@pytest.mark.parametrize(
    "given", ["smal", "/no/such/folder", "../small", "owner/", "a/b/c", "owner/na me", "owner/x\n"]
)
def test_a_model_that_is_none_of_them_is_refused(matrix: Matrix, given: str) -> None:
    with pytest.raises(
        MatrixError, match=r"neither a model of matrix\.toml, nor a folder, nor a hub id.*small"
    ) as raised:
        matrix.model(given)
    assert repr(given) in str(raised.value)


def test_a_recipe_is_named_by_the_matrix_or_given_as_a_config(matrix: Matrix) -> None:
    assert matrix.recipe("int8wo") is matrix.recipes["int8wo"]
    given = matrix.recipe("Int8WeightOnlyConfig(group_size=32)")
    assert (given.config, given.arguments) == ("Int8WeightOnlyConfig", {"group_size": 32})
    assert matrix.recipe("Int8WeightOnlyConfig").arguments == {}


@pytest.mark.parametrize(
    "given", ["int8w", "Int8WeightOnly", "Int8WeightOnlyConfig(", "os.system('true')", "1Config", ""]
)
def test_a_recipe_that_is_neither_is_refused(matrix: Matrix, given: str) -> None:
    with pytest.raises(MatrixError, match=r"neither a recipe of matrix\.toml nor a torchao config.*int8wo"):
        matrix.recipe(given)


def test_the_identity_of_a_recipe_is_what_it_does_and_not_its_name(matrix: Matrix) -> None:
    hashes = {
        text: matrix.recipe(text).identity.hash
        for text in (
            "Int8WeightOnlyConfig",
            "Int8WeightOnlyConfig(group_size=32)",
            "Int8WeightOnlyConfig(group_size=64)",
            "Int4WeightOnlyConfig(group_size=32)",
            "Int4WeightOnlyConfig(inner=Int8WeightOnlyConfig(group_size=32))",
        )
    }
    assert len(set(hashes.values())) == len(hashes)
    assert matrix.recipe("int8wo").identity.hash == hashes["Int8WeightOnlyConfig"]
    assert (
        matrix.recipe("Int8WeightOnlyConfig( group_size = 32 )").identity.hash
        == hashes["Int8WeightOnlyConfig(group_size=32)"]
    )
    two = [matrix.recipe(f"XConfig({arguments})").identity for arguments in ("a=1, b=2", "b=2, a=1")]
    assert two[0].hash == two[1].hash


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": {"group_size": 32}},
        {"config": "Int4WeightOnlyConfig"},
        {"quantizes": ["linear", "head"]},
        {"transformers_options": {"include_input_output_embeddings": True}},
        {"untie_embeddings": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_weights_changes_the_identity(matrix: Matrix, change: dict[str, object]) -> None:
    recipe = matrix.recipes["int8wo"]
    assert recipe.model_copy(update=change).identity.hash != recipe.identity.hash
    assert recipe.model_copy(update={"name": "other", "reason": "x"}).identity.hash == recipe.identity.hash


def test_prototypes_of_torchao_are_known_by_name(suites_matrix: Matrix) -> None:
    by_name = "FqnToConfig(fqn_to_config={'re:.*mlp.*': NVFP4WeightOnlyConfig(), '_default': Int8WeightOnlyConfig()})"
    said = {name: prototypes(suites_matrix.recipe(name).identity.config) for name in ("int8wo", "nf4wo", by_name)}
    assert said == {"int8wo": [], "nf4wo": ["NF4WeightOnlyConfig"], by_name: ["NVFP4WeightOnlyConfig"]}


@pytest.mark.parametrize(("kind", "unties"), [("embedding", True), ("head", True), ("vision", False)])
def test_an_embedding_or_a_head_that_is_asked_for_is_untied(suites_matrix: Matrix, kind: str, unties: bool) -> None:
    made = with_rules(suites_matrix.recipe("int8wo"), [kind], ())
    assert (made.untie_embeddings, made.quantizes) == (unties, ["linear", kind])
    assert with_rules(suites_matrix.recipe("8da4w-int8emb"), [kind], ()).untie_embeddings


def test_a_config_of_the_command_line_for_embedding_or_head_is_refused(suites_matrix: Matrix) -> None:
    """They would stay as they are without a word; named to be left out, they are."""
    config = "FqnToConfig(fqn_to_config={'re:.*embed_tokens': %s, 'lm_head': %s, '_default': Int8WeightOnlyConfig()})"
    with pytest.raises(
        MatrixError, match=r"is for re:\.\*embed_tokens, lm_head too, .*with embedding or head in `quantizes`"
    ):
        suites_matrix.recipe(config % ("Int8WeightOnlyConfig()", "Int8WeightOnlyConfig()"))
    assert suites_matrix.recipe(config % (None, None)).quantizes == ["linear"]


@pytest.mark.parametrize(
    ("text", "config", "arguments"),
    [
        ("AConfig", "AConfig", {}),
        ("AConfig()", "AConfig", {}),
        ("AConfig(group_size=-1, name='x', flag=None)", "AConfig", {"group_size": -1, "name": "x", "flag": None}),
        ("AConfig(weight_dtype=torch.int4)", "AConfig", {"weight_dtype": "torch.int4"}),
        ("AConfig(g=PerGroup(32), h=PerRow())", "AConfig", {"g": "PerGroup(32)", "h": "PerRow()"}),
        (
            "AConfig(\n  inner=BConfig(weight_dtype=torch.int8, g=PerAxis(0)),\n)",
            "AConfig",
            {"inner": {"config": "BConfig", "arguments": {"weight_dtype": "torch.int8", "g": "PerAxis(0)"}}},
        ),
        (
            "FqnToConfig(fqn_to_config={'re:.*q_proj': None, '_default': Int8WeightOnlyConfig()})",
            "FqnToConfig",
            {"fqn_to_config": {"re:.*q_proj": None, "_default": {"config": "Int8WeightOnlyConfig", "arguments": {}}}},
        ),
        ("AConfig(g=[PerRow(), PerRow(dim=-1)])", "AConfig", {"g": ["PerRow()", "PerRow(dim=-1)"]}),
        ("AConfig(g=PerGroup(group_size=32))", "AConfig", {"g": "PerGroup(group_size=32)"}),
        ("AConfig(g=PerBlock((1, 128)))", "AConfig", {"g": "PerBlock((1, 128))"}),
        (
            "AConfig(m=MappingType.SYMMETRIC, f=[Float8PackingFormat.PLAIN])",
            "AConfig",
            {"m": "MappingType.SYMMETRIC", "f": ["Float8PackingFormat.PLAIN"]},
        ),
    ],
)
def test_a_config_is_parsed_into_data(text: str, config: str, arguments: dict[str, object]) -> None:
    assert parse_config(text) == {"config": config, "arguments": arguments}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@QUICK
@given(JSON)
def test_a_literal_keeps_its_value(value: object) -> None:
    assert parse_config(f"AConfig(x={value!r})")["arguments"]["x"] == value


LITERALS = st.recursive(
    st.sampled_from(
        ["1", "-1", "1e999", "1j", "'a'", "b'\\xff'", "...", "None", "name", "torch.int4", "f'{x}'", "{*x}"]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"{{{', '.join(parts)}}}"),
        st.lists(inner, max_size=2).map(lambda parts: f"({''.join(part + ', ' for part in parts)})"),
        st.tuples(inner, inner).map(lambda pair: f"{{{pair[0]}: {pair[1]}}}"),
        inner.map(lambda part: f"BConfig(y={part})"),
    ),
    max_leaves=5,
)


@QUICK
@given(st.one_of(st.text(), st.text().map(lambda text: f"AConfig({text})"), LITERALS.map(lambda x: f"AConfig(x={x})")))
def test_whatever_is_given_is_refused_or_can_be_kept_as_json(text: str) -> None:
    with contextlib.suppress(MatrixError):
        json.dumps(parse_config(text), allow_nan=False)


@pytest.mark.parametrize(
    "value",
    ["PerGroup(x)", "PerGroup(PerRow())", "PerGroup(*[1])", "Other(1)", "a.b", "os.path", "None.X", "torch.X(1)"],
)
@pytest.mark.parametrize("template", ["AConfig(x={})", "AConfig(x=[{}])", "AConfig(x={{'a': {}}})"])
def test_what_is_no_value_of_a_config_is_refused_wherever_it_stands(template: str, value: str) -> None:
    with pytest.raises(MatrixError, match="is not a literal, a torch dtype, a granularity such as"):
        parse_config(template.format(value))


@pytest.mark.parametrize(
    "text",
    ["AConfig(x={{[]}: 1})", "AConfig(x=" + "(" * 5000 + ")", "AConfig(x=" + "-" * 20000 + "1)", "AConfig(x='\0')"],
)
def test_a_text_that_the_parser_cannot_take_is_refused(text: str) -> None:
    with pytest.raises(MatrixError, match="--recipe"):
        parse_config(text)


@pytest.mark.parametrize(
    "template",
    [
        "AConfig(x={})",
        "AConfig(x=[{}])",
        "AConfig(x={{'a': {}}})",
        "AConfig(inner=BConfig(x={}))",
        "AConfig(inner=BConfig({}))",
        "AConfig({})",
        "AConfig(**{})",
        "AConfig(x=torch.__dict__[{}])",
        "AConfig(x=(lambda: {})())",
        "AConfig(x=f'{{{}}}')",
        "AConfig(x=[{} for _ in (1,)])",
        "AConfig(x=(y := {}))",
        "AConfig(x=1 if {} else 2)",
        "AConfig(x={}.stat)",
        "AConfig(x=PerGroup({}))",
        "AConfig(x=PerGroup(group_size={}))",
        "AConfig(x=[PerRow(), {}])",
        "AConfig(x={{'a': BConfig(y={})}})",
        "AConfig(x={}.SYMMETRIC)",
        "{}Config()",
    ],
)
def test_a_config_is_never_run(matrix: Matrix, tmp_path: Path, template: str) -> None:
    canary = tmp_path / "canary"
    text = template.format(f'__import__("pathlib").Path("{canary}").touch()')
    for parse in (parse_config, matrix.recipe):
        with contextlib.suppress(MatrixError):
            parse(text)
        assert not canary.exists()


@pytest.mark.parametrize(
    ("written", "line", "words"),
    [
        ("parameters = { batchsize = 1 }", 1, "did you mean batch_size"),
        ("[thresholds.parameters]\nnum_prompts = 1", 2, "known: batch_size, input_len, output_len"),
        ('parameters = { batch_size = 1, task = "piqa" }', 1, "latency has no such parameter"),
    ],
)
def test_a_limit_on_a_parameter_that_the_metric_does_not_have_is_refused(
    tmp_path: Path, written: str, line: int, words: str
) -> None:
    text = TEXT.replace("parameters = { batch_size = 8 }\nmax = 2.0", f"max = 2.0\n{written}", 1)
    if written.startswith("["):
        text = text.replace(f"{written}\n", "") + written + "\n"
        text = text.replace('unit = "s"\n', "", 1).replace("max = 2.0\n", 'max = 2.0\nunit = "s"\n', 1)
    (tmp_path / "matrix.toml").write_text(text)
    number = text[: text.index(written)].count("\n") + line
    name = next(it for it in ("batchsize", "num_prompts", "task") if it in written)
    with pytest.raises(MatrixError) as caught:
        load(tmp_path / "matrix.toml")
    assert f"matrix.toml, line {number}: thresholds.1.parameters.{name}: " in str(caught.value)
    assert words in str(caught.value)


def test_every_metric_names_the_parameters_that_its_records_have(repository: Path) -> None:
    """Otherwise a limit that does apply would be refused."""
    seen = 0
    for path in (repository / "results").glob("*/*/records.jsonl"):
        for it in read(path)[0]:
            if isinstance(it, Measurement):
                assert set(it.parameters) <= set(METRICS[it.metric].parameters), (path, it.metric, it.parameters)
                seen += 1
    assert seen > 300


# --------------------------------------------------------------------------------------------------------------- cells


def names(cells: list[Cell]) -> list[tuple[str, str]]:
    return [(cell.model.name, cell.recipe.name) for cell in cells]


def test_the_baseline_comes_first_and_is_always_there(matrix: Matrix) -> None:
    everything = [
        (model, recipe) for model in ("small", "big") for recipe in ("bf16", "int8wo", "float8dq")
    ]  # each once, though two entries of the matrix name small with float8dq
    assert names(matrix.cells()) == everything
    assert names(matrix.cells(models=["big"], recipes=["int8wo"])) == [("big", "bf16"), ("big", "int8wo")]
    assert names(matrix.cells(models=["big"], recipes=["bf16"])) == [("big", "bf16")]
    given = matrix.cells(models=["owner/other"], recipes=["Int8WeightOnlyConfig(group_size=32)"])
    assert [cell.recipe.baseline for cell in given] == [True, False]
    assert len({cell.id for cell in matrix.cells()}) == len(everything)


@QUICK
@given(st.lists(st.sampled_from(["int8wo", "float8dq", "bf16", "AConfig(x=1)", "AConfig(x=2)"]), min_size=1))
@pytest.mark.programs
def test_every_recipe_asked_for_has_a_cell(suites_matrix: Matrix, recipes: list[str]) -> None:
    cells = suites_matrix.cells(models=["owner/model"], recipes=recipes)
    for hardware in {cell.hardware for cell in cells}:
        here = [cell for cell in cells if cell.hardware == hardware]
        assert here[0].recipe.baseline
        asked = {suites_matrix.recipe(recipe).name for recipe in recipes} | {"bf16"}
        assert sorted(cell.recipe.name for cell in here) == sorted(asked)


def test_a_table_that_is_on_request_counts_only_for_its_models(tmp_path: Path) -> None:
    """So a large model can stand in the matrix without a part in everybody's session."""
    asked = """
[[cells]]
on_request = true
hardware = "cpu"
models = ["big"]
recipes = ["bf16"]
servers = ["vllm"]
"""
    matrix = load(written(tmp_path, TEXT.replace('models = ["small", "big"]', 'models = ["small"]') + asked))
    assert {cell.model.name for cell in matrix.cells()} == {"small"}
    assert {cell.model.name for cell in matrix.cells(recipes=["bf16"])} == {"small"}
    (cell,) = matrix.cells(models=["big"])
    assert (cell.model.name, cell.recipe.name, list(cell.servers)) == ("big", "bf16", ["vllm"])
    assert {cell.model.name for cell in matrix.cells(models=["small"])} == {"small"}


WHOLE = "0" * 64
PART = '{ requirement = "a==1.0", file = "a/w.part0" }'


@pytest.mark.parametrize(
    ("package", "words"),
    [
        (f'{{ file = "w.gguf", parts = [{PART}] }}', "parts need `sha256`"),
        (f'{{ file = "a/w.gguf", parts = [{PART}], sha256 = "{WHOLE}" }}', "a `file` that is a name alone"),
        (f'{{ requirement = "a==1.0", file = "w.gguf", parts = [{PART}], sha256 = "{WHOLE}" }}', "needs either"),
        ('{ file = "w.gguf" }', "needs either `requirement`"),
    ],
)
def test_a_package_in_parts_says_what_the_whole_is(tmp_path: Path, package: str, words: str) -> None:
    text = TEXT.replace('hub = "owner/small"', f"package = {package}")
    with pytest.raises(MatrixError, match=rf"models\.small\.package: .*{words}"):
        load(written(tmp_path, text), server_names())


def test_the_second_model_is_left_out_unless_it_is_named(suites_matrix: Matrix) -> None:
    """The main job stays what it is."""
    (second,) = [model for model in suites_matrix.models.values() if model.package and model.package.parts]
    assert second.terms
    assert second.name not in {cell.model.name for cell in suites_matrix.cells()}
    assert {"cpu", "arm-mobile"} <= {cell.hardware.name for cell in suites_matrix.cells(models=[second.name])}


def test_what_a_recipe_does_not_run_on_is_refused_with_its_reason(matrix: Matrix) -> None:
    skips = {cell.recipe.name: cell.skip for cell in matrix.cells(models=["small"])}
    assert skips["bf16"] == skips["int8wo"] == ""
    assert skips["float8dq"] == "recipe float8dq does not run on cpu: float8 needs a GPU"


def test_a_recipe_refuses_a_server_by_name() -> None:
    recipe = Recipe(name="embedding", config="XConfig", servers=["transformers"], reason="no kernel")
    assert recipe.refusal(CPU) == recipe.refusal(CPU, "transformers") == ""
    assert recipe.refusal(CPU, "vllm") == "recipe embedding does not run through vllm: no kernel"


def test_two_models_or_recipes_never_share_a_name_in_silence(matrix: Matrix, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "model").mkdir(parents=True)
    folders = [str(tmp_path / parent / "model") for parent in ("a", "b")]
    with pytest.raises(MatrixError, match="model"):
        matrix.cells(models=folders)
    with pytest.raises(MatrixError, match="AConfig_x_1"):
        matrix.cells(recipes=["AConfig(x=1)", "AConfig(x=[1])"])


@pytest.mark.parametrize("asked", [{"models": ["smal"]}, {"recipes": ["int8w"]}])
def test_a_cell_of_an_unknown_name_is_refused(matrix: Matrix, asked: dict[str, list[str]]) -> None:
    with pytest.raises(MatrixError, match="did you mean"):
        matrix.cells(**asked)


def test_limits_apply_where_they_say(matrix: Matrix) -> None:
    cells = {cell.recipe.name: cell for cell in matrix.cells(models=["small"])}
    (ratio,) = matrix.limits(cells["int8wo"], "perplexity", {"windows": 2})
    assert (ratio.comparison, ratio.limit, ratio.needs_baseline) == ("max_ratio", 1.1, True)
    assert matrix.limits(cells["bf16"], "perplexity", {}) == []
    assert matrix.limits(cells["float8dq"], "perplexity", {}) == []
    (absolute,) = matrix.limits(cells["bf16"], "latency", {"batch_size": 8, "input_len": 8})
    assert (absolute.comparison, absolute.limit, absolute.needs_baseline) == ("max", 2.0, False)
    assert matrix.limits(cells["bf16"], "latency", {"batch_size": 1}) == []
    assert matrix.limits(cells["bf16"], "latency", {}) == []


@QUICK
@given(st.data())
@pytest.mark.programs
def test_a_model_and_a_recipe_that_are_asked_for_together_run_on_every_hardware(
    suites_matrix: Matrix, data: st.DataObject
) -> None:
    models = data.draw(st.lists(st.sampled_from(sorted(suites_matrix.models)), min_size=1, unique=True))
    recipes = data.draw(st.lists(st.sampled_from(sorted(suites_matrix.recipes)), min_size=1, unique=True))
    cells = suites_matrix.cells(models, recipes)
    for hardware in suites_matrix.hardware.values():
        here = [cell for cell in cells if cell.hardware == hardware]
        assert {(cell.model.name, cell.recipe.name) for cell in here} == {
            (model, recipe) for model in models for recipe in {*recipes, "bf16"}
        }
        for cell in here:
            assert cell.servers
            assert bool(cell.skip) == bool(cell.recipe.refusal(hardware))


def test_a_pair_that_no_table_lists_goes_through_the_models_own_servers(suites_matrix: Matrix) -> None:
    cells = suites_matrix.cells(["Phi-4-mini-instruct"], ["int8dq"])
    found = {(cell.recipe.name, cell.hardware.name): cell.servers for cell in cells}
    assert list(found["int8dq", "h100"]) == list(found["bf16", "h100"]) == ["transformers", "vllm", "sglang"]
    (listed,) = [it for it in suites_matrix.cells(["SmolLM2-135M-Instruct"], ["float8wo"]) if it.id.endswith("wo-cpu")]
    assert list(listed.servers) == ["transformers"], "a pair that is listed keeps to its table"


def test_a_reason_of_one_place_is_told_there_alone() -> None:
    recipe = Recipe(
        name="x",
        config="XConfig",
        needs=(Needs(vendor=("nvidia",)),),
        servers=["vllm"],
        reason="no kernel",
        reasons={"sglang": "it cannot be captured"},
    )
    assert recipe.refusal(H100, "sglang") == "recipe x does not run through sglang: it cannot be captured"
    assert recipe.refusal(CPU, "sglang") == "recipe x does not run on cpu: no kernel"


@given(st.lists(st.booleans(), min_size=1))
def test_a_server_is_skipped_where_every_table_skips_it(skips: list[bool]) -> None:
    found = reduce(or_, (Through(skip="it takes hours" if skip else "") for skip in skips))
    assert bool(found.skip) == all(skips)


def test_a_table_that_skips_adds_no_stages_to_one_that_asks() -> None:
    asks, skips = Through(("engine",), ("piqa",)), Through(skip="it takes hours")
    assert asks | skips == skips | asks == asks


@given(st.lists(st.tuples(*(st.lists(st.sampled_from("abc"), unique=True),) * 2), min_size=1))
def test_what_tables_say_of_one_server_adds_up(said: list[tuple[list[str], list[str]]]) -> None:
    found = reduce(or_, (Through(tuple(stages), tuple(tasks)) for stages, tasks in said))
    for together, place in ((found.stages, 0), (found.tasks, 1)):
        assert list(together) == list(dict.fromkeys(name for one in said for name in one[place]))


def test_models_of_the_hub_are_evaluated_through_the_servers_of_the_tables_that_name_tasks(
    suites_matrix: Matrix,
) -> None:
    (cell,) = [it for it in suites_matrix.cells(["owner/other"], ["float8dq"]) if it.id == "other-float8dq-h100"]
    assert cell.servers["transformers"].tasks
    assert not cell.servers["vllm"].tasks
    assert "server" in cell.servers["sglang"].stages


def test_a_limit_for_pretrained_weights_says_nothing_of_random_ones(suites_matrix: Matrix) -> None:
    (cell,) = [it for it in suites_matrix.cells(["Phi-4-mini-instruct"], ["float8dq"]) if it.id.endswith("dq-h100")]
    assert suites_matrix.limits(cell, "served_kl", {})
    assert suites_matrix.limits(cell, "served_kl", {}, random=True) == []
    assert suites_matrix.limits(cell, "peak_memory", {}, random=True) == suites_matrix.limits(cell, "peak_memory", {})


@pytest.mark.parametrize("model", ["gemma-3-270m", "owner/other"])
@pytest.mark.parametrize("recipe", ["int8wo", "8da4w", "8da4w-int8emb"])
def test_a_limit_whose_number_was_seen_on_some_models_is_shown_to_the_others(
    suites_matrix: Matrix, model: str, recipe: str
) -> None:
    for cell in suites_matrix.cells([model], [recipe]):
        for metric in METRICS:
            asked = suites_matrix.limits(cell, metric, {})
            assert not [
                one for one in asked if "135M" in one.origin or ("was seen" in one.origin and not one.every_model)
            ]
            assert not [one for one in asked if one.known_failure], "what is known of one model excuses no other"
    (here,) = [it for it in suites_matrix.cells([model], ["8da4w"]) if it.id.endswith("8da4w-cpu")]
    (shown,) = suites_matrix.others(here, "perplexity", {})
    assert shown.chosen_on == ["SmolLM2-135M-Instruct", "Phi-4-mini-instruct"]
    assert suites_matrix.limits(here, "perplexity", {}) == []


@pytest.mark.parametrize(
    ("recipe", "plain", "engine", "quality"),
    [
        ("int8wo", ("experts",), 0.01, 1.05),
        ("Int8WeightOnlyConfig(granularity=PerGroup(32))", (), 0.01, 1.05),
        ("8da4w", ("re:.*down_proj",), 0.05, 1.6),
        ("Int8DynamicActivationUIntxWeightConfig()", (), 0.05, None),
        ("UIntxWeightOnlyConfig()", (), 0.01, None),
        ("FqnToConfig(fqn_to_config={'_default': Int8DynamicActivationInt8WeightConfig()})", (), 0.05, None),
        ("8da4w-int8emb", ("re:.*down_proj",), 0.05, 1.6),
    ],
)
def test_a_recipe_of_ones_own_is_held_to_what_is_for_every_model_and_shown_what_its_kin_is_held_to(
    suites_matrix: Matrix, recipe: str, plain: tuple[str, ...], engine: float, quality: float | None
) -> None:
    (cell,) = [
        one
        for one in suites_matrix.cells(["SmolLM2-135M-Instruct"], [recipe])
        if one.hardware.name == "cpu" and not one.recipe.baseline
    ]
    cell = replace(cell, recipe=with_rules(cell.recipe, (), plain))
    assert {one.limit for one in suites_matrix.limits(cell, "served_kl", {})} == {engine}
    assert suites_matrix.limits(cell, "perplexity", {}) == []
    assert [one.limit for one in suites_matrix.others(cell, "perplexity", {})] == ([quality] if quality else [])
    assert suites_matrix.limits(cell, "served_kl", {}, random=True) == []


def test_a_limit_is_asked_of_every_model_or_of_those_that_it_was_chosen_on(tmp_path: Path) -> None:
    text = TEXT.replace('origin = "chosen"', 'origin = "chosen"\nevery_model = true\nchosen_on = ["small"]')
    with pytest.raises(MatrixError, match="every_model and chosen_on exclude each other"):
        load(written(tmp_path, text))
    with pytest.raises(MatrixError, match="'smal' is not defined; did you mean small"):
        load(written(tmp_path, TEXT.replace('origin = "chosen"', 'origin = "chosen"\nchosen_on = ["smal"]')))


def test_a_recipe_alone_keeps_to_the_tables_that_list_it(suites_matrix: Matrix) -> None:
    found = {(cell.hardware.name, cell.model.name) for cell in suites_matrix.cells(recipes=["int8dq"])}
    assert ("h100", "SmolLM2-135M-Instruct") in found
    assert ("h100", "Phi-4-mini-instruct") not in found


def test_limits_that_the_committed_phone_run_missed_are_known(suites_matrix: Matrix, repository: Path) -> None:
    """For the model and recipe where they were missed; another recipe with the same limit is not excused."""
    (run,) = (repository / "results" / "reference").glob("arm-mobile-*")
    missed = [line for line in Run(run).lines() if isinstance(line, Judgement) and not line.passed]
    assert missed
    cells = {
        (one.model.name, one.recipe.name): one for one in suites_matrix.cells() if one.hardware.name == "arm-mobile"
    }
    for line in missed:
        cell = cells[line.cell.model.name, line.cell.recipe.name]
        for of, excused in ((cell, True), (replace(cell, recipe=suites_matrix.recipe("8da4w")), False)):
            limits = suites_matrix.limits(of, line.metric, line.parameters)
            same = [one for one in limits if (one.comparison, one.limit) == (line.comparison, line.limit)]
            assert [bool(one.known_failure) for one in same] == [excused]


def test_a_served_model_must_agree_on_the_most_likely_token_too(suites_matrix: Matrix, repository: Path) -> None:
    """Every pretrained cell through vLLM has both limits, which the committed runs keep; random weights have one."""
    runs = sorted((repository / "results" / "reference").glob("cpu-*"))
    lines = [line for run in runs for line in Run(run).lines() if isinstance(line, Measurement)]
    seen = [line for line in lines if line.metric == "served_top1" and not line.discarded]
    measured = {(line.cell.model.name, line.cell.recipe.name): line for line in seen}
    limits = {
        (cell.model.name, cell.recipe.name): {
            name: suites_matrix.limits(cell, name, {}) for name in ("served_kl", "served_top1")
        }
        for cell in suites_matrix.cells()
        if cell.server == "vllm"
    }
    for (model, recipe), found in limits.items():
        assert len(found["served_kl"]) == 1
        assert len(found["served_top1"]) == (model == "SmolLM2-135M-Instruct"), recipe
        for limit in found["served_top1"]:
            assert measured[model, recipe].value >= limit.limit
            assert 1 - limit.limit < 0.25, "a server that is wrong at every fourth token does not pass"


def test_what_the_phone_run_missed_has_a_floor(suites_matrix: Matrix, repository: Path) -> None:
    """Below a limit that is known not to hold stands one that holds and is excused by nothing."""
    (run,) = (repository / "results" / "reference").glob("arm-mobile-*")
    missed = [line for line in Run(run).lines() if isinstance(line, Judgement) and not line.passed]
    cells = {
        (one.model.name, one.recipe.name): one for one in suites_matrix.cells() if one.hardware.name == "arm-mobile"
    }
    for line in missed:
        cell = cells[line.cell.model.name, line.cell.recipe.name]
        limits = suites_matrix.limits(cell, line.metric, line.parameters)
        floors = [one for one in limits if one.comparison == line.comparison and not one.known_failure]
        assert [one.limit < line.measured < line.limit for one in floors] == [True]


@pytest.mark.parametrize(
    ("metric", "runner", "limits"),
    [
        ("peak_memory", "host", {("max", 3.2), ("max_ratio", 0.3)}),
        ("generate_throughput", "ios", {("min", 17.0), ("min_ratio", 1.0)}),
        ("generate_throughput", "adb", {("min", 17.0), ("min_ratio", 1.0)}),
        ("generate_throughput", "ssh", {("min_ratio", 1.0)}),
    ],
)
def test_the_published_phone_figures_are_limits(
    suites_matrix: Matrix, metric: str, runner: str, limits: set[tuple[str, float]]
) -> None:
    """Of the cell that is published, which stands in no table: it is selected by model and recipe."""
    cells = suites_matrix.cells(["Phi-4-mini-instruct"], ["8da4w-int8emb"])
    (cell,) = (one for one in cells if one.hardware.name == "arm-mobile" and not one.recipe.baseline)
    found = suites_matrix.limits(cell, metric, {"runner": runner})
    assert {(one.comparison, one.limit) for one in found} == limits
    assert all(one.origin.startswith("published: ") for one in found if not one.needs_baseline)
    documented = Documented.load().find(cell.model.name, cell.recipe.name, cell.hardware.name, metric)
    assert documented
    assert {one.limit for one in found if not one.needs_baseline} <= {documented.value}


def test_python_warns_of_no_text_that_is_only_read(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(MatrixError):
        parse_config("AConfig(x=32in y)")
    assert not recwarn.list
