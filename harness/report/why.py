"""Why a recipe is faster or slower than its baseline: profiles by kind of kernel and layer, in words and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isclose

from harness.base.errors import RecordError
from harness.judge import layers, profile
from harness.judge.layers import LAYERS, Step
from harness.judge.profile import BATCH, DECODE, PREFILL, Kept, Profile
from harness.records.run import Run
from harness.records.schema import Measurement
from harness.report.layout import Subject
from harness.report.lines import column_of
from harness.report.plots import NARROW, Plot, legend
from harness.report.rendering import Table
from harness.report.svg import COLOURS, Drawing, Scale, number, wrapped

_MEASURED = {PREFILL: "prefill_time", DECODE: "decode_step_time"}
_MILLISECONDS = {"s": 1000.0, "ms": 1.0}


@dataclass(frozen=True)
class Profiled:
    """One recipe's profile of one phase; ``measured`` is what such a step takes by the clock, in milliseconds.

    ``step`` is the same by kind of layer, where that could be told.
    """

    recipe: str
    baseline: bool
    profile: Profile
    measured: float | None
    step: Step | None = None


@dataclass(frozen=True)
class Side:
    """The profiles of one phase through one server, the baseline first."""

    server: str
    phase: str
    rows: Sequence[Profiled]

    @property
    def name(self) -> str:
        return f"{self.phase} through {self.server}, batch 1"


def sides(subject: Subject, runs: Iterable[Run]) -> tuple[list[Side], list[str]]:
    """Return what was profiled of a model on a device, and a message for each profile that cannot be read."""
    order = {PREFILL: 0, DECODE: 1, BATCH: 2}
    found: dict[tuple[str, int, str], list[Profiled]] = {}
    problems = []
    runs = list(runs)
    if not details_of(runs):
        return [], []
    for record in subject.measurements:
        if record.metric == "kernel_time" and record.attachment:
            try:
                kept = _of(record, runs)
            except RecordError as error:
                problems.append(str(error))
                continue
            steps = layers.phases(kept)
            for phase, one in profile.phases(kept).items():
                name, baseline = column_of(record.cell).name, record.cell.recipe.baseline
                row = Profiled(name, baseline, one, _measured(subject, record, phase), steps.get(phase))
                found.setdefault((record.cell.server, order[phase], phase), []).append(row)
    return [
        Side(server, phase, sorted(rows, key=lambda it: not it.baseline))
        for (server, _, phase), rows in sorted(found.items())
    ], problems


def details_of(runs: Iterable[Run]) -> bool:
    """Return whether any of the runs has kept the details of its records; those that are committed may be without."""
    return any(run.attachments.is_dir() for run in runs)


def _of(record: Measurement, runs: Sequence[Run]) -> Kept:
    """Return a record's profile; of several runs that keep a file of its name, of the one that it sums up."""
    problem = RecordError(f"{record.attachment}: no run keeps it")
    for run in reversed(runs):
        try:
            kept = profile.kept(run.attached(record.attachment))
            total = sum(1000 * seconds for _, seconds, _ in kept.kernels)
            if isclose(total, record.value, rel_tol=1e-6):
                return kept
            problem = RecordError(f"{run.folder / record.attachment}: not the profile of its record")
        except RecordError as error:
            problem = error
        except ValueError as error:
            problem = RecordError(f"{run.folder / record.attachment}: no profile ({error})")
    raise problem


def _measured(subject: Subject, record: Measurement, phase: str) -> float | None:
    for it in subject.measurements:
        same = it.cell == record.cell and it.parameters.get("batch_size") == 1
        if same and it.metric == _MEASURED.get(phase) and it.unit in _MILLISECONDS:
            return it.value * _MILLISECONDS[it.unit]
    return None


def sentences(side: Side) -> list[str]:
    """Return for each recipe how much longer or shorter its kernels run than the baseline's, and which."""
    base = next((it for it in side.rows if it.baseline), None)
    if base is None:
        return []
    return [_sentence(side, it, base) for it in side.rows if not it.baseline]


