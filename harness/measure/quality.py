"""How good a model's predictions are, and whether a server predicts what Transformers does, as records."""

from __future__ import annotations

import functools
import glob
import math
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError, Unsuitable
from harness.base.files import file_digest
from harness.base.text import digest as digest_of
from harness.contract import versions
from harness.matrix.plan import Cell
from harness.matrix.schema import TaskOptions
from harness.measure.agreement import LIKELIEST, hold
from harness.measure.figures import Figure, standard_error
from harness.measure.recorder import Recorder
from harness.records.metrics import METRICS
from harness.records.schema import Measurement, Scalar
from harness.runtime.store import Artifact
from harness.servers.base import SERVED_NAME
from harness.servers.registry import TRANSFORMERS

# Enough to tell a layer that is wrong from one that rounds otherwise.
_AGREEMENT_WINDOWS, _AGREEMENT_TOKENS = 4, 64


def text_quality(recorder: Recorder, cell: Cell) -> dict[str, Measurement]:
    """Measure perplexity of real text and, for a recipe, its agreement with the baseline over the same text."""
    flow, wanted = recorder.flow, cell.measurements.text
    alone = cell.recipe.baseline or flow.checkpoints.alone(cell)
    baseline = None if alone else flow.checkpoints.plain(cell.model, cell.hardware)
    names = ["perplexity"] if baseline is None else ["perplexity", "kl_divergence", "top1_agreement", "token_flips"]
    text = flow.checkpoints.prompts()
    # One by one, and with the keys of before, where they always were.
    at_once = {"at_once": many} if (many := cell.hardware.windows_at_once(wanted.window_tokens)) > 1 else {}
    question = {"text": text.key, "windows": wanted.windows, "tokens": wanted.window_tokens, **at_once}
    key: dict[str, Any] = dict(question)
    key |= {"definition": METRICS["perplexity"].version, "baseline": baseline.key if baseline else None}
    asked: dict[str, Any] = {
        "text": str(text.folder / "text.txt"),
        "windows": wanted.windows,
        "window_tokens": wanted.window_tokens,
        **at_once,
    }

    def ask() -> dict[str, Any]:
        kept = None
        # The baseline alone needs no reference, which is large.
        if baseline or (cell.recipe.baseline and flow.fleet.recipes_follow(cell)):
            kept = flow.checkpoints.reference(cell, question, predict)
        return flow.fleet.transformers(cell).ask(
            "text_quality",
            cell.measurements.time_limits.evaluate,
            baseline=str(baseline.folder) if baseline else None,
            kept=str(kept) if kept else None,
            **_apart(recorder, cell),
            **asked,
        )

    def predict(checkpoint: Path, output: Path) -> dict[str, Any]:
        worker, limit = flow.fleet.transformers(cell), cell.measurements.time_limits.evaluate
        return worker.ask("reference", limit, checkpoint=str(checkpoint), output=str(output), **asked)

    def take() -> dict[str, Figure]:
        return _over_windows(flow.checkpoints.evaluated(cell, "text quality", {"text_quality": key}, ask))

    parameters: dict[str, Scalar] = {
        "text": "ShareGPT answers",
        "windows": wanted.windows,
        "window_tokens": wanted.window_tokens,
    }
    return recorder.block(cell, parameters, inputs=text.key).take(take, names=names)


def _apart(recorder: Recorder, cell: Cell) -> dict[str, Any]:
    """Have workers refuse to evaluate what a cell's recipe was calibrated on."""
    if cell.recipe.calibration is None:
        return {}
    return {"calibrated_on": recorder.flow.checkpoints.calibrations.file(cell)}


def _over_windows(artifact: Artifact) -> dict[str, Figure]:
    windows, cached = artifact.facts["windows"], not artifact.made
    nll = statistics.fmean(windows["nll"])
    error = standard_error(windows["nll"]) * math.exp(nll)
    per_window = [math.exp(value) for value in windows["nll"]]
    found = {"perplexity": Figure(math.exp(nll), per_window, statistics={"stderr": error}, from_cache=cached)}
    for name, column in (("kl_divergence", "kl"), ("top1_agreement", "top1"), ("token_flips", "flips")):
        if values := windows[column]:
            error = standard_error(values)
            found[name] = Figure(statistics.fmean(values), values, statistics={"stderr": error}, from_cache=cached)
    return found


