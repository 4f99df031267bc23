"""Lowering without the repeated work gives the program that ExecuTorch's own way gives."""

from __future__ import annotations

import json
from typing import Any

from tests import needs

pytestmark = needs.package("executorch")

# Two quantized layers with an operator between that
# XNNPACK takes and one that it does not, so that there are delegates of both partitioners, and a graph around them.
_BOTH_WAYS = """
import json
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
    XnnpackDynamicallyQuantizedPartitioner,
    XnnpackPartitioner,
)
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.extension.llm.export.partitioner_lib import get_xnnpack_partitioner
from torch.fx import GraphModule
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup, quantize_
from harness.worker import export, lowering

class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 96), torch.nn.Linear(96, 32)

    def forward(self, x):
        return self.second(torch.erfinv(torch.sigmoid(self.first(x))) * 2)

torch.manual_seed(0)
model = Layers().eval()
config = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32))
quantize_(model, config)
model.requires_grad_(False)
length = torch.export.Dim("length", min=1, max=15)
exported = torch.export.export(model, (torch.randn(3, 64),), dynamic_shapes=({0: length},), strict=True)
options = {"compile_config": EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True)}
both = [XnnpackDynamicallyQuantizedPartitioner(), XnnpackPartitioner()]
written = GraphModule.recompile
programs = {}
for way, lowered in (
    ("published", to_edge_transform_and_lower(exported, partitioner=both, **options)),
    ("quick", export.lower(exported, {}, quantized=True)),
):
    finished = lowered.to_executorch(ExecutorchBackendConfig(do_quant_fusion_and_const_prop=True))
    file = deserialize_pte_binary(finished.buffer)
    (plan,) = file.program.execution_plan
    programs[way] = {
        "delegates": [bytes(one.data).hex() for one in file.program.backend_delegate_data],
        "marked": [[spec.key for spec in one.compile_specs] for one in plan.delegates],
        "instructions": repr(plan.chains[0].instructions),
        "operators": repr(plan.operators),
        "weights": [bytes(data).hex() for data in file.named_data.buffers],
    }
assert GraphModule.recompile is written
with lowering.linear_partitioner():
    assert isinstance(get_xnnpack_partitioner(), lowering.LinearPartitioner)
assert not isinstance(get_xnnpack_partitioner(), lowering.LinearPartitioner)
print(json.dumps(programs))
"""


def test_the_delegates_are_those_of_executorchs_own_way(run_code: Any) -> None:
    done = run_code(_BOTH_WAYS)
    assert done.returncode == 0, done.stderr[-2000:]
    programs = json.loads(done.stdout.splitlines()[-1])
    published, quick = programs["published"], programs["quick"]
    assert published["marked"].count([]) == len(published["delegates"]) == len(quick["delegates"]) == 4
    assert quick["marked"].count(["dqlinear_partitioner"]) == 2
    assert published["weights"]
    for what in ("delegates", "instructions", "operators", "weights"):
        assert quick[what] == published[what], what