def _sentence(side: Side, one: Profiled, base: Profiled) -> str:
    covered = ""
    if one.measured and side.phase != BATCH:
        covered = f". Kernels run for {one.profile.total / one.measured:.0%} of the {number(one.measured)} ms measured"
    by_layer = f"; {layers.told(one.step, base.step, base.recipe)}" if one.step and base.step else ""
    return f"{one.recipe}: {profile.told(one.profile, base.profile, base.recipe)}{by_layer}{covered}."


def table(side: Side) -> Table:
    """Return milliseconds by kind and recipe."""
    kinds = [kind for kind in profile.KINDS if any(kind in it.profile.kinds() for it in side.rows)]
    rows = [(kind, *(f"{it.profile.kinds().get(kind, 0.0):.2f}" for it in side.rows)) for kind in kinds]
    rows.append(("all kernels", *(f"{it.profile.total:.2f}" for it in side.rows)))
    if any(it.measured for it in side.rows):
        rows.append(("by the clock", *(number(it.measured) if it.measured else "-" for it in side.rows)))
        gaps = (f"{max(0.0, it.measured - it.profile.total):.2f}" if it.measured else "-" for it in side.rows)
        rows.append(("no kernel runs", *gaps))
    return Table("", f"{side.name} (ms)", ("Kind", *(it.recipe for it in side.rows)), tuple(rows))


def by_layer(side: Side) -> Table | None:
    """Return milliseconds by kind of layer and recipe, gaps included; None where no profile tells them."""
    told = [it for it in side.rows if it.step]
    if not told:
        return None
    rows = [
        (layer, *(f"{it.step.layers.get(layer, 0.0):.2f}" if it.step else "-" for it in told))
        for layer in LAYERS
        if any(it.step and layer in it.step.layers for it in told)
    ]
    rows.append(("a profiled step", *(f"{it.step.total:.2f}" if it.step else "-" for it in told)))
    if any(it.measured for it in told):
        rows.append(("by the clock", *(number(it.measured) if it.measured else "-" for it in told)))
    return Table("", f"{side.name}, by layer (ms)", ("Layers", *(it.recipe for it in told)), tuple(rows))


def picture(side: Side) -> Plot:
    """Return a bar a recipe, as long as its kernels run, in parts by kind."""
    return _bars(side.name, "kernel", profile.KINDS, [(it.recipe, it.profile.kinds()) for it in side.rows])


def picture_by_layer(side: Side) -> Plot | None:
    """Return a bar a recipe, as long as a profiled step is, in parts by kind of layer; None where none is told."""
    told = [(it.recipe, it.step.layers) for it in side.rows if it.step]
    return _bars(f"{side.name}, by layer", "layer", LAYERS, told) if told else None


def _bars(name: str, of: str, kinds: Sequence[str], rows: Sequence[tuple[str, Mapping[str, float]]]) -> Plot:
    colours = {kind: place for place, kind in enumerate(kinds)}
    scale = Scale.over([0, *(sum(parts.values()) for _, parts in rows)], 2, NARROW - 14, pad=0)
    step, bar = 40, 16
    bottom = len(rows) * step + 4
    drawing = Drawing(NARROW, bottom + 40, f"{name}: milliseconds by kind of {of} and recipe")
    drawing.bottom_axis(scale, 2, bottom, "ms")
    for place, (recipe, parts) in enumerate(rows):
        top, total = place * step, sum(parts.values())
        drawing.text(2, top + 14, wrapped(f"{recipe}: {total:.2f} ms", NARROW - 8)[0], kind="halo")
        at = 0.0
        for kind, value in parts.items():
            left, right = scale(at), scale(at + value)
            tip = f"{recipe}, {kind}: {value:.2f} ms"
            drawing.rectangle(left, top + 19, right - left, bar, f"part c{colours[kind] % COLOURS}", tip)
            at += value
    shown = {kind: place for kind, place in colours.items() if any(kind in parts for _, parts in rows)}
    return Plot(name, "", legend(shown) + drawing.markup())
