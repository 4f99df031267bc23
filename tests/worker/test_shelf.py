"""All of torchao's own configs: found wherever torchao has them, and applied, refused in a line, or applied at load."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.base.errors import WorkerError
from harness.contract import notation
from harness.contract.quantized import AT_LOAD

pytestmark = pytest.mark.models

MX = "MXDynamicActivationMXWeightConfig(%skernel_preference=KernelPreference.EMULATED)"
# What a processor runs of torchao's prototypes, by the class of its tensors, and whether torchao can save these.
RUN = {
    "Float8WeightOnlyConfig(granularity=PerTensor())": ("Float8Tensor", True),
    "IntxWeightOnlyConfig(weight_dtype=torch.int2, granularity=PerGroup(32))": ("IntxUnpackedToInt8Tensor", True),
    MX % "": ("MXTensor", True),
    MX % "activation_dtype=torch.float4_e2m1fn_x2, weight_dtype=torch.float4_e2m1fn_x2, ": ("MXTensor", True),
    "NVFP4WeightOnlyConfig()": ("NVFP4Tensor", True),
    "StretchedIntxWeightConfig(b=4, quant_min=-8, quant_max=7, granularity=PerGroup(32))": (
        "IntxUnpackedToInt8Tensor",
        True,
    ),
    "intx1wo": ("IntxUnpackedToInt8Tensor", True),
    "intx4wo-axis": ("IntxUnpackedToInt8Tensor", True),
    "int8wo-tensor": ("Int8Tensor", True),
    "float8wo-g32": ("Float8Tensor", True),
    "PrototypeInt4WeightOnlyConfig(group_size=64)": ("Int4OpaqueTensor", False),
    "gguf4wo": ("GGUFQuantizedTensor", False),
    "NF4WeightOnlyConfig()": ("NF4Tensor", False),
}
UNPREDICTED = ("NF4WeightOnlyConfig()", "gguf4wo")
_LOAD = """
import json, sys
import torch
from harness.worker import applied, parameters

ids = torch.arange(8)[None] + 10
for folder in sys.argv[1:]:
    model = applied.model(folder, "cpu", False)
    found = sorted({one.tensor for one in parameters.survey(model).values() if one.quantized})
    with torch.inference_mode():
        logits = model(ids).logits
    print(json.dumps([found, bool(logits.isfinite().all()), logits.float().sum().item()]))
"""
_ALL = """
import json
from harness.contract import notation
from harness.contract.weights import Unusable
from harness.worker import recipe, shelf

said = {}
for name in [*shelf._configs(), *(one for one in shelf._sources() if one.endswith("Config"))]:
    try:
        made = recipe.build(name, {})
        said[name] = [f"{type(made).__module__}.{type(made).__name__}", ""]
    except Unusable as error:
        said[name] = ["", str(error)]
print(json.dumps([said, shelf.configs(), {name: notation.module_of(name) for name in shelf.configs()}]))
"""


@pytest.fixture(scope="module")
def told(run_code: Any) -> Any:
    """What is said of each of torchao's config classes, the classes that quantize, and where cards import them from."""
    done = run_code(_ALL)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_every_config_class_of_torchao_is_known(told: Any) -> None:
    """Each is made, or is refused in one line that says why; cards name a module that has each."""
    said, configs, modules = told
    assert len(configs) > 25
    for name, (made, words) in said.items():
        assert made.endswith(f".{name}") or words, name
        assert "no config class" not in words, name
        assert "\n" not in words
    for name, module in modules.items():
        prototypes = {notation.is_prototype_module(one) for one in (module, configs[name])}
        assert len(prototypes) == 1, f"{name}: {configs[name]}, {module}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("QATConfig", "is a config for training (torchao.quantization.qat.api)"),
        ("Float8LinearConfig", "is a config for training (torchao.float8.config)"),
        ("NVFP4TrainingConfig", "is a config for training"),
        ("BitNetTrainingConfig", "is a config for training"),
        ("AWQConfig", "torchao refuses its arguments (AWQConfig.__init__() missing 1 required positional argument"),
        ("GPTQConfig", "torchao refuses its arguments (base_config is required"),
        ("QuantizationConfig", "no config that `quantize_` takes"),
    ],
)
def test_what_quantizes_nothing_by_itself_is_said_to_be_what_it_is(told: Any, name: str, words: str) -> None:
    assert words in told[0][name][1]