def agreement(recorder: Recorder, cell: Cell) -> dict[str, Measurement]:
    """Measure how far an engine's predictions over real text are from Transformers' with the same recipe."""
    if cell.model.one_layer:
        raise Unsuitable(f"{cell.id}: of the model one layer lies in files, so Transformers has no whole to agree with")
    flow, limit = recorder.flow, cell.measurements.time_limits.evaluate
    text = flow.checkpoints.prompts()
    asked = {"windows": _AGREEMENT_WINDOWS, "window_tokens": _AGREEMENT_TOKENS}
    key = {"text": text.key, "top": LIKELIEST, "definition": METRICS["served_kl"].version, **asked}

    def predict() -> dict[str, Any]:
        worker = flow.fleet.transformers(cell)
        return worker.ask("predictions", limit, text=str(text.folder / "text.txt"), top=LIKELIEST, **asked)

    @functools.cache
    def reference() -> Mapping[str, Any]:
        return flow.checkpoints.evaluated(cell, "predictions", {"predictions": key}, predict).facts

    def take() -> dict[str, Figure]:
        answer = flow.fleet.engine(cell).ask("predictions", limit, sequences=reference()["ids"], top=LIKELIEST)
        ours, theirs = ([[dict(row) for row in window] for window in it["top"]] for it in (reference(), answer))
        found = hold(ours, theirs)
        return {
            name: Figure(statistics.fmean(values), values, statistics={"stderr": standard_error(values)})
            for name, values in (("served_kl", found.kl), ("served_top1", found.top1))
        }

    parameters: dict[str, Scalar] = {"text": "ShareGPT answers", **asked}
    names = ("served_kl", "served_top1")
    # The reference before the engine starts: on a GPU one worker has the whole of it.
    return recorder.block(cell, parameters, engine=True, inputs=text.key).take(
        take, names=names, prepare=reference, fixed=True
    )


# -------------------------------------------------------------------------------------------------------- tasks


def task(recorder: Recorder, cell: Cell, name: str) -> dict[str, Measurement]:
    """Evaluate one lm-evaluation-harness task, through Transformers or through the served model."""
    flow, limit = recorder.flow, cell.measurements.time_limits.evaluate
    common: dict[str, Any] = {"names": [name], "data": str(flow.data) if flow.data else None, "limit": flow.limit}
    common["options"] = flow.task_options(name).asked
    common |= _apart(recorder, cell)
    batch_size = cell.hardware.task_batch

    def through_transformers() -> dict[str, Any]:
        return flow.fleet.transformers(cell).ask("tasks", limit, batch_size=batch_size, **common)

    def through_server() -> dict[str, Any]:
        server = flow.fleet.server(cell)
        tokenizer = str(flow.checkpoints.served(cell).folder)
        client = flow.fleet.client(cell)
        return client.ask("tasks", limit, url=server.url, model=SERVED_NAME, tokenizer=tokenizer, **common)

    if cell.server == TRANSFORMERS:
        return _evaluate(recorder, cell, name, "", {"batch_size": batch_size}, through_transformers)
    packages, own = flow.fleet.packages(cell), flow.fleet.backend(cell).distributions
    key = {
        "batch_size": batch_size,
        "server": {package: version for package, version in packages.items() if package in own},
        **flow.fleet.options(cell),
        **flow.fleet.variables(cell),
    }
    return _evaluate(recorder, cell, name, cell.server, key, through_server)


def task_through(
    recorder: Recorder,
    cell: Cell,
    name: str,
    through: str,
    key: dict[str, Any],
    ask: Callable[..., dict[str, Any]],
) -> dict[str, Measurement]:
    """Evaluate a task by ``ask(data, limit, options)``, which ``key`` identifies besides cell, task and these."""
    flow = recorder.flow
    data = str(flow.data) if flow.data else None
    return _evaluate(recorder, cell, name, through, key, lambda: ask(data, flow.limit, flow.task_options(name).asked))


def _evaluate(
    recorder: Recorder, cell: Cell, name: str, through: str, key: dict[str, Any], ask: Callable[[], dict[str, Any]]
) -> dict[str, Measurement]:
    flow = recorder.flow
    digest = _data_digest(flow.data, name)
    whole = {"task": name, "definition": METRICS["accuracy"].version, "limit": flow.limit, "data": digest, **key}
    whole |= versions.in_key("asking", versions.TASKS)
    options = flow.task_options(name)
    if options.asked:
        whole["options"] = options.asked
    if through:
        whole["through"] = through
    artifact = flow.checkpoints.evaluated(cell, f"{name} {through}".strip(), whole, ask)
    found: dict[str, Measurement] = {}
    known: list[str] = []
    for task, result in artifact.facts.items():
        known += result["metrics"]
        asked = _asked(options, result)
        figures = _record(recorder, cell, task, result, artifact, str(digest or "hub")[:16], through, asked)
        # Of a tag its tasks have a name each.
        found |= figures if len(artifact.facts) == 1 else {f"{task} {of}": it for of, it in figures.items()}
    if not found:
        told = ", ".join(dict.fromkeys(known)) or "none"
        raise HarnessError(f"task {name} of {cell.id}: none of its metrics is one that is recorded here ({told})")
    return found


