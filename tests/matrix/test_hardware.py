"""Hardware as data: real product names and the one entry each has, what recipes need, groups, and mistakes by line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.base.errors import MatrixError
from harness.matrix.hardware import Hardware, Needs, lacking
from harness.matrix.load import load
from harness.matrix.plan import Matrix
from harness.servers.registry import names
from tests.matrix.test_matrix import TEXT, line_of, written

# Product names as drivers give them, and the entry that each is of; "" for those that no entry is for.
PRODUCTS = {
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100",
    "NVIDIA H100 NVL": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA H200 NVL": "h200",
    "NVIDIA GH200 480GB": "",
    "NVIDIA GH200 144G HBM3e": "",
    "NVIDIA H800": "",
    "NVIDIA H20": "",
    "A100-SXM4-40GB": "a100",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100-PCIE-40GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA A800-SXM4-80GB": "",
    "NVIDIA A10": "",
    "NVIDIA A10G": "",
    "NVIDIA RTX A4000": "",
    "NVIDIA L4": "l4",
    "NVIDIA L40": "",
    "NVIDIA L40S": "",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA GeForce RTX 4090 D": "",
    "NVIDIA GeForce RTX 4090 Laptop GPU": "",
    "NVIDIA GeForce RTX 4080 SUPER": "",
    "NVIDIA GeForce RTX 5090": "",
    "NVIDIA B200": "b200",
    "NVIDIA GB200": "",
    "NVIDIA B300 SXM6 AC": "",
    "Tesla V100-SXM2-16GB": "",
    "Tesla T4": "",
    "AMD Instinct MI300X": "mi300",
    "AMD Instinct MI300X OAM": "mi300",
    "AMD Instinct MI300A": "mi300",
    "AMD Instinct MI300X VF": "mi300",
    "AMD Instinct MI325X": "",
    "AMD Instinct MI355X": "",
    "AMD Instinct MI250X": "",
    "AMD Radeon RX 7900 XTX": "",
}


def gpu(name: str = "a", vendor: str = "nvidia", capability: str = "9.0") -> Hardware:
    return Hardware.model_validate(
        {"name": name, "meaning": name, "vendor": vendor, "match": name, "capability": capability}
    )


CPU = Hardware(name="cpu", meaning="runs here")
PHONE = Hardware(name="phone", meaning="a phone", runs="programs")


# ------------------------------------------------------------------------------------------------------ product names


@pytest.mark.parametrize("product", PRODUCTS)
def test_one_entry_alone_is_for_a_product(suites_matrix: Matrix, product: str) -> None:
    found = [it.name for it in suites_matrix.hardware.values() if it.fits(product)]
    assert found == ([PRODUCTS[product]] if PRODUCTS[product] else [])


def test_every_gpu_of_the_matrix_has_a_product(suites_matrix: Matrix) -> None:
    assert {it.name for it in suites_matrix.hardware.values() if it.is_gpu} == set(PRODUCTS.values()) - {""}


@given(st.sampled_from(sorted(PRODUCTS)), st.from_regex(r"[0-9A-Z]{1,3}", fullmatch=True))
def test_a_longer_number_is_another_product(suites_matrix: Matrix, product: str, more: str) -> None:
    """A name that goes on where the entry's ends is of something else: an L40S is no L4, a GH200 no H200."""
    for hardware in suites_matrix.hardware.values():
        if hardware.fits(product):
            word = next(it for it in product.replace("-", " ").split() if hardware.name.upper().strip("RTX") in it)
            assert not hardware.fits(product.replace(word, word + more))
            assert not hardware.fits(product.replace(word, more + word))


# -------------------------------------------------------------------------------------------------------------- needs


@pytest.mark.parametrize(
    ("needs", "fitting"),
    [
        ([], ["cpu", "phone", "8.0", "8.9", "9.0", "10.0", "gfx942"]),
        ([{"vendor": ["none"]}], ["cpu", "phone"]),
        ([{"vendor": ["none"], "runs": ["models"]}], ["cpu"]),
        ([{"runs": ["models"]}], ["cpu", "8.0", "8.9", "9.0", "10.0", "gfx942"]),
        ([{"vendor": ["nvidia", "amd"]}], ["8.0", "8.9", "9.0", "10.0", "gfx942"]),
        ([{"vendor": ["nvidia"], "capability": ">=8.9"}], ["8.9", "9.0", "10.0"]),
        ([{"capability": ">=8.9,<10"}], ["8.9", "9.0"]),
        ([{"capability": "==9.0"}], ["9.0"]),
        ([{"capability": "gfx942"}], ["gfx942"]),
        ([{"vendor": ["nvidia"], "capability": ">=10"}, {"capability": "gfx942"}], ["10.0", "gfx942"]),
    ],
)
def test_what_is_needed_decides_where_it_runs(needs: list[dict[str, object]], fitting: list[str]) -> None:
    """10.0 is later than 8.9, and what has no number meets no condition on one."""
    every = {"cpu": CPU, "phone": PHONE, "gfx942": gpu(vendor="amd", capability="gfx942")}
    every |= {capability: gpu(capability=capability) for capability in ("8.0", "8.9", "9.0", "10.0")}
    asked = tuple(map(Needs.model_validate, needs))
    assert {name for name, it in every.items() if not lacking(asked, it)} == set(fitting)