def test_a_class_that_torchao_has_twice_is_that_which_takes_the_arguments(run_code: Any) -> None:
    code = """
from harness.worker import recipe
for arguments in ({"bit_width": 4}, {"bitwidth": 4}):
    print(type(recipe.build("UIntxWeightOnlyConfig", arguments)).__module__)
"""
    modules = run_code(code).stdout.strip().splitlines()[-2:]
    assert modules == ["torchao.prototype.quantization.quant_api", "torchao.experimental.quant_api"]


@pytest.mark.parametrize("config", RUN)
def test_a_prototype_is_proved_and_has_the_size_of_its_bits(quantizing: Any, config: str) -> None:
    tensor, saved = RUN[config]
    made = quantizing.by(config)
    assert {one["tensor"] for one in made.layers("linear").values()} == {tensor}
    if config not in UNPREDICTED:
        assert made.facts["weight_bytes"] == made.facts["predicted_weight_bytes"]
    assert made.facts["finite"] is True
    assert (made.folder / AT_LOAD).is_file() is not saved
    if saved:
        assert made.facts["checkpoint_bytes"] == made.facts["predicted_checkpoint_bytes"]
    else:
        assert made.facts["checkpoint_bytes"] is None
        assert not list(made.folder.glob("*.safetensors")), "nobody takes the plain weights for quantized ones"


def test_a_table_of_patterns_is_a_recipe(quantizing: Any) -> None:
    layers = quantizing.by("int4-mlp-int8").layers("linear")
    found = {("mlp" in name, one["tensor"]) for name, one in layers.items()}
    assert found == {(True, "IntxUnpackedToInt8Tensor"), (False, "Int8Tensor")}


def test_a_checkpoint_that_cannot_be_saved_is_quantized_as_it_is_loaded(quantizing: Any, run_code: Any) -> None:
    """And those that can be saved come back quantized."""
    folders = [str(quantizing.by(config).folder) for config in RUN]
    done = run_code(_LOAD, *folders, *folders[-2:])
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = [json.loads(line) for line in done.stdout.strip().splitlines() if line.startswith("[")]
    for (tensor, _), (found, finite, _) in zip(RUN.values(), loaded, strict=False):
        assert (found, finite) == ([tensor], True)
    assert loaded[-4:-2] == loaded[-2:], "each time it is loaded it is the same"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            "MXDynamicActivationMXWeightConfig()",
            r"cannot run on this processor: .*KernelPreference\.EMULATED computes it",
        ),
        ("BlockSparseWeightConfig()", r"cannot run on this processor: unsupported without triton"),
        (
            "NVFP4DynamicActivationNVFP4WeightConfig()",
            r"torchao refuses it \(NVFP4 DYNAMIC mode is only supported on sm100",
        ),
        ("SemiSparseWeightConfig()", r"torchao refuses it \(.*Only CUDA tensors"),
        ("GroupwiseLutWeightConfig()", r"torchao refuses it \(AssertionError: assert code_dtype in"),
        ("Int4WeightOnlyConfig(group_size=64)", r"torchao refuses it \(Requires mslk"),
        ("UIntxWeightOnlyConfig(group_size=64)", r"torchao refuses it \(gemlite is required"),
        ("da8w4", r"torchao refuses it \(DA8W4 on CPU requires the da8w4_linear_cpu kernel to be built"),
        ("float8dq-opaque", r"torchao refuses it \(Could not run 'torchao::float8_linear_pre"),
        ("float8dq-block", r"torchao refuses it \(Float8 1x128 activation and 128x128 weight scaling requires CUDA"),
        (
            "Int4WeightOnlyConfig(int4_packing_format='plain_int32')",
            r"Int4PlainInt32Tensor does not support device 'cpu'",
        ),
    ],
)
def test_what_cannot_run_here_is_refused_by_what_it_needs(quantizing: Any, config: str, words: str) -> None:
    with pytest.raises(WorkerError, match=words) as caught:
        quantizing.by(config)
    assert caught.value.kind == "refused"
    assert "\n" not in str(caught.value)


def test_autoround_is_no_recipe_since_torchao_does_not_end_it(run_code: Any) -> None:
    """Its prototype prepares a model; what would quantize it raises. Where that is mended it can be a recipe."""
    code = """
from torchao.prototype.autoround.core import apply_auto_round
try:
    apply_auto_round()
except AssertionError as error:
    print(error)
"""
    assert "Please migrate this function" in run_code(code).stdout
