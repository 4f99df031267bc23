"""Runs to one HTML page that needs nothing else: the verdict, the main table, trade-offs, and all the rest folded."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from harness.base.errors import HarnessError
from harness.base.reading import json_value
from harness.base.text import redact, visible
from harness.judge.findings import outcome
from harness.judge.gatefile import GateFile
from harness.judge.verdict import Verdict
from harness.records.failures import counted
from harness.records.metrics import OF_THE_DEVICE
from harness.records.place import Parameters, Place
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Failure, Header, Judgement, Line, Measurement, Outcome
from harness.report import gate_words, history, judged, load_plots, plots, tables, tradeoffs, unsteady, why
from harness.report.headline import Flags, headline
from harness.report.layout import SECTIONS, Layout, Subject
from harness.report.rendering import Table

if TYPE_CHECKING:
    import jinja2

    from harness.records.columns import Columns

MOST_BYTES = 5_000_000

_ENVIRONMENTS = 10
_TRENDED = ("latency", "request_throughput", "generate_throughput", "peak_memory", "perplexity", "accuracy")
_OF_PLACE = ("model", "revision", "hardware", "server", "gpus", "metric", "definition")
SERIES = (*_OF_PLACE, "recipe", "device", "unit", "parameters", "direction")


@dataclass(frozen=True)
class Links:
    """Where a page stands in a site: its address for each part of the site, relative to this page."""

    home: str
    pages: Mapping[str, str]


def render(
    runs: Sequence[Run],
    gates: Sequence[GateFile],
    documented: Documented,
    title: str = "",
    links: Links | None = None,
    created: str = "",
    answer: tuple[str, Table] | None = None,
) -> tuple[str, tuple[str, ...]]:
    """Return the page, and a message for each line of the records that could not be read.

    ``answer`` is what was asked for, in a sentence and its table, which stands above all else.
    A page of a site (with ``links``) says nothing of when it was written, so that equal runs give equal files.
    """
    from harness.records import columns

    found = columns.load(runs, columns=[*columns.SLIM, "value", *SERIES])
    measurements = found.standing()
    lines = list(found.lines(found.kind("judgement", "outcome", "header")))
    limits = judged.limits(lines)
    ended = [line for line in lines if isinstance(line, Outcome)]
    failures = [_failure(line, times) for line, times in counted(found.failures())]
    headers = [line for line in lines if isinstance(line, Header)]
    names = [run.name for run in found.runs.values()]
    facts = tables.provenance(measurements, [])
    nights, damaged = judged.nights(found.runs.values())
    subjects, unread = [], []
    for it in tables.collect(measurements):
        sides, missing = why.sides(it, found.runs.values())
        subjects.append(
            _subject(it, documented, limits.flags)
            | {"why": [(why.picture(it), why.picture_by_layer(it), why.sentences(it)) for it in sides]}
        )
        unread += missing
    problems = (*found.problems, *damaged, *unread)
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            title=title or _title(names, gates),
            answer=answer,
            created=created if links else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            names=names,
            facts=[facts[name] for name in ("device", "packages", "measured") if name in facts],
            verdict=judged.sentence(limits, len(failures), gates, nights, mute=len(unsteady.tests(ended))),
            against=[{"night": it} | _verdicts(sorted(it.verdicts, key=lambda one: one.severity)) for it in nights],
            subjects=subjects,
            tables=_tables(measurements, documented),
            figures=_figures(measurements, documented),
            trends=trends(found),
            gates=[_gate(gate) for gate in gates],
            failed=[_limit(it) for it in limits.failed],
            known=[(_limit(it), why) for it, why in limits.known],
            held=[_limit(it) for it in limits.held],
            noisy=unsteady.lines([*measurements, *limits.noisy, *ended]) + unsteady.disturbances(measurements),
            skips=_skips(lines),
            failures=failures,
            problems=problems,
            environments=[_environment(header) for header in headers[-_ENVIRONMENTS:]],
            more_environments=max(0, len(headers) - _ENVIRONMENTS),
            identities=_identities(measurements),
            links=links,
        )
    )
    return visible(redact(page)), problems


def _title(names: Sequence[str], gates: Sequence[GateFile]) -> str:
    runs = names if len(names) < 3 else [f"{len(names)} runs, {min(names)} to {max(names)}"]
    return ", ".join([*runs, *(gate.title for gate in gates)]) or "Nothing yet"


def environment() -> jinja2.Environment:
    """Return what makes pages of the templates. Raises HarnessError where jinja2 is missing."""
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise HarnessError(f"{error}; a page needs jinja2\nnext: pip install 'torchao-harness[report]'") from error
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(page_file), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    made.globals["file"] = page_file
    # A long parameter of a narrow column may go on in a line of its own.
    made.filters["breakable"] = lambda text: markupsafe.Markup("<wbr>").join(re.split(r"(?<=[_=])", str(text)))
    return made


def page_file(name: str) -> str:
    """Return the text of a file that pages are made of."""
    return (resources.files("harness") / "report" / "page" / name).read_text(encoding="utf-8")


def _subject(subject: Subject, documented: Documented, flags: Flags) -> dict[str, Any]:
    return {
        "heading": subject.heading,
        "random": subject.model.weights == "random",
        "note": subject.model.note,
        "main": headline(Layout(subject, documented), flags),
        "trade_offs": [*tradeoffs.trade_offs(subject), *load_plots.sweeps(subject)],
        "sections": plots.sections(subject),
    }


def _tables(measurements: Sequence[Measurement], documented: Documented) -> list[tuple[str, list[Table]]]:
    """Return every table by model and device, those of details last."""
    found: dict[str, list[Table]] = {}
    for table in tables.tables_of("all", measurements, documented):
        found.setdefault(table.heading, []).append(table)
    return [(heading, sorted(of, key=lambda it: it.title == SECTIONS["detail"])) for heading, of in found.items()]


_VERDICT = ("what", "verdict", "new / old", "interval", "margin", "blocks", "reason", "detail")


def _verdicts(found: Sequence[Verdict]) -> dict[str, Any]:
    """Return verdicts as rows, those that are no pass apart."""
    one_model = len({it.place.model for it in found}) == 1
    rows = [
        (
            (it.name.removeprefix(f"{it.place.model} ") if one_model else it.name)
            + ("" if it.primary else " (told beside)"),
            outcome(it),
            "" if it.ratio is None else f"{it.ratio:.4f}",
            "" if it.low is None or it.high is None else f"{it.low:.4f} to {it.high:.4f}",
            f"{it.margin:.3g}" if it.margin else "",
            str(it.blocks),
            it.reason,
            f"accepted: {it.accepted}; {it.detail}" if it.accepted else it.detail,
        )
        for it in found
    ]
    return {
        "header": _VERDICT,
        "open": [row for row in rows if row[1] != "pass"],
        "passed": [row for row in rows if row[1] == "pass"],
    }


def _gate(gate: GateFile) -> dict[str, Any]:
    broken = [(it.place.model, it.place.recipe, it.place.server, it.stage, it.old, it.new, it.error or "")
              for it in gate.compatibility]  # fmt: skip
    return _verdicts(gate.verdicts) | {
        "gate": gate,
        "findings": gate_words.told(gate),
        "plot": plots.verdicts(gate),
        "changed": [row for row in broken if row[4] != row[5]],
        "same": [row for row in broken if row[4] == row[5]],
    }


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
            ", ".join(f"{name}={value}" for name, value in json_value(it.parameters).items()),
            f"{it.value:.6g}",
            it.unit,
            "" if it.baseline is None else f"{it.baseline:.6g}",
            "" if it.ratio is None else f"{it.ratio:.3f}",
            "" if it.published is None else f"{it.published:.6g}",
            str(it.samples),
        ]
        for it in entries
    ]


def trends(found: Columns, metrics: Sequence[str] = _TRENDED) -> list[plots.Plot]:
    """Return a plot for each figure of some metrics that several of the loaded runs hold."""
    return [plot for it in histories(found, metrics) if (plot := history.trend(it))]


def histories(found: Columns, metrics: Sequence[str]) -> list[history.History]:
    """Return each figure of some metrics over the loaded runs; needs the columns of SERIES and the value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(found.runs) < 2:
        return []
    rows = found.kind("measurement")
    rows = rows.filter(pc.and_(pc.equal(rows["discarded"], ""), pc.is_in(rows["metric"], pa.array(metrics))))
    made: dict[tuple[Place, str, str, str], history.History] = {}
    for row in rows.sort_by([("time", "ascending")]).to_pylist():
        parameters = Parameters(json_value(row["parameters"]))
        place = Place(**{name: row[name] for name in _OF_PLACE}, parameters=parameters)
        key = (place, row["device"], row["unit"], row["direction"])
        if key not in made:
            subject = f"{row['model']} on {row['hardware']} ({row['device']})"
            server = f"through {row['server']}" if row["server"] not in ("", "transformers", "executorch") else ""
            gpus = f"on {row['gpus']} GPUs" if row["gpus"] > 1 else ""
            detail = " ".join(it for it in (server, gpus, str(parameters)) if it)
            made[key] = history.History(row["metric"], subject, detail, row["unit"], {})
        points = made[key].series.setdefault(row["recipe"], [])
        points.append((row["time"], row["value"], found.runs[row["source"]].name))
    return list(made.values())


