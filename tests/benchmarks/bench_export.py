"""What an export costs, and what of it the project saves without touching ExecuTorch: CPU seconds by way of lowering.

    python tests/benchmarks/bench_export.py CHECKPOINT [--layers 8] [--ways published harness ...]

CHECKPOINT is a folder as the harness quantizes it (embeddings untied). ``--layers`` cuts the model down. Each way runs
in a process of its own, and says how much of its time went to Python's garbage collector, to decompositions of the
whole graph, to cutting the graph into delegates and to XNNPACK's passes over them (the collector's time is in those
too). Each way saves something more than the one before:

- ``published``: two partitioners in one call, Python's garbage collector as it is;
- ``uncollected``: the collector off;
- ``apart``: the second partitioner in a call of its own, so that the graph is decomposed three times and not five;
- ``compiled``: the code of the graph that is cut is written once, not after every cut;
- ``harness``: as harness.worker.export does it: besides, one of XNNPACK's 17 passes over each quantized layer.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import subprocess
import sys
import time
from typing import Any

WAYS = ("published", "uncollected", "apart", "compiled", "harness")
PARTS = ("collector", "decompositions", "cutting", "passes")


class Spent:
    """CPU seconds and calls of a function, or of the garbage collector, since they are watched."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0
        self._begin = 0.0

    def watch(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            begin = time.process_time()
            try:
                return original(*arguments, **options)
            finally:
                self.seconds += time.process_time() - begin
                self.calls += 1

        setattr(owner, name, watched)

    def collector(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._begin = time.process_time()
        else:
            self.seconds += time.process_time() - self._begin
            self.calls += 1


def measure(checkpoint: str, layers: int, way: str) -> dict[str, Any]:
    from executorch.backends.xnnpack._passes import XNNPACKPassManager
    from executorch.exir.backend import backend_api
    from torch.export import ExportedProgram

    from harness.worker import export
    from harness.worker.generate import peak_resident_bytes

    model, facts = export.load_float32(checkpoint, False)
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    exported = export.traced(model, 128)
    spent = {name: Spent() for name in PARTS}
    gc.callbacks.append(spent["collector"].collector)
    spent["decompositions"].watch(ExportedProgram, "run_decompositions")
    spent["cutting"].watch(backend_api, "_create_partitions")
    spent["passes"].watch(XNNPACKPassManager, "transform")
    start = export.cpu_seconds()
    if way == "harness":
        export.lower(exported, {}, quantized=facts["quantized_layers"] > 0)
    else:
        lower(exported, WAYS.index(way))
    seconds = export.cpu_seconds() - start
    found: dict[str, Any] = {"layers": layers, "cpu_seconds": seconds, "peak_bytes": peak_resident_bytes()}
    return found | {name: (one.seconds, one.calls) for name, one in spent.items()}


def lower(exported: Any, savings: int) -> Any:
    """Lower a graph of quantized layers with the first of the savings alone, in the order of :data:`WAYS`."""
    import executorch.kernels.quantized  # noqa: F401
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackDynamicallyQuantizedPartitioner,
        XnnpackPartitioner,
    )
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    from harness.worker import lowering

    partitioners = [XnnpackDynamicallyQuantizedPartitioner(), XnnpackPartitioner()]
    apart = savings >= WAYS.index("apart")
    with contextlib.ExitStack() as stack:
        if savings >= WAYS.index("compiled"):
            stack.enter_context(lowering.compiled_once())
        if savings >= WAYS.index("uncollected"):
            stack.enter_context(lowering.uncollected())
        lowered = to_edge_transform_and_lower(
            exported,
            partitioner=partitioners[:1] if apart else partitioners,
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        )
        return lowered.to_backend(partitioners[1]) if apart else lowered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(measure(arguments.checkpoint, arguments.layers, arguments.ways[0])))
        return
    print(f"{'way':<12}{'CPU s':>8}{'a layer':>9}{'peak GB':>9}" + "".join(f"{name:>20}" for name in PARTS))
    for way in arguments.ways:
        command = [sys.executable, __file__, arguments.checkpoint, "--layers", str(arguments.layers), "--ways", way]
        done = subprocess.run([*command, "--inside"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        seconds = found["cpu_seconds"]
        line = f"{way:<12}{seconds:8.1f}{seconds / found['layers']:9.1f}{found['peak_bytes'] / 1e9:9.2f}"
        shares = (f"{found[name][0] / seconds:.0%} in {found[name][1]}" for name in PARTS)
        print(line + "".join(f"{share:>20}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
