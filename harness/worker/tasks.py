"""lm-evaluation-harness's tasks: loaded as they are or over local documents, evaluated, and answered in words."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness.contract.weights import Unusable
from harness.worker import task_index, texts
from harness.worker.local_tasks import Local
from harness.worker.task_progress import Report, told


def evaluate(
    model: Any,
    names: list[str],
    data: str | None = None,
    limit: int | None = None,
    options: dict[str, Any] | None = None,
    report: Report | None = None,
    calibrated_on: str | None = None,
) -> dict[str, Any]:
    """Evaluate tasks by name and return their metrics and per-document results; a tag's by the names of its tasks.

    With ``data``, a folder of JSON-lines files named after the tasks (:class:`harness.worker.local_tasks.Local`), each
    task keeps its own prompts, processing and metrics. ``options`` may have ``num_fewshot``, ``chat_template``, which
    asks for that of the tokenizer, ``system_instruction`` and ``generation``, a table of generation options.
    ``report`` is told of documents done. Raises Unusable for a task that is not there, lacks documents, needs a
    package that is missing, or asks what is in the text ``calibrated_on``.
    """
    options = options or {}
    manager = task_index.manager(tuple(names))
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        close = {name: task_index.nearest(name) for name in unknown}
        raise Unusable(f"lm-evaluation-harness has no task {', '.join(unknown)}; nearest: {close}")
    if options.get("chat_template") and not _chats(model):
        raise Unusable("a chat template was asked for, and the tokenizer has none: leave it out for this model")
    shots = options.get("num_fewshot")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            with _explained(name, data):
                local = Local(manager.task_index, Path(data), Path(folder), shots) if data else None
                asked = local.specification(name) if local else [name]
                with patch.dict(manager.task_index, local.entries if local else {}):
                    loaded = manager.load(asked)
                for task in loaded["tasks"].values():
                    _leave_out_the_document_itself(task)
                whole = list((loaded["groups"] or loaded["tasks"]).values())
                with told(model, report):
                    found = _ask(model, whole, manager, limit, options)
            if calibrated_on:
                texts.check_apart(calibrated_on, f"{name}'s documents", _documents(found))
            results |= _results(name, found, loaded)
    return results


def _documents(found: dict[str, Any]) -> Iterator[str]:
    """Yield the texts of each document that was evaluated, in one."""
    for samples in found["samples"].values():
        for sample in samples:
            yield "\n".join(_texts(sample["doc"]))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


def _chats(model: Any) -> bool:
    return bool(getattr(getattr(model, "tokenizer", None), "chat_template", None))


def _leave_out_the_document_itself(task: Any) -> None:
    """Have a task that takes its examples from the documents that it evaluates leave out the one in question.

    lm-evaluation-harness does so where it knows by their names that the two splits are one, and else does not.
    """
    config, own = task.config, getattr(task, "fewshot_cfg", None)
    if own is None or own.samples is not None:
        return
    evaluated = config.test_split or config.validation_split
    shots = own.split or config.training_split or config.validation_split or config.test_split
    if shots == evaluated:
        own.split = config.test_split


def _ask(model: Any, tasks: list[Any], manager: Any, limit: int | None, options: dict[str, Any]) -> dict[str, Any]:
    import lm_eval

    # It would list all packages with pip and ask for compilers, seconds each time, for a text that nothing here reads.
    with patch("lm_eval.evaluator.add_env_info", create=True):
        found: dict[str, Any] = lm_eval.simple_evaluate(
            model=model,
            tasks=tasks,
            task_manager=manager,
            num_fewshot=options.get("num_fewshot"),
            apply_chat_template=bool(options.get("chat_template")),
            system_instruction=options.get("system_instruction") or None,
            gen_kwargs=options.get("generation") or None,
            limit=limit,
            log_samples=True,
            bootstrap_iters=100,
            random_seed=0,
            numpy_random_seed=0,
            torch_random_seed=0,
            fewshot_random_seed=0,
        )
    return found


def _results(name: str, found: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
    """Return a result by the name that was asked for, of a group its own, and else those of the tasks."""
    leaves = list(found["samples"])
    tasks = loaded["tasks"]
    aggregate = _result(name, found, leaves, tasks) if name in loaded["groups"] and name in found["results"] else None
    if aggregate and aggregate["metrics"]:
        return {name: aggregate | {"tasks": {leaf: _result(leaf, found, [leaf], tasks)["metrics"] for leaf in leaves}}}
    return {leaf: _result(leaf, found, [leaf], tasks) for leaf in leaves}


def _result(name: str, found: dict[str, Any], leaves: list[str], tasks: dict[str, Any]) -> dict[str, Any]:
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    # A task with several filters answers each document once a filter: the first one is the task's own choice.
    filters = [key.partition(",")[2] for key in found["results"][name] if "," in key]
    first = filters[0] if filters else "none"
    for key, value in found["results"][name].items():
        metric, _, which = key.partition(",")
        if which and which != first:
            continue
        if not _is_number(value) or metric in ("alias", "sample_len", "sample_count"):
            continue
        if metric.endswith("_stderr"):
            errors[metric.removesuffix("_stderr")] = float(value)
        else:
            metrics[metric] = float(value)
    documents = [
        {
            "doc_id": sample["doc_id"],
            "doc_hash": sample["doc_hash"],
            **({"task": leaf} if len(leaves) > 1 else {}),
            **{metric: _number(sample[metric]) for metric in metrics if _counts(sample.get(metric))},
            **_margin(tasks.get(leaf), sample),
        }
        for leaf in leaves
        for sample in found["samples"][leaf]
        if sample.get("filter", first) == first
    ]
    return {
        "metrics": metrics,
        "stderr": {metric: error for metric, error in errors.items() if math.isfinite(error)},
        "higher_is_better": found["higher_is_better"].get(name, {}),
        "version": found["versions"].get(name),
        "num_fewshot": next((found["n-shot"][leaf] for leaf in leaves if leaf in found.get("n-shot", {})), 0),
        # What a model really reads: with which examples, in which template.
        "prompt": str(found["samples"][leaves[0]][0]["arguments"][0][0]) if found["samples"][leaves[0]] else "",
        "documents": documents,
    }


def _margin(task: Any, sample: dict[str, Any]) -> dict[str, float]:
    """Return by how much the right answer of a multiple-choice document is likelier than the likeliest wrong one.

    In nats, of the answers' whole log-likelihoods. Of a document without wrong answers, or whose right one cannot be
    told, there is none.
    """
    if task is None or task.config.output_type != "multiple_choice":
        return {}
    choices = task.doc_to_choice(sample["doc"])
    told = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    likely = [float(answer[0]) for answer in sample["filtered_resps"][: len(choices)]]
    right = {choices.index(it) if it in choices else it for it in (told if isinstance(told, list) else [told])}
    wrong = set(range(len(likely))) - right
    if not wrong or not right <= set(range(len(likely))):
        return {}
    margin = max(likely[it] for it in right) - max(likely[it] for it in wrong)
    return {"answer_margin": margin} if math.isfinite(margin) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _counts(value: Any) -> bool:
    """Return whether a document's value is a number or several; of some metrics it is the texts that are compared."""
    return _is_number(value) or (isinstance(value, (list, tuple)) and all(map(_is_number, value)))


