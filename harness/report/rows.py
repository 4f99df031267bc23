"""How each metric is shown in a table: its place, label, digits, and the words for better and worse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from harness.records.metrics import METRICS, Direction

Section = Literal["memory", "performance", "detail", "quality"]


class Words(Enum):
    """How a value is held against the baseline's: the words for better and worse, where it is told as a ratio."""

    PERCENT = ("reduction", "increase")
    SPEED = ("speedup", "slowdown")
    SIZE = ("larger", "smaller")
    UNNAMED = ("better", "worse")
    DIFFERENCE = "as a signed difference"
    ALONE = "not at all: it is relative to the baseline by definition, or nothing is better or worse"


def decimal(value: float) -> str:
    """Return two decimals, or three significant digits where those would say nothing."""
    return f"{value:.2f}" if value == 0 or 0.1 <= abs(value) < 1e7 else f"{value:.3g}"


def whole(value: float) -> str:
    return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3g}"


def size(value: float) -> str:
    """Return bytes in the decimal unit that suits them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{decimal(value / scale)} {unit}"
    return f"{whole(value)} B"


def _places(count: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{count}f}"


def _significant(value: float) -> str:
    return f"{value:.2g}"


@dataclass(frozen=True)
class Row:
    """How one metric, or one of its further statistics, is shown."""

    section: Section
    metric: str
    label: str
    words: Words = Words.SPEED
    suffix: str = ""
    number: Callable[[float], str] = decimal
    shown: tuple[str, ...] | None = ()  # parameters named after the label; None: all of them
    lead: tuple[str, ...] = ()  # parameters whose values stand before the label
    statistic: str = ""  # a key of the record's statistics; empty for its value

    @property
    def place(self) -> int:
        """Where the row stands among all rows; those not known here come last."""
        return ROWS.index(self) if self in ROWS else len(ROWS)

    def after(self, parameters: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the parameters that stand after the label."""
        return tuple(parameters) if self.shown is None else self.shown

    def named(self, parameters: Iterable[str]) -> set[str]:
        """Return the names of all parameters that the label tells."""
        return {*self.lead, *self.after(parameters)}


_BATCH = ("batch_size",)
_PROMPTS = ("num_prompts",)
_ROUTE = ("route",)
_RUNNER = ("runner", "route")

