"""Which of torchao's configs observe a model on a text before they quantize it; read by planner and workers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

OBSERVING = frozenset(
    {
        "AWQConfig",
        "Float8StaticActivationFloat8WeightConfig",
        "GPTQConfig",
        "Int8StaticActivationInt8WeightConfig",
        "SmoothQuantConfig",
    }
)
"""Configs whose weights or activations are scaled by what is seen on a calibration text."""

CONVERTING = "QATConfig"
"""The config that converts a model which was trained with fake quantization; it observes nothing."""

WORDS = 13
"""Successive words that two texts have in common where one holds a piece of the other, as GPT-3's authors counted."""

_FEWEST = 6


def needs_text(config: str | None, arguments: Collection[str]) -> bool:
    """Return whether a recipe needs a calibration text: its config observes, and no scale of activations is given."""
    return config in OBSERVING and "act_quant_scale" not in arguments


def staged(config: str, arguments: Collection[str]) -> bool:
    """Return whether a config is applied in steps: prepared, perhaps observed, converted."""
    return needs_text(config, arguments) or (config == CONVERTING and "base_config" in arguments)


def last_step(config: str) -> str:
    """Return the ``step`` of a config that is applied in steps, by which what it made is loaded or converted."""
    return "prepare_for_loading" if config in ("AWQConfig", "SmoothQuantConfig") else "convert"


class Pieces:
    """The runs of 13 words of texts, whatever their case and punctuation, to find other texts that hold one of them.

    A text of 6 to 12 words is held whole or not at all; of fewer nobody can say whose they are.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        words = [_words(text) for text in texts]
        self._runs = {run for one in words for run in _runs(one)}
        self._whole = "\n".join(f" {' '.join(one)} " for one in words)

    def in_common(self, text: str) -> bool:
        """Return whether a text has a run of words in common with these, or is a short one that they hold."""
        words = _words(text)
        if len(words) >= WORDS:
            return not self._runs.isdisjoint(_runs(words))
        return len(words) >= _FEWEST and f" {' '.join(words)} " in self._whole


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(words: list[str]) -> Iterable[int]:
    return (hash(tuple(words[start : start + WORDS])) for start in range(len(words) - WORDS + 1))
