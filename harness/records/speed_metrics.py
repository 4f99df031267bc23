"""The metrics of memory and performance, in the order of the tables: the tutorial's first."""

from __future__ import annotations

from harness.base.numbers import places, size
from harness.records.metric import Metric, Row, Rule, Words

TUTORIAL = "torchao tutorial, part 3 (serving)"
_BATCH = ("batch_size", "input_len", "output_len")
_SERVING = ("num_prompts", "dataset", "output_len")
_PROGRAM = ("runner", "route", "prompt_tokens", "new_tokens")
_BY_BATCH = ("batch_size",)
_BY_PROMPTS = ("num_prompts",)
_BY_ROUTE = ("route",)
_BY_RUNNER = ("runner", "route")


SPEED: tuple[Metric, ...] = (
    Metric(
        "peak_memory",
        "GB",
        "lower",
        "transformers",
        "Peak memory of a fresh process that loads the saved checkpoint and generates the tutorial's "
        "prompt with 128 new tokens: max_memory_reserved / 1e9 on a GPU, peak resident set / 1e9 on a CPU. "
        "Through ExecuTorch: peak resident set / 1e9 of the C++ runner's process that loads and runs the program. "
        f"Source: {TUTORIAL}, Memory Benchmarking.",
        # The second: on a CPU the process imports all that one by hand does.
        version=2,
        parameters=("max_new_tokens", "runner", "prompt_tokens", "new_tokens"),
        rule=Rule("size", 0.02, True, absolute=0.01),
        rows=(Row("memory", "Peak Memory (GB)", Words.PERCENT),),
        samples="rounds",
    ),
    Metric(
        "checkpoint_size",
        "B",
        "lower",
        "quantize",
        "Bytes of the safetensors files of the saved checkpoint.",
        rule=Rule("size", 0.01, True, absolute=1e5),
        rows=(Row("memory", "Checkpoint Size", Words.PERCENT, number=size),),
    ),
    Metric(
        "weight_size",
        "B",
        "lower",
        "quantize",
        "Bytes of the distinct storages behind the loaded parameters and buffers; a quantized tensor counts "
        "as the sum of its inner tensors, a tied weight counts once.",
        rule=Rule("size", 0.01, True, absolute=1e5),
        rows=(Row("memory", "Weight Size", Words.PERCENT, number=size),),
    ),
    Metric(
        "program_size",
        "B",
        "lower",
        "export",
        "Bytes of the ExecuTorch program (.pte).",
        parameters=("route",),
        rows=(Row("memory", "Program Size (.pte)", Words.PERCENT, number=size, shown=_BY_ROUTE),),
    ),
    Metric(
        "latency",
        "s",
        "lower",
        "engine",
        "Wall time of one batch through vLLM's offline engine, random prompts of input_len tokens, output_len new "
        "tokens with EOS ignored, prefix caching off; value: mean of the rounds. "
        f"Source: {TUTORIAL}, Latency Benchmarking; vllm bench latency.",
        parameters=_BATCH,
        rule=Rule("blocks", 0.05, True),
        rows=(Row("performance", "latency", suffix="s", shown=_BY_BATCH),),
        samples="rounds",
    ),
    Metric(
        "request_throughput",
        "req/s",
        "higher",
        "server",
        "Completed requests a second of vLLM's serving benchmark over ShareGPT prompts, all sent at once; value: "
        f"median of the rounds. Source: {TUTORIAL}, Serving Benchmarking; vllm bench serve.",
        parameters=_SERVING,
        rule=Rule("blocks", 0.05, True),
        rows=(Row("performance", "serving", suffix=" req/s", shown=_BY_PROMPTS),),
        samples="rounds",
    ),
    Metric(
        "generate_throughput",
        "tok/s",
        "higher",
        "transformers",
        "New tokens a second of Transformers' generate at batch 1, greedy, prefill included; value: median of the "
        "rounds. Through ExecuTorch: the same of the C++ runner, or of ExecuTorch's LLM benchmark on an iPhone.",
        parameters=("max_new_tokens", "batch_size", *_PROGRAM),
        rule=Rule("blocks", 0.05, True),
        rows=(Row("performance", "generate", suffix=" tok/s"),),
        samples="rounds",
    ),
    Metric(
        "prefill_throughput",
        "tok/s",
        "higher",
        "export",
        "Prompt tokens a second until the first new token is known; value: median of the rounds.",
        parameters=_PROGRAM,
        rows=(Row("performance", "prefill", suffix=" tok/s", shown=_BY_RUNNER),),
        samples="rounds",
    ),
    Metric(
        "decode_throughput",
        "tok/s",
        "higher",
        "export",
        "New tokens a second after the first, greedy, one at a time; value: median of the rounds.",
        parameters=_PROGRAM,
        rows=(Row("performance", "decode", suffix=" tok/s", shown=_BY_RUNNER),),
        samples="rounds",
    ),
    Metric(
        "first_token_time",
        "ms",
        "lower",
        "export",
        "From the prompt's text to the first new token, tokenizing included; value: median of the rounds.",
        parameters=_PROGRAM,
        rows=(Row("performance", "first token", suffix=" ms", shown=_BY_RUNNER),),
        samples="rounds",
    ),
    Metric(
        "load_time",
        "s",
        "lower",
        "export",
        "Seconds from opening the program until its method can run.",
        parameters=_PROGRAM,
        rows=(Row("performance", "load", suffix="s", number=places(3), shown=_BY_RUNNER),),
        samples="rounds",
    ),
)
