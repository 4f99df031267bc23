"""A gate's findings in words: what got worse, by how much, what that means, since when, and how to accept it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from harness.base.text import one_line, quoted
from harness.judge.accepted import worse
from harness.judge.findings import Finding, Outcome, findings, outcome
from harness.judge.gatefile import GateFile, Options
from harness.judge.meaning import topic
from harness.judge.meaning import worse as meaning
from harness.judge.rules import REASONS, RULES
from harness.judge.since import search
from harness.judge.verdict import Verdict
from harness.records.metrics import METRICS
from harness.report.rendering import escape_md

STATUS = {0: "pass", 1: "regressed", 2: "could not be judged", 3: "inconclusive within the budget"}
_MOST_WORDS = 400
_COMMANDS = ("find it", "accept it")
"""The lines of a finding that are commands to be pasted, which are never cut."""


@dataclass(frozen=True)
class Told:
    """One finding as people read it: ``lines`` are (name, words), ``members`` what was found of each figure."""

    finding: Finding
    title: str
    lines: tuple[tuple[str, str], ...]
    members: tuple[str, ...]

    @property
    def outcome(self) -> Outcome:
        return self.finding.outcome

    @property
    def cells(self) -> tuple[str, ...]:
        """The members by what tells them apart: recipe, server, and what of it."""
        several = len({it.metric for it in self.finding.members}) > 1
        return tuple(dict.fromkeys(_cell(it, it.what if several else it.label) for it in self.finding.members))

    @property
    def text(self) -> str:
        """All of it, the members last."""
        said = [self.title, *(f"{name}: {words}" for name, words in self.lines)]
        return "\n".join([*said, *(f"  {it}" for it in self.members)])


def told(gate: GateFile) -> list[Told]:
    """Return what a gate found of its primary metrics that is no pass, in words, the worst first."""
    return [_told(it, gate) for it in findings((v for v in gate.verdicts if v.primary), gate.kernels)]


def sentence(gate: GateFile) -> str:
    """Return a gate's verdict in one line: its outcome, and how many findings of how many figures there are."""
    found = told(gate)
    parts = []
    for name in ("regressed", "error", "inconclusive", "accepted"):
        of = [it for it in found if it.outcome == name]
        if of:
            figures = sum(len(it.members) for it in of)
            parts.append(f"{len(of)} {name}" + (f" ({figures} figures)" if figures > len(of) else ""))
    passed = sum(outcome(it) == "pass" for it in gate.verdicts if it.primary)
    parts.append(f"{passed} figures pass")
    what = f"{len(found)} finding{'s' if len(found) != 1 else ''}: " if found else ""
    return f"{gate.title}: {status(gate)}; {what}{', '.join(parts)}"


def status(gate: GateFile) -> str:
    """Return what a gate came to in words; one that did not come to its end has not passed, whatever it has judged."""
    if gate.finished is False:
        return "regressed so far" if gate.exit_status == 1 else "no verdict, it did not come to its end"
    return STATUS[gate.exit_status]


def ending(gate: GateFile) -> str:
    """Return the line on the exit status of a gate's command; one that is not finished has none."""
    head = "not finished" if gate.finished is False else f"exit status {gate.exit_status}"
    return f"{head}: {status(gate)}"


def words(gate: GateFile) -> str:
    """Return a gate's findings as markdown, the members of each folded below it, then what else is to be said."""
    parts = [escape_md(sentence(gate))]
    for it in told(gate):
        lines = [f"**{escape_md(it.title)}**", "", *(f"- {name}: {_md(name, said)}" for name, said in it.lines)]
        parts.append("\n".join(lines))
        if len(it.members) > 1:
            parts.append(folded("its figures", "".join(f"- {escape_md(member)}\n" for member in it.members)))
    parts += [escape_md(remark) for remark in gate.remarks]
    return "\n\n".join(parts) + "\n"


def _md(name: str, said: str) -> str:
    """Return what a line says as markdown: a command as code, which is copied as it is."""
    return f"`{said}`" if name in _COMMANDS and "`" not in said else escape_md(said)


def folded(title: str, text: str) -> str:
    """Return markdown that is folded below a title, as GitHub shows it."""
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def _told(finding: Finding, gate: GateFile) -> Told:
    members, first = finding.members, finding.worst
    count = f" ({len(members)} figures)" if len(members) > 1 else ""
    lines = [*_LINES[finding.outcome](finding, gate)]
    return Told(
        finding,
        f"{finding.outcome}: {finding.cause.words if count else first.name}{count}",
        tuple((name, one_line(words)[: None if name in _COMMANDS else _MOST_WORDS]) for name, words in lines if words),
        tuple(_member(it) for it in members),
    )


def _regressed(finding: Finding, gate: GateFile) -> list[tuple[str, str]]:
    metrics = list(dict.fromkeys(it.metric for it in finding.members))
    accept = [word for metric in metrics for word in ("--accept", f"{metric}:REASON")]
    asked = gate.command or (gate.options or Options(gate.old, gate.new, gate.hardware)).command()
    return [
        ("worse", how_much(finding.members)),
        ("means", "; ".join(meaning(metric) for metric in metrics)),
        ("kernels", _kernels(finding, gate)),
        ("since", finding.worst.since or f"{gate.new}, held against {gate.old}"),
        ("find it", search(finding.worst, gate)),
        ("accept it", " ".join([asked, "--resume last", *map(quoted, accept)])),
    ]


