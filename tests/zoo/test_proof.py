"""What is quantized of models of many architectures, what stays plain and by which rule, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base.errors import WorkerError
from harness.base.files import file_digest
from harness.contract import flattened
from harness.matrix.config_text import with_rules
from harness.matrix.plan import Matrix
from harness.publish import recipe_code
from harness.records.coverage import Coverage
from harness.runtime.environment import Environment
from harness.runtime.job import Worker
from harness.runtime.store import Store

_MAKE = Path(__file__).with_name("models.py")
pytestmark = [pytest.mark.models, pytest.mark.usefixtures("imports_stand")]

INT8 = "Int8WeightOnlyConfig()"
INT4 = "Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32))"
HEADS = {"embedding", "head", "norm"}

# What int8wo quantizes of each: kinds, and the kinds that stay plain, all of them by a rule.
QUANTIZED: dict[str, tuple[set[str], set[str]]] = {
    "dense": ({"linear"}, HEADS),
    "tied": ({"linear"}, {"embedding", "norm"}),
    "with_biases": ({"linear"}, HEADS | {"bias"}),
    "float32": ({"linear"}, HEADS),
    "odd_sizes": ({"linear"}, HEADS),
    "mamba": ({"linear"}, {"linear", "embedding", "norm", "bias", "convolution", "state"}),
    "hybrid": ({"linear"}, HEADS | {"bias", "convolution", "state"}),
    "recurrent": ({"linear"}, HEADS | {"bias", "convolution", "state"}),
    "qwen3_moe": ({"linear", "experts"}, HEADS | {"router"}),
    "olmoe": ({"linear", "experts"}, HEADS | {"router"}),
    "mixtral": ({"linear", "experts"}, HEADS | {"router"}),
    "shared_expert": ({"linear", "experts"}, HEADS | {"router", "bias"}),
    "deepseek_v3": ({"linear", "experts"}, HEADS | {"router"}),
}

# What cannot be quantized as the recipe means is named, with its share of the parameters, and nothing is written.
REFUSED = {
    (
        "conv1d",
        "int8wo",
    ): r"would quantize nothing of the model: 8 weights are meant, 25\.7% .*c_attn.*"
    r"held as \(in, out\).* nn\.Linear",
    (
        "own_product",
        "int8wo",
    ): r"would quantize nothing of the model: .*the model's own code computes with it \(T\), which",
    ("conv1d", "8da4w"): r"would quantize nothing of the model: 8 weights are meant",
    (
        "transposed_experts",
        "int8wo",
    ): r"leave 4 of 12 weights unquantized, 68\.2% .*gate_up_proj.*--leave-plain",
    (
        "qwen3_moe",
        "8da4w",
    ): r"leave 4 of 12 weights unquantized, 42\.5% .*experts\.down_proj: torchao refuses it \(.*o"
    r"nly works for 2-d Tensor.*To leave them plain on purpose: --leave-plain experts",
    ("mixtral", "8da4w"): r"leave 4 of 12 weights unquantized, 69\.0% ",
    (
        "odd_sizes",
        "8da4w",
    ): r"leave 12 of 14 weights unquantized, .*self_attn\.q_proj has 72 inputs, for which the near"
    r"est is 36; .*down_proj has 100 inputs, for which the nearest is 25\). Groups of 4 divide those of every layer",
    ("mamba", "8da4w"): r"mixer\.dt_proj: groups of 32 do not divide their inputs \(.*dt_proj has 4 inputs, .* is 4\)",
}


@pytest.fixture(scope="module")
def zoo(kept_store: Store) -> Path:
    """A folder of a model of each architecture."""

    def build(folder: Path) -> None:
        subprocess.run([sys.executable, str(_MAKE), str(folder)], check=True, capture_output=True)

    key = {"script": file_digest(_MAKE), "packages": Environment().decisive()}
    return kept_store.get("zoo-models", key, build, label="the tests' models").folder


@pytest.fixture(scope="module")
def worker(start_worker: Callable[..., Worker]) -> Worker:
    return start_worker("quantize", device="cpu")


Quantize = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def quantize(worker: Worker, zoo: Path, suites_matrix: Matrix, tmp_path_factory: pytest.TempPathFactory) -> Quantize:
    """``quantize(name, recipe)`` returns the facts of a model by a recipe, and the folder; each is made once."""
    made: dict[str, dict[str, Any]] = {}

    def ask(name: str, recipe: str, more: tuple[str, ...] = (), plain: tuple[str, ...] = ()) -> dict[str, Any]:
        key = repr((name, recipe, more, plain))
        if key not in made:
            folder = tmp_path_factory.mktemp(name)
            config = with_rules(suites_matrix.recipe(recipe), more, plain).identity.config
            asked = {"checkpoint": str(zoo / name), "output": str(folder), "trust_remote_code": False}
            made[key] = {**worker.ask("quantize", 300, **asked, **config), "folder": folder, "recipe": config}
        return made[key]

    return ask


def kinds(facts: dict[str, Any], quantized: bool) -> set[str]:
    return {str(one["kind"]) for one in facts["weights"].values() if one["quantized"] is quantized}


def tensors_of(file: Path) -> dict[str, bytes]:
    """Return the bytes of every tensor of a safetensors file."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {name: data[8 + length :][slice(*entry["data_offsets"])] for name, entry in header.items()}