def _limit(it: Judgement) -> tuple[str, ...]:
    cell = it.cell
    return (
        f"{cell.model.name} {cell.recipe.name} on {cell.on} {cell.server}".strip(),
        it.metric,
        ", ".join(f"{name}={value}" for name, value in it.parameters.items()),
        it.comparison,
        f"{it.measured:.4g}",
        f"{it.limit:.4g}",
        "" if it.published is None else f"{it.published:.4g}",
        it.origin,
    )


def _skips(lines: Iterable[Line]) -> dict[str, list[tuple[str, ...]]]:
    """Return what did not run and what failed as expected, limits aside, which are told of by themselves."""
    found = tables.skips_of(it for it in lines if isinstance(it, Outcome))
    return {
        "skipped": [(it.what, it.reason) for it in found if not it.expected],
        "expected": [(it.what, it.reason, it.known or "-") for it in found if it.expected],
    }


def _failure(it: Failure, times: int) -> list[str]:
    cell = f"{it.cell.model.name} {it.cell.recipe.name} on {it.cell.on} {it.cell.server}".strip()
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


def _identities(measurements: Iterable[Measurement]) -> list[tuple[str, ...]]:
    """Return what each cell was made of: weights, configuration, and the server's options; packages all alike once."""
    found: dict[tuple[str, ...], None] = {}
    often = Counter(json.dumps(it.packages, sort_keys=True) for it in measurements)
    usual = often.most_common(1)[0][0] if often else ""
    for it in measurements:
        if it.metric in OF_THE_DEVICE:
            continue
        recipe, model = it.cell.recipe, it.cell.model
        flags = " ".join(f"{name}={value}" for name, value in it.flags.items())
        config = json.dumps(recipe.config) if recipe.config else "none: the baseline"
        versions = " ".join(f"{name} {version}" for name, version in it.packages.items())
        if json.dumps(it.packages, sort_keys=True) == usual and len(often) > 1:
            versions = "as most"
        row = (model.name, f"{model.source} {model.revision}", recipe.name, config, it.cell.server, flags, versions)
        found[row] = None
    return list(found)
