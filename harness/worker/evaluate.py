"""The quality of a model over real text: perplexity, agreement with another model, likeliest tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from harness.worker import tensors
from harness.worker.texts import Windows


@tensors.inferring
def text_quality(
    model: Any, reference: Any | None, windows: Windows, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Hold a model against the text and, if there is one, against a reference model, teacher-forced.

    What is predicted are a window's tokens of the text but the first; what its tokenizer begins it with is given.
    Returns one entry a window: mean negative log-likelihood (nats a token), and against the reference the mean
    KL(reference || model) in nats, the share of equal most likely tokens, and the share of positions where exactly
    one of the two predicts the text's next token.
    """
    results: dict[str, list[float]] = {"nll": [], "kl": [], "top1": [], "flips": []}
    given = windows.given
    for index, window in enumerate(windows.ids):
        here = torch.tensor(window, device=model.device)
        target = here[given + 1 :]
        log_p = _log_probabilities(model, here)[given:]
        results["nll"].append(-log_p.gather(1, target[:, None]).mean().item())
        if reference is not None:
            log_r = _log_probabilities(reference, here)[given:]
            results["kl"].append((log_r.exp() * (log_r - log_p)).sum(-1).mean().item())
            top, top_r = log_p.argmax(-1), log_r.argmax(-1)
            results["top1"].append((top == top_r).float().mean().item())
            results["flips"].append(((top == target) != (top_r == target)).float().mean().item())
        progress(index + 1)
    if not all(math.isfinite(value) for values in results.values() for value in values):
        raise ValueError("the model's predictions are not finite (NaN or infinity) on ordinary text")
    return {"windows": results, "tokens": sum(len(window) - given for window in windows.ids)}


@tensors.inferring
def likeliest(model: Any, windows: Windows, top: int) -> list[list[list[tuple[int, float]]]]:
    """Return for each window and each of its tokens but the first the ``top`` likeliest ids with log-probabilities."""
    found = []
    for window in windows.ids:
        values, tokens = _log_probabilities(model, torch.tensor(window, device=model.device)).topk(top, dim=-1)
        rows = zip(tokens.tolist(), values.tolist(), strict=True)
        found.append([list(zip(token, value, strict=True)) for token, value in rows])
    return found


def _log_probabilities(model: Any, window: torch.Tensor) -> torch.Tensor:
    """Return what is predicted after each token of a window but the last: float32, (tokens - 1, vocabulary)."""
    return torch.log_softmax(model(window[None]).logits[0, :-1].float(), dim=-1)
