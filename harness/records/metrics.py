"""What is measured: every metric's unit, direction, definition and where that definition comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Direction = Literal["lower", "higher", "none"]


Stage = Literal["quantize", "transformers", "engine", "server", "export"]


STAGES: tuple[Stage, ...] = get_args(Stage)
"""The stages of the suites, in the order in which a cell goes through them."""


@dataclass(frozen=True)
class Metric:
    """One quantity of a record.

    ``unit`` is that of the record's value and samples. ``direction`` says which way is better. ``stage`` is the one
    that usually gives it; :func:`stage_of` says which one gave a record.
    ``definition`` says how it is measured and ``version`` rises whenever that changes, so that
    values of different definitions are never compared.
    """

    name: str
    unit: str
    direction: Direction
    stage: Stage
    definition: str
    version: int = 1

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters that its records may have, which a threshold may then ask for."""
        return _PARAMETERS.get(self.name, ())


TUTORIAL = "torchao tutorial, part 3 (serving)"

OF_THE_DEVICE = frozenset({"copy_bandwidth", "matrix_rate"})
"""Metrics of the device alone, which stand with a cell since they were measured for it."""

TEXT_QUALITY = frozenset({"perplexity", "kl_divergence", "top1_agreement", "token_flips"})

TASKS = frozenset({"accuracy", "task_perplexity"})

SIZES = frozenset({"checkpoint_size", "weight_size"})
"""Known as soon as a checkpoint is made, without a block of a gate."""

GATED: Mapping[Stage, frozenset[str]] = {
    "transformers": frozenset({"peak_memory", "generate_throughput"}) | TEXT_QUALITY | TASKS | SIZES,
    "engine": frozenset({"engine_start", "compile_time", "latency"}),
    "server": frozenset({"engine_start", "request_throughput", "ttft", "tpot", "itl"}),
}
"""What a gate measures at each stage of the suites, block by block; sizes are asked for with the first."""

TASK_BATCH = {"cuda": 256, "cpu": 8}
"""Requests of a task that go through Transformers at once, by torch device."""

