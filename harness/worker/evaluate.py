"""The quality of a model over real text: perplexity, agreement with another model, likeliest tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from harness.worker import tensors
from harness.worker.texts import Windows

# Positions of a text that a processor compares at once: those of a whole window over a vocabulary are 50 MB in each of
# ten steps, which is more work for memory than for the processor. Each position is told by itself, so nothing changes.
_ROWS = 64


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
    references = None if reference is None else predictions(reference, windows, at_once, model.device)
    for index, logits in enumerate(predictions(model, windows, at_once, model.device)):
        target = torch.tensor(windows.ids[index], device=model.device)[given + 1 :]
        against = None if references is None else next(references)[given:-1]
        for column, value in _compare(logits[given:-1], against, target).items():
            results[column].append(value)
        progress(index + 1)
    if not all(math.isfinite(value) for values in results.values() for value in values):
        raise ValueError("the model's predictions are not finite (NaN or infinity) on ordinary text")
    return {"windows": results, "tokens": sum(len(window) - given for window in windows.ids)}


def _compare(logits: torch.Tensor, reference: torch.Tensor | None, target: torch.Tensor) -> dict[str, float]:
    """Return what :func:`text_quality` tells of a window; logits are (tokens, vocabulary), ``target`` what came."""
    rows = _ROWS if logits.device.type == "cpu" else len(logits)
    nll, kl, top, top_r = [], [], [], []
    others = [None] * len(logits.split(rows)) if reference is None else reference.split(rows)
    for ours, theirs, right in zip(logits.split(rows), others, target.split(rows), strict=True):
        log_p = torch.log_softmax(ours.float(), dim=-1)
        nll.append(log_p.gather(1, right[:, None]))
        if theirs is not None:
            log_r = torch.log_softmax(theirs.float(), dim=-1)
            kl.append((log_r.exp() * (log_r - log_p)).sum(-1))
            top.append(log_p.argmax(-1))
            top_r.append(log_r.argmax(-1))
    found = {"nll": -torch.cat(nll).mean().item()}
    if kl:
        best, best_r = torch.cat(top), torch.cat(top_r)
        found["kl"] = torch.cat(kl).mean().item()
        found["top1"] = (best == best_r).float().mean().item()
        found["flips"] = ((best == target) != (best_r == target)).float().mean().item()
    return found


@tensors.inferring
def likeliest(model: Any, windows: Windows, top: int) -> list[list[list[tuple[int, float]]]]:
    """Return for each window and each of its tokens but the first the ``top`` likeliest ids with log-probabilities."""
    found = []
    for logits in predictions(model, windows, 1, model.device):
        values, tokens = torch.log_softmax(logits[:-1].float(), dim=-1).topk(top, dim=-1)
        rows = zip(tokens.tolist(), values.tolist(), strict=True)
        found.append([list(zip(token, value, strict=True)) for token, value in rows])
    return found


def predictions(model: Any, windows: Windows, at_once: int, device: Any) -> Iterator[torch.Tensor]:
    """Yield a model's logits over each window as it gives them, (tokens, vocabulary); ``at_once`` of them in a pass."""
    for start in range(0, len(windows), at_once):
        yield from model(torch.tensor(windows.ids[start : start + at_once], device=device)).logits
