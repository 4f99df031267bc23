"""Since which version something is worse, by the gates that are stored, and how to find the release otherwise."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable
from dataclasses import replace

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from harness.base.text import quoted, redact
from harness.judge.gatefile import GateFile
from harness.judge.rules import LOGITS, OLD_CHECKPOINT, RULES
from harness.judge.verdict import Verdict

_OLD_CHECKPOINT = "old_checkpoint"
"""What ``bisect --metric`` calls how an old checkpoint is read."""
_KEPT = {
    *("--model", "--server", "--set", "--data", "--margin"),
    *("--python", "--matrix", "--cache", "--share", "--results"),
}
"""What a search takes of the gate's command."""


def dated(gate: GateFile, earlier: Iterable[GateFile]) -> GateFile:
    """Return a gate whose primary regressions say since which version, by what earlier gates found of the same figure.

    Earlier gates tell if they are of the same package, hardware, device and old version.
    """
    alike = [
        it
        for it in earlier
        if (it.package, it.hardware, it.device, it.old) == (gate.package, gate.hardware, gate.device, gate.old)
    ]
    verdicts = [
        replace(it, since=_since(it, gate, alike)) if it.verdict == "regressed" and it.primary else it
        for it in gate.verdicts
    ]
    return gate.model_copy(update={"verdicts": verdicts})


def _since(verdict: Verdict, gate: GateFile, alike: list[GateFile]) -> str:
    new = _release(gate.new)
    bad, good = new, version(gate.old)
    for other in alike:
        at = version(other.new)
        if at is None or new is None or at >= new:
            continue
        said = {it.verdict for it in other.verdicts if it.place.named == verdict.place.named}
        if "regressed" in said:
            bad = min(bad or at, at)
    for other in alike:
        at = version(other.new)
        said = {it.verdict for it in other.verdicts if it.place.named == verdict.place.named}
        if at is not None and bad is not None and good is not None and good < at < bad and said == {"pass"}:
            good = at
    if bad is None or good is None:
        return f"{gate.new}; {gate.old} was better"
    still = f"{good} was still as before" if good != version(gate.old) else f"held against {good}"
    return f"{bad} at the latest; {still}"


def search(verdict: Verdict, gate: GateFile) -> str:
    """Return the command that finds what began it: the package, where several differ, and the release.

    Empty where there is none to search with.
    """
    old, new = _release(gate.old), _release(gate.new)
    metric = _OLD_CHECKPOINT if verdict.metric in (LOGITS, f"works: {OLD_CHECKPOINT}") else verdict.metric
    if metric not in (*RULES, _OLD_CHECKPOINT):
        return ""
    if several(gate) and gate.options:
        what = " ".join(f"--{side} {quoted(redact(getattr(gate.options, side)))}" for side in ("old", "new"))
    elif old is not None and new is not None:
        what = f"{gate.package} {old}..{new}"
    else:
        return ""
    words = f"python -m harness bisect {what} -m {gate.hardware} --metric {metric}"
    words += f" --recipe {quoted(verdict.place.recipe)}" if verdict.place.recipe else ""
    return " ".join([words, *map(quoted, _as_asked(gate))])


def _as_asked(gate: GateFile) -> list[str]:
    """Return the options of a gate's command by which a search measures the same, in the same places."""
    asked = shlex.split(gate.command) if gate.command else gate.options.words() if gate.options else []
    pairs = (pair for pair in itertools.pairwise(asked) if pair[0] in _KEPT)
    return [redact(word) for pair in pairs for word in pair]


def several(gate: GateFile) -> bool:
    """Return whether more than one package differs between the sides of a gate."""
    before, after = (gate.environments.get(side, {}) for side in ("old", "new"))
    return sum(before.get(name) != after.get(name) for name in {*before, *after}) > 1


def _release(requirement: str) -> Version | None:
    """Return the version that a requirement pins; None for a build of one's own too, which is among no releases."""
    found = version(requirement)
    return None if found and found.local else found


def version(requirement: str) -> Version | None:
    """Return the version that a requirement pins, as of ``torchao==0.17.0``; None for any other, as a wheel's path."""
    try:
        pins = [it for it in Requirement(requirement).specifier if it.operator == "=="]
        return Version(pins[0].version) if len(pins) == 1 else None
    except (InvalidRequirement, InvalidVersion):
        return None
