"""Which recipe was seen to run where: from records alone, by the best that any run shows."""

from __future__ import annotations

import pytest

from harness.records.schema import Line, Measurement, Outcome
from harness.report import support
from tests.report.test_tables import measured


def row(metric: str, recipe: str = "int8wo", server: str = "vllm", **changes: object) -> Measurement:
    return measured(metric, 1.0, recipe, server=server, hardware="l40s").model_copy(update=changes)


def skipped(reason: str, recipe: str = "int8wo", server: str = "vllm") -> Outcome:
    cell = row("latency", recipe, server).cell
    return Outcome(test="t::x[y]", cell=cell, outcome="skipped", seconds=0.0, reason=reason)


SHARE = {"calls": 96.0, "calls_due": 96.0}
NO_SHARE = {"calls": 0.0, "calls_due": 96.0}


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([row("kernel_time"), row("quantized_kernel_share", statistics=SHARE), row("latency")], support.OWN),
        ([row("kernel_time"), row("quantized_kernel_share", statistics=NO_SHARE), row("latency")], support.FALLBACK),
        ([row("kernel_time")], support.FALLBACK),
        ([row("latency"), row("served_kl")], support.TIMED),
        ([row("peak_memory"), row("perplexity")], support.NUMBERS),
        ([row("latency", discarded="throttled"), skipped("no kernels")], support.REFUSED),
        ([skipped("no kernels").model_copy(update={"outcome": "failed"})], support.REFUSED),
        ([skipped("documents only"), row("perplexity")], support.NUMBERS),
    ],
)
def test_a_recipe_is_told_by_the_best_that_was_seen_of_it(lines: list[Line], word: str) -> None:
    (first, *others) = support.support([lines, [row("latency", recipe="bf16")]])
    assert first.header == ("recipe", "checkpoint", "l40s vllm")
    assert first.rows == (("int8wo", "-", word),)
    assert [table.rows for table in others] == ([(("int8wo", "l40s vllm", "no kernels"),)] if word == "no" else [])


def test_a_fallback_is_told_with_what_ran_instead() -> None:
    ran = (
        "aten::mm (480 calls, 70.63 ms), aten::copy_ (9 calls, 4.00 ms), b::c (4 calls, 2.00 ms), d (1 calls, 1.00 ms)"
    )
    failed = skipped(f"x: 0 calls, 480 are due; what ran instead, longest first: {ran}").model_copy(
        update={"outcome": "xfailed", "known": "it widens"}
    )
    lines = [row("kernel_time"), row("quantized_kernel_share", statistics=NO_SHARE), failed]
    _, told = support.support([lines])
    instead = "aten::mm (480 calls), aten::copy_ (9 calls), b::c (4 calls)"
    assert told.rows == (("int8wo", "l40s vllm", instead, "it widens"),)
    own = [row("kernel_time"), row("quantized_kernel_share", statistics=SHARE)]
    assert len(support.support([lines, own])) == 1, "the best that any run shows"


def test_what_is_quantized_as_it_is_loaded_is_said_to_be_and_other_places_are_not_asked() -> None:
    sizes = [row("checkpoint_size", server=""), row("weight_size", server=""), row("weight_size", "nf4wo", "")]
    lines = [*sizes, row("perplexity", server="transformers"), row("perplexity", "nf4wo", "vllm")]
    (first,) = support.support([lines])
    assert first.header == ("recipe", "checkpoint", "l40s transformers", "l40s vllm")
    assert first.rows == (
        ("int8wo", "saved", support.NUMBERS, support.NONE),
        ("nf4wo", "quantized at load", support.NONE, support.NUMBERS),
    )
