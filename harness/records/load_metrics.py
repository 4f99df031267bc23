"""The metrics of workloads on servers: what users meet at a rate, the rate that holds limits, energy and cost."""

from __future__ import annotations

from harness.base.numbers import places
from harness.records.metric import Metric, Row, Rule, Words

_AT = ("workload", "at")
_SLO = ("workload", "slo")
_ABOUT = "of the workload `workload` at the rate or state `at`, sent by vLLM's serving benchmark (vllm bench serve)"


LOAD: tuple[Metric, ...] = (
    Metric(
        "capacity",
        "req/s",
        "higher",
        "server",
        "The highest rate of requests at which every limit of `slo` holds: where the strictest one is met, between the "
        "rates of a bisection, interpolated in logarithms. interval_low to interval_high is what it may be at 95 %, by "
        "order statistics of the requests with the effective number of them; a rate at which the queue grows does not "
        "hold. Source: MLPerf inference, server scenario, for what is asked; docs/methods/load.md for how.",
        parameters=_SLO,
        rule=Rule("blocks", 0.10, True),
        rows=(Row("performance", "capacity", suffix=" req/s", shown=("slo",), lead=("workload",)),),
        samples="rounds",
    ),
    Metric(
        "saturation_throughput",
        "tok/s",
        "higher",
        "server",
        "Generated tokens a second where all requests of the workload come at once, from the first sent to the last "
        "token; value: median of the runs.",
        parameters=("workload",),
        rule=Rule("blocks", 0.05, True),
        rows=(Row("performance", "saturation", suffix=" tok/s", shown=(), lead=("workload",)),),
        samples="rounds",
    ),
    Metric(
        "goodput",
        "req/s",
        "higher",
        "server",
        "Requests a second that each keep every limit of `slo` themselves, whatever quantile it is on: " + _ABOUT + ". "
        "Source: Zhong et al., DistServe, OSDI 2024; vllm bench serve --goodput.",
        parameters=(*_AT, "slo"),
        rows=(Row("detail", "goodput", suffix=" req/s", shown=("at", "slo"), lead=("workload",)),),
        samples="rounds",
    ),
    Metric(
        "load_requests",
        "req/s",
        "higher",
        "server",
        "Requests completed a second, "
        + _ABOUT
        + "; its statistics have the rate that was asked for, the one achieved, "
        "and how busy the client was.",
        parameters=_AT,
        rows=(Row("detail", "completed", suffix=" req/s", shown=("at",), lead=("workload",)),),
        samples="rounds",
    ),
    Metric(
        "load_tokens",
        "tok/s",
        "higher",
        "server",
        "Generated tokens a second, " + _ABOUT + ".",
        parameters=_AT,
        rows=(Row("detail", "generated", suffix=" tok/s", shown=("at",), lead=("workload",)),),
        samples="rounds",
    ),
    Metric(
        "load_ttft",
        "ms",
        "lower",
        "server",
        "Time to first token of each request, from when it was sent, " + _ABOUT + "; value: median.",
        parameters=_AT,
        rows=(
            Row("detail", "TTFT median under load", suffix=" ms", shown=("at",), lead=("workload",)),
            Row("detail", "TTFT p99 under load", suffix=" ms", shown=("at",), lead=("workload",), statistic="p99"),
        ),
        samples="requests",
    ),
    Metric(
        "load_tpot",
        "ms",
        "lower",
        "server",
        "Time per output token after the first of each request, "
        + _ABOUT
        + "; value: median. 1000 over it is what one "
        "user gets, in tokens a second.",
        parameters=_AT,
        rows=(
            Row("detail", "TPOT median under load", suffix=" ms", shown=("at",), lead=("workload",)),
            Row("detail", "TPOT p99 under load", suffix=" ms", shown=("at",), lead=("workload",), statistic="p99"),
        ),
        samples="requests",
    ),
    Metric(
        "load_latency",
        "ms",
        "lower",
        "server",
        "Time from sending a request to its last token, " + _ABOUT + "; value: median.",
        parameters=_AT,
        rows=(
            Row("detail", "latency median under load", suffix=" ms", shown=("at",), lead=("workload",)),
            Row("detail", "latency p99 under load", suffix=" ms", shown=("at",), lead=("workload",), statistic="p99"),
        ),
        samples="requests",
    ),
    Metric(
        "energy_per_token",
        "J/tok",
        "lower",
        "server",
        "Energy of the device, or of all GPUs that share the model, over generated tokens, its idle power taken off, "
        + _ABOUT
        + ": NVML's counter of the GPU's board, or RAPL's of the processor packages. Its statistics have the idle "
        "power and the energy with it.",
        parameters=_AT,
        rows=(Row("performance", "energy a token", Words.PERCENT, " J", places(3), shown=("at",), lead=("workload",)),),
        samples="rounds",
    ),
    Metric(
        "token_cost",
        "cost/Mtok",
        "lower",
        "server",
        "What a million generated tokens cost: the price of the device's hour (load.price, --price), in `currency`, "
        "times the GPUs that share the model, over the tokens of an hour, " + _ABOUT + ".",
        parameters=(*_AT, "currency", "price"),
        rows=(
            Row(
                "performance", "cost of 1M tokens", Words.PERCENT, shown=("at", "currency", "price"), lead=("workload",)
            ),
        ),
        samples="rounds",
    ),
)
