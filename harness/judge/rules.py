"""How each metric is judged: its kind, its margin, and the reasons that a verdict may give."""

from __future__ import annotations

import math
from collections.abc import Iterable

from harness.base.errors import HarnessError
from harness.judge import stats
from harness.records.metric import Rule
from harness.records.metrics import METRICS

CONFIDENCE = 0.95
"""Of what is judged once; what is judged block by block asks for more: harness/judge/looks.py."""


# The share of a gate's regressions that may be none.
FALSE_DISCOVERIES = 0.05


REASONS = stats.REASONS | {
    "identical": "old and new gave the very same values",
    "stuck-clock": "what is timed came out the same to the last digit: a stuck clock, or an answer that was kept",
    "repeated-block": "a block has the very rounds of another one: it was copied, not measured",
    "too-few-blocks": "fewer blocks than the rule needs were measured within the budget",
    "bad-samples": "a sample is not a number that can be judged",
    "stopped-working": "it works under the old version and fails under the new one",
    "stopped-saving": "the old version saves a quantized checkpoint, the new one quantizes as a model is loaded",
    "started-saving": "the old version quantizes as a model is loaded, and the new one saves a checkpoint",
    "started-working": "it fails under the old version and works under the new one",
    "later-block-failed": "a block failed after the first one had worked, so nothing more of it was measured",
    "machine-trouble": "a full disk, or a machine that was throttled or shared: nothing that the recipe did",
    "budget-spent": "the budget was spent, or would have been before it had ended, so it was not measured",
    "no-node": "no node of the cluster measured it to its end",
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


RULES: dict[str, Rule] = {name: metric.rule for name, metric in METRICS.items() if metric.rule}
"""How each metric is judged that is."""


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
