"""Which files are a model's weights, and what a folder must not be measured with, told without loading anything."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.contract import quantized, weights

Damage = Callable[[Path], object]


def safetensors(**shapes: tuple[int, ...]) -> bytes:
    """Return a file of float32 zeros of these shapes."""
    told, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        told[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(told).encode()
    return struct.pack("<Q", len(head)) + head + bytes(end)


def write(folder: Path, name: str, table: object) -> None:
    (folder / name).write_text(json.dumps(table), encoding="utf-8")


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A model's folder whose weights are one file, with what else people's folders hold."""
    write(tmp_path, "config.json", {"model_type": "llama"})
    (tmp_path / weights.SINGLE).write_bytes(safetensors(a=(2, 3), b=(4,)))
    (tmp_path / "consolidated.safetensors").write_bytes(safetensors(x=(5,)))
    (tmp_path / "training_args.bin").write_bytes(b"")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A model's folder whose weights are two files and their index."""
    write(tmp_path, "config.json", {"model_type": "llama"})
    (tmp_path / "one.safetensors").write_bytes(safetensors(a=(2,)))
    (tmp_path / "two.safetensors").write_bytes(safetensors(b=(2,), c=()))
    write(tmp_path, weights.INDEX, {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    return tmp_path


def test_the_files_are_those_that_transformers_loads(single: Path) -> None:
    weights.check(single)
    assert weights.files(single) == [single / weights.SINGLE]


def test_the_files_of_an_index_are_all_that_it_names(sharded: Path) -> None:
    weights.check(sharded)
    assert [file.name for file in weights.files(sharded)] == ["one.safetensors", "two.safetensors"]


def test_a_configuration_may_name_the_file_itself(single: Path) -> None:
    write(single, "config.json", {"model_type": "llama", "transformers_weights": "consolidated.safetensors"})
    assert weights.files(single) == [single / "consolidated.safetensors"]
    write(single, "config.json", {"model_type": "llama", "transformers_weights": "other.safetensors"})
    with pytest.raises(weights.Unusable, match=r"names other\.safetensors .*not there"):
        weights.check(single)


@given(st.dictionaries(st.text(max_size=8), st.lists(st.integers(0, 3), max_size=3).map(tuple), max_size=5))
def test_a_header_tells_every_tensors_shape(tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple]) -> None:
    file = tmp_path_factory.mktemp("header") / "x.safetensors"
    shapes.pop("__metadata__", None)
    file.write_bytes(safetensors(**shapes))
    assert {name: tuple(told["shape"]) for name, told in weights.header(file).items()} == shapes


@given(st.data())
def test_a_file_that_was_cut_off_anywhere_is_no_whole_one(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = safetensors(a=(3, 2), b=(1,))
    file = tmp_path_factory.mktemp("cut") / "x.safetensors"
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(weights.Unusable, match="download it again"):
        weights.header(file)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda it: (it / weights.SINGLE).write_text(POINTER),
            r"safetensors is a pointer of git-lfs.*git lfs pull",
        ),
        (lambda it: (it / "tokenizer.json").write_text(POINTER), r"tokenizer\.json is a pointer of git-lfs"),
        (
            lambda it: (it / weights.SINGLE).unlink(),
            r"pickles \(pytorch_model\.bin\), and consolidated\.safet",
        ),
        (lambda it: (it / "config.json").unlink(), r"has no config\.json"),
        (lambda it: (it / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda it: (it / weights.SINGLE).write_bytes(b"\x80\x02}q\x00."), "is no safetensors file"),
        (lambda it: (it / weights.SINGLE).open("ab").write(b"more"), r"is damaged: its header tells of \d+ bytes"),
        (lambda it: (it / weights.SINGLE).write_bytes(struct.pack("<Q", 4) + b"null"), "its header is broken"),
        (
            lambda it: write(it, weights.INDEX, {"weight_map": {"a": "other.safetensors"}}),
            r"two sets of weights, model\.safetensors and those of model\.safetensors\.index\.json",
        ),
        (lambda it: write(it, "config.json", {"transformers_weights": "../x.safetensors"}), "is not in its folder"),
        (lambda it: write(it, "config.json", {"transformers_weights": ".x/y.safetensors"}), "is not in its folder"),
        (lambda it: write(it, "config.json", {"transformers_weights": "pytorch_model.bin"}), "is no safetensors file"),
        (lambda it: write(it, "config.json", {"transformers_weights": "x" * 5000 + ".safetensors"}), "is not there"),
        (lambda it: write(it, weights.INDEX, {"weight_map": {"a": "/x.safetensors"}}), "is not in its folder"),
        (lambda it: write(it, weights.INDEX, {"weight_map": {"a": "pytorch_model.bin"}}), "is no safetensors file"),
        (lambda it: write(it, weights.ADAPTER, {"base_model_name_or_path": "m/base"}), r"adapter of m/base .*beside a"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_in_a_line(single: Path, damage: Damage, words: str) -> None:
    damage(single)
    with pytest.raises(weights.Unusable, match=words) as caught:
        weights.check(single)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["weights.pkl", "model.PT", "model.pth", "last.ckpt", "model.pickle", "model.joblib", "model.pt2", "model.bin"],
)
def test_weights_that_are_pickles_are_called_so_by_whatever_ending(single: Path, name: str) -> None:
    for file in (weights.SINGLE, "consolidated.safetensors", "pytorch_model.bin"):
        (single / file).unlink()
    (single / name).write_bytes(b"\x80\x04.")
    with pytest.raises(weights.Unusable, match=rf"are pickles \({name}\): they are not loaded"):
        weights.check(single)


@pytest.mark.parametrize("name", [weights.SINGLE, "model.gguf"])
def test_an_archive_of_another_name_is_no_file_of_weights(single: Path, name: str) -> None:
    for file in (weights.SINGLE, "consolidated.safetensors"):
        (single / file).unlink()
    with zipfile.ZipFile(single / name, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x04.")
    with pytest.raises(weights.Unusable, match=r"is no (safetensors|GGUF) file"):
        weights.check(single)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "adapter.ckpt", "adapter_model.PKL"])
def test_an_adapter_that_is_a_pickle_is_refused(single: Path, name: str, beside: bool) -> None:
    write(single, weights.ADAPTER, {"base_model_name_or_path": "m/base"})
    (single / name).write_bytes(b"\x80\x04.")
    if not beside:
        (single / "config.json").unlink()
    with pytest.raises(weights.Unusable, match=rf"but pickles \({name}\), which can run any code"):
        weights.check(single, merging=True) if beside else weights.adapter_alone(single)


def test_a_name_that_stands_twice_is_refused_in_a_header_and_in_an_index(sharded: Path) -> None:
    index = sharded / weights.INDEX
    index.write_text(index.read_text().replace('"a":', '"a": "two.safetensors", "a":'))
    with pytest.raises(weights.Unusable, match="a name stands twice in it"):
        weights.check(sharded)
    tensor = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    head = f'{{"a": {tensor}, "a": {tensor}}}'.encode()
    (sharded / "one.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))
    with pytest.raises(weights.Unusable, match="a name stands twice in it"):
        weights.header(sharded / "one.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda it: (it / "two.safetensors").unlink(), r"names 2 files, of which 1 cannot be found: two\.safetensors"),
        (lambda it: (it / weights.INDEX).write_text("[]"), "is no index of weights"),
        (lambda it: (it / weights.INDEX).unlink(), r"holds one\.safetensors, two\.safetensors, and Transformers loads"),
        (
            lambda it: write(it, weights.INDEX, {"weight_map": {"a": "one.safetensors", "d": "two.safetensors"}}),
            r"names d, which none of its files holds",
        ),
    ],
)
def test_what_is_wrong_with_shards_is_said(sharded: Path, damage: Damage, words: str) -> None:
    damage(sharded)
    with pytest.raises(weights.Unusable, match=words):
        weights.check(sharded)


def test_an_adapter_alone_says_what_it_is_and_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, weights.ADAPTER, {"base_model_name_or_path": "m/base"})
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors(a=(1,)))
    with pytest.raises(
        weights.Unusable, match=r"an adapter of m/base and no model: give --merge-adapter to have it merged into m/base"
    ):
        weights.check(tmp_path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.gguf", "mmproj.gguf"], "has several GGUF files: a.gguf, mmproj.gguf; leave one"),
        (["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], r"; join its parts \(llama\.cpp's"),
    ],
)
def test_one_gguf_file_is_a_model_and_several_are_not(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(weights.Unusable, match=words):
        weights.check(tmp_path)
    (tmp_path / names[1]).unlink()
    weights.check(tmp_path)
    (tmp_path / names[0]).write_bytes(b"GGML")
    with pytest.raises(weights.Unusable, match="is no GGUF file"):
        weights.check(tmp_path)


@pytest.mark.parametrize(
    ("file", "table", "name"),
    [
        ("config.json", {"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ("config.json", {"compression_config": {"config_groups": {}, "format": "dense"}}, "compressed-tensors"),
        ("config.json", {"quantization_config": {"config_groups": {}}}, "compressed-tensors"),
        ("config.json", {"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ"),
        ("config.json", {"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "GPTQ"),
        ("config.json", {"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ("config.json", {"quantization_config": {"quant_algo": "FP8"}}, "ModelOpt"),
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}, "Transformers' fp8"),
        ("config.json", {"quantization_config": {"quant_method": "mxfp4"}}, "Transformers' mxfp4"),
        ("config.json", {"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
        ("config.json", {"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, "MLX"),
        ("hf_quant_config.json", {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}, "ModelOpt"),
        ("quantize_config.json", {"bits": 4, "group_size": 128}, "GPTQ"),
        ("quant_config.json", {"w_bit": 4}, "AWQ"),
    ],
)
def test_what_another_library_quantized_is_refused_by_name(tmp_path: Path, file: str, table: object, name: str) -> None:
    write(tmp_path, "config.json", {"model_type": "llama"})
    write(tmp_path, file, table)
    words = quantized.refusal(tmp_path)
    assert f"is quantized with {name}, " in words
    assert "give the plain model" in words
    assert ("(dequantize=True)" in words) == (
        name in ("compressed-tensors", "Transformers' fp8", "Transformers' mxfp4")
    )


@pytest.mark.parametrize("table", [{}, {"quantization_config": {"quant_method": "torchao"}}])
def test_plain_and_torchao_are_not_refused(tmp_path: Path, table: dict[str, object]) -> None:
    write(tmp_path, "config.json", {"model_type": "llama"} | table)
    assert quantized.refusal(tmp_path) == ""
