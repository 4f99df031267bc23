"""All stored runs to a site of plain files: an index, a page a run, figures over time by metric, and two runs compared.

Nothing of it needs a server: it may be opened from a folder, or lie on any static host.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from harness import __version__
from harness.base.errors import HarnessError
from harness.base.files import write_text
from harness.base.reading import json_file
from harness.base.text import digest, file_name, redact, visible
from harness.judge import spread
from harness.judge.gatefile import GateFile
from harness.records.failures import counted
from harness.records.metrics import METRICS
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Header, Measurement
from harness.report import history, html, judged, tables, unsteady
from harness.report.headline import headline
from harness.report.layout import Layout, Subject

STATE = ".harness-site.json"
"""What the folder's pages were made of, so that a page whose run has not changed is not made again."""
_ROWS = 3
"""The version of what that file has of a run."""
_LISTED = 10
"""How many of the latest runs the index lists before it folds the earlier ones."""
_TEMPLATES = ("report.html.j2", "parts.html.j2", "report.css", "report.js", "site.html.j2", "compare.js")


@dataclass(frozen=True)
class Made:
    """What a site came to: how many pages there are, how many of them were made now, and what could not be read."""

    pages: int
    written: int
    bytes: int
    problems: tuple[str, ...]


def build(
    folder: Path,
    runs: Sequence[Run],
    gates: Mapping[str, GateFile],
    documented: Documented,
    told: Callable[[str], object] = lambda line: None,
) -> Made:
    """Write the site of these runs and gates into ``folder``; pages of runs that are gone are taken away.

    Raises HarnessError where there is nothing to show.
    """
    if not runs and not gates:
        raise HarnessError("no run and no gate was found, so there is nothing to make a site of")
    site = _Site(folder, documented, _names(runs), told)
    for slug, run in site.runs.items():
        site.add_run(slug, run)
    for name, gate in gates.items():
        site.add_gate(name, gate)
    site.add_trends()
    site.add_compare()
    site.add_index()
    return site.finish()


def _names(runs: Sequence[Run]) -> dict[str, Run]:
    """Give each run a name that no other has and that can be a file's; the later of two of one name gets a number."""
    found: dict[str, Run] = {}
    for run in {run.folder.resolve(): run for run in runs}.values():
        name = plain = file_name(run.name)
        count = 1
        while name in found:
            count += 1
            name = f"{plain}-{count}"
        found[name] = run
    return found