_ALL = (
    Metric(
        "peak_memory",
        "GB",
        "lower",
        "transformers",
        "Peak memory of a fresh process that loads the saved checkpoint and generates the tutorial's "
        "prompt with 128 new tokens: max_memory_reserved / 1e9 on a GPU, peak resident set / 1e9 on a CPU. "
        "Through ExecuTorch: peak resident set / 1e9 of the C++ runner's process that loads and runs the program. "
        f"Source: {TUTORIAL}, Memory Benchmarking.",
    ),
    Metric("checkpoint_size", "B", "lower", "quantize", "Bytes of the safetensors files of the saved checkpoint."),
    Metric(
        "weight_size",
        "B",
        "lower",
        "quantize",
        "Bytes of the distinct storages behind the loaded parameters and buffers; a quantized tensor counts "
        "as the sum of its inner tensors, a tied weight counts once.",
    ),
    Metric(
        "quantized_layers", "layers", "none", "quantize", "Modules whose weight is a torchao tensor after quantization."
    ),
    Metric(
        "latency",
        "s",
        "lower",
        "engine",
        "Wall time of one batch through vLLM's offline engine, random prompts of input_len tokens, output_len new "
        "tokens with EOS ignored, prefix caching off; value: mean of the rounds. "
        f"Source: {TUTORIAL}, Latency Benchmarking; vllm bench latency.",
    ),
    Metric(
        "prefill_time",
        "s",
        "lower",
        "engine",
        "Wall time of the latency batch with a single new token: reading the prompts; value: median of the rounds.",
    ),
    Metric(
        "decode_step_time",
        "ms",
        "lower",
        "engine",
        "Time of one decoding step of the latency batch: (latency - prefill_time) / (output_len - 1).",
    ),
    Metric(
        "limit_fraction",
        "fraction",
        "higher",
        "engine",
        "Least time that the device's measured copy bandwidth and matrix rate allow for a step's bytes and operations, "
        "over the time it took; the output head counts for the tokens whose logits are taken: in prefill each prompt's "
        "last. Source: Williams et al., Roofline, CACM 52(4), 2009.",
        version=2,
    ),
    Metric(
        "copy_bandwidth",
        "GB/s",
        "higher",
        "engine",
        "Bytes read and written a second by the best of several copies in the device's memory, / 1e9.",
    ),
    Metric(
        "matrix_rate",
        "TFLOP/s",
        "higher",
        "engine",
        "Operations a second, / 1e12, of the best of several square matrix products on random data.",
    ),
    Metric(
        "kernel_time",
        "ms",
        "none",
        "engine",
        "Time in the device's kernels over one profiled batch of four steps; on a CPU, in its operators.",
    ),
    Metric(
        "quantized_kernel_share",
        "fraction",
        "none",
        "engine",
        "Share of the profiled kernel time of one batch that was spent in kernels of the recipe's own kind.",
    ),
    Metric(
        "generate_throughput",
        "tok/s",
        "higher",
        "transformers",
        "New tokens a second of Transformers' generate at batch 1, greedy, prefill included; value: median of the "
        "rounds. Through ExecuTorch: the same of the C++ runner, or of ExecuTorch's LLM benchmark on an iPhone.",
    ),
    Metric("program_size", "B", "lower", "export", "Bytes of the ExecuTorch program (.pte)."),
    Metric(
        "delegated_arithmetic",
        "fraction",
        "higher",
        "export",
        "Share of the multiply-adds of all matrix products that a program leaves to its delegates, at the length of "
        "the export's example.",
    ),
    Metric("fallback_nodes", "nodes", "lower", "export", "Operators of a program outside of its delegates."),
    Metric(
        "export_cpu_time",
        "s",
        "lower",
        "export",
        "CPU seconds of the process that exported the program, loading included.",
    ),
    Metric(
        "export_peak_memory",
        "GB",
        "lower",
        "export",
        "Peak resident set / 1e9 of the process that exported the program.",
    ),
    Metric("load_time", "s", "lower", "export", "Seconds from opening the program until its method can run."),
    Metric(
        "prefill_throughput",
        "tok/s",
        "higher",
        "export",
        "Prompt tokens a second until the first new token is known; value: median of the rounds.",
    ),
    Metric(
        "decode_throughput",
        "tok/s",
        "higher",
        "export",
        "New tokens a second after the first, greedy, one at a time; value: median of the rounds.",
    ),
    Metric(
        "first_token_time",
        "ms",
        "lower",
        "export",
        "From the prompt's text to the first new token, tokenizing included; value: median of the rounds.",
    ),
    Metric(
        "fallback_time",
        "fraction",
        "lower",
        "export",
        "Share of the operators' time that is spent outside of delegates, from an etdump of one prompt and its answer.",
    ),
    Metric(
        "program_kl",
        "nats",
        "lower",
        "export",
        "Mean over tokens of KL(eager || program), the eager model being the same checkpoint in Transformers and "
        "float32, over the same real text, begun as the model's tokenizer begins every text.",
        version=2,
    ),
    Metric(
        "program_top1",
        "fraction",
        "higher",
        "export",
        "Share of positions where the program's and the eager model's most likely token is the same.",
        version=2,
    ),
    Metric(
        "program_perplexity",
        "1",
        "lower",
        "export",
        "Perplexity of the program, as perplexity is of a model.",
        version=2,
    ),
    Metric(
        "program_perplexity_change",
        "fraction",
        "lower",
        "export",
        "Absolute relative difference of the program's perplexity from the eager model's over the same text.",
        version=2,
    ),
    Metric(
        "logit_difference",
        "1",
        "lower",
        "export",
        "Largest absolute difference of any logit from the eager model's.",
        version=2,
    ),
    Metric(
        "request_throughput",
        "req/s",
        "higher",
        "server",
        "Completed requests a second of vLLM's serving benchmark over ShareGPT prompts, all sent at once; value: "
        f"median of the rounds. Source: {TUTORIAL}, Serving Benchmarking; vllm bench serve.",
    ),
    Metric(
        "chat_tokens",
        "tokens",
        "none",
        "server",
        "New tokens of the server's answer to the tutorial's chat completion.",
    ),
    Metric(
        "output_throughput", "tok/s", "higher", "server", "Generated tokens a second over the same serving benchmark."
    ),
    Metric(
        "ttft", "ms", "lower", "server", "Time to first token of each request of the serving benchmark; value: median."
    ),
    Metric(
        "tpot",
        "ms",
        "lower",
        "server",
        "Time per output token after the first, of each request of the serving benchmark; value: median.",
    ),
    Metric("itl", "ms", "lower", "server", "Time between successive tokens over the serving benchmark; value: median."),
    Metric(
        "engine_start",
        "s",
        "lower",
        "engine",
        "From the start of the engine's or server's process to the first request it can take; see parameter kind.",
    ),
    Metric("compile_time", "s", "lower", "engine", "Seconds of torch.compile that the engine reports while it starts."),
    Metric(
        "kv_cache_capacity",
        "tokens",
        "higher",
        "engine",
        "Tokens that fit the engine's key-value cache, as the engine sized it.",
    ),
    Metric(
        "perplexity",
        "1",
        "lower",
        "transformers",
        "exp of the mean negative log-likelihood a token over fixed windows of real text, teacher-forced; each "
        "window is begun as the model's tokenizer begins every text (with its BOS), and all tokens but its first "
        "count.",
        version=2,
    ),
    Metric(
        "kl_divergence",
        "nats",
        "lower",
        "transformers",
        "Mean over tokens of KL(baseline || recipe) of the next-token distributions over the windows of perplexity.",
        version=2,
    ),
    Metric(
        "top1_agreement",
        "fraction",
        "higher",
        "transformers",
        "Share of positions where both models' most likely token is the same, over the windows of perplexity.",
        version=2,
    ),
    Metric(
        "token_flips",
        "fraction",
        "lower",
        "transformers",
        "Share of positions where exactly one of the two models predicts the text's next token. Source: Dutta et al., "
        "Accuracy is Not All You Need, 2024 (flips), applied to next-token prediction.",
        version=2,
    ),
    Metric(
        "served_kl",
        "nats",
        "lower",
        "engine",
        "Mean over tokens of KL(Transformers || engine) of the next-token distributions over windows of the same "
        "text, begun as the model's tokenizer begins every text, the same recipe in both: the lower bound that the "
        "likeliest 20 tokens of both give, where a token that a side does not list is at most as likely as the least "
        "likely one that it does.",
        version=3,
    ),
    Metric(
        "served_top1",
        "fraction",
        "higher",
        "engine",
        "Share of positions where the engine's and Transformers' most likely token is the same, over the windows of "
        "served_kl.",
        version=2,
    ),
    Metric(
        "accuracy", "fraction", "higher", "transformers", "The task's own metric as lm-evaluation-harness reports it."
    ),
    Metric(
        "task_perplexity",
        "1",
        "lower",
        "transformers",
        "The task's own perplexity as lm-evaluation-harness reports it (lambada_openai).",
    ),
    Metric(
        "answer_flips",
        "fraction",
        "lower",
        "transformers",
        "Share of documents answered correctly by exactly one of baseline and recipe. Source: Dutta et al., 2024.",
    ),
)