def _asked(options: TaskOptions, result: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return the parameters of how a task was asked: what tells figures apart that have nothing to do with each "
    "other."""
    found: dict[str, Scalar] = {}
    if shots := result.get("num_fewshot", 0):
        found["num_fewshot"] = shots
    if options.chat_template:
        found["chat_template"] = True
    if options.system_instruction:
        found["system_instruction"] = digest_of({"text": options.system_instruction})[:8]
    if options.generation:
        found["generation"] = ", ".join(f"{name}={value}" for name, value in sorted(options.generation.items()))
    return found


def _record(
    recorder: Recorder,
    cell: Cell,
    name: str,
    result: Mapping[str, Any],
    artifact: Artifact,
    inputs: str,
    through: str,
    asked: Mapping[str, Scalar],
) -> dict[str, Measurement]:
    documents = result["documents"]
    attachment = recorder.attach("-".join(filter(None, (cell.id, name, through))), dict(result))
    found: dict[str, Measurement] = {}
    for of, value in result["metrics"].items():
        metric = "task_perplexity" if of.endswith("perplexity") else "accuracy"
        if metric == "accuracy" and not _SHARE.search(of):
            continue
        parameters: dict[str, Scalar] = {"task": name, "task_metric": of, "documents": len(documents), **asked}
        if through:
            parameters["through"] = through
        besides = {"stderr": result["stderr"].get(of), "truncated": float(result.get("truncated", 0)) or None}
        figure = Figure(
            value,
            [document[of] for document in documents if isinstance(document.get(of), (int, float))],
            statistics={what: told for what, told in besides.items() if told is not None},
            attachment=attachment,
            from_cache=not artifact.made,
        )
        found[of] = recorder.note(cell, parameters, metric, figure, inputs=inputs)
        if metric == "accuracy" and not cell.recipe.baseline:
            _flips(recorder, cell, found[of])
    margins = [document["answer_margin"] for document in documents if "answer_margin" in document]
    if found and len(margins) == len(documents) > 0:
        parameters = {"task": name, "documents": len(documents), **asked}
        if through:
            parameters["through"] = through
        error, mean = standard_error(margins), statistics.fmean(margins)
        figure = Figure(
            mean, margins, statistics={"stderr": error}, attachment=attachment, from_cache=not artifact.made
        )
        found["answer_margin"] = recorder.note(cell, parameters, "answer_margin", figure, inputs=inputs)
    return found


def _flips(recorder: Recorder, cell: Cell, accuracy: Measurement) -> None:
    """Record how many documents changed between right and wrong against the baseline, either way."""
    baseline = recorder.baseline_of(accuracy)
    if baseline is None or len(baseline.samples) != len(accuracy.samples) or not accuracy.samples:
        return
    pairs = list(zip(baseline.samples, accuracy.samples, strict=True))
    lost = sum(before > after for before, after in pairs)
    won = sum(before < after for before, after in pairs)
    figure = Figure((lost + won) / len(pairs), statistics={"lost": float(lost), "won": float(won)})
    recorder.note(cell, dict(accuracy.parameters), "answer_flips", figure)


# The metrics of tasks that are the share of documents answered well: acc_norm, prompt_level_strict_acc, f1, pass@1.
_SHARE = re.compile(r"(^|_)(acc|exact_match|em|f1|pass@\d+)(_|$)")


def _data_digest(data: Path | None, task: str) -> str | None:
    """Return a digest of the documents that a task may read: its own files, or of a group all that there are."""
    if data is None:
        return None
    single = data / f"{task}.jsonl"
    own = [path for path in sorted(data.glob(f"{glob.escape(task)}.*")) if path.suffix == ".jsonl"]
    if own == [single]:
        return file_digest(single)
    files = own or sorted(data.glob("*.jsonl"))
    return digest_of({path.name: file_digest(path) for path in files}) if files else None
