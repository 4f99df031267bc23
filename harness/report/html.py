"""Runs to one HTML page that needs nothing else: tables that sort and filter, plots, verdicts, how to run it again."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from harness.base.errors import HarnessError
from harness.base.text import redact
from harness.judge.gatefile import GateFile
from harness.records.failures import counted
from harness.records.metrics import OF_THE_DEVICE
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Failure, Header, Judgement, Measurement
from harness.report import plots, tables
from harness.report.layout import SECTIONS
from harness.report.rendering import Table

MOST_BYTES = 5_000_000


_ENVIRONMENTS = 10


_TRENDED = ("latency", "request_throughput", "generate_throughput", "peak_memory", "perplexity", "accuracy")


def render(
    runs: Sequence[Run], gates: Sequence[GateFile], documented: Documented, title: str
) -> tuple[str, tuple[str, ...]]:
    """Return the page, and a message for each line of the records that could not be read."""
    try:
        import jinja2
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise HarnessError(f"{error}; a page needs: pip install 'torchao-harness[report]'") from error
    from harness.records import columns

    found = columns.load(runs, columns=[*columns.SLIM, "value", *_SERIES])
    measurements = found.standing()
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["json"] = _json_for_script
    judged = _last(line for line in found.lines(found.kind("judgement")) if isinstance(line, Judgement))
    headers = [line for line in found.lines(found.kind("header")) if isinstance(line, Header)]
    page = environment.get_template("report.html.j2").render(
        title=title,
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        names=[run.name for run in found.runs.values()],
        subjects=_subjects(measurements, documented),
        figures=_figures(measurements, documented),
        trends=_trends(found),
        gates=[{"gate": gate, "plot": plots.verdicts(gate)} for gate in gates],
        failed=_thresholds(judged),
        held=sum(line.passed for line in judged),
        judged=len(judged),
        failures=[_failure(line, times) for line, times in counted(found.failures())],
        problems=found.problems,
        environments=[_environment(header) for header in headers[-_ENVIRONMENTS:]],
        more_environments=max(0, len(headers) - _ENVIRONMENTS),
        identities=_identities(measurements),
        css=_file("report.css"),
        script=_file("report.js"),
        # An end tag inside a string of the library would end the element that holds it.
        library=_library().replace("</script", "<\\/script"),
    )
    return redact(page), found.problems


_SERIES = ("model", "recipe", "hardware", "server", "device", "metric", "unit", "parameters", "direction")


def _file(name: str) -> str:
    return (resources.files("harness") / "report" / "page" / name).read_text(encoding="utf-8")


def _library() -> str:
    """Return vega, vega-lite and vega-embed as one script that makes them known to the page."""
    import vl_convert

    # The package's own stub wrongly asks for a snippet.
    text: str = vl_convert.javascript_bundle()  # type: ignore[call-arg, unused-ignore]
    return text


def _json_for_script(value: Any) -> str:
    """Return JSON that neither ends a script element nor begins another or a comment, whatever its texts hold."""
    import markupsafe

    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return markupsafe.Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _subjects(measurements: Sequence[Measurement], documented: Documented) -> list[dict[str, Any]]:
    every = tables.tables_of("all", measurements, documented)
    found = []
    for subject in tables.collect(measurements):
        found.append(
            {
                "heading": subject.heading,
                "random": subject.model.weights == "random",
                "note": subject.model.note,
                "tables": [_table(it) for it in every if it.heading == subject.heading],
                "sections": plots.sections(subject),
            }
        )
    return found


def _table(table: Table) -> dict[str, Any]:
    detail = table.title.startswith(SECTIONS["detail"])
    return {"title": table.title, "header": table.header, "rows": table.rows, "notes": table.notes, "detail": detail}


def _figures(measurements: Sequence[Measurement], documented: Documented) -> list[list[str]]:
    """Return every figure once, as texts."""
    entries = dict.fromkeys(it for table in tables.tables_of("all", measurements, documented) for it in table.entries)
    return [
        [
            it.model + (" (random weights)" if it.weights == "random" else ""),
            it.recipe,
            it.hardware,
            it.server,
            f"{it.metric} {it.statistic}".strip(),
            ", ".join(f"{name}={value}" for name, value in json.loads(it.parameters).items()),
            f"{it.value:.6g}",
            it.unit,
            "" if it.baseline is None else f"{it.baseline:.6g}",
            "" if it.ratio is None else f"{it.ratio:.3f}",
            "" if it.published is None else f"{it.published:.6g}",
            str(it.samples),
        ]
        for it in entries
    ]


def _trends(found: Any) -> list[plots.Plot]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(found.runs) < 2:
        return []
    rows = found.kind("measurement")
    rows = rows.filter(pc.and_(pc.equal(rows["discarded"], ""), pc.is_in(rows["metric"], pa.array(_TRENDED))))
    histories: dict[tuple[str, ...], plots.History] = {}
    for row in rows.sort_by([("time", "ascending")]).to_pylist():
        key = tuple(row[name] for name in _SERIES if name != "recipe")
        if key not in histories:
            told = f"{row['metric']} of {row['model']} on {row['hardware']} ({row['device']})"
            if row["server"]:
                told += f" through {row['server']}"
            parameters = ", ".join(f"{name}={value}" for name, value in json.loads(row["parameters"]).items())
            histories[key] = plots.History(f"{told} {parameters}".strip(), row["unit"], {})
        points = histories[key].series.setdefault(row["recipe"], [])
        points.append((row["time"], row["value"], found.runs[row["source"]].name))
    return [plot for history in histories.values() if (plot := plots.trend(history))]


def _last(judged: Iterable[Judgement]) -> list[Judgement]:
    """Return the last judgement of each limit: a resumed run holds some of them twice."""
    found = {
        (it.cell.model_dump_json(), it.metric, json.dumps(it.parameters, sort_keys=True), it.comparison, it.limit): it
        for it in judged
    }
    return list(found.values())


def _thresholds(judged: Iterable[Judgement]) -> list[list[str]]:
    return [
        [
            f"{it.cell.model.name} {it.cell.recipe.name} on {it.cell.hardware} {it.cell.server}".strip(),
            it.metric,
            ", ".join(f"{name}={value}" for name, value in it.parameters.items()),
            it.comparison,
            f"{it.measured:.4g}",
            f"{it.limit:.4g}",
            "" if it.published is None else f"{it.published:.4g}",
            it.origin,
        ]
        for it in judged
        if not it.passed
    ]


def _failure(it: Failure, times: int) -> list[str]:
    cell = f"{it.cell.model.name} {it.cell.recipe.name} on {it.cell.hardware} {it.cell.server}".strip()
    kind = it.failure if times == 1 else f"{it.failure}, {times} times"
    return [cell, it.stage, kind, it.message, it.log_tail]


def _environment(header: Header) -> dict[str, Any]:
    return {
        "run": header.run,
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(header.time)),
        "device": header.device.name,
        "detail": ", ".join(f"{name} {value}" for name, value in header.device.detail.items()),
        "harness": header.harness or "not recorded",
        "command": shlex.join(header.command),
        "packages": "\n".join(f"{name}=={version}" for name, version in sorted(header.packages.items())),
    }


def _identities(measurements: Iterable[Measurement]) -> list[list[str]]:
    """Return what each cell was made of: weights, configuration, and the server's options."""
    found: dict[tuple[str, ...], None] = {}
    for it in measurements:
        if it.metric in OF_THE_DEVICE:
            continue
        recipe, model = it.cell.recipe, it.cell.model
        flags = " ".join(f"{name}={value}" for name, value in it.flags.items())
        config = json.dumps(recipe.config) if recipe.config else "none: the baseline"
        versions = " ".join(f"{name} {version}" for name, version in it.packages.items())
        found[
            (model.name, f"{model.source} {model.revision}", recipe.name, config, it.cell.server, flags, versions)
        ] = None
    return [list(key) for key in found]