class _Site:
    """A site in the making."""

    def __init__(
        self, folder: Path, documented: Documented, runs: dict[str, Run], told: Callable[[str], object]
    ) -> None:
        self.folder = folder
        self.documented = documented
        self.runs = runs
        self.told = told
        self.problems: dict[str, None] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.gates: list[dict[str, Any]] = []
        self.written = 0
        self.files: set[str] = set()
        self.templates = html.environment()
        self.version = digest([__version__, _ROWS, *map(html.page_file, _TEMPLATES)])
        self.before = _state(folder)

    def write(self, name: str, text: str) -> None:
        self.files.add(name)
        path = self.folder / name
        text = visible(redact(text))
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return
        write_text(path, text)
        self.written += 1

    def page(self, name: str, template: str, **values: Any) -> None:
        up = "../" * name.count("/")
        self.write(name, self.templates.get_template(template).render(links=_links(up), up=up, **values))

    # ------------------------------------------------------------------------------------------------------ runs

    def add_run(self, slug: str, run: Run) -> None:
        """Write a run's page and its figures for comparisons, unless both are there and the run is as it was."""
        name, data = f"runs/{slug}.html", f"data/{slug}.js"
        files = [path for path in (run.path, run.folder / "against.json") if path.is_file()]
        states = [(stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in files)]
        made_of = digest([self.version, str(run.folder.resolve()), states])
        before = self.before.get(slug, {})
        kept = before.get("made_of") == made_of and all((self.folder / it).is_file() for it in (name, data))
        if kept:
            self.rows[slug] = before
            self.files |= {name, data}
            return
        self.told(f"{run.name}: writing its page")
        page, problems = html.render([run], [], self.documented, run.name, _links("../"))
        self.problems |= dict.fromkeys(problems)
        self.write(name, page)
        self.rows[slug] = {"made_of": made_of, **self._row(slug, run, data)}

    def _row(self, slug: str, run: Run, data: str) -> dict[str, Any]:
        from harness.records import columns

        found = columns.load([run])
        measurements = found.standing()
        lines = list(found.lines(found.kind("judgement", "outcome", "header")))
        headers = [line for line in lines if isinstance(line, Header)]
        nights, _ = judged.nights([run])
        verdict = judged.sentence(
            judged.limits(lines), len(counted(found.failures())), against=nights, mute=len(unsteady.tests(lines))
        )
        times = [it.time for it in measurements] or [header.time for header in headers] or [0.0]
        packages = measurements[-1].packages if measurements else headers[-1].packages if headers else {}
        subjects = tables.collect(measurements)
        about = {
            "run": run.name,
            "time": max(times),
            "hardware": sorted({it.cell.hardware for it in measurements}),
            "device": ", ".join(dict.fromkeys(it.device.name for it in measurements)),
            "models": list(dict.fromkeys(it.cell.model.name for it in measurements)),
            "torchao": packages.get("torchao", ""),
            "verdict": verdict.text,
            "tone": verdict.tone,
            "subjects": [{"model": it.model.name, "hardware": it.hardware, "weight": _weight(it)} for it in subjects],
        }
        shown = {name: version for name, version in packages.items() if name in tables.KEY_PACKAGES}
        figures = [_figure(it) for it in measurements if not it.discarded]
        text = json.dumps({**about, "packages": shown, "figures": figures}, separators=(",", ":"))
        self.write(data, f"harnessRun({json.dumps(slug)},{text.replace('<', chr(92) + 'u003c')});\n")
        recipes = sorted({it.cell.recipe.name for it in measurements})
        # As the comparison's script tells figures apart, in short.
        return about | {"recipes": recipes, "figures": sorted({digest(it[:_VALUE])[:8] for it in figures})}

    def _main_tables(self) -> list[dict[str, Any]]:
        """Return the main table of each model on each hardware: of the latest run that has most of it."""
        best: dict[tuple[str, str], tuple[int, float, str]] = {}
        for slug, row in self.rows.items():
            for it in row["subjects"]:
                key, rank = (it["hardware"], it["model"]), (it["weight"], row["time"], slug)
                best[key] = max(best.get(key, rank), rank)
        found = []
        for (hardware, model), (_, _, slug) in sorted(best.items(), key=lambda it: (it[0][0] != "cpu", -it[1][1])):
            subjects, limits = self._of(slug)
            of = [it for it in subjects if (it.hardware, it.model.name) == (hardware, model)]
            main = headline(Layout(max(of, key=_weight), self.documented), limits.flags) if of else None
            if main:
                found.append({"hardware": hardware, "model": model, "slug": slug, "row": self.rows[slug], "main": main})
        return found

    def _of(self, slug: str) -> tuple[list[Subject], judged.Limits]:
        from harness.records import columns

        found = columns.load([self.runs[slug]])
        return tables.collect(found.standing()), judged.limits(found.lines(found.kind("judgement", "outcome")))

    # ------------------------------------------------------------------------------------------------- the others

    def add_gate(self, name: str, gate: GateFile) -> None:
        at = f"gates/{file_name(name)}.html"
        page, _ = html.render([], [gate], self.documented, gate.title, _links("../"), created=gate.created)
        self.write(at, page)
        verdict = judged.sentence(judged.limits([]), 0, [gate])
        words = verdict.text.removeprefix(f"{gate.title}: ")
        self.gates.append({"at": at, "gate": gate, "verdict": words, "tone": verdict.tone})

    def add_trends(self) -> None:
        """Write a page for each metric of which several runs hold the same figure."""
        from harness.records import columns

        found = columns.load(self.runs.values(), columns=[*columns.SLIM, "value", *html.SERIES])
        every = html.histories(found, tuple(METRICS))
        listed = []
        for metric, of in groupby(sorted(every, key=lambda it: it.metric), key=lambda it: it.metric):
            pairs = [(it, plot) for it in of if (plot := history.trend(it))]
            if not pairs:
                continue
            changes = sum(bool(plot.caption) for _, plot in pairs)
            groups = [(name, [replace(plot, title=it.detail) for it, plot in its]) for name, its in _by_subject(pairs)]
            self.page(
                f"trend/{file_name(metric)}.html", "site.html.j2", kind="metric", title=f"{metric} over the runs",
                metric=METRICS[metric], groups=groups,
            )  # fmt: skip
            runs = len({run for it, _ in pairs for points in it.series.values() for _, _, run in points})
            listed.append({"metric": metric, "at": f"trend/{file_name(metric)}.html", "figures": len(pairs),
                           "runs": runs, "changes": changes, "definition": METRICS[metric].definition})  # fmt: skip
        self.page("trend.html", "site.html.j2", kind="trends", title="Figures over the runs", metrics=listed)

    def add_compare(self) -> None:
        rows = self._newest_first()
        self.page(
            "compare.html", "site.html.j2", kind="compare", title="Two runs compared", rows=rows, pair=_pair(rows),
            day=_day,
        )  # fmt: skip

    def add_index(self) -> None:
        self.page(
            "index.html", "site.html.j2", kind="index", title="torchao benchmarks", rows=self._newest_first(),
            gates=self.gates, tables=self._main_tables(), day=_day, most=_LISTED,
        )  # fmt: skip

    def _newest_first(self) -> list[tuple[str, dict[str, Any]]]:
        return sorted(self.rows.items(), key=lambda it: (-it[1]["time"], it[0]))

    def finish(self) -> Made:
        gone = {name for it in self.before.values() for name in it.get("files", ())} - self.files
        for name in gone:
            (self.folder / name).unlink(missing_ok=True)
        for slug, row in self.rows.items():
            row["files"] = [f"runs/{slug}.html", f"data/{slug}.js"]
        others = sorted(self.files - {name for row in self.rows.values() for name in row["files"]})
        state = {**self.rows, "": {"files": others}}
        write_text(self.folder / STATE, json.dumps(state, indent=0))
        size = sum((self.folder / name).stat().st_size for name in self.files)
        pages = sum(name.endswith(".html") for name in self.files)
        return Made(pages, self.written, size, tuple(self.problems))