@given(st.tuples(st.integers(1, 30), st.integers(0, 9)), st.tuples(st.integers(1, 30), st.integers(0, 9)))
def test_capabilities_are_compared_as_numbers(one: tuple[int, int], other: tuple[int, int]) -> None:
    hardware = gpu(capability=f"{one[0]}.{one[1]}")
    for sign, holds in ((">=", one >= other), ("<", one < other), ("==", one == other)):
        assert Needs(capability=f"{sign}{other[0]}.{other[1]}").met_by(hardware) == holds


def test_what_is_lacking_is_told() -> None:
    needs = (Needs(vendor=("none",), runs=("models",)), Needs(vendor=("nvidia",), capability=">=8.9"))
    assert lacking(needs, gpu("a100", capability="8.0")) == (
        "it needs a processor that runs models, or an NVIDIA GPU of capability >=8.9; "
        "a100 is an NVIDIA GPU of capability 8.0 that runs models"
    )


@pytest.mark.parametrize("capability", ["8.9", ">=8.x", "GFX942", ">=", "gfx 942"])
def test_a_condition_that_could_never_be_told_is_refused(capability: str) -> None:
    with pytest.raises(ValidationError, match="is no condition on a capability"):
        Needs(capability=capability)


def test_where_the_suites_recipes_run(suites_matrix: Matrix) -> None:
    """Float8 not on an A100, int4 and float8 not where there are no kernels, with the reason."""
    runs = {
        name: {it.name for it in suites_matrix.hardware.values() if not recipe.refusal(it)}
        for name, recipe in suites_matrix.recipes.items()
    }
    everywhere = set(suites_matrix.hardware)
    assert runs["bf16"] == everywhere
    assert runs["int8wo"] == runs["int8dq"] == everywhere - {"arm-mobile"}
    assert runs["float8dq"] == {"h100", "h200", "l4", "rtx4090", "b200", "mi300"}
    assert runs["float8wo"] == runs["float8dq"] | {"cpu"}
    assert runs["int4wo"] == runs["float8dq"] - {"mi300"} | {"a100"}
    assert runs["float8dq-int4"] == {"h100", "h200"}
    assert runs["8da4w"] == runs["8da4w-int8emb"] == {"cpu", "arm-mobile"}
    told = suites_matrix.recipes["float8dq"].refusal(suites_matrix.hardware["a100"])
    assert told.startswith("recipe float8dq does not run on a100: float8 matrix products need")


@pytest.mark.parametrize(
    ("recipe", "name", "own"),
    [
        ("float8dq", "Cijk_Alik_Bljk_F8BS_BH_Bias_HA_S_SAB_SAV_UserArgs_MT256x256x128", True),
        ("float8dq", "Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT256x256x64", False),
        ("int8dq", "Cijk_Alik_Bljk_I8BS_BH_Bias_HA_S_SAB_SAV_UserArgs_MT64x16x256", True),
        ("int8dq", "Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT256x256x64", False),
    ],
)
def test_every_gpu_that_a_recipe_runs_on_has_kernels_to_look_for(
    suites_matrix: Matrix, recipe: str, name: str, own: bool
) -> None:
    """Where none are named a run fails, since what ran could not be told from a fallback."""
    for one in suites_matrix.recipes.values():
        if not (one.baseline or (one.known_fallback and not one.kernels)):
            for hardware in suites_matrix.hardware.values():
                if hardware.is_gpu and not one.refusal(hardware):
                    assert hardware.pick(one.kernels), f"{one.name} on {hardware}"
    pattern = suites_matrix.hardware["mi300"].pick(suites_matrix.recipes[recipe].kernels)
    assert bool(re.search(pattern or "", name)) == own


# ------------------------------------------------------------------------------------------------- groups and mistakes

GROUPED = (
    TEXT
    + """
[groups]
hopper = ["h100"]
"""
)


def test_groups_are_the_files_own_and_those_of_a_vendor(tmp_path: Path) -> None:
    matrix = load(written(tmp_path, GROUPED))
    assert matrix.hardware["h100"].groups == ("hopper", "nvidia", "gpu")
    assert matrix.hardware["cpu"].groups == ()
    assert [it.name for it in matrix.members("gpu")] == ["h100"]
    assert matrix.members("amd") == []
    with pytest.raises(MatrixError, match=r"'h10' is no hardware of matrix.toml; did you mean h100"):
        matrix.members("h10")
    own = load(written(tmp_path, GROUPED.replace("hopper", "gpu").replace('["h100"]', "[]")))
    assert own.members("gpu") == [], "a list takes the place of what the vendor says"


