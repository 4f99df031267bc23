"""A model's logits over windows of a text: computed once, kept in a file, and answered from it in the model's place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from harness.worker import evaluate, tensors
from harness.worker.texts import Windows


@tensors.inferring
def keep(model: Any, windows: Windows, file: Path, progress: Callable[[int], None], at_once: int = 1) -> None:
    """Write what a model predicts over windows, as it gives it: a tensor (tokens, vocabulary) a window."""
    found = {}
    for index, logits in enumerate(evaluate.predictions(model, windows, at_once, model.device)):
        # Of its own: a file has no two tensors of one memory.
        found[str(index)] = logits.cpu().clone(memory_format=torch.contiguous_format)
        progress(index + 1)
    save_file(found, file, metadata={"ids": json.dumps(windows.ids)})


class Kept:
    """What evaluations ask of a model, answered from a file of :func:`keep`, bit by bit as the model answered."""

    def __init__(self, file: Path, device: Any) -> None:
        self.device = device
        self._file = file
        opened: Any = safe_open(file, framework="pt", device=str(device))
        self._opened = opened
        told: list[list[int]] = json.loads(self._opened.metadata()["ids"])
        self._names = {tuple(window): str(index) for index, window in enumerate(told)}

    def __call__(self, ids: torch.Tensor) -> SimpleNamespace:
        """Return the logits (windows, tokens, vocabulary) of windows' token ids; ValueError for one not kept."""
        return SimpleNamespace(logits=torch.stack([self._of(window) for window in ids.tolist()]))

    def _of(self, window: list[int]) -> torch.Tensor:
        name = self._names.get(tuple(window))
        if name is None:
            raise ValueError(f"{self._file} holds no predictions of this window: its text or tokenizer is another")
        found: torch.Tensor = self._opened.get_tensor(name)
        return found
