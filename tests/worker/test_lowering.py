"""Lowering without the repeated work gives the program that ExecuTorch's own way gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.runtime.environment import Environment
from harness.runtime.store import Store
from tests import needs

pytestmark = needs.package("executorch")

# Two quantized layers with an operator between that
# XNNPACK takes and one that it does not, so that there are delegates of both partitioners, and a graph around them.
_ONE_WAY = """
import json
import sys
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
if sys.argv[1] == "published":
    lowered = to_edge_transform_and_lower(exported, partitioner=both, **options)
else:
    lowered = export.lower(exported, {}, quantized=True)
finished = lowered.to_executorch(ExecutorchBackendConfig(do_quant_fusion_and_const_prop=True))
file = deserialize_pte_binary(finished.buffer)
(plan,) = file.program.execution_plan
program = {
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
print(json.dumps(program))
"""


def test_the_delegates_are_those_of_executorchs_own_way(run_code: Any, kept_store: Store) -> None:
    """Which is kept, since it is another one only with other packages."""

    def lowered(way: str) -> dict[str, Any]:
        done = run_code(_ONE_WAY, way)
        assert done.returncode == 0, done.stderr[-2000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def build(folder: Path) -> None:
        (folder / "program.json").write_text(json.dumps(lowered("published")), encoding="utf-8")

    key = {"code": _ONE_WAY, "packages": Environment().decisive()}
    kept = kept_store.get("test-lowered", key, build, label="the tests' program of ExecuTorch's own way").folder
    published, quick = json.loads((kept / "program.json").read_text(encoding="utf-8")), lowered("quick")
    assert published["marked"].count([]) == len(published["delegates"]) == len(quick["delegates"]) == 4
    assert quick["marked"].count(["dqlinear_partitioner"]) == 2
    assert published["weights"]
    for what in ("delegates", "instructions", "operators", "weights"):
        assert quick[what] == published[what], what
