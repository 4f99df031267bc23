"""The model card of a quantized checkpoint, in the layout of torchao's own, every table of it made from records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.base.text import one_line
from harness.contract.tutorial import CHAT
from harness.publish import recipe_code, reproduction
from harness.records.metric import Section
from harness.records.place import Place, row_of
from harness.records.published import Documented
from harness.records.schema import Judgement, Measurement, ModelIdentity, RecipeIdentity, describe
from harness.report import unsteady
from harness.report.layout import Layout
from harness.report.lines import gpus_of
from harness.report.rendering import Table, escape_md, render
from harness.report.tables import collect, provenance

# Metrics that a hub's evaluation results are for; the others are relative to a baseline that they cannot name.
_EVALUATED = {"accuracy", "task_perplexity", "perplexity"}
_TRANSFORMERS = ("torch", "torchao", "transformers", "accelerate")
_TITLES: dict[Section, str] = {"detail": "In detail"}
_QUALITY = (
    "Tasks are those of [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness). KL divergence, "
    "top-1 agreement and token flips hold the next-token predictions over real text against the unquantized model's."
)
_CHECKOUT = "In a checkout of torchao-harness, after `pip install -e .`, beside the packages above:"
_DISCLAIMER = (
    "Behaviour, accuracy and safety may differ from the original model's. Nothing here changes the licence that the "
    "original model is released under."
)


@dataclass(frozen=True)
class Contents:
    """What a card is about. ``measurements`` are this recipe's and its baseline's alone; ``discarded`` ones among them
    were asked for in spite of that, as were the judgements of limits that are not held (``failed``). ``servers`` are
    those that a reader can serve it with, by their names in the records."""

    repository: str
    model: ModelIdentity
    recipe: RecipeIdentity
    measurements: Sequence[Measurement]
    config: Mapping[str, Any]
    servers: Mapping[str, reproduction.ByHand]
    runs: Sequence[str] = ()
    failed: Sequence[Judgement] = ()
    base_model: str = ""
    license: str = ""

    @property
    def base_name(self) -> str:
        """What a reader loads to get the unquantized model."""
        return self.base_model or one_line(self.model.name)

    @property
    def measured_base(self) -> str:
        """What the baseline's figures are of: weights from elsewhere than the hub do not go under a hub's name."""
        return self.base_name if self.model.source.startswith("hub:") else one_line(self.model.name)

    @property
    def had_by(self) -> str:
        """What a reader gives the harness to measure it again, where the records name what is on one machine alone."""
        if self.model.came_quantized:
            return self.repository
        return self.base_model if self.model.source.startswith("folder:") else ""

    @property
    def own(self) -> list[Measurement]:
        return [it for it in self.measurements if not it.cell.recipe.baseline]

    @property
    def models(self) -> list[str]:
        """What benchmarks are run on: the baseline, where the hub has it, and the published model."""
        return [name for name in (self.base_model, self.repository) if name]


def write_card(contents: Contents, documented: Documented) -> str:
    """Return the whole README.md: metadata with the evaluation results, then the card."""
    from huggingface_hub import ModelCardData

    results = _evaluations(contents)
    data = ModelCardData(
        base_model=contents.base_model or None,
        license=contents.license or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["torchao", *(_tag(it) for it in (contents.recipe.name, contents.config.get("model_type")) if it)],
        model_name=contents.repository.split("/")[1] if results else None,
        eval_results=results or None,
        **({"base_model_relation": "quantized"} if contents.base_model else {}),
    )
    blocks = [
        _head(contents),
        *_servers(contents),
        *_transformers(contents),
        *_recipe(contents),
        *_quality(contents, _tables(contents, documented, "quality")),
        *_memory(contents, _tables(contents, documented, "memory")),
        *_performance(contents, *(_tables(contents, documented, name) for name in ("performance", "detail"))),
        *_measured(contents),
        f"## Disclaimer\n\n{_DISCLAIMER}",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(block.strip("\n") for block in blocks if block) + "\n"


# --------------------------------------------------------------------------------------------------------- metadata


def _evaluations(contents: Contents) -> list[Any]:
    from huggingface_hub import EvalResult

    found = []
    for it in _latest(contents.own):
        if it.metric not in _EVALUATED or it.discarded or it.cell.model.weights == "random":
            continue
        task = _tag(it.parameters.get("task") or it.parameters.get("text") or "text")
        known = {"task", "task_metric", "text"}
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=task,
                dataset_name=task,
                metric_type=_tag(it.parameters.get("task_metric") or it.metric).split(",")[0],
                metric_name=_tag(it.parameters.get("task_metric") or it.metric),
                metric_value=it.value,
                metric_args={_tag(name): _plain(value) for name, value in it.parameters.items() if name not in known}
                | {"device": _tag(it.device.name)}
                | ({"stderr": it.statistics["stderr"]} if "stderr" in it.statistics else {}),
            )
        )
    return found


def _latest(measurements: Iterable[Measurement]) -> list[Measurement]:
    return [it for subject in collect(measurements) for it in subject.measurements]


def _tag(value: object) -> str:
    return one_line(str(value))[:80]


def _plain(value: object) -> object:
    return _tag(value) if isinstance(value, str) else value


# ----------------------------------------------------------------------------------------------------------- prose


def _head(contents: Contents) -> str:
    recipe, model = contents.recipe, contents.model
    method = ", ".join(dict.fromkeys(_classes(recipe.config)))
    base = f"[{contents.base_model}](https://huggingface.co/{contents.base_model})" if contents.base_model else ""
    # A model that came quantized is itself what was measured, and not where the unquantized weights are from.
    told = model.came_quantized or model.source.startswith("hub:")
    weights = "" if told else f", weights from {escape_md(model.source)}"
    facts = {
        "Published by": contents.repository.split("/")[0],
        "License": contents.license,
        "Quantized from": (base or escape_md(model.name)) + weights,
        "Quantization method": f"[torchao](https://github.com/pytorch/ao), {escape_md(method or recipe.name)}",
    }
    lines = [f"# {escape_md(recipe.name)} {escape_md(contents.base_name)} model", ""]
    lines += [f"- **{name}:** {text}" for name, text in facts.items() if text]
    for warning in _warnings(contents):
        lines += ["", f"> **Note:** {warning}"]
    return "\n".join(lines)


def _warnings(contents: Contents) -> list[str]:
    """Say what must not be read over: what these weights are, and what was published though it should not be."""
    model = contents.model
    found = [f"{escape_md(model.note)}."] if model.note else []
    if contents.base_model and not model.came_quantized and not model.source.startswith("hub:"):
        found.append(
            f"the figures are of weights from {escape_md(model.source)}, while the commands below load those of "
            f"{escape_md(contents.base_model)}: theirs may differ, and quality is another's."
        )
    if model.weights == "random":
        found.insert(0, "**these weights are random.** They show memory and speed; the model's answers mean nothing.")
    for failed in contents.failed:
        if failed.noisy:
            found.append(f"{escape_md(unsteady.limit(failed))}.")
            continue
        found.append(
            f"a limit does not hold: {escape_md(describe(failed))} on {escape_md(failed.cell.hardware)}, "
            f"{escape_md(failed.comparison)} {failed.measured:.4g}, limit {failed.limit:g} "
            f"({escape_md(failed.origin)})."
        )
    for it in contents.measurements:
        if it.discarded:
            found.append(
                f"{escape_md(describe(it))} of {escape_md(it.cell.recipe.name)} was measured on a disturbed machine: "
                f"{escape_md(it.discarded)}."
            )
    noisy = {Place.of(it).named for it in contents.failed if it.noisy}
    mute = [it for it in unsteady.wide(contents.measurements) if Place.of(it).named not in noisy]
    found += [f"{escape_md(unsteady.figure(it))}." for it in mute]
    return list(dict.fromkeys(found))


def _classes(config: Any) -> list[str]:
    if isinstance(config, Mapping):
        own = [str(config["config"])] if config.get("config") else []
        return own + [name for inner in config.values() for name in _classes(inner)]
    return []


def _servers(contents: Contents) -> list[str]:
    chosen = {name: [it for it in contents.own if it.cell.server == name] for name in contents.servers}
    return [
        block
        for name, records in chosen.items()
        if records
        for block in _served(contents, contents.servers[name], records)
    ]


def _served(contents: Contents, server: reproduction.ByHand, records: Sequence[Measurement]) -> list[str]:
    chat = json.dumps({"model": contents.repository, **CHAT, "max_tokens": 1024}, indent=2)
    client = f"curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{chat}'"
    builds: dict[str, tuple[reproduction.ByHand, list[Measurement]]] = {}
    for it in records:
        build = server.of(it.packages)
        builds.setdefault(build.serve, (build, []))[1].append(it)
    blocks = [f"## Inference with {server.title}"]
    for build, of in builds.values():
        on = f" ({', '.join(dict.fromkeys(it.cell.hardware for it in of))})" if len(builds) > 1 else ""
        blocks += [
            _code("Shell", reproduction.install(of, build)),
            f"### Serving{escape_md(on)}",
            _code("Shell", f"# Server\nexport MODEL={contents.repository}\n{build.serve}"),
            _code("Shell", f"# Client\n{client}"),
        ]
    return blocks


def _transformers(contents: Contents) -> list[str]:
    return [
        "## Inference with Transformers",
        _code("Shell", reproduction.pip(contents.own, *_TRANSFORMERS)),
        _code("Py", reproduction.generate(contents.repository)),
    ]


def _recipe(contents: Contents) -> list[str]:
    try:
        output = contents.repository.split("/")[1]
        code = recipe_code.quantization(contents.recipe.config, contents.base_name, output, contents.config)
    except ValueError:
        return []
    return ["## Quantization Recipe", _code("Shell", reproduction.pip(contents.own, *_TRANSFORMERS)), _code("Py", code)]


def _quality(contents: Contents, tables: list[Table]) -> list[str]:
    if not tables:
        return []
    agreement = " or agreement" if any(it.metric == "served_kl" for it in contents.own) else ""
    commands = [reproduction.lm_eval(contents.own, contents.models)]
    commands += _suites(contents, f"text_quality or task{agreement}")
    parts = [_code("Shell", command) for command in commands]
    parts.insert(1, _CHECKOUT)
    return ["## Model Quality", _QUALITY, render(tables, "md"), _details("Reproduce Model Quality Results", parts)]


def _memory(contents: Contents, tables: list[Table]) -> list[str]:
    if not tables:
        return []
    scripts = reproduction.peak_memory(contents.own, contents.repository, contents.base_name)
    parts = [_code("Py", script) for script in scripts]
    return ["## Peak Memory Usage", render(tables, "md"), _details("Reproduce Peak Memory Usage Results", parts)]


def _performance(contents: Contents, tables: list[Table], detail: list[Table]) -> list[str]:
    if not tables and not detail:
        return []
    which = "\n".join(f"export MODEL={model}" for model in contents.models)
    which = f"# One of the two, then the other\n{which}" if len(contents.models) > 1 else which
    latency = reproduction.latency(contents.own, contents.servers)
    servers, clients = reproduction.serving(contents.own, contents.servers)
    parts = [_code("Shell", which) if latency or clients else ""]
    parts += ["### Latency", _code("Shell", "\n".join(latency))] if latency else []
    if clients:
        parts += ["### Serving", _code("Shell", f"wget {reproduction.SHAREGPT}")]
        parts += ["Server:", _code("Shell", "\n".join(servers)), "Client:", _code("Shell", "\n".join(clients))]
    more = _details("Further figures", [render(detail, "md")] if detail else [])
    again = _details("Reproduce Model Performance Results", parts)
    return ["## Model Performance", render(tables, "md"), more, again]


def _measured(contents: Contents) -> list[str]:
    if not contents.own:
        return []
    facts = provenance(contents.measurements, [one_line(name) for name in contents.runs])
    facts["recipe"] = f"{contents.recipe.name}, digest {contents.recipe.hash}"
    facts["weights"] = f"{contents.model.source}, {contents.model.revision}"
    return [
        "## How It Was Measured",
        "\n".join(f"- {escape_md(f'{name}: {text}')}" for name, text in facts.items()),
        f"All of it again{'' if contents.model.came_quantized else ', recipe and baseline side by side'}, with "
        f"torchao-harness. {_CHECKOUT}",
        _code("Shell", "\n".join(_suites(contents))),
    ]


def _suites(contents: Contents, only: str = "") -> list[str]:
    hardware = dict.fromkeys(it.cell.hardware for it in contents.own)
    tasks = reproduction.tasks(contents.own)
    return [
        reproduction.suite(contents.model, contents.recipe, name, only, named=contents.had_by, tasks=tasks)
        for name in hardware
    ]


def _details(summary: str, parts: Sequence[str]) -> str:
    body = "\n\n".join(part for part in parts if part)
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>" if body else ""


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```" if text.strip() else ""


# ---------------------------------------------------------------------------------------------------------- tables


def _in_tables(contents: Contents) -> list[Measurement]:
    """Return the records of the tables: lines that the baseline alone has are left out.

    A discarded record that was asked for stands in its line; that it was discarded is said at the card's top.
    """
    kept = [it.model_copy(update={"discarded": ""}) for it in contents.measurements]
    own = {_line(it) for it in kept if not it.cell.recipe.baseline}
    return [it for it in kept if _line(it) in own]


def _line(it: Measurement) -> tuple[object, ...]:
    return it.device.name, *row_of(it)


def _tables(contents: Contents, documented: Documented, section: Section) -> list[Table]:
    """Return a section's tables for each device; notes that stand at the card's top are not said again."""
    columns = {True: contents.measured_base, False: contents.repository}
    found = []
    for subject in collect(_in_tables(contents)):
        if section == "quality" and subject.model.weights == "random":
            continue
        for table in Layout(subject, documented).section(section):
            on = (f" ({gpus_of(recipe)} GPUs)" if gpus_of(recipe) > 1 else "" for recipe in subject.recipes)
            names = [columns[recipe.baseline] + told for recipe, told in zip(subject.recipes, on, strict=True)]
            header = (table.header[0], *names) if len(names) + 1 == len(table.header) else table.header
            notes = tuple(note for note in table.notes if not note.startswith("model: "))
            title = f"{_TITLES.get(section, 'Results')} ({subject.device})"
            found.append(dataclasses.replace(table, heading="", title=title, header=header, notes=notes))
    return found
