"""ExecuTorch's lowering without work that it repeats for nothing: the same delegates, in two thirds of the time.

What each part is worth is measured by tests/benchmarks/bench_export.py.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from executorch.backends.xnnpack.partition import xnnpack_partitioner
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackDynamicallyQuantizedPartitioner
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir.backend import backend_api
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec
from torch.fx import GraphModule


class LinearPartitioner(XnnpackDynamicallyQuantizedPartitioner):  # type: ignore[misc]
    """Gives dynamically quantized linear layers to XNNPACK, whose backend then runs one of its 17 passes over each.

    That is what it does for delegates that are marked so (``XnnpackBackend.preprocess``); the other passes are for
    operators that such a layer does not have, and find nothing to do.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.delegation_spec = DelegationSpec(XnnpackBackend.__name__, [CompileSpec("dqlinear_partitioner", b"")])


@contextlib.contextmanager
def linear_partitioner() -> Iterator[None]:
    """Let code that makes ExecuTorch's own partitioner of quantized layers, as ``export_llama`` does, make ours."""
    with patch.object(xnnpack_partitioner, XnnpackDynamicallyQuantizedPartitioner.__name__, LinearPartitioner):
        yield


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Switch Python's garbage collector off, once it has collected what was left before.

    Lowering makes millions of small objects that stay reachable; the collector walks all of them again and again.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Write the Python code of a graph that is cut into delegates when all are cut out, and not after every one.

    Until then nothing calls it. Every one would write that of all delegates before it too, so its cost grows with the
    square of their number.
    """
    cut = backend_api._create_partitions

    def cut_out(graph_module: GraphModule, *rest: Any, **named: Any) -> Any:
        with patch.object(GraphModule, "recompile", lambda self: None):
            found = cut(graph_module, *rest, **named)
        graph_module.recompile()
        return found

    with patch.object(backend_api, "_create_partitions", cut_out):
        yield
