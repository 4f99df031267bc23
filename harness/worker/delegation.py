"""What of a lowered program went to a delegate, and what fell back: nodes, and the share of the arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

# Nodes that compute nothing: a memory plan's allocations, and the parts of a tuple.
_NO_WORK = ("getitem", "alloc")
# Operators that multiply matrices.
_PRODUCTS = ("linear", "mm", "bmm", "addmm", "baddbmm", "matmul")


def report(program: Any) -> dict[str, Any]:
    """Return nodes and multiply-adds inside and outside of delegates, and the operators that fell back.

    ``arithmetic_share`` is the delegated share of the multiply-adds of all matrix products, at the length of the
    export's example. ``fallbacks`` counts the operators that stayed outside, ``fallback_products`` those of them that
    multiply matrices: these are what makes a program slow.
    """
    inside: Counter[str] = Counter()
    outside: Counter[str] = Counter()
    work = {True: 0, False: 0}
    products: Counter[str] = Counter()
    delegates: Counter[str] = Counter()
    for delegated, node in _operators(program.graph_module, delegates):
        name = _name(node)
        (inside if delegated else outside)[name] += 1
        if cost := _multiply_adds(node):
            work[delegated] += cost
            if not delegated:
                products[name] += 1
    total = sum(work.values())
    return {
        "delegates": dict(delegates),
        "delegated_nodes": sum(inside.values()),
        "fallback_nodes": sum(outside.values()),
        "fallbacks": dict(outside.most_common()),
        "fallback_products": dict(products),
        "multiply_adds": total,
        "arithmetic_share": work[True] / total if total else math.nan,
    }


def _operators(graph_module: Any, delegates: Counter[str]) -> Iterator[tuple[bool, Any]]:
    for node in graph_module.graph.nodes:
        if node.op != "call_function" or _name(node) in _NO_WORK:
            continue
        if _name(node) == "executorch_call_delegate":
            lowered = getattr(graph_module, node.args[0].target)
            delegates[str(lowered.backend_id)] += 1
            for inner in lowered.original_module.graph.nodes:
                if inner.op == "call_function" and _name(inner) not in _NO_WORK:
                    yield True, inner
        else:
            yield False, node


def _name(node: Any) -> str:
    target = node.target
    name = getattr(target, "name", None)
    return str(name() if callable(name) else getattr(target, "__name__", target))


def _multiply_adds(node: Any) -> int:
    """Return the multiply-adds of a matrix product: the output's size times the length that is summed over."""
    base = _name(node).split("::")[-1].split(".")[0]
    if base in _PRODUCTS:
        operand = node.args[1] if base.startswith(("addmm", "baddbmm")) else node.args[0]
        return _size(node) * _hint(operand.meta["val"].shape[-1])
    if "sdpa" in base or "scaled_dot_product" in base:
        query, key = node.args[0].meta["val"], node.args[1].meta["val"]
        # PyTorch's own is (batch, heads, length, dim), ExecuTorch's (llama::custom_sdpa) (batch, length, heads, dim).
        length = key.shape[1] if _name(node).startswith("llama::") else key.shape[-2]
        return 2 * math.prod(_hint(size) for size in query.shape) * _hint(length)
    return 0


def _size(node: Any) -> int:
    return math.prod(_hint(size) for size in node.meta["val"].shape)


def _hint(size: Any) -> int:
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return int(hint) if hint is not None else 1
    return int(size)
