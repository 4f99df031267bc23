"""Of a file's metadata a tensor's own part is enough to put it together."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest

from harness.worker.unflattened import told_of


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        (["m.0._weight_qdata", "m.0._weight_scale"], ["m.0.weight"]),
        (["m.0.bias"], ["m.0.bias"]),
        (["m.0._in_proj_weight_qdata"], ["m.0.in_proj_weight"]),
        (["m.0._in_proj_weight_qdata", "m.1.bias"], ["m.0.in_proj_weight", "m.1.bias"]),
        # What may be a part of either is told of both.
        (["m.2._w_b_c"], ["m.2.w", "m.2.w_b"]),
    ],
)
def test_the_tensors_that_parts_are_of(parts: list[str], names: list[str]) -> None:
    every = ["m.0.weight", "m.0.bias", "m.0.in_proj_weight", "m.1.weight", "m.1.bias", "m.2.w", "m.2.w_b"]
    metadata = {name: json.dumps({"_type": name}) for name in every}
    told = told_of(dict.fromkeys(parts), {**metadata, "tensor_names": json.dumps(every), "format": "pt"})
    assert json.loads(told["tensor_names"]) == names
    assert {name: told[name] for name in names} == {name: metadata[name] for name in names}
    assert set(told) == {*names, "tensor_names"}


@pytest.mark.parametrize("part", ["m.9.bias", "m.0._weight", "_weight_qdata", "", "._", "m._"])
def test_a_part_of_no_tensor_is_left_to_torchao(part: str) -> None:
    metadata = {"m.0.weight": "{}", "tensor_names": '["m.0.weight"]'}
    assert told_of({"m.0._weight_qdata": None, part: None}, metadata) is metadata


@pytest.mark.models
def test_tensors_come_out_as_from_all_of_the_metadata() -> None:
    import torch
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from transformers.integrations import torchao as integration

    from harness.worker import tensors, unflattened

    torch.manual_seed(0)
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(64, 32) for name in ("a", "a_b", "b")})
    quantize_(layers, Int8WeightOnlyConfig())
    flat, metadata = flatten_tensor_state_dict(layers.state_dict())
    whole, left = unflatten_tensor_state_dict(flat, metadata)
    assert not left

    told: list[int] = []

    def counted(parts: Any, about: Any) -> Any:
        told.append(len(json.loads(about["tensor_names"])))
        return unflatten_tensor_state_dict(parts, about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integration, "unflatten_tensor_state_dict", counted)
        with unflattened.one_by_one():
            for name, tensor in whole.items():
                module, weight = name.rsplit(".", 1)
                own = {key: it for key, it in flat.items() if key == name or key.startswith(f"{module}._{weight}_")}
                found, left = integration.unflatten_tensor_state_dict(own, metadata)
                assert (list(found), left) == ([name], {})
                assert tensors.tensor_class(found[name]) == tensors.tensor_class(tensor)
                assert torch.equal(found[name].dequantize() if weight == "weight" else found[name],
                                   tensor.dequantize() if weight == "weight" else tensor)  # fmt: skip
        assert integration.unflatten_tensor_state_dict is counted
    assert told == [1] * len(whole)


@pytest.mark.models
def test_metadata_is_looked_through_once_and_copied_for_no_weight() -> None:
    from transformers.integrations import torchao as integration

    from harness.worker import unflattened

    looked: list[Any] = []
    metadata, other = {"tensor_names": "[]"}, {"tensor_names": "[]"}
    quantizer = SimpleNamespace(metadata=metadata)

    def look(it: Any) -> bool:
        looked.append(it)
        return it is not broken

    broken: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integration, "is_metadata_torchao", look)
        with unflattened.one_by_one():
            answers = [integration.is_metadata_torchao(it) for it in (metadata, metadata, other, broken, broken)]
            reader = integration.TorchAoDeserialize(quantizer)
            copied = copy.deepcopy({"operations": [reader]})["operations"][0]
            assert copied is not reader
            assert copied.hf_quantizer is quantizer
    assert answers == [True, True, True, False, False]
    assert len(looked) == 4, "what is none is looked at each time"
    assert copy.deepcopy(reader).hf_quantizer is not quantizer
