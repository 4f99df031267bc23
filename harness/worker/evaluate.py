"""The quality of a model: perplexity and agreement over real text, and lm-evaluation-harness tasks."""

from __future__ import annotations

import difflib
import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from harness.worker.texts import Windows


@torch.inference_mode()  # type: ignore[untyped-decorator]
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


@torch.inference_mode()  # type: ignore[untyped-decorator]
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


def tasks(model: Any, names: list[str], data: str | None, limit: int | None) -> dict[str, Any]:
    """Evaluate tasks by name and return their metrics and per-document results.

    With ``data``, a folder of JSON-lines files named after the tasks, each task keeps its own prompts, processing
    and metrics and reads its documents from ``data/TASK.jsonl`` instead of the hub; FileNotFoundError if absent.
    """
    manager = _task_manager()
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        close = {name: difflib.get_close_matches(name, manager.all_tasks, 3) for name in unknown}
        raise ValueError(f"lm-evaluation-harness has no task {', '.join(unknown)}; nearest: {close}")
    with tempfile.TemporaryDirectory() as folder:
        wanted = [_local(manager, name, Path(data), Path(folder)) for name in names] if data else names
        found = _evaluate(model, wanted, manager, limit)
    return {name: _result(name, found) for name in names}


@functools.cache
def _task_manager() -> Any:
    """Return the index of all tasks; reading their thousands of files takes ten seconds, so once a worker."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _evaluate(model: Any, wanted: list[str], manager: Any, limit: int | None) -> dict[str, Any]:
    import lm_eval

    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=model,
        tasks=wanted,
        task_manager=manager,
        limit=limit,
        log_samples=True,
        bootstrap_iters=100,
        random_seed=0,
        numpy_random_seed=0,
        torch_random_seed=0,
        fewshot_random_seed=0,
    )
    return found


def _local(manager: Any, name: str, data: Path, folder: Path) -> str:
    """Write a task file that includes the task's own and reads local documents; return its path."""
    file = data / f"{name}.jsonl"
    if not file.is_file():
        have = ", ".join(sorted(path.stem for path in data.glob("*.jsonl"))) or "no .jsonl files"
        raise FileNotFoundError(f"task {name}: {file} is not there; the folder has {have}")
    splits = dict.fromkeys(("train", "validation", "test"), str(file))
    task = {
        "include": str(manager.task_index[name].yaml_path),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": splits},
    }
    written = folder / f"{name}.yaml"
    written.write_text(yaml.safe_dump(task), encoding="utf-8")
    return str(written)


def _result(name: str, found: dict[str, Any]) -> dict[str, Any]:
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    # A task with several filters answers each document once a filter: the first one is the task's own choice.
    filters = [key.partition(",")[2] for key in found["results"][name] if "," in key]
    first = filters[0] if filters else "none"
    for key, value in found["results"][name].items():
        metric, _, which = key.partition(",")
        if which and which != first:
            continue
        if not isinstance(value, (int, float)) or metric in ("alias", "sample_len", "sample_count"):
            continue
        if metric.endswith("_stderr"):
            errors[metric.removesuffix("_stderr")] = float(value)
        else:
            metrics[metric] = float(value)
    documents = [
        {
            "doc_id": sample["doc_id"],
            "doc_hash": sample["doc_hash"],
            **{metric: _number(sample[metric]) for metric in metrics if metric in sample},
        }
        for sample in found["samples"][name]
        if sample.get("filter", first) == first
    ]
    return {
        "metrics": metrics,
        "stderr": {metric: error for metric, error in errors.items() if math.isfinite(error)},
        "higher_is_better": found["higher_is_better"].get(name, {}),
        "version": found["versions"].get(name),
        "documents": documents,
    }


def _number(value: Any) -> float | list[float]:
    return [float(part) for part in value] if isinstance(value, (list, tuple)) else float(value)