# ------------------------------------------------------------------------------------------------ what is quantized


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_parameter_is_quantized_or_plain_by_a_rule(quantize: Quantize, name: str) -> None:
    made = quantize(name, "int8wo")
    assert (kinds(made, True), kinds(made, False)) == QUANTIZED[name]
    assert all(one["rule"] for one in made["weights"].values() if not one["quantized"])
    assert sum(math.prod(one["shape"]) for one in made["weights"].values()) == made["parameters"]
    assert made["finite"] is True


@pytest.mark.parametrize("name", [*QUANTIZED, "vision"])
@pytest.mark.parametrize("recipe", ["int8wo", "int8dq"])
def test_sizes_are_those_of_arithmetic(quantize: Quantize, name: str, recipe: str) -> None:
    if recipe == "int8dq" and "experts" in QUANTIZED.get(name, ((), ()))[0]:
        pytest.skip("one recipe for experts is enough")
    made = quantize(name, recipe)
    for size in ("checkpoint_bytes", "weight_bytes"):
        assert made[size] == made[f"predicted_{size}"], size


@pytest.mark.parametrize(("name", "recipe"), REFUSED)
def test_what_a_recipe_means_and_cannot_quantize_is_named(
    quantize: Quantize, worker: Worker, name: str, recipe: str
) -> None:
    with pytest.raises(WorkerError, match=REFUSED[name, recipe]) as caught:
        quantize(name, recipe)
    assert caught.value.kind == "refused"
    assert "\n" not in str(caught.value)
    assert worker.alive


@pytest.mark.parametrize("name", ["qwen3_moe", "transposed_experts"])
def test_experts_stay_plain_where_the_user_says_so(quantize: Quantize, name: str) -> None:
    made = quantize(name, "8da4w", plain=("experts",))
    rules = {one["rule"] for one in made["weights"].values() if one["kind"] == "experts"}
    assert rules == {"left plain as asked (experts)"}
    assert kinds(made, True) == {"linear"}
    assert made["finite"] is True
    assert flattened.unnamed([made["folder"] / "model.safetensors"]) == [], "a server would pass over them"


def test_a_weight_that_the_models_own_code_computes_with_stays_plain_and_is_said_to(
    quantize: Quantize, worker: Worker
) -> None:
    """Mamba multiplies by the weight of one of its linear layers itself; a model given so is as much as one made so."""
    made = quantize("mamba", "int8wo")
    rules = {one["rule"] for name, one in made["weights"].items() if "dt_proj.weight" in name}
    assert rules == {"the model's own code computes with it (matmul), which no quantized weight takes"}
    taken = {name: made["recipe"][name] for name in ("config", "arguments", "quantizes", "transformers_options")}
    facts = worker.ask("facts", 300, checkpoint=str(made["folder"]), trust_remote_code=False, **taken)
    assert facts["weights"] == made["weights"]


