"""The quality of a model over real text: perplexity, agreement with another model, likeliest tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from harness.worker import tensors
from harness.worker.texts import Windows


@tensors.inferring
def text_quality(
    model: Any, reference: Any | None, windows: Windows, progress: Callable[[int], None], at_once: int = 1
) -> dict[str, Any]:
    """Hold a model against the text and, if there is one, against a reference model, teacher-forced.

    What is predicted are a window's tokens of the text but the first; what its tokenizer begins it with is given.
    Returns one entry a window: mean negative log-likelihood (nats a token), and against the reference the mean
    KL(reference || model) in nats, the share of equal most likely tokens, and the share of positions where exactly
    one of the two predicts the text's next token. Both predict ``at_once`` windows in one pass.
    """
    results: dict[str, list[float]] = {"nll": [], "kl": [], "top1": [], "flips": []}
    given = windows.given
    references = None if reference is None else _log_probabilities(reference, windows, at_once)
    for index, log_p in enumerate(_log_probabilities(model, windows, at_once)):
        target = torch.tensor(windows.ids[index], device=model.device)[given + 1 :]
        log_p = log_p[given:]
        results["nll"].append(-log_p.gather(1, target[:, None]).mean().item())
        if references is not None:
            log_r = next(references)[given:]
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
    for log_p in _log_probabilities(model, windows, 1):
        values, tokens = log_p.topk(top, dim=-1)
        rows = zip(tokens.tolist(), values.tolist(), strict=True)
        found.append([list(zip(token, value, strict=True)) for token, value in rows])
    return found


def _log_probabilities(model: Any, windows: Windows, at_once: int) -> Iterator[torch.Tensor]:
    """Yield what is predicted after each token but the last, a window at a time: float32, (tokens - 1, vocabulary)."""
    for logits in predictions(model, windows, at_once):
        yield torch.log_softmax(logits[:-1].float(), dim=-1)


def predictions(model: Any, windows: Windows, at_once: int) -> Iterator[torch.Tensor]:
    """Yield a model's logits over each window as it gives them, (tokens, vocabulary); ``at_once`` of them in a pass."""
    for start in range(0, len(windows), at_once):
        yield from model(torch.tensor(windows.ids[start : start + at_once], device=model.device)).logits
