"""All metrics by name, the groups of them that code asks for, and which stage gave a figure.

A metric is a row of speed_metrics.py, load_metrics.py, detail_metrics.py or quality_metrics.py: all that is to be
known of it, in the order of the tables.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.records.detail_metrics import DETAIL
from harness.records.load_metrics import LOAD
from harness.records.metric import STAGES, Metric, Stage
from harness.records.quality_metrics import QUALITY
from harness.records.speed_metrics import SPEED

METRICS: dict[str, Metric] = {metric.name: metric for metric in (*SPEED, *LOAD, *DETAIL, *QUALITY)}

OF_THE_DEVICE = frozenset({"copy_bandwidth", "matrix_rate"})
"""Metrics of the device alone, which stand with a cell since they were measured for it."""

TEXT_QUALITY = frozenset({"perplexity", "kl_divergence", "top1_agreement", "token_flips"})

TASKS = frozenset({"accuracy", "answer_margin", "task_perplexity"})

OF_LOAD = frozenset(metric.name for metric in LOAD)
"""What is measured where a workload is named."""

SIZES = frozenset({"checkpoint_size", "weight_size"})
"""Known as soon as a checkpoint is made, without a block of a gate."""


def _judged(*stages: Stage) -> frozenset[str]:
    return frozenset(name for name, metric in METRICS.items() if metric.rule and metric.stage in stages)


GATED: Mapping[Stage, frozenset[str]] = {
    "transformers": _judged("quantize", "transformers"),
    "engine": _judged("engine"),
    # A server starts too.
    "server": _judged("server") | {"engine_start"},
}
"""What a gate measures at each stage of the suites, block by block; sizes are asked for with the first."""

TASK_BATCH = {"cuda": 256, "cpu": 8}
"""Requests of a task that go through Transformers at once, by torch device."""


def stage_of(metric: str, server: str, parameters: Mapping[str, object]) -> Stage | None:
    """Return the stage that gave a figure, or None for a metric that is not known here.

    Starts, and what an engine tells of itself, say whose they are by their ``kind``: a client's belongs to the server
    that it asks. All of an ExecuTorch program is of its export. A task names the server that it went ``through``.
    Transformers has a stage of its own, and none of an engine.
    """
    known = METRICS.get(metric)
    kind = parameters.get("kind")
    if known is None:
        return None
    if server == "executorch":
        return "export"
    if kind == "client" or (server and parameters.get("through") == server):
        return "server"
    own: Stage = "transformers" if server == "transformers" and known.stage == "engine" else known.stage
    return next((stage for stage in STAGES if stage == kind), own)
