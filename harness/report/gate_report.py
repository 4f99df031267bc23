"""What a gate found, for people: the table by severity, and the walk through one decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from harness.base.errors import HarnessError, nearest
from harness.base.numbers import decimal
from harness.base.terminal import fold
from harness.judge import accuracy
from harness.judge.findings import outcome
from harness.judge.gatefile import GateFile
from harness.judge.rules import EVENTS, REASONS, RULES
from harness.judge.series import SIDES
from harness.judge.verdict import Verdict
from harness.records.place import Place
from harness.report import blocks, gate_words
from harness.report.brief import LINES, Paragraph, cut
from harness.report.rendering import Table, render

NOTHING = "-"
_WINDOWS = tuple(metric for metric, rule in RULES.items() if rule.kind in ("ratio", "difference"))
_DOCUMENTS = tuple(metric for metric, rule in RULES.items() if rule.kind in ("documents", "likelihood"))


def text(gate: GateFile, explain: Sequence[str] = ()) -> str:
    """Return the whole report of a gate.json as markdown.

    Findings come first, in words, then verdicts by severity, flips, what works, layers and kernels.
    """
    parts = [
        gate_words.words(gate),
        render(
            [table for table in (_verdicts(gate), _flips(gate), _compatibility(gate), _changes(gate)) if table.rows],
            "md",
        ),
    ]
    for metric in explain:
        parts.append(_explain(gate, metric))
    parts.append(_summary(gate))
    return "\n".join(parts)


_HEAD = 2
"""Lines of a table above its first row."""


def brief(gate: GateFile, where: str, wide: int | None, explain: Sequence[str] = (), *, coloured: bool = False) -> str:
    """Return what the terminal shows: the walks that were asked for, then a screen, no line wider than ``wide``.

    The screen has the verdict, the findings in words, the first of all verdicts, and ``where`` the rest is.
    """
    most = wide or 10**6
    last = cut([Paragraph("", (*_summary(gate).splitlines(), f"gate: {where}"), least=8, rank=0)], most, 10, where)
    room = LINES - len(last)
    table = _short(gate, wide)
    shown = cut(_paragraphs(gate), most, room - min(len(table), _LEAST_ROWS), where)
    walks = [line for metric in explain for it in _explain(gate, metric).splitlines() for line in fold(it, most)]
    screen = [_painted(line, tone) if coloured else line for line, tone in shown]
    rows = min(len(table), room - len(shown))
    if rows < len(table):
        # The line that says so takes one.
        rows = max(0, rows - 1)
        while _goes_on(table, rows):
            rows -= 1
    left = sum(not _goes_on(table, at) for at in range(max(rows, _HEAD), len(table)))
    more = [f"... and {left} more row{'s' if left > 1 else ''} of it: report.md"] if rows < len(table) and left else []
    return "\n".join([*walks, *screen, *table[:rows], *more, *(line for line, _ in last)]) + "\n"


def _goes_on(table: Sequence[str], at: int) -> bool:
    """Return whether a line of a table is the rest of the row above it."""
    return 0 < at < len(table) and not table[at].split("|")[1].strip()


def _paragraphs(gate: GateFile) -> list[Paragraph]:
    tones = {"regressed": "red", "error": "red", "accepted": "yellow", "inconclusive": "yellow"}
    found = [Paragraph("", (gate_words.sentence(gate),), rank=0)]
    for number, it in enumerate(gate_words.told(gate)):
        lines = [f"  {name}: {words}" for name, words in it.lines]
        lines += [f"  of it: {', '.join(it.cells)}"] if len(it.members) > 1 else []
        found.append(Paragraph(it.title, tuple(lines), tones[it.outcome], least=1, rank=1 + number))
    return [*found, Paragraph("", tuple(gate.remarks), "yellow", least=1, rank=1)]


def _short(gate: GateFile, wide: int | None) -> list[str]:
    """Return the lines of the verdicts' table without what the findings tell of them."""
    table = _verdicts(gate)
    kept = replace(
        table,
        heading="",
        title="",
        header=table.header[:_SHORT],
        rows=tuple(row[:_SHORT] for row in table.rows),
        notes=(),
    )
    return blocks.text([kept], wide, blocks=False).splitlines() if table.rows else []


_SHORT = 5
_LEAST_ROWS = 9
_PAINT = {"red": 31, "yellow": 33, "green": 32}


def _painted(line: str, tone: str) -> str:
    return f"\x1b[{_PAINT[tone]}m{line}\x1b[0m" if tone in _PAINT else line