def _links(up: str) -> html.Links:
    pages = {"Trends": f"{up}trend.html", "Compare": f"{up}compare.html"}
    return html.Links(f"{up}index.html", pages)


def _state(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what the site's last build wrote down; nothing where it cannot be read, so that all is made anew."""
    try:
        found = json_file(folder / STATE)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _weight(subject: Subject) -> int:
    """Return how much of a main table a run can give: recipes count most, above all beside their baseline."""
    return len(subject.recipes) * (2 if subject.baseline else 1)


_VALUE = 9
"""Where a figure's value stands, behind what tells it from others."""


def _figure(it: Measurement) -> list[Any]:
    """Return a figure as the comparison's script reads it: its place, its value and the range of its samples."""
    samples = it.samples or [it.value]
    cell = it.cell
    place = [cell.model.name, cell.recipe.name, cell.on, cell.server, it.metric]
    parameters = ", ".join(f"{name}={value}" for name, value in sorted(it.parameters.items()))
    return [*place, parameters, it.unit, it.direction, it.definition, it.value, min(samples), max(samples), _doubt(it)]


def _doubt(it: Measurement) -> str:
    """Return why nothing is to be said of a figure by its samples, in short."""
    return "too noisy" if spread.too_wide(it) else "machine not quiet" if it.disturbed else ""


def _by_subject(pairs: list[tuple[history.History, Any]]) -> list[tuple[str, list[tuple[history.History, Any]]]]:
    pairs = sorted(pairs, key=lambda it: it[0].subject)
    return [(name, list(of)) for name, of in groupby(pairs, key=lambda it: it[0].subject)]


_COMPARED = 100
"""How many of the latest runs are looked through for two that can be compared."""


def _pair(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, str]:
    """Return the two runs to compare first, the older one first.

    The latest run that has another before it of the same device, hardware, models and recipes, and that one; where none
    has, the latest two of one device that have most of their figures in common.
    """
    alike: list[tuple[float, str, str]] = []
    for at, (newer, row) in enumerate(rows[:_COMPARED]):
        for older, before in rows[at + 1 : _COMPARED]:
            own, others = set(row["figures"]), set(before["figures"])
            if row["device"] != before["device"] or own.isdisjoint(others):
                continue
            if all(set(row[name]) == set(before[name]) for name in ("hardware", "models", "recipes")):
                return older, newer
            alike.append((len(own & others) / len(own | others), older, newer))
    if alike:
        # Of as much in common the latest, which comes first.
        _, older, newer = max(alike, key=lambda it: it[0])
        return older, newer
    last = rows[0][0] if rows else ""
    return (rows[1][0] if len(rows) > 1 else last), last


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
