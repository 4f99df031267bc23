"""What a run's limits came to: which hold, which do not, and which of these were expected not to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.base.reading import json_file
from harness.judge.findings import outcome
from harness.judge.gatefile import VERDICT, GateFile
from harness.judge.limits import TOO_NOISY, last
from harness.judge.verdict import Verdict
from harness.records.place import Place
from harness.records.run import Run
from harness.records.schema import Judgement, Line, Outcome, describe

Tone = Literal["good", "known", "bad", "none"]
_UNRECORDED = "expected; this run did not record why"


@dataclass(frozen=True)
class Limits:
    """The last judgement of each limit of some runs; ``known`` has the reason of each that was expected not to hold."""

    held: Sequence[Judgement]
    failed: Sequence[Judgement]
    known: Sequence[tuple[Judgement, str]]
    noisy: Sequence[Judgement] = ()

    @property
    def count(self) -> int:
        return len(self.held) + len(self.failed) + len(self.known) + len(self.noisy)

    @property
    def flags(self) -> Mapping[Place, Literal["known", "noisy", "failed"]]:
        """The figures whose limit does not hold, or of which it is too noisy to say; a failure outdoes the others."""
        flags: dict[Place, Literal["known", "noisy", "failed"]] = {Place.of(it): "known" for it, _ in self.known}
        flags |= {Place.of(it): "noisy" for it in self.noisy}
        return flags | {Place.of(it): "failed" for it in self.failed}


def limits(lines: Iterable[Line]) -> Limits:
    """Return what became of each limit; a resumed run holds some judgements twice, of which the last counts."""
    lines = list(lines)
    expected: dict[Place, list[Outcome]] = {}
    for it in lines:
        if isinstance(it, Outcome) and it.outcome == "xfailed" and it.cell:
            expected.setdefault(Place.of(it.cell), []).append(it)
    every = last(lines)
    judged = [it for it in every if not it.noisy]
    held = [it for it in judged if it.passed]
    why = {id(it): _why(it, expected.get(Place.of(it.cell), [])) for it in judged if not it.passed}
    failed = [it for it in judged if why.get(id(it)) == ""]
    known = [(it, why[id(it)]) for it in judged if why.get(id(it))]
    return Limits(held, failed, known, [it for it in every if it.noisy])


def _why(it: Judgement, expected: Iterable[Outcome]) -> str:
    """Return why a limit was expected not to hold, or an empty text; older runs say so of its test alone."""
    if it.known:
        return it.known
    told = next((one for one in expected if f"{describe(it)} of " in one.reason), None)
    return (told.known or _UNRECORDED) if told else ""


# ----------------------------------------------------------------------------------------------- a stored baseline


@dataclass(frozen=True)
class Night:
    """What a run came to against a stored baseline: its file, and a verdict for each of its figures."""

    baseline: str
    verdicts: Sequence[Verdict]

    @property
    def title(self) -> str:
        return f"against {self.baseline}"

    @property
    def worse(self) -> bool:
        return any(it.primary and it.verdict in ("regressed", "error") for it in self.verdicts)


def nights(runs: Iterable[Run]) -> tuple[list[Night], list[str]]:
    """Return what each run wrote that was held against a baseline, and a message for each file that is damaged."""
    found, problems = [], []
    for path in (run.folder / "against.json" for run in runs):
        if not path.is_file():
            continue
        try:
            data = json_file(path, once=True)
            found.append(Night(Path(data["baseline"]).stem, [VERDICT.validate_python(it) for it in data["verdicts"]]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{path}: left out, {type(error).__name__}: {str(error).splitlines()[0]}")
    return found, problems


# --------------------------------------------------------------------------------------------------------- in words


@dataclass(frozen=True)
class Sentence:
    """A page's verdict in words, and how bad it is."""

    text: str
    tone: Tone


def sentence(
    found: Limits, failures: int, gates: Sequence[GateFile] = (), against: Sequence[Night] = (), *, mute: int = 0
) -> Sentence:
    """Say in one sentence what came out: limits, what gave no result, what baselines and gates say.

    ``mute`` tests ended without a figure, since the machine was too noisy.
    """
    parts = [part for part in (_of_limits(found), _of_failures(failures)) if part]
    if mute:
        parts.append(f"{'the' if parts else 'The'} machine was too noisy for {mute} {'test' if mute == 1 else 'tests'}")
    parts += [f"{it.title}: {_counts(it.verdicts)}" for it in against]
    parts += [f"{it.title}: {_counts(it.verdicts)}" for it in gates]
    tone: Tone = "good" if parts else "none"
    if found.failed or failures or any(it.worse for it in against) or any(gate.exit_status == 1 for gate in gates):
        tone = "bad"
    elif found.known or found.noisy or mute or any(map(_is_open, gates)):
        tone = "known"
    return Sentence("; ".join(parts) + "." if parts else "Nothing was held against a limit.", tone)


def _is_open(gate: GateFile) -> bool:
    """Return whether a gate that has not regressed is no plain pass either."""
    accepted = any(it.accepted for it in gate.verdicts if it.primary)
    return bool(gate.exit_status) or gate.finished is False or accepted


def _counts(verdicts: Iterable[Verdict]) -> str:
    count: Counter[str] = Counter(outcome(it) for it in verdicts if it.primary)
    names = ("regressed", "error", "inconclusive", "accepted", "pass")
    told = [f"{count[name]} {name}" for name in names if count[name]]
    return ", ".join(told) or "nothing was judged"


def _of_limits(found: Limits) -> str:
    if not found.count:
        return ""
    if len(found.held) == found.count:
        return f"All {found.count} limits hold" if found.count > 1 else "The one limit holds"
    failed, known = len(found.failed), len(found.known)
    parts = [f"{len(found.held)} of {found.count} limits hold"]
    parts += [f"{failed} {'does' if failed == 1 else 'do'} not"] if failed else []
    parts += [f"{known} {'is a known failure' if known == 1 else 'are known failures'}"] if known else []
    parts += [f"of {len(found.noisy)} it is {TOO_NOISY}"] if found.noisy else []
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 2 else ", " if len(parts) > 1 else "") + parts[-1]


def _of_failures(failures: int) -> str:
    return f"{failures} stage{'' if failures == 1 else 's'} gave no result" if failures else ""