def name(verdict: Verdict) -> str:
    """Return what a verdict is about, in words."""
    place = verdict.place
    return f"{verdict.what} of {'-'.join(filter(None, (place.model, place.recipe, place.server)))}"


def interval(verdict: Verdict) -> str:
    """Return ratio and interval as in ``1.021 (0.994 to 1.049)``."""
    if verdict.ratio is None:
        return NOTHING
    return f"{verdict.ratio:.3f} ({_number(verdict.low)} to {_number(verdict.high)})"


def _verdicts(gate: GateFile) -> Table:
    rows = []
    for it in gate.verdicts:
        shown = outcome(it) if it.primary else f"{it.verdict} (advisory)"
        margin = _margin(it)
        rows.append((shown, _where(it.place), it.what, interval(it), margin, _over(it), it.reason))
    models = sorted({it.place.model for it in gate.verdicts})
    notes = [f"new / old: {gate.new} over {gate.old}, with {_interval_words(gate)}; the worst first"]
    if cancelled := sorted({it.metric for it in gate.verdicts if it.drift_cancelled}):
        notes.append(
            f"both sides' rounds were taken in turns, which cancels the machine's drift: {', '.join(cancelled)}"
        )
    return Table(
        f"{gate.title}: {gate_words.status(gate)}",
        ", ".join(models),
        ("verdict", "cell", "metric", "new / old", "margin", "over", "reason"),
        tuple(rows),
        tuple(notes),
    )


def _flips(gate: GateFile) -> Table:
    """Return how many answers and tokens changed sides, for every verdict on quality, whatever it says."""
    tokens = {it.place.named.cell: _token_flips(it) for it in gate.verdicts if it.metric == "token_flips"}
    rows = []
    for it in gate.verdicts:
        if it.metric not in _WINDOWS + _DOCUMENTS or not it.samples["old"] or not it.samples["new"]:
            continue
        told = NOTHING
        if RULES[it.metric].kind == "documents" and _paired(it):
            found = accuracy.flips(it.samples["old"], it.samples["new"])
            told = f"{found.lost} lost, {found.won} won ({found.share:.2%} of {found.documents} documents)"
        elif it.metric in _WINDOWS:
            told = tokens.get(it.place.named.cell, NOTHING)
        rows.append((_where(it.place), it.what, it.verdict, told))
    return Table(
        "Flips",
        "",
        ("cell", "metric", "verdict", "flips"),
        tuple(rows),
        (
            "documents: right under the old version and wrong under the new one (lost), or the other way (won)",
            "tokens: the share of positions where exactly one of bf16 and the recipe predicts the text, old and new",
        ),
    )


def _paired(it: Verdict) -> bool:
    """Return whether both sides answered the same documents."""
    return 0 < len(it.samples["old"]) == len(it.samples["new"])


def _token_flips(it: Verdict) -> str:
    shares = [it.samples[side] for side in SIDES]
    if not all(shares):
        return NOTHING
    old, new = (sum(share) / len(share) for share in shares)
    return f"old {old:.2%}, new {new:.2%} of tokens"


def _where(place: Place) -> str:
    return " ".join(filter(None, (place.recipe, place.server)))


def _over(it: Verdict) -> str:
    """Return how many pairs a verdict rests on, and of what."""
    count = min(len(it.samples[side]) for side in SIDES)
    return over(it.metric, count) if it.metric in RULES and count else NOTHING


def over(metric: str, count: int) -> str:
    """Return in words how many pairs of samples of a metric there are."""
    word = "window" if metric in _WINDOWS else "document" if metric in _DOCUMENTS else "block"
    return f"{count} {word}{'s' if count > 1 else ''}"


def _margin(it: Verdict) -> str:
    if not it.margin:
        return NOTHING
    if it.reason in REASONS and it.unit in ("nats", "fraction"):
        return f"{it.margin:.2g} {it.unit}"
    return f"{it.margin:.1%}"


def _compatibility(gate: GateFile) -> Table:
    rows = [
        (it.place.recipe, it.place.server or NOTHING, it.stage, it.old, it.new, (it.error or NOTHING)[:160])
        for it in gate.compatibility
        if {it.old, it.new} != {"not tried"}
    ]
    return Table("What works", "", ("recipe", "through", "stage", "old", "new", "error"), tuple(rows))


