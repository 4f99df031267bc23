"""What it means for those who use a model that a figure of it got worse."""

from __future__ import annotations

from typing import Literal

from harness.judge.rules import LAYERS, LOAD, LOGITS, MEASURING, OLD_CHECKPOINT, QUANTIZE, SERVE
from harness.records.metrics import METRICS

Topic = Literal["speed", "memory", "quality", "works"]

_WORSE = {
    "peak_memory": "a process needs more memory: what just fitted a device may fit it no more",
    "checkpoint_size": "checkpoints take more disk, and longer to download",
    "weight_size": "the loaded weights take more memory",
    "latency": "a batch of prompts is answered later",
    "request_throughput": "a server answers fewer requests a second: the same load needs more machines",
    "output_throughput": "a server writes fewer tokens a second: the same load needs more machines",
    "generate_throughput": "Transformers writes text more slowly",
    "engine_start": "it takes longer until a model that was started answers",
    "compile_time": "a model compiles longer before it answers for the first time",
    "perplexity": "the model predicts text worse",
    "task_perplexity": "the model predicts the task's answers worse",
    "kl_divergence": "the quantized model's predictions are further from the unquantized one's",
    "top1_agreement": "the quantized model chooses another next word more often than before",
    "token_flips": "the quantized model chooses another next word more often than before",
    "answer_margin": "the model is less sure of the right answers: of many questions it answers fewer rightly",
    "accuracy": "the model answers fewer questions rightly",
    "quantized_kernel_share": "less of the work is done by the quantized kernels: what is paid for is not what runs",
    LAYERS: "layers that were quantized are not: more memory, and mostly slower",
    LOGITS: "checkpoints that were saved with the old version predict otherwise once the new one reads them",
    MEASURING: "it is not known whether anything got worse",
    f"works: {QUANTIZE}": "no checkpoint of this recipe can be made with the new version",
    f"works: {LOAD}": "the model does not run with the new version",
    f"works: {SERVE}": "the model cannot be served with the new version",
    f"works: {OLD_CHECKPOINT}": "checkpoints that were saved with the old version cannot be used with the new one",
}
_TOPIC: dict[Topic, str] = {
    "speed": "it is slower than before",
    "memory": "it takes more memory than before",
    "quality": "its answers are worse than before",
    "works": "something that worked does not",
}


def topic(metric: str) -> Topic:
    """Return what a verdict's metric is about: speed, memory, quality, or whether it works at all."""
    known = METRICS.get(metric)
    if known is None or metric in (LAYERS, LOGITS):
        return "works"
    if known.rule and known.rule.kind == "size":
        return "memory"
    sections = {row.section for row in known.rows}
    return "quality" if "quality" in sections else "memory" if "memory" in sections else "speed"


def worse(metric: str) -> str:
    """Return what it means that a metric got worse, in a few words."""
    return _WORSE.get(metric) or _TOPIC[topic(metric)]
