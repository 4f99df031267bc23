"""What an engine makes of a checkpoint: which it cannot hold, and of which it would leave weights unread."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from harness.contract import quantized
from harness.measure import served


def weight(name: str, kind: str, quantized: bool, shape: tuple[int, ...] = (8, 8)) -> dict[str, Any]:
    told = {"shape": shape, "bytes": 64, "tensor": "Int8Tensor" if quantized else "Tensor", "rule": ""}
    return {name: {"layer": name, "kind": kind, "part": "", "quantized": quantized, **told}}


def write(folder: Path, held: tuple[str, ...], named: tuple[str, ...]) -> Path:
    told = {name: json.dumps({"_type": "Tensor"}) for name in named} | {"tensor_names": json.dumps(named)}
    entries = {name: {"dtype": "I8", "shape": [0], "data_offsets": [0, 0]} for name in held}
    text = json.dumps({"__metadata__": told, **entries}).encode()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    return folder


def test_experts_are_refused_by_a_server_of_linear_layers_alone() -> None:
    weights = weight("q", "linear", True) | weight("experts", "experts", True, (4, 8, 8))
    told = served.refusal(weights, frozenset({"linear"}), "vllm")
    assert "takes torchao weights in linear layers alone, and here experts are quantized too, 80" in told
    assert told.endswith("(--leave-plain experts)")
    for kind, words in (("embedding", "the embedding is"), ("head", "the output head is")):
        assert f"and here {words} quantized too" in served.refusal(
            weight("one", kind, True), frozenset({"linear"}), "vllm"
        )
    assert served.refusal(weight("q", "linear", True), frozenset({"linear"}), "vllm") == ""


def test_weights_that_a_server_would_leave_unread_are_said(tmp_path: Path) -> None:
    experts = tuple(f"layers.0.experts.{number}.up.weight" for number in range(5))
    folder = write(tmp_path, ("norm", *experts), ("norm", "layers.0.experts.up"))
    told = served.passed_over(folder, "vllm")
    assert f"does not name 5 of its tensors ({', '.join(experts[:3])} and 2 more), which would be random" in told
    assert "\n" not in told
    assert served.passed_over(write(tmp_path, ("norm",), ("norm",)), "vllm") == ""


def test_a_checkpoint_that_is_quantized_as_it_is_loaded_is_for_no_server(tmp_path: Path) -> None:
    assert served.unsaved(tmp_path, "nf4wo", "vllm") == ""
    (tmp_path / quantized.AT_LOAD).write_text("{}")
    told = served.unsaved(tmp_path, "nf4wo", "vllm")
    assert told.startswith("torchao cannot save what nf4wo makes of a weight, so it is applied as a model is loaded")
    assert told.endswith("vllm is given saved checkpoints: measure it through Transformers")
