"""What a run's limits came to: which hold, which do not, and which of these were expected not to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.judge.gatefile import GateFile
from harness.judge.limits import last
from harness.records.place import Place
from harness.records.schema import Judgement, Line, Outcome, describe

Tone = Literal["good", "known", "bad", "none"]
_UNRECORDED = "expected; this run did not record why"


@dataclass(frozen=True)
class Limits:
    """The last judgement of each limit of some runs; ``known`` has the reason of each that was expected not to hold."""

    held: Sequence[Judgement]
    failed: Sequence[Judgement]
    known: Sequence[tuple[Judgement, str]]

    @property
    def count(self) -> int:
        return len(self.held) + len(self.failed) + len(self.known)

    @property
    def flags(self) -> Mapping[Place, Literal["known", "failed"]]:
        """The figures whose limit does not hold; a new failure outdoes a known one."""
        flags: dict[Place, Literal["known", "failed"]] = {Place.of(it): "known" for it, _ in self.known}
        return flags | {Place.of(it): "failed" for it in self.failed}


def limits(lines: Iterable[Line]) -> Limits:
    """Return what became of each limit; a resumed run holds some judgements twice, of which the last counts."""
    lines = list(lines)
    expected: dict[Place, list[Outcome]] = {}
    for it in lines:
        if isinstance(it, Outcome) and it.outcome == "xfailed" and it.cell:
            expected.setdefault(Place.of(it.cell), []).append(it)
    judged = last(lines)
    held = [it for it in judged if it.passed]
    why = {id(it): _why(it, expected.get(Place.of(it.cell), [])) for it in judged if not it.passed}
    failed = [it for it in judged if why.get(id(it)) == ""]
    return Limits(held, failed, [(it, why[id(it)]) for it in judged if why.get(id(it))])


def _why(it: Judgement, expected: Iterable[Outcome]) -> str:
    """Return why a limit was expected not to hold, or an empty text; older runs say so of its test alone."""
    if it.known:
        return it.known
    told = next((one for one in expected if f"{describe(it)} of " in one.reason), None)
    return (told.known or _UNRECORDED) if told else ""


# --------------------------------------------------------------------------------------------------------- in words


@dataclass(frozen=True)
class Sentence:
    """A page's verdict in words, and how bad it is."""

    text: str
    tone: Tone


def sentence(found: Limits, failures: int, gates: Sequence[GateFile] = ()) -> Sentence:
    """Say in one sentence what came out: limits, what gave no result, and what gates found."""
    parts = [part for part in (_of_limits(found), _of_failures(failures)) if part]
    for gate in gates:
        count = Counter(it.verdict for it in gate.verdicts if it.primary)
        told = [f"{count[name]} {name}" for name in ("regressed", "error", "inconclusive", "pass") if count[name]]
        parts.append(f"{gate.title}: {', '.join(told) or 'nothing was judged'}")
    tone: Tone = "good" if parts else "none"
    if found.failed or failures or any(gate.exit_status == 1 for gate in gates):
        tone = "bad"
    elif found.known or any(gate.exit_status or gate.finished is False for gate in gates):
        tone = "known"
    return Sentence("; ".join(parts) + "." if parts else "Nothing was held against a limit.", tone)


def _of_limits(found: Limits) -> str:
    if not found.count:
        return ""
    if len(found.held) == found.count:
        return f"All {found.count} limits hold" if found.count > 1 else "The one limit holds"
    failed, known = len(found.failed), len(found.known)
    parts = [f"{len(found.held)} of {found.count} limits hold"]
    parts += [f"{failed} {'does' if failed == 1 else 'do'} not"] if failed else []
    parts += [f"{known} {'is a known failure' if known == 1 else 'are known failures'}"] if known else []
    return ", ".join(parts[:2]) + (f" and {parts[2]}" if parts[2:] else "")


def _of_failures(failures: int) -> str:
    return f"{failures} stage{'' if failures == 1 else 's'} gave no result" if failures else ""