_TEXT = ("text", "windows", "window_tokens")
_BATCH = ("batch_size", "input_len", "output_len")
_SERVING = ("num_prompts", "dataset", "output_len")
_PROGRAM = ("runner", "route", "prompt_tokens", "new_tokens")
_AGREEMENT = ("runner", "route", "windows", "window_tokens")
_TASK = ("task", "task_metric", "documents", "through")
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "peak_memory": ("max_new_tokens", "runner", "prompt_tokens", "new_tokens"),
    "generate_throughput": ("max_new_tokens", "batch_size", *_PROGRAM),
    "kernel_time": ("pattern",),
    "quantized_kernel_share": ("pattern",),
    "matrix_rate": ("dtype",),
    "limit_fraction": (*_BATCH, "phase"),
    "chat_tokens": ("max_tokens",),
    "fallback_time": ("prompt_tokens",),
    **dict.fromkeys(("latency", "prefill_time", "decode_step_time"), _BATCH),
    **dict.fromkeys(("request_throughput", "output_throughput", "ttft", "tpot", "itl"), _SERVING),
    **dict.fromkeys(("engine_start", "compile_time", "kv_cache_capacity", "quantized_layers"), ("kind",)),
    **dict.fromkeys(("perplexity", "kl_divergence", "top1_agreement", "token_flips"), _TEXT),
    **dict.fromkeys(("served_kl", "served_top1"), _TEXT),
    **dict.fromkeys(("program_size", "delegated_arithmetic", "fallback_nodes"), ("route",)),
    **dict.fromkeys(("export_cpu_time", "export_peak_memory"), ("route",)),
    **dict.fromkeys(("load_time", "prefill_throughput", "decode_throughput", "first_token_time"), _PROGRAM),
    **dict.fromkeys(("program_kl", "program_top1", "program_perplexity", "program_perplexity_change"), _AGREEMENT),
    "logit_difference": _AGREEMENT,
    **dict.fromkeys(("accuracy", "task_perplexity", "answer_flips"), _TASK),
}

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def stage_of(metric: str, server: str, parameters: Mapping[str, object]) -> Stage | None:
    """Return the stage that gave a figure, or None for a metric that is not known here.

    Starts, and what an engine tells of itself, say whose they are by their ``kind``: a client's belongs to the server
    that it asks. All of an ExecuTorch program is of its export. A task names the server that it went ``through``.
    """
    known = METRICS.get(metric)
    kind = parameters.get("kind")
    if known is None:
        return None
    if server == "executorch":
        return "export"
    if kind == "client" or (server and parameters.get("through") == server):
        return "server"
    return next((stage for stage in STAGES if stage == kind), known.stage)
