"""What is measured: every metric's unit, direction, definition and where that definition comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["lower", "higher", "none"]


@dataclass(frozen=True)
class Metric:
    """One quantity of a record.

    ``unit`` is that of the record's value and samples. ``direction`` says which way is better.
    ``definition`` says how it is measured and ``version`` rises whenever that changes, so that
    values of different definitions are never compared.
    """

    name: str
    unit: str
    direction: Direction
    definition: str
    version: int = 1

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters that its records may have, which a threshold may then ask for."""
        return _PARAMETERS.get(self.name, ())


TUTORIAL = "torchao tutorial, part 3 (serving)"

OF_THE_DEVICE = frozenset({"copy_bandwidth", "matrix_rate"})
"""Metrics of the device alone, which stand with a cell since they were measured for it."""

TASK_BATCH = {"cuda": 256, "cpu": 8}
"""Requests of a task that go through Transformers at once, by torch device."""

_ALL = (
    Metric(
        "peak_memory",
        "GB",
        "lower",
        "Peak memory of a fresh process that loads the saved checkpoint and generates the tutorial's "
        "prompt with 128 new tokens: max_memory_reserved / 1e9 on a GPU, peak resident set / 1e9 on a CPU. "
        "Through ExecuTorch: peak resident set / 1e9 of the C++ runner's process that loads and runs the program. "
        f"Source: {TUTORIAL}, Memory Benchmarking.",
    ),
    Metric("checkpoint_size", "B", "lower", "Bytes of the safetensors files of the saved checkpoint."),
    Metric(
        "weight_size",
        "B",
        "lower",
        "Bytes of the distinct storages behind the loaded parameters and buffers; a quantized tensor counts "
        "as the sum of its inner tensors, a tied weight counts once.",
    ),
    Metric("quantized_layers", "layers", "none", "Modules whose weight is a torchao tensor after quantization."),
    Metric(
        "latency",
        "s",
        "lower",
        "Wall time of one batch through vLLM's offline engine, random prompts of input_len tokens, output_len new "
        "tokens with EOS ignored, prefix caching off; value: mean of the rounds. "
        f"Source: {TUTORIAL}, Latency Benchmarking; vllm bench latency.",
    ),
    Metric(
        "prefill_time",
        "s",
        "lower",
        "Wall time of the latency batch with a single new token: reading the prompts; value: median of the rounds.",
    ),
    Metric(
        "decode_step_time",
        "ms",
        "lower",
        "Time of one decoding step of the latency batch: (latency - prefill_time) / (output_len - 1).",
    ),
    Metric(
        "limit_fraction",
        "fraction",
        "higher",
        "Least time that the device's measured copy bandwidth and matrix rate allow for a step's bytes and operations, "
        "over the time it took; the output head counts for the tokens whose logits are taken: in prefill each prompt's "
        "last. Source: Williams et al., Roofline, CACM 52(4), 2009.",
        version=2,
    ),
    Metric(
        "copy_bandwidth",
        "GB/s",
        "higher",
        "Bytes read and written a second by the best of several copies in the device's memory, / 1e9.",
    ),
    Metric(
        "matrix_rate",
        "TFLOP/s",
        "higher",
        "Operations a second, / 1e12, of the best of several square matrix products on random data.",
    ),
    Metric(
        "kernel_time",
        "ms",
        "none",
        "Time in the device's kernels over one profiled batch of four steps; on a CPU, in its operators.",
    ),
    Metric(
        "quantized_kernel_share",
        "fraction",
        "none",
        "Share of the profiled kernel time of one batch that was spent in kernels of the recipe's own kind.",
    ),
    Metric(
        "generate_throughput",
        "tok/s",
        "higher",
        "New tokens a second of Transformers' generate at batch 1, greedy, prefill included; value: median of the "
        "rounds. Through ExecuTorch: the same of the C++ runner, or of ExecuTorch's LLM benchmark on an iPhone.",
    ),
    Metric("program_size", "B", "lower", "Bytes of the ExecuTorch program (.pte)."),
    Metric(
        "delegated_arithmetic",
        "fraction",
        "higher",
        "Share of the multiply-adds of all matrix products that a program leaves to its delegates, at the length of "
        "the export's example.",
    ),
    Metric("fallback_nodes", "nodes", "lower", "Operators of a program outside of its delegates."),
    Metric("export_cpu_time", "s", "lower", "CPU seconds of the process that exported the program, loading included."),
    Metric("export_peak_memory", "GB", "lower", "Peak resident set / 1e9 of the process that exported the program."),
    Metric("load_time", "s", "lower", "Seconds from opening the program until its method can run."),
    Metric(
        "prefill_throughput",
        "tok/s",
        "higher",
        "Prompt tokens a second until the first new token is known; value: median of the rounds.",
    ),
    Metric(
        "decode_throughput",
        "tok/s",
        "higher",
        "New tokens a second after the first, greedy, one at a time; value: median of the rounds.",
    ),
    Metric(
        "first_token_time",
        "ms",
        "lower",
        "From the prompt's text to the first new token, tokenizing included; value: median of the rounds.",
    ),
    Metric(
        "fallback_time",
        "fraction",
        "lower",
        "Share of the operators' time that is spent outside of delegates, from an etdump of one prompt and its answer.",
    ),
    Metric(
        "program_kl",
        "nats",
        "lower",
        "Mean over tokens of KL(eager || program), the eager model being the same checkpoint in Transformers and "
        "float32, over the same real text.",
    ),
    Metric(
        "program_top1",
        "fraction",
        "higher",
        "Share of positions where the program's and the eager model's most likely token is the same.",
    ),
    Metric("program_perplexity", "1", "lower", "Perplexity of the program, as perplexity is of a model."),
    Metric(
        "program_perplexity_change",
        "fraction",
        "lower",
        "Absolute relative difference of the program's perplexity from the eager model's over the same text.",
    ),
    Metric("logit_difference", "1", "lower", "Largest absolute difference of any logit from the eager model's."),
    Metric(
        "request_throughput",
        "req/s",
        "higher",
        "Completed requests a second of vLLM's serving benchmark over ShareGPT prompts, all sent at once; value: "
        f"median of the rounds. Source: {TUTORIAL}, Serving Benchmarking; vllm bench serve.",
    ),
    Metric("chat_tokens", "tokens", "none", "New tokens of the server's answer to the tutorial's chat completion."),
    Metric("output_throughput", "tok/s", "higher", "Generated tokens a second over the same serving benchmark."),
    Metric("ttft", "ms", "lower", "Time to first token of each request of the serving benchmark; value: median."),
    Metric(
        "tpot",
        "ms",
        "lower",
        "Time per output token after the first, of each request of the serving benchmark; value: median.",
    ),
    Metric("itl", "ms", "lower", "Time between successive tokens over the serving benchmark; value: median."),
    Metric(
        "engine_start",
        "s",
        "lower",
        "From the start of the engine's or server's process to the first request it can take; see parameter kind.",
    ),
    Metric("compile_time", "s", "lower", "Seconds of torch.compile that the engine reports while it starts."),
    Metric(
        "kv_cache_capacity", "tokens", "higher", "Tokens that fit the engine's key-value cache, as the engine sized it."
    ),
    Metric(
        "perplexity",
        "1",
        "lower",
        "exp of the mean negative log-likelihood a token over fixed windows of real text, teacher-forced.",
    ),
    Metric(
        "kl_divergence",
        "nats",
        "lower",
        "Mean over tokens of KL(baseline || recipe) of the next-token distributions over the same text.",
    ),
    Metric(
        "top1_agreement", "fraction", "higher", "Share of positions where both models' most likely token is the same."
    ),
    Metric(
        "token_flips",
        "fraction",
        "lower",
        "Share of positions where exactly one of the two models predicts the text's next token. Source: Dutta et al., "
        "Accuracy is Not All You Need, 2024 (flips), applied to next-token prediction.",
    ),
    Metric(
        "served_kl",
        "nats",
        "lower",
        "Mean over tokens of KL(Transformers || engine) of the next-token distributions over the same text, the same "
        "recipe in both: the lower bound that the likeliest 20 tokens of both give, where a token that a side does not "
        "list is at most as likely as the least likely one that it does.",
        version=2,
    ),
    Metric(
        "served_top1",
        "fraction",
        "higher",
        "Share of positions where the engine's and Transformers' most likely token is the same.",
    ),
    Metric("accuracy", "fraction", "higher", "The task's own metric as lm-evaluation-harness reports it."),
    Metric(
        "task_perplexity",
        "1",
        "lower",
        "The task's own perplexity as lm-evaluation-harness reports it (lambada_openai).",
    ),
    Metric(
        "answer_flips",
        "fraction",
        "lower",
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


# The tutorial's chat completion.
CHAT = {
    "messages": [{"role": "user", "content": "Give me a short introduction to large language models."}],
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
}