def test_a_table_says_what_holds_by_name_before_by_group(suites_matrix: Matrix) -> None:
    h100, mi300, cpu = (suites_matrix.hardware[name] for name in ("h100", "mi300", "cpu"))
    table = {"gpu": 1, "h100": 2}
    assert (h100.pick(table), mi300.pick(table), cpu.pick(table)) == (2, 1, None)
    assert (h100.is_of(["gpu"]), mi300.is_of(["nvidia"]), cpu.is_of(["cpu"])) == (True, False, True)


def test_measurements_are_like_others_but_for_what_they_say(tmp_path: Path) -> None:
    like = """
[measurements.gpu]
like = "big"
text = { windows = 7, window_tokens = 16 }
[measurements.big]
like = "cpu"
memory = { max_new_tokens = 9 }
[groups]
big = ["h100"]
"""
    matrix = load(written(tmp_path, TEXT + like))
    cpu = matrix.measured_on(matrix.hardware["cpu"])
    h100 = matrix.measured_on(matrix.hardware["h100"])
    assert h100 == matrix.measurements["big"]
    assert h100.memory.max_new_tokens == matrix.measurements["gpu"].memory.max_new_tokens == 9
    assert (h100.text, matrix.measurements["gpu"].text.windows) == (cpu.text, 7)
    assert h100.latency == cpu.latency


@pytest.mark.parametrize(
    ("old", "new", "at", "key", "words"),
    [
        ('vendor = ["nvidia"]', 'vendor = ["nvida"]', "needs = {", "float8dq.needs.0.vendor.0", "'nvida'"),
        ('vendor = ["nvidia"]', 'vender = ["nvidia"]', "needs = {", "needs.0.vender", "did you mean vendor"),
        ('vendor = ["nvidia"]', 'capability = ">8.x"', "needs = {", "needs.0.capability", "no condition"),
        ('vendor = "nvidia"', 'vendor = "nvida"', 'vendor = "nv', "hardware.h100.vendor", "'nvida'"),
        ('capability = "9.0"', 'capabilty = "9.0"', "capabilty", "h100.capabilty", "did you mean capability"),
        ('capability = "9.0"', "", "[hardware.h100]", "hardware.h100", "a number as 9.0"),
        ('capability = "9.0"', 'capability = "sm_90"', "[hardware.h100]", "hardware.h100", "a number as 9.0"),
        ('vendor = "nvidia"', 'vendor = "amd"', "[hardware.h100]", "hardware.h100", "an architecture as gfx942"),
        ("[hardware.cpu]", "[hardware.cpu]\ncapability = '9.0'", "[hardware.cpu]", "hardware.cpu", "left out where"),
        ("match = '", "match = '(", "[hardware.h100]", "hardware.h100", "is not a regular expression"),
        ('vendor = "nvidia"', "", "[hardware.h100]", "hardware.h100", "needs `match`"),
        ('"int8", "float8"]', '"int8", "float4"]', '"float4"', "hardware.h100.arithmetic.2", "'float4'"),
        ("[hardware.h100]", "[hardware.or]", "[hardware.or]", "hardware.or", "cannot be a marker"),
        ("[hardware.h100]", '[hardware."h 1"]', '[hardware."h 1"]', "hardware.h 1", "cannot be a marker"),
        ("[measurements.cpu]", "[measurements.cpus]", "[measurements.cpus]", "cpus", "'cpus'"),
        ("[measurements.cpu]", "[measurements.gpu]", 'hardware = "cpu"', "cells.0.hardware", "[measurements.cpu]"),
        ("max_new_tokens = 8 }", "max_new_tokens = 8 }\nlike = 'cp'", "like =", "cpu.like", "did you mean cpu"),
        ("max_new_tokens = 8 }", "max_new_tokens = 8 }\nlike = 'cpu'", "like =", "cpu.like", "must say for itself"),
        ("[hardware.cpu]", "[groups]\nall = ['cpu', 'h10']\n[hardware.cpu]", "all =", "all.1", "did you mean h100"),
        ("[hardware.cpu]", "[groups]\ncpu = []\n[hardware.cpu]", "[hardware.cpu]", "hardware.cpu", "another name"),
        ("[hardware.cpu]", "[hardware.cpu]\ngroups = ['a']", "groups =", "cpu.groups", "lists its members"),
        ("[recipes.int8wo]", "[recipes.int8wo]\nreasons = { sglan = '' }", "reasons =", "sglan", "mean sglang"),
        ("[recipes.int8wo]", "[recipes.int8wo]\nkernels = { h10 = 'x' }", "kernels =", "kernels", "mean h100"),
        ("[recipes.int8wo]", "[recipes.int8wo]\nhardware = ['cpu']", "hardware = ['", "int8wo.hardware", "not exist"),
    ],
)
def test_a_mistake_about_hardware_is_named_with_line_and_key(
    tmp_path: Path, old: str, new: str, at: str, key: str, words: str
) -> None:
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    path = written(tmp_path, text)
    with pytest.raises(MatrixError) as raised:
        load(path, names())
    head = f"{path}, line {line_of(text, at)}: "
    messages = [message.removeprefix(head) for message in str(raised.value).splitlines() if message.startswith(head)]
    assert any(key in message.split(": ")[0] and words in message for message in messages), str(raised.value)