def test_a_given_checkpoint_has_the_facts_of_its_making(quantize: Quantize, worker: Worker) -> None:
    """Its experts too, though Transformers reaches them by a config of another class."""
    made = quantize("qwen3_moe", "int8wo")
    taken = {name: made["recipe"][name] for name in ("config", "arguments", "quantizes", "transformers_options")}
    facts = worker.ask("facts", 300, checkpoint=str(made["folder"]), trust_remote_code=False, **taken)
    assert facts == {name: value for name, value in made.items() if name not in ("folder", "recipe")}


@pytest.mark.parametrize(("name", "spared", "share"), [("conv1d", False, r"25\.7%"), ("dense", True, r"59\.8%")])
def test_what_came_quantized_with_nothing_quantized_is_refused(
    quantize: Quantize, worker: Worker, zoo: Path, tmp_path: Path, name: str, spared: bool, share: str
) -> None:
    """As Transformers itself writes GPT-2: the configuration says that it is quantized, and every weight is plain."""
    import torch
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    told = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["model", "lm_head"] if spared else None)
    model = AutoModelForCausalLM.from_pretrained(zoo / name, quantization_config=told, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    for file in (zoo / name).glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    taken = {name: quantize("dense", "int8wo")["recipe"][name] for name in ("config", "arguments", "quantizes")}
    with pytest.raises(WorkerError, match=rf"no quantized weight at all: .* means .* {share} of its param") as it:
        worker.ask("facts", 300, checkpoint=str(tmp_path), trust_remote_code=False, **taken)
    assert it.value.kind == "refused"


def test_a_folder_that_only_says_that_it_is_quantized_is_refused(
    quantize: Quantize, worker: Worker, zoo: Path, tmp_path: Path
) -> None:
    made = quantize("dense", "int8wo")
    folder = tmp_path / "dense"
    shutil.copytree(zoo / "dense", folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = made["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    taken = {name: made["recipe"][name] for name in ("config", "arguments", "quantizes")}
    with pytest.raises(WorkerError, match=r"says that it is quantized with torchao, and its files tell of no") as it:
        worker.ask("facts", 300, checkpoint=str(folder), trust_remote_code=False, **taken)
    assert it.value.kind == "refused"


@pytest.mark.parametrize(
    ("name", "recipe"), [("qwen3_moe", "int8wo"), ("vision", "8da4w"), ("shared_expert", "int8wo"), ("dense", "int8wo")]
)
def test_the_script_of_a_card_makes_the_same_weights(
    quantize: Quantize, zoo: Path, tmp_path: Path, run_code: Any, name: str, recipe: str
) -> None:
    """Experts too, and with the same modules left plain."""
    made = quantize(name, recipe)
    held = json.loads((made["folder"] / "config.json").read_text())
    done = run_code(recipe_code.quantization(made["recipe"], str(zoo / name), str(tmp_path), held))
    assert done.returncode == 0, done.stderr[-2000:]
    assert tensors_of(tmp_path / "model.safetensors") == tensors_of(made["folder"] / "model.safetensors")
    for key in ("quantization_config", "experts_implementation"):
        assert json.loads((tmp_path / "config.json").read_text()).get(key) == held.get(key)


def test_a_token_is_multiplied_by_the_experts_that_it_is_given_to(quantize: Quantize) -> None:
    """Two of four."""
    made = quantize("qwen3_moe", "int8wo")
    for told, size in (("bytes", "bytes"), ("weights", "shape")):
        whole = dict.fromkeys(("linear", "head", "experts"), 0)
        for one in made["weights"].values():
            if one["kind"] in whole:
                whole[one["kind"]] += math.prod(one[size]) if size == "shape" else one[size]
        assert made["linear"][told] == whole["linear"] + whole["head"] + whole["experts"] // 2


@pytest.mark.parametrize("kind", ["embedding", "head"])
def test_a_tied_embedding_or_head_is_quantized_by_itself_where_it_is_asked_for(quantize: Quantize, kind: str) -> None:
    made = quantize("tied", "int8wo", more=(kind,))
    apart = quantize("dense", "int8wo", more=(kind,))
    for facts in (made, apart):
        assert kinds(facts, True) == {"linear", kind}
        assert kinds(facts, False) == HEADS - {kind}
        assert facts["checkpoint_bytes"] == facts["predicted_checkpoint_bytes"]
        assert not [path for path in facts["folder"].iterdir() if path.is_dir()], "the untied copy is gone"


def test_a_vision_tower_stays_plain_and_is_said_to_unless_it_is_asked_for(quantize: Quantize) -> None:
    made = quantize("vision", "int8wo")
    said = "\n".join(Coverage.of(made["weights"]).lines())
    assert "33.5 % of the parameters and 21.3 % of the bytes are quantized (Int8Tensor)" in said
    assert (
        "plain: 52.7 %, the vision tower stays plain, unless asked for (--quantize vision): model.vision_tower" in said
    )
    asked = quantize("vision", "int8wo", more=("vision",))
    assert {one["part"] for one in asked["weights"].values() if one["quantized"]} == {"", "vision"}
    assert asked["checkpoint_bytes"] == asked["predicted_checkpoint_bytes"] < made["checkpoint_bytes"]


# ---------------------------------------------------------------------------------------------- recipes of one's own


def by_name(**configs: str | None) -> str:
    inner = ", ".join(f"{name!r}: {config}" for name, config in configs.items())
    return f"FqnToConfig(fqn_to_config={{{inner}}})"


def test_none_for_a_module_is_a_rule_of_the_users(quantize: Quantize) -> None:
    made = quantize("dense", by_name(**{r"re:.*self_attn\..*": None, "_default": INT8}))
    plain = {one["rule"] for name, one in made["weights"].items() if ".self_attn." in name}
    assert plain == {r"left plain by the recipe's FqnToConfig (re:.*self_attn\..* = None)"}
    assert {one["quantized"] for name, one in made["weights"].items() if ".mlp." in name} == {True}
    said = "\n".join(Coverage.of(made["weights"]).lines())
    assert "self_attn" in said
    assert "= None" in said


def test_experts_by_name_are_counted(quantize: Quantize) -> None:
    made = quantize("qwen3_moe", by_name(**{r"re:.*\.experts\..*": INT8}))
    assert kinds(made, True) == {"experts"}
    rules = {one["rule"] for one in made["weights"].values() if one["kind"] == "linear"}
    assert rules == {"no key of the recipe's FqnToConfig is for it"}
    (quantized,) = Coverage.of(made["weights"]).quantized
    assert quantized.parameters == sum(
        math.prod(one["shape"]) for one in made["weights"].values() if one["kind"] == "experts"
    )


@pytest.mark.parametrize("name", ["dense", "conv1d", "qwen3_moe"])
@pytest.mark.parametrize(
    ("key", "words"),
    [
        (r"re:.*\.no_such_layer", r"'re:\.\*\\\\\.no_such_layer' matches nothing of the model: the model has "),
        ("re:self_attn", r"'re:self_attn' matches nothing of the model: .*must match the whole name"),
        ("no.such.module", r"'no\.such\.module' matches nothing"),
    ],
)
def test_a_key_that_matches_nothing_is_an_error(quantize: Quantize, name: str, key: str, words: str) -> None:
    with pytest.raises(WorkerError, match=words) as caught:
        quantize(name, by_name(**{key: INT8, "_default": INT8}))
    assert caught.value.kind == "refused"


def test_a_rule_that_matches_nothing_is_an_error(quantize: Quantize) -> None:
    with pytest.raises(WorkerError, match="'experts' matches nothing of the model"):
        quantize("dense", "int8wo", plain=("experts",))


def test_a_group_size_of_one_module_names_that_module(quantize: Quantize) -> None:
    with pytest.raises(WorkerError, match=r"leave 2 of 14 weights .*down_proj has 100 inputs.* Groups of 4 divide"):
        quantize("odd_sizes", by_name(**{r"re:.*down_proj": INT4, "_default": INT8}))


# -------------------------------------------------------------------------------------------------------------- laws

CONFIGS = (
    "Int8WeightOnlyConfig()",
    "Int8WeightOnlyConfig(granularity=PerGroup({group}))",
    "Int8DynamicActivationInt8WeightConfig()",
    "Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup({group}))",
    "Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))",
    "IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup({group}))",
    "Float8WeightOnlyConfig()",
)


@settings(max_examples=60, deadline=None)
@given(
    config=st.sampled_from(CONFIGS),
    group=st.sampled_from([8, 16, 32, 64, 128]),
    rows=st.integers(1, 300),
    blocks=st.integers(1, 5),
    experts=st.integers(0, 4),
)
def test_the_bytes_of_a_weight_are_its_bits_scales_and_zero_points(
    config: str, group: int, rows: int, blocks: int, experts: int
) -> None:
    import torch
    from torchao.quantization import FqnToConfig, quantize_

    from harness.matrix.config_text import parse_config
    from harness.worker import recipe, tensors, widths

    written = parse_config(config.format(group=group))
    made = recipe.build(written["config"], written["arguments"])
    inputs = group * blocks
    known = widths.width(made)
    assert known is not None
    if experts and written["config"] != "Int8WeightOnlyConfig":
        experts = 0
    if experts:
        holder: torch.nn.Module = torch.nn.Module()
        holder.weight = torch.nn.Parameter(torch.randn(experts, rows, inputs, dtype=torch.bfloat16))
        model = torch.nn.Sequential(holder)
        quantize_(model, FqnToConfig({"0.weight": made}), filter_fn=None)
    else:
        model = torch.nn.Sequential(torch.nn.Linear(inputs, rows, bias=False, dtype=torch.bfloat16))
        quantize_(model, made)
    weight: Any = model[0].weight
    assert tensors.tensor_class(weight) != "Tensor"
    held = sum(leaf.numel() * leaf.element_size() for leaf in tensors.leaves(weight.detach()))
    assert held == known.bytes(tuple(weight.shape))


@given(length=st.integers(1, 5000), size=st.integers(1, 512))
def test_the_nearest_group_size_divides_and_none_is_nearer(length: int, size: int) -> None:
    from harness.worker import feasible

    found = feasible.nearest_divisor(length, size)
    assert length % found == 0
    nearer = [one for one in range(1, length + 1) if abs(one - size) < abs(found - size)]
    assert not any(length % one == 0 for one in nearer)


@given(lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=6), most=st.integers(1, 512))
def test_a_common_group_size_divides_all(lengths: list[int], most: int) -> None:
    from harness.worker import feasible

    found = feasible.largest_common_group(lengths, most)
    assert found <= most
    assert all(length % found == 0 for length in lengths)
    assert not any(all(length % one == 0 for length in lengths) for one in range(found + 1, most + 1))


def test_a_plan_says_what_every_rule_is_for(run_code: Any) -> None:
    """An unknown kind of weight in no linear layer is no rule's: it is neither quantized nor left plain in silence."""
    code = """
import torch
from harness.contract.weights import Unusable
from harness.worker import feasible
from harness.worker.parameters import LINEAR, OTHER, Parameter
from harness.worker.plan import make

class Config: pass
found = {
    "mix": Parameter("mix", OTHER, "", torch.zeros(8, 8)),
    "layer.weight": Parameter("layer.weight", LINEAR, "", torch.zeros(8, 8)),
}
plan = make(found, Config(), ["linear"])
print([(name, choice.config is not None, choice.rule) for name, choice in plan.items()])
try:
    feasible.check(found, plan, "Config", "cpu")
except Unusable as error:
    print(error)
"""
    told, refused = run_code(code).stdout.strip().splitlines()[-2:]
    assert told == "[('mix', False, ''), ('layer.weight', True, '')]"
    assert refused == (
        "Config says nothing of 1 weights that are in no linear layer, 50.0% of all parameters: mix. "
        "To leave them plain on purpose: --leave-plain other"
    )


# --------------------------------------------------------------------------------------------------------- a session


def test_a_session_says_what_was_quantized_and_holds_ones_own_model_to_arithmetic_and_to_what_is_asked(
    repository: Path, zoo: Path, tmp_path: Path
) -> None:
    """By the suites' own test and matrix, whose limits were chosen for other models."""
    command = [sys.executable, "-m", "pytest", "suites", "-m", "cpu", "-k", "checkpoint", "-p", "no:cacheprovider"]
    command += ["--cache", str(tmp_path / "cache"), "--results", str(tmp_path / "results"), "--wide"]
    command += [f"--model={zoo / 'qwen3_moe'}", f"--model={zoo / 'conv1d'}", "--recipe=int8wo"]
    command += ["--require", "checkpoint_size max_ratio=0.5"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed, 2 passed" in done.stdout
    assert "Traceback" not in done.stdout
    for words in (
        "qwen3_moe int8wo on cpu: 63.8 % of the parameters and 49.1 % of the bytes are quantized (Int8Tensor)",
        "  plain: 0.4 %, routers stay plain: they choose the experts, and are small: model.layers.*.mlp.gate",
        "Int8WeightOnlyConfig would quantize nothing of the model: 8 weights are meant, 25.7% of all parameters: ",
        "max_ratio 0.7423, limit 0.5, published nothing; the limit's origin: asked for by --require",
        "limits held: 6 of 7",
    ):
        assert words in done.stdout


def test_an_engines_own_kind_of_parameter_is_no_quantized_tensor() -> None:
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    from harness.worker.tensors import tensor_class

    class OfAnEngine(torch.nn.Parameter):
        """As engines have them (vLLM's ModelWeightParameter): a weight, and how it is loaded."""

        def __new__(cls, data: torch.Tensor, **_: Any) -> Any:
            return super().__new__(cls, data, requires_grad=False)

        def __init__(self, data: torch.Tensor, *, loader: Any = None) -> None:
            self.loader = loader

    plain = torch.ones(32, 32, dtype=torch.bfloat16)
    own = OfAnEngine(plain, loader=print)
    assert type(own) is OfAnEngine
    assert [tensor_class(it) for it in (plain, torch.nn.Parameter(plain), own)] == ["Tensor"] * 3
    layer = torch.nn.Linear(32, 32, bias=False, dtype=torch.bfloat16)
    quantize_(layer, Int8WeightOnlyConfig())
    assert tensor_class(OfAnEngine(layer.weight)) == tensor_class(layer.weight) != "Tensor"


def test_a_class_whose_product_takes_views_runs_without_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Float8Tensor of torchao 0.15 does: a weight made outside of inference mode gives no view in it."""
    import torch
    from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig, quantize_

    from harness.worker import tensors

    model = torch.nn.Sequential(torch.nn.Linear(32, 32, bias=False, dtype=torch.bfloat16))
    quantize_(model, Int8WeightOnlyConfig())
    rows = torch.ones(1, 32, dtype=torch.bfloat16)
    monkeypatch.setattr(tensors, "_INFERS", {})
    assert isinstance(tensors.inference(model), torch.inference_mode)
    table = Int8Tensor._TORCH_FN_TABLE[Int8Tensor]
    product = table[torch.nn.functional.linear]

    def viewing(function: Any, types: Any, arguments: Any, named: Any) -> Any:
        return product(function, types, (arguments[0], arguments[1].detach(), *arguments[2:]), named)

    monkeypatch.setitem(table, torch.nn.functional.linear, viewing)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference tensor"):
        model(rows)
    monkeypatch.setattr(tensors, "_INFERS", {})
    found = tensors.inference(model)
    assert isinstance(found, torch.no_grad)
    with found:
        assert model(rows).shape == (1, 32)
    with torch.inference_mode():
        assert tensors.not_finite(model) == {}, "its data cannot be had in inference mode"


def test_a_config_of_a_version_without_the_fields_that_decide_it_has_no_known_width() -> None:
    from harness.worker import widths

    older = type("Float8WeightOnlyConfig", (), {"weight_dtype": None})()
    assert (widths.width(older), widths.group_size(older)) == (None, None)
