"""Regressions that somebody accepted: kept in a file beside the baselines, and read by the next gate.

An acceptance is of one metric of one package's change on one hardware: of what had got worse against one old version,
and by no more than it was when it was accepted. What is worse than that, or of another cell, is a regression still.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from harness.base.errors import HarnessError, nearest
from harness.base.reading import json_file
from harness.base.text import quoted
from harness.judge.gatefile import GateFile, exit_status
from harness.judge.rules import EVENTS, RULES
from harness.judge.verdict import Verdict
from harness.records import model_file
from harness.records.place import Place, Placed

SCHEMA = 1
_Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class AcceptError(HarnessError):
    """An acceptance cannot be used; the message names where it is from, and what is wrong."""


class AcceptedFigure(Placed):
    """One cell's figure that was accepted: ``worse`` is how many times worse it was; null where that is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worse: float | None = Field(None, gt=1, description="How many times worse than under the old version.")
    reason: _Words = Field(description="The code of the verdict's reason, such as beyond-margin.")


class Acceptance(BaseModel):
    """One metric that may be worse, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: _Words
    reason: _Words = Field(description="Why it is accepted, in somebody's own words.")
    package: _Words
    old: _Words = Field(description="What it is worse than, as the gate was asked for: torchao==0.17.0.")
    new: _Words = Field(description="What it was found with.")
    hardware: _Words
    accepted: datetime.date
    figures: list[AcceptedFigure] = Field(min_length=1)

    def covers(self, gate: GateFile, verdict: Verdict) -> bool:
        """Return whether a regression of a gate is one of those that were accepted, and no worse."""
        if not self.is_of(gate) or verdict.verdict != "regressed" or verdict.metric != self.metric:
            return False
        same = [it for it in self.figures if it.place.named == verdict.place.named and it.reason == verdict.reason]
        now = worse(verdict)
        return any(it.worse is None or (now is not None and now <= it.worse * (1 + verdict.margin)) for it in same)

    def is_of(self, gate: GateFile) -> bool:
        """Return whether a gate is of the same package, hardware and old version."""
        return (self.package, self.hardware, self.old) == (gate.package, gate.hardware, gate.old)


class Acceptances(BaseModel):
    """The file of them, ``RESULTS/accepted.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    version: int = Field(SCHEMA, alias="schema", ge=1, le=SCHEMA)
    accepted: list[Acceptance] = []

    @classmethod
    def path(cls, results: Path) -> Path:
        return results / "accepted.json"

    @classmethod
    def load(cls, results: Path) -> Acceptances:
        """Read the file; there is nothing in it where there is none.

        Raises AcceptError naming the file, the entry and its key for whatever does not hold.
        """
        path = cls.path(results)
        if not path.exists():
            return cls.model_validate({})
        try:
            found = cls.model_validate(json_file(path, finite=True, once=True))
        except OSError as error:
            raise AcceptError(f"{path}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole file"
            raise AcceptError(f"{path}: {where}: {first['msg']}; mend it, or take the entry out") from error
        except ValueError as error:
            raise AcceptError(f"{path}: not JSON ({error}); mend it, or take it away") from error
        for number, one in enumerate(found.accepted):
            try:
                check_metric(one.metric)
            except AcceptError as error:
                raise AcceptError(f"{path}: accepted.{number}.metric: {error}") from error
        return found

    def write(self, results: Path) -> Path:
        path = self.path(results)
        return model_file.write(path, self)

    def applied(self, gate: GateFile) -> GateFile:
        """Return a gate whose accepted regressions are marked, with remarks on what matches nothing any more."""
        verdicts = [replace(it, accepted=self._reason(gate, it)) for it in gate.verdicts]
        status = exit_status(verdicts, finished=gate.finished is not False)
        remarks = [said for one in self.accepted if (said := _unmatched(one, gate))]
        return gate.model_copy(
            update={"verdicts": verdicts, "exit_status": status, "remarks": [*gate.remarks, *remarks]}
        )

    def _reason(self, gate: GateFile, verdict: Verdict) -> str:
        return next((one.reason for one in self.accepted if one.covers(gate, verdict)), "")

    def plus(self, gate: GateFile, metric: str, reason: str, today: datetime.date) -> Acceptances | None:
        """Return these with a gate's regressions of a metric accepted; None where it has none of them.

        What was accepted of that metric against the same old version is replaced.
        """
        worse_now = [it for it in gate.verdicts if it.metric == metric and it.verdict == "regressed" and it.primary]
        if not worse_now:
            return None
        figures = [AcceptedFigure(place=it.place.named, worse=worse(it), reason=it.reason) for it in worse_now]
        one = Acceptance(
            metric=metric,
            reason=reason,
            package=gate.package,
            old=gate.old,
            new=gate.new,
            hardware=gate.hardware,
            accepted=today,
            figures=figures,
        )
        now = {it.place for it in figures}
        kept = [other for it in self.accepted if (other := _without(it, one, now))]
        return self.model_copy(update={"accepted": [*kept, one]})


def worse(verdict: Verdict) -> float | None:
    """Return how many times worse the new version is, above 1; None where that is no number."""
    ratio = verdict.ratio
    if ratio is None or not (0 < ratio < math.inf) or verdict.direction == "none":
        return None
    found = ratio if verdict.direction == "lower" else 1 / ratio
    return found if found > 1 else None


def parse(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Return (metric, reason) of each ``METRIC:REASON``. Raises AcceptError for a metric that no gate judges."""
    found = []
    for text in texts:
        known = [it for it in (*RULES, *EVENTS) if text.startswith(f"{it}:")]
        metric = max(known, key=len, default=text.partition(":")[0])
        reason = text.removeprefix(metric).removeprefix(":").strip()
        try:
            check_metric(metric)
        except AcceptError as error:
            raise AcceptError(f"--accept {text!r}: {error}") from error
        if not reason:
            example = quoted(f"{metric}:the new kernel waits for its fix")
            raise AcceptError(f"--accept {text!r}: say why, as in --accept {example}")
        found.append((metric, reason.encode(errors="backslashreplace").decode()))
    return found


def check_metric(metric: str) -> None:
    """Raise AcceptError for a metric that no gate has a verdict on."""
    known = (*RULES, *EVENTS)
    if metric not in known:
        raise AcceptError(f"{metric!r} is judged by no gate; {nearest(metric, known)}")


def _without(it: Acceptance, other: Acceptance, places: set[Place]) -> Acceptance | None:
    """Return an acceptance without the figures that another one is of from now on; None where nothing is left."""
    if (it.metric, it.package, it.hardware, it.old) != (other.metric, other.package, other.hardware, other.old):
        return it
    left = [figure for figure in it.figures if figure.place not in places]
    return it.model_copy(update={"figures": left}) if left else None


def _unmatched(one: Acceptance, gate: GateFile) -> str:
    """Say that an acceptance matches nothing of a gate any more, and why; empty where it does, or is of others."""
    if (one.package, one.hardware) != (gate.package, gate.hardware):
        return ""
    what = f"accepted: {one.metric} ({one.reason})"
    if one.old != gate.old:
        return f"{what}: matches nothing: it was accepted against {one.old}, and this gate is against {gate.old}"
    places = {it.place for it in one.figures}
    there = [it for it in gate.verdicts if it.metric == one.metric and it.place.named in places]
    if any(one.covers(gate, it) for it in there):
        return ""
    if not there:
        return f"{what}: matches nothing: this gate did not measure it"
    if now := [it for it in there if it.verdict == "regressed"]:
        return f"{what}: matches nothing: {_more(now)} than was accepted; --accept it again, or mend it"
    return f"{what}: matches nothing any more: it is not worse now; take it out of {Acceptances.path(Path()).name}"


def _more(verdicts: Sequence[Verdict]) -> str:
    return f"{len(verdicts)} figure{'s are' if len(verdicts) > 1 else ' is'} worse"
