"""One environment's predictions for a checkpoint that another one made: written down, and held against those."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file

from harness.worker import tensors, texts
from harness.worker.generate import Generate


class Compatibility(Generate):
    """A checkpoint loaded through Transformers, asked for its logits."""

    commands: ClassVar[tuple[str, ...]] = ("write_logits", "compare_logits")

    def write_logits(self, text: str, windows: int, window_tokens: int, output: str) -> dict[str, Any]:
        """Write the logits over the start of a text, (windows, tokens of a window, vocabulary).

        Returns how far this version is from itself when the same windows go through it as one batch, in the terms of
        :meth:`compare_logits`: matrix products of other shapes round otherwise, and a recipe that quantizes its
        activations as they come makes much of that.
        """
        found = self._logits(text, windows, window_tokens)
        save_file({"logits": found}, output)
        return _distance(self._logits(text, windows, window_tokens, together=True), found)

    def compare_logits(self, text: str, windows: int, window_tokens: int, against: str) -> dict[str, Any]:
        """Return how far the logits over the same text are from those in the file ``against``.

        ``kl`` is the mean over positions of KL(theirs || ours) in nats, ``top1`` the share of positions with the same
        most likely token, ``largest`` the largest absolute difference of two logits.
        """
        ours = self._logits(text, windows, window_tokens)
        theirs = load_file(against)["logits"]
        if ours.shape != theirs.shape:
            raise ValueError(f"logits have shape {tuple(ours.shape)}, those to compare with {tuple(theirs.shape)}")
        return _distance(ours, theirs)

    @tensors.inferring
    def _logits(self, text: str, windows: int, window_tokens: int, together: bool = False) -> torch.Tensor:
        ids = torch.tensor(texts.windows(self.tokenizer, Path(text), windows, window_tokens).ids)
        batches = [ids] if together else list(ids.split(1))
        found = torch.cat([self.model(batch.to(self.model.device)).logits.float().cpu() for batch in batches])
        if not found.isfinite().all():
            raise ValueError("the model's logits are not finite (NaN or infinity) on ordinary text")
        return found.contiguous()


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, Any]:
    log_p, log_r = torch.log_softmax(ours, -1), torch.log_softmax(theirs, -1)
    return {
        "kl": (log_r.exp() * (log_r - log_p)).sum(-1).mean().item(),
        "top1": (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item(),
        "largest": (ours - theirs).abs().max().item(),
    }


BACKEND = Compatibility
