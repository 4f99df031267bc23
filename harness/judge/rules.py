"""How each metric is judged: its kind, its margin, and the reasons that a verdict may give."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from harness.base.errors import HarnessError
from harness.judge import stats

CONFIDENCE = 0.95


# The share of a gate's regressions that may be none.
FALSE_DISCOVERIES = 0.05


REASONS = stats.REASONS | {
    "identical": "old and new gave the very same values",
    "too-few-blocks": "fewer blocks than the rule needs were measured within the budget",
    "bad-samples": "a sample is not a number that can be judged",
    "stopped-working": "it works under the old version and fails under the new one",
    "started-working": "it fails under the old version and works under the new one",
    "later-block-failed": "a block failed after the first one had worked, so nothing more of it was measured",
    "machine-trouble": "a full disk, or a machine that was throttled or shared: nothing that the recipe did",
    "fails-both": "it fails under both versions, so nothing can be judged",
    "layers-lost": "layers that were quantized under the old version are not under the new one",
    "layers-kept": "what was quantized under the old version is quantized under the new one",
    "checkpoint-reads-same": "a checkpoint of the old version gives the same logits under the new one",
    "checkpoint-differs": "a checkpoint of the old version gives other logits under the new one",
}


QUANTIZE, LOAD, SERVE, OLD_CHECKPOINT = STAGES = ("quantize and save", "load and run", "serve", "old checkpoint")
"""The stages of the compatibility matrix."""


LAYERS, LOGITS, MEASURING = "quantized_layers", "old checkpoint's logits", "measuring"


EVENTS = (LAYERS, LOGITS, MEASURING, *(f"works: {stage}" for stage in STAGES))
"""What verdicts are called that are on something that happened or not; ``measuring`` could not be gone on with."""


Kind = Literal["blocks", "size", "ratio", "difference", "documents", "likelihood"]


@dataclass(frozen=True)
class Rule:
    """How one metric is judged.

    ``margin`` is a share for blocks, sizes and ratios, and in the metric's unit for differences. ``absolute`` is the
    change of a size, in its unit, that is always allowed. ``of_old`` adds a share of the old value to the margin of a
    difference. Primary metrics decide the exit status; the others are told.
    """

    kind: Kind
    margin: float
    primary: bool
    absolute: float = 0.0
    of_old: float = 0.0


# Chosen: a tenth of the effects that quantization is used for. Blocks: per cent of speed that a user would notice and
# that a quiet machine can tell; sizes: above the repeatability of peak memory (1 MB); quality: well inside the standard
# errors that the suites' tables show.
RULES: dict[str, Rule] = {
    "generate_throughput": Rule("blocks", 0.05, True),
    "latency": Rule("blocks", 0.05, True),
    "request_throughput": Rule("blocks", 0.05, True),
    "ttft": Rule("blocks", 0.10, False),
    "tpot": Rule("blocks", 0.10, False),
    "itl": Rule("blocks", 0.10, False),
    "engine_start": Rule("blocks", 0.25, False),
    "compile_time": Rule("blocks", 0.25, False),
    "peak_memory": Rule("size", 0.02, True, absolute=0.01),
    "checkpoint_size": Rule("size", 0.01, True, absolute=1e5),
    "weight_size": Rule("size", 0.01, True, absolute=1e5),
    "perplexity": Rule("ratio", 0.01, True),
    "kl_divergence": Rule("difference", 0.001, True, of_old=0.1),
    "top1_agreement": Rule("difference", 0.02, False),
    "token_flips": Rule("difference", 0.01, False),
    "accuracy": Rule("documents", 0.02, True),
    "task_perplexity": Rule("likelihood", 0.02, False),
}


class Margins:
    """The margins in force: those of ``RULES`` unless the user said otherwise."""

    def __init__(self, given: Iterable[str] = ()) -> None:
        self.given = list(given)
        self._of: dict[str, float] = {}
        timed = [metric for metric, rule in RULES.items() if rule.kind == "blocks" and rule.primary]
        for text in self.given:
            name, _, number = text.rpartition("=")
            try:
                value = float(number)
            except ValueError:
                value = math.nan
            if not 0 < value < 1:
                raise HarnessError(f"--margin {text!r}: needs a share between 0 and 1, as in 0.05 or latency=0.05")
            if name and name not in RULES:
                raise HarnessError(f"--margin {text!r}: {name} is not judged here; known: {', '.join(RULES)}")
            for metric in [name] if name else timed:
                self._of[metric] = value

    def of(self, metric: str) -> float:
        return self._of.get(metric, RULES[metric].margin)
