"""How good a model's predictions are, and whether a server predicts what Transformers does, as records."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.files import file_digest
from harness.matrix.plan import Cell
from harness.measure.agreement import LIKELIEST, hold
from harness.measure.recorder import Figure, Recorder, standard_error
from harness.records.metrics import METRICS
from harness.records.schema import Measurement, Scalar
from harness.runtime.store import Artifact
from harness.servers.base import SERVED_NAME

# Enough to tell a layer that is wrong from one that rounds otherwise.
_AGREEMENT_WINDOWS, _AGREEMENT_TOKENS = 4, 64


class Quality(Recorder):
    """Measures the quality of what is predicted, once for the same weights and question."""

    def text_quality(self, cell: Cell) -> dict[str, Measurement]:
        """Measure perplexity of real text and, for a recipe, its agreement with the baseline over the same text."""
        wanted = cell.measurements.text
        alone = cell.recipe.baseline or self.flow.alone(cell)
        baseline = None if alone else self.flow.plain(cell.model, cell.hardware)
        names = ["perplexity"] if baseline is None else ["perplexity", "kl_divergence", "top1_agreement", "token_flips"]
        text = self.flow.prompts()
        key: dict[str, Any] = {"text": text.key, "windows": wanted.windows, "tokens": wanted.window_tokens}
        key |= {"definition": METRICS["perplexity"].version, "baseline": baseline.key if baseline else None}

        def ask() -> dict[str, Any]:
            return self.flow.transformers(cell).ask(
                "text_quality",
                cell.measurements.time_limits.evaluate,
                text=str(text.folder / "text.txt"),
                windows=wanted.windows,
                window_tokens=wanted.window_tokens,
                baseline=str(baseline.folder) if baseline else None,
            )

        def take() -> dict[str, Figure]:
            artifact = self.flow.evaluated(cell, "text quality", {"text_quality": key}, ask)
            windows = artifact.facts["windows"]
            nll = statistics.fmean(windows["nll"])
            per_window = [math.exp(value) for value in windows["nll"]]
            error = standard_error(windows["nll"]) * math.exp(nll)
            cached = not artifact.made
            found = {"perplexity": Figure(math.exp(nll), per_window, statistics={"stderr": error}, from_cache=cached)}
            for name, column in (("kl_divergence", "kl"), ("top1_agreement", "top1"), ("token_flips", "flips")):
                if values := windows[column]:
                    found[name] = Figure(
                        statistics.fmean(values),
                        values,
                        statistics={"stderr": standard_error(values)},
                        from_cache=cached,
                    )
            return found

        parameters: dict[str, Scalar] = {
            "text": "ShareGPT answers",
            "windows": wanted.windows,
            "window_tokens": wanted.window_tokens,
        }
        return self.take(cell, parameters, take, names=names, inputs=text.key)

    def agreement(self, cell: Cell) -> dict[str, Measurement]:
        """Measure how far an engine's predictions over real text are from Transformers' with the same recipe."""
        text = self.flow.prompts()
        asked = {"windows": _AGREEMENT_WINDOWS, "window_tokens": _AGREEMENT_TOKENS}
        key = {"text": text.key, "top": LIKELIEST, "definition": METRICS["served_kl"].version, **asked}
        limit = cell.measurements.time_limits.evaluate

        def predict() -> dict[str, Any]:
            worker = self.flow.transformers(cell)
            return worker.ask("predictions", limit, text=str(text.folder / "text.txt"), top=LIKELIEST, **asked)

        # Before the engine starts: on a GPU one worker has the whole of it.
        reference = self.flow.evaluated(cell, "predictions", {"predictions": key}, predict).facts

        def take() -> dict[str, Figure]:
            answer = self.flow.engine(cell).ask("predictions", limit, sequences=reference["ids"], top=LIKELIEST)
            ours, theirs = ([[dict(row) for row in window] for window in it["top"]] for it in (reference, answer))
            found = hold(ours, theirs)
            return {
                name: Figure(statistics.fmean(values), values, statistics={"stderr": standard_error(values)})
                for name, values in (("served_kl", found.kl), ("served_top1", found.top1))
            }

        parameters: dict[str, Scalar] = {"text": "ShareGPT answers", **asked}
        names = ("served_kl", "served_top1")
        return self.take(cell, parameters, take, names=names, engine=True, inputs=text.key)

    def task(self, cell: Cell, task: str) -> dict[str, Measurement]:
        """Evaluate one lm-evaluation-harness task, through Transformers or through the served model."""
        data = str(self.flow.data) if self.flow.data else None
        limit = self.flow.limit
        served = cell.server != "transformers"
        batch_size = cell.hardware.task_batch
        key: dict[str, Any] = {
            "task": task,
            "definition": METRICS["accuracy"].version,
            "limit": limit,
            "batch_size": batch_size,
            "data": _data_digest(self.flow.data, task),
        }
        if served:
            packages, own = self.flow.packages(cell), self.flow.backend(cell).distributions
            servers = {name: version for name, version in packages.items() if name in own}
            key |= {
                "through": cell.server,
                "server": servers,
                **self.flow.engine_options(cell),
                **self.flow.engine_variables(cell),
            }

        def ask() -> dict[str, Any]:
            limits = cell.measurements.time_limits
            if not served:
                return self.flow.transformers(cell).ask(
                    "tasks", limits.evaluate, names=[task], data=data, limit=limit, batch_size=batch_size
                )
            server = self.flow.server(cell)
            return self.flow.client(cell).ask(
                "tasks",
                limits.evaluate,
                url=server.url,
                model=SERVED_NAME,
                tokenizer=str(self.flow.served(cell).folder),
                names=[task],
                data=data,
                limit=limit,
            )

        def evaluate(of: Cell) -> Any:
            return self.flow.evaluated(of, task, key, ask)

        artifact = evaluate(cell)
        return self._record_task(cell, task, artifact, str(key["data"] or "hub")[:16], cell.server if served else "")

    def task_through(
        self,
        cell: Cell,
        task: str,
        through: str,
        key: dict[str, Any],
        ask: Callable[[str | None, int | None], dict[str, Any]],
    ) -> dict[str, Measurement]:
        """Evaluate a task by ``ask(data, limit)``, which ``key`` identifies besides cell, task, data and limit."""
        digest = _data_digest(self.flow.data, task)
        key = {"task": task, "definition": METRICS["accuracy"].version, "limit": self.flow.limit, **key}
        key |= {"data": digest, "through": through}
        data = str(self.flow.data) if self.flow.data else None
        artifact = self.flow.evaluated(cell, f"{task} {through}", key, lambda: ask(data, self.flow.limit))
        return self._record_task(cell, task, artifact, str(digest or "hub")[:16], through)

    def _record_task(
        self, cell: Cell, task: str, artifact: Artifact, inputs: str, through: str
    ) -> dict[str, Measurement]:
        result = artifact.facts[task]
        documents = result["documents"]
        attachment = self._attach("-".join(filter(None, (cell.id, task, through))), result)
        found: dict[str, Measurement] = {}
        for name, value in result["metrics"].items():
            metric = "task_perplexity" if name == "perplexity" else "accuracy"
            if metric == "accuracy" and not name.startswith(("acc", "exact_match", "em", "f1")):
                continue
            parameters: dict[str, Scalar] = {"task": task, "task_metric": name, "documents": len(documents)}
            if through:
                parameters["through"] = through
            error = result["stderr"].get(name)
            besides = {"stderr": error, "truncated": float(result.get("truncated", 0)) or None}
            figure = Figure(
                value,
                [document[name] for document in documents if isinstance(document.get(name), (int, float))],
                statistics={of: value for of, value in besides.items() if value is not None},
                attachment=attachment,
                from_cache=not artifact.made,
            )
            found[name] = self._note(cell, parameters, metric, figure, inputs=inputs)
            if metric == "accuracy" and not cell.recipe.baseline:
                self._flips(cell, found[name])
        if not found:
            known = ", ".join(result["metrics"]) or "none"
            raise HarnessError(f"task {task} of {cell.id}: none of its metrics is one that is recorded here ({known})")
        return found

    def _flips(self, cell: Cell, accuracy: Measurement) -> None:
        """Record how many documents changed between right and wrong against the baseline, either way."""
        baseline = self.baseline_of(accuracy)
        if baseline is None or len(baseline.samples) != len(accuracy.samples) or not accuracy.samples:
            return
        pairs = list(zip(baseline.samples, accuracy.samples, strict=True))
        lost = sum(before > after for before, after in pairs)
        won = sum(before < after for before, after in pairs)
        figure = Figure((lost + won) / len(pairs), statistics={"lost": float(lost), "won": float(won)})
        self._note(cell, dict(accuracy.parameters), "answer_flips", figure)


def _data_digest(data: Path | None, task: str) -> str | None:
    file = data / f"{task}.jsonl" if data else None
    return file_digest(file) if file and file.is_file() else None