def _kernels(finding: Finding, gate: GateFile) -> str:
    """Return what the kernels of the engine took before and after, where it is a figure of its speed that got worse."""
    for it in finding.members:
        if topic(it.metric) == "speed" and (
            found := [one for one in gate.profiles if one.place == it.place.named.cell]
        ):
            return ". ".join(one.words for one in found)
    return ""


def _error(finding: Finding, gate: GateFile) -> list[tuple[str, str]]:
    return [("why", _reasons(finding.members)), ("means", "it is not known whether anything got worse")]


def _inconclusive(finding: Finding, gate: GateFile) -> list[tuple[str, str]]:
    return [
        ("why", _reasons(finding.members)),
        ("means", "it is not known whether anything got worse by more than the margin"),
        ("next", _next(finding.members, gate)),
    ]


def _accepted(finding: Finding, gate: GateFile) -> list[tuple[str, str]]:
    return [("worse", how_much(finding.members)), ("accepted", finding.worst.accepted)]


_LINES = {"regressed": _regressed, "error": _error, "inconclusive": _inconclusive, "accepted": _accepted}


def how_much(verdicts: Sequence[Verdict]) -> str:
    """Return by how much several figures are worse, as in ``12 % to 34 % more``, with the worst one's interval."""
    shares = [(share, it) for it in verdicts if (share := worse(it)) is not None and it.ratio is not None]
    rest = [it for it in verdicts if worse(it) is None]
    said = []
    if shares:
        least, most = min(shares, key=lambda it: it[0]), max(shares, key=lambda it: it[0])
        by = _share(most[1]) if least[0] == most[0] else f"{_share(least[1])} to {_share(most[1])}"
        one = most[1]
        at = "" if len(shares) == 1 else f" of {_cell(one, one.label)}"
        # A margin in the metric's own unit is no share of the ratio.
        own = METRICS[one.metric].unit if RULES[one.metric].kind == "difference" else ""
        if own and all(one.samples.values()):
            old, new = (math.fsum(values) / len(values) for values in one.samples.values())
            said.append(f"from {old:.3g} to {new:.3g} {own}{at}, margin {one.margin:.2g} {own}")
        else:
            said.append(f"{by}; new / old{at} {interval(one)}, margin {one.margin:.2g}")
    if rest:
        said.append("; ".join(dict.fromkeys(it.detail or REASONS.get(it.reason, it.reason) for it in rest)))
    return "; ".join(said)


def _share(it: Verdict) -> str:
    change = (it.ratio or 1.0) - 1
    unit = METRICS[it.metric].unit if it.metric in METRICS else ""
    what = {"s": "longer", "ms": "longer", "GB": "more memory", "B": "larger"}.get(unit, "more")
    return f"{change:.1%} {what}" if change > 0 else f"{-change:.1%} less"


def interval(verdict: Verdict) -> str:
    """Return ratio and interval as in ``1.021 (0.994 to 1.049)``."""
    if verdict.ratio is None:
        return "-"
    low, high = ("-" if it is None else f"{it:.3f}" for it in (verdict.low, verdict.high))
    return f"{verdict.ratio:.3f} ({low} to {high})"


def _cell(it: Verdict, what: str) -> str:
    return " ".join(filter(None, (it.place.recipe, it.place.server, what)))


def _member(it: Verdict) -> str:
    ratio = f" {interval(it)}" if it.ratio is not None else ""
    return f"{it.name}:{ratio} {it.reason}".replace(":  ", ": ")


def _reasons(verdicts: Sequence[Verdict]) -> str:
    """Return why, each reason once, with how many figures it is of."""
    why = Counter(it.detail or REASONS.get(it.reason, it.reason) for it in verdicts)
    if len(why) > 1 and len({it.reason for it in verdicts}) < len(why):
        why = Counter(REASONS.get(it.reason, it.reason) for it in verdicts)
    return "; ".join(f"{words} ({count})" if len(why) > 1 else words for words, count in why.most_common())


def _next(verdicts: Sequence[Verdict], gate: GateFile) -> str:
    reasons = {it.reason for it in verdicts}
    most = gate.options.blocks if gate.options else None
    larger = "--blocks" if most and any(it.blocks >= most for it in verdicts) else "--budget"
    if all(topic(it.metric) == "quality" and it.reason == "too-noisy" for it in verdicts):
        return "measure more documents: --limit, or measurements.text.windows of the matrix"
    if reasons & {"too-few-blocks", "budget-spent", "too-noisy", "false-discovery", "mean-undecided", "tail-undecided"}:
        return f"measure on: the same command with --resume last and a larger {larger}"
    if any(it.reason == "near-margin" and it.freedom is not None for it in verdicts):
        return f"decide by the interval; or have it measured until it is decided: --resume last and a larger {larger}"
    return "more blocks do not settle it; decide by the interval, or choose another --margin"
