"""Files of torchao's tensors: their metadata names what they hold, so that no reader passes over a weight."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.contract import flattened
from harness.contract.weights import Unusable, header

QUANTIZED = {"_type": "Int8Tensor", "_data": {}, "_tensor_data_names": ["qdata", "scale"]}
PLAIN = {"_type": "Tensor"}
HELD = ("layers.0.q._weight_qdata", "layers.0.q._weight_scale", "norm.weight")
NAMED = {"layers.0.q.weight": QUANTIZED, "norm.weight": PLAIN}
EXPERTS = ("layers.0.experts.0.up.weight", "layers.0.experts.1.up.weight")
names = st.lists(st.sampled_from([f"layers.{n}.{part}.weight" for n in range(3) for part in "abc"]), unique=True)


def write(file: Path, held: tuple[str, ...], named: dict[str, Any] | None) -> Path:
    """Write a file of tensors of four bytes each, with torchao's metadata."""
    told = {name: json.dumps(entry) for name, entry in (named or {}).items()}
    if named is not None:
        told["tensor_names"] = json.dumps(list(named))
    entries = {
        name: {"dtype": "I8", "shape": [4], "data_offsets": [4 * at, 4 * at + 4]} for at, name in enumerate(held)
    }
    text = json.dumps({"__metadata__": told, **entries}).encode()
    data = b"".join(struct.pack("<I", at) for at in range(len(held)))
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def test_what_the_metadata_names_stays_as_it_is(tmp_path: Path) -> None:
    for named in (NAMED, None):
        file = write(tmp_path / "model.safetensors", HELD, named)
        before = file.read_bytes()
        assert flattened.unnamed([file]) == []
        assert not flattened.name_what_is_held(file)
        assert file.read_bytes() == before


def test_what_was_renamed_in_saving_is_named_again(tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", (*HELD, *EXPERTS), {**NAMED, "layers.0.experts.gate_up": PLAIN})
    assert flattened.unnamed([file]) == list(EXPERTS)
    before, entries = file.read_bytes()[-20:], header(file)
    assert flattened.name_what_is_held(file)
    assert (file.read_bytes()[-20:], header(file), flattened.unnamed([file])) == (before, entries, [])
    assert not flattened.name_what_is_held(file)
    assert list(tmp_path.iterdir()) == [file]


def test_a_tensor_whose_parts_are_in_another_file_keeps_its_name(tmp_path: Path) -> None:
    named = {**NAMED, "layers.1.q.weight": QUANTIZED, "gone.weight": PLAIN}
    file = write(tmp_path / "model-00001-of-00002.safetensors", HELD, named)
    assert flattened.name_what_is_held(file)
    (length,) = struct.unpack("<Q", file.read_bytes()[:8])
    told = json.loads(file.read_bytes()[8 : 8 + length])["__metadata__"]
    assert json.loads(told["tensor_names"]) == ["layers.0.q.weight", "norm.weight", "layers.1.q.weight"]
    assert length % 8 == 0


def test_metadata_that_says_nothing_of_a_tensor_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", HELD, {**NAMED, "norm.weight": {}})
    with pytest.raises(Unusable, match="metadata of torchao's tensors is damaged"):
        flattened.unnamed([file])


@given(held=names, named=names)
def test_nothing_is_passed_over_once_it_is_named(
    tmp_path_factory: pytest.TempPathFactory, held: list[str], named: list[str]
) -> None:
    file = write(tmp_path_factory.getbasetemp() / "a.safetensors", tuple(held), dict.fromkeys(named, PLAIN))
    assert set(flattened.unnamed([file])) == set(held) - set(named)
    flattened.name_what_is_held(file)
    assert flattened.unnamed([file]) == []