ROWS = (
    Row("memory", "peak_memory", "Peak Memory (GB)", Words.PERCENT),
    Row("memory", "checkpoint_size", "Checkpoint Size", Words.PERCENT, number=size),
    Row("memory", "weight_size", "Weight Size", Words.PERCENT, number=size),
    Row("memory", "program_size", "Program Size (.pte)", Words.PERCENT, number=size, shown=_ROUTE),
    Row("performance", "latency", "latency", suffix="s", shown=_BATCH),
    Row("performance", "request_throughput", "serving", suffix=" req/s", shown=_PROMPTS),
    Row("performance", "generate_throughput", "generate", suffix=" tok/s"),
    Row("performance", "prefill_throughput", "prefill", suffix=" tok/s", shown=_RUNNER),
    Row("performance", "decode_throughput", "decode", suffix=" tok/s", shown=_RUNNER),
    Row("performance", "first_token_time", "first token", suffix=" ms", shown=_RUNNER),
    Row("performance", "load_time", "load", suffix="s", number=_places(3), shown=_RUNNER),
    Row("detail", "output_throughput", "output", suffix=" tok/s", shown=_PROMPTS),
    Row("detail", "ttft", "TTFT median", suffix=" ms", shown=_PROMPTS),
    Row("detail", "ttft", "TTFT p99", suffix=" ms", shown=_PROMPTS, statistic="p99"),
    Row("detail", "tpot", "TPOT median", suffix=" ms", shown=_PROMPTS),
    Row("detail", "tpot", "TPOT p99", suffix=" ms", shown=_PROMPTS, statistic="p99"),
    Row("detail", "itl", "ITL median", suffix=" ms", shown=_PROMPTS),
    Row("detail", "itl", "ITL p99", suffix=" ms", shown=_PROMPTS, statistic="p99"),
    Row("detail", "prefill_time", "prefill", suffix="s", number=_places(4), shown=_BATCH),
    Row("detail", "decode_step_time", "decode step", suffix=" ms", shown=_BATCH),
    Row("detail", "limit_fraction", "fraction of the limit", Words.ALONE, shown=("phase", "batch_size")),
    Row("detail", "kernel_time", "kernels of one profiled batch", Words.ALONE, " ms", shown=()),
    Row("detail", "quantized_kernel_share", "time in the recipe's kernels", Words.ALONE, shown=()),
    Row("detail", "copy_bandwidth", "device: copy", Words.ALONE, " GB/s", whole),
    Row("detail", "matrix_rate", "device: matrix product", Words.ALONE, " TFLOP/s", shown=("dtype",)),
    Row("detail", "chat_tokens", "chat answer", Words.ALONE, " tokens", whole),
    Row("detail", "kv_cache_capacity", "KV cache", Words.SIZE, " tokens", whole),
    Row("detail", "engine_start", "engine start", suffix="s", shown=("kind",)),
    Row("detail", "compile_time", "compile", suffix="s"),
    Row("detail", "delegated_arithmetic", "arithmetic delegated", Words.ALONE, number=_places(4), shown=_ROUTE),
    Row("detail", "fallback_nodes", "operators not delegated", Words.ALONE, number=whole, shown=_ROUTE),
    Row("detail", "fallback_time", "time outside of delegates", Words.ALONE, number=_places(3)),
    Row("detail", "export_cpu_time", "export, CPU time", Words.ALONE, "s", shown=_ROUTE),
    Row("detail", "export_peak_memory", "export, peak memory (GB)", Words.ALONE, shown=_ROUTE),
    Row("detail", "quantized_layers", "quantized layers", Words.ALONE, number=whole),
    Row("quality", "perplexity", "perplexity", Words.DIFFERENCE),
    Row("quality", "kl_divergence", "KL divergence (nats)", Words.ALONE, number=_places(4)),
    Row("quality", "top1_agreement", "top-1 agreement", Words.ALONE, number=_places(3)),
    Row("quality", "token_flips", "token flips", Words.ALONE, number=_places(4)),
    Row("quality", "served_kl", "KL(Transformers || engine) (nats)", Words.ALONE, number=_significant),
    Row("quality", "served_top1", "top-1 agreement with Transformers", Words.ALONE, number=_places(3)),
    Row("quality", "program_perplexity", "perplexity of the program", Words.DIFFERENCE),
    Row("quality", "program_perplexity_change", "its change from eager", Words.ALONE, number=_places(4)),
    Row("quality", "program_kl", "KL(eager || program) (nats)", Words.ALONE, number=_significant),
    Row("quality", "program_top1", "top-1 agreement with eager", Words.ALONE, number=_places(4)),
    Row("quality", "logit_difference", "largest difference of a logit", Words.ALONE, number=_significant),
    Row("quality", "accuracy", "", Words.DIFFERENCE, number=_places(3), lead=("task", "task_metric")),
    Row("quality", "task_perplexity", "perplexity", Words.DIFFERENCE, lead=("task",)),
    Row("quality", "answer_flips", "answer flips", Words.ALONE, number=_places(4), lead=("task",)),
)
"""Every known row, in the order of the tables: the tutorial's first, then what it did not measure."""

AGREEMENT = frozenset(("served_kl", "served_top1", "program_kl", "program_top1", "logit_difference"))
"""Metrics that hold two implementations of the same weights against each other: they need no weights of worth."""


def rows_of(metric: str, unit: str) -> list[Row]:
    """Return the rows that show a metric; one that no row knows, or that is in another unit, is shown as it is."""
    known = [row for row in ROWS if row.metric == metric and METRICS[metric].unit == unit]
    return known or [Row("detail", metric, metric, Words.UNNAMED, f" {unit}", shown=None)]


def improvement(baseline: float, value: float, direction: Direction) -> float | None:
    """Return how many times better ``value`` is than ``baseline``: above 1 is better whatever the direction.

    None where that means nothing: no direction, or numbers that are not positive and finite.
    """
    if direction == "none" or not (0 < baseline < math.inf and 0 < value < math.inf):
        return None
    ratio = baseline / value if direction == "lower" else value / baseline
    return ratio if ratio > 0 and math.isfinite(ratio) and math.isfinite(1 / ratio) else None


def ratio_text(ratio: float, words: Words = Words.SPEED) -> str:
    """Return an improvement in words: '1.16x speedup', '1.15x slowdown', '36% reduction', '12% increase'.

    What rounds to no change at all is '1.00x' or '0%', and called neither.
    """
    word = words.value[0] if ratio > 1 else words.value[1]
    if words is Words.PERCENT:
        percent = whole(abs(1 / ratio - 1) * 100)
        return "0%" if percent == "0" else f"{percent}% {word}"
    times = decimal(max(ratio, 1 / ratio))
    return "1.00x" if times == "1.00" else f"{times}x {word}"