def _changes(gate: GateFile) -> Table:
    rows = [(it.place.recipe, it.what, it.old, it.new) for it in gate.kernels]
    return Table("Layers and kernels that changed", "", ("recipe", "what", "old", "new"), tuple(rows))


def _summary(gate: GateFile) -> str:
    counts = Counter(outcome(it) for it in gate.verdicts if it.primary)
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "nothing"
    lost = sum(unit.lost for unit in gate.units.values())
    lines = [
        f"differences: {'; '.join(gate.differences) or 'none: both sides are the same'}",
        f"primary verdicts: {told}; {gate.seconds:.0f} s of {gate.budget_seconds:.0f} s, "
        f"{gate.measuring_seconds:.0f} s of them measuring"
        + (
            f"; {lost} block{'s' if lost > 1 else ''} lost a worker and {'were' if lost > 1 else 'was'} repeated"
            if lost
            else ""
        ),
        gate_words.ending(gate),
    ]
    left_out: dict[str, list[str]] = {}
    for name, unit in gate.units.items():
        if unit.problem and not unit.reason:
            left_out.setdefault(unit.problem, []).append(name)
    lines += [f"left out: {', '.join(names)}: {why}" for why, names in left_out.items()]
    return "\n".join(lines) + "\n"


def check_explained(metrics: Sequence[str]) -> None:
    """Raise HarnessError for a metric that no gate has a verdict on, before anything is measured."""
    known = {*RULES, *EVENTS}
    for metric in metrics:
        if metric not in known:
            raise HarnessError(f"--explain {metric!r}: gates have no verdict on it; {nearest(metric, known)}")


def _explain(gate: GateFile, metric: str) -> str:
    """Walk through every decision on one metric, step by step."""
    found = [it for it in gate.verdicts if it.metric == metric]
    if not found:
        there = ", ".join(sorted({it.metric for it in gate.verdicts})) or "nothing"
        return f"{metric}: this gate has no verdict on it; there are verdicts on {there}\n"
    return "\n".join(line for it in found for line in _walk(it)) + "\n"


def _walk(it: Verdict) -> list[str]:
    lines = [f"{name(it)}: {it.verdict} ({it.reason})"]
    pairs = list(zip(it.samples["old"], it.samples["new"], strict=False))
    for index, (old, new) in enumerate(pairs[:40]):
        ratio = f"{new / old:.4f}" if old else "no ratio"
        lines.append(f"  {index + 1:3}. old {old:.6g}, new {new:.6g} {it.unit}: {ratio}")
    if len(pairs) > 40:
        lines.append(f"  ... and {len(pairs) - 40} more")
    if it.ratio is not None:
        lines.append(f"  ratio new / old {interval(it)} over {_over(it)}; better is {it.direction}")
        lines.append(f"  the margin is {_margin(it)}; {'primary' if it.primary else 'advisory'}")
    if it.freedom is not None:
        lines.append(
            f"  the interval is of {it.confidence:.1%}, by {it.freedom:.0f} degrees of freedom of {it.blocks} blocks"
        )
    if it.p is not None:
        family = "held under Benjamini-Hochberg at 5 % with all primary metrics" if it.primary else "advisory"
        lines.append(f"  p of 'not worse than the margin' (one-sided): {it.p:.3g}, {family}")
    if it.metric in RULES and RULES[it.metric].kind == "documents" and _paired(it):
        flips = accuracy.flips(it.samples["old"], it.samples["new"])
        p = accuracy.mcnemar_exact(flips.lost, flips.won)
        lines.append(f"  of {flips.documents} documents {flips.lost} lost, {flips.won} won: exact McNemar p {p:.3g}")
    if it.drift_cancelled:
        lines.append("  the two sides took turns within every block, so the machine's drift is in both")
    if it.metric in RULES and RULES[it.metric].kind == "blocks":
        lines.append("  old and new of a block are held against each other: no ratio to bf16 is needed or taken")
    lines.append(f"  {it.reason}: {REASONS.get(it.reason, it.reason)}")
    if it.detail != REASONS.get(it.reason):
        lines.append(f"  {it.detail}")
    return lines


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}" if value < 100 else decimal(value)


def _interval_words(gate: GateFile) -> str:
    """Return of which confidence a gate's intervals are: of more, the more looks there were."""
    found = sorted({it.confidence for it in gate.verdicts if it.ratio is not None})
    if len(found) < 2:
        return f"its {found[0] if found else 0.95:.0%} interval"
    return f"its interval of {found[0]:.1%} to {found[-1]:.1%}"