def _number(value: Any) -> float | list[float]:
    return [float(part) for part in value] if isinstance(value, (list, tuple)) else float(value)


# --------------------------------------------------------------------------------------------------- in words


@contextlib.contextmanager
def _explained(name: str, data: str | None) -> Iterator[None]:
    """Say of what stops a task what would mend it."""
    try:
        yield
    except Unusable:
        raise
    except ImportError as error:
        raise Unusable(f"task {name} needs {_lacking(error)}") from error
    except ValueError as error:
        if "marked as unsafe" in str(error):
            raise Unusable(f"task {name} runs the code that a model writes, which is not done here") from error
        if "multimodal" in str(error):
            raise Unusable(f"task {name} needs images or sound, which this model is not given here") from error
        raise
    except LookupError as error:
        if "nltk" in str(error):
            resource = re.search(r"nltk\.download\('([\w.-]+)'\)", str(error))
            wanted = resource.group(1) if resource else "punkt_tab"
            raise Unusable(f"task {name} needs data of NLTK: python -m nltk.downloader {wanted}") from error
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and (script := _METRIC_SCRIPT.search(str(error))):
            raise Unusable(
                f"task {name} computes its metric by a program of the hub ({script.group(1)}), which does not answer"
            ) from error
        if data is None and _is_of_the_network(error):
            raise Unusable(
                f"the documents of task {name} are on the hub, which does not answer: put them into {name}.jsonl in a "
                "folder, and give that with --data"
            ) from error
        raise


_METRIC_SCRIPT = re.compile(r"module script at \S*?(\w+)\.py")
_OF_THE_NETWORK = (
    *("ConnectionError", "ConnectError", "OfflineModeIsEnabled"),
    *("LocalEntryNotFoundError", "DatasetNotFoundError"),
)


def _is_of_the_network(error: BaseException | None) -> bool:
    while error is not None:
        if any(kind.__name__ in _OF_THE_NETWORK for kind in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False


def _lacking(error: ImportError) -> str:
    """Return which package is missing and how to install it: by the extra of lm-eval that has it, if one does."""
    words = next(iter(str(error).strip().splitlines()), "a package")
    module = (error.name or "").partition(".")[0]
    if module:
        extras = sorted(_extras(module))
        install = f"'lm-eval[{extras[0]}]'" if extras else module.replace("_", "-")
        return f"the package {module}, which is not installed: pip install {install}"
    named = set(re.findall(r"[\w.-]+", words))
    extras = sorted({extra for it in named for extra in _extras(it)} or _declared() & named)
    return f"what is not installed: {words}" + (f"; pip install 'lm-eval[{extras[0]}]'" if extras else "")


def _extras(package: str) -> set[str]:
    """Return the extras of lm-eval that bring a package."""
    wanted = re.sub(r"[-_.]+", "-", package).lower()
    found: set[str] = set()
    for line in importlib.metadata.requires("lm_eval") or ():
        requirement, _, marker = line.partition(";")
        name = re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~@(]", requirement.strip())[0]).lower()
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", marker)
        if extra and extra.group(1) != "dev" and (name == wanted or name.startswith(f"{wanted}-")):
            found.add(extra.group(1))
    return found


def _declared() -> set[str]:
    return set(importlib.metadata.metadata("lm_eval").get_all("Provides-Extra") or ())
