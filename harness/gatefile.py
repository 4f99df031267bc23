"""gate.json as others read it: checked, as JUnit XML and as markdown. It is written by the upgrade gate."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import HarnessError
from harness.records import redact
from harness.rendering import Table, render

SCHEMA = 1


class GateError(HarnessError):
    """A gate.json cannot be used; the message names the file and what is wrong."""


class _Part(BaseModel):
    # A gate may say more than is shown here.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Verdict(_Part):
    """One metric of one cell, new against old: ``ratio`` is new / old, ``low`` and ``high`` its interval."""

    model: str
    recipe: str
    server: str | None = None
    metric: str
    task: str | None = None
    unit: str
    direction: Literal["lower", "higher", "none"]
    primary: bool
    verdict: Literal["pass", "regressed", "inconclusive", "error"]
    ratio: float | None
    low: float | None
    high: float | None
    confidence: float
    margin: float
    blocks: int
    reason: str
    detail: str
    label: str = ""

    @property
    def what(self) -> str:
        """The metric, with its parameters or task where it has any."""
        label = self.label or self.task
        return f"{self.metric} ({label})" if label else self.metric

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.model, self.recipe, self.server, self.what) if part)


class Compatibility(_Part):
    model: str
    recipe: str
    server: str | None = None
    stage: str
    old: str
    new: str
    error: str | None = None


class GateFile(_Part):
    """One gate's verdicts."""

    package: str
    old: str
    new: str
    hardware: str
    created: str
    seconds: float
    differences: list[str] = []
    environments: dict[str, dict[str, str]] = {}
    verdicts: list[Verdict]
    compatibility: list[Compatibility] = []
    exit_status: int

    @property
    def title(self) -> str:
        return f"{self.old} to {self.new} on {self.hardware}"


def load(path: Path) -> GateFile:
    """Read a gate.json, or that of a gate's folder. Raises GateError naming the file, also for a newer schema."""
    file = path / "gate.json" if path.is_dir() else path
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(data, dict) and isinstance(data.get("schema"), int) and data["schema"] > SCHEMA:
            raise GateError(f"{file}: schema {data['schema']} is newer than this harness reads ({SCHEMA}); upgrade it")
        return GateFile.model_validate(data)
    except OSError as error:
        raise GateError(f"{file}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise GateError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise GateError(f"{file}: not JSON ({error})") from error


# What XML 1.0 cannot hold, not even escaped.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _xml(text: str) -> str:
    """Return text without credentials and without what XML cannot hold."""
    return _UNPRINTABLE.sub("\ufffd", redact(text))


_OUTCOMES = {"regressed": "failure", "error": "error", "inconclusive": "skipped"}


def junit(gates: Sequence[GateFile]) -> bytes:
    """Return verdicts as JUnit XML: a suite a gate, a test case a verdict.

    Failures and errors are what the exit status is: a primary verdict that regressed is a failure, one that could not
    be judged an error, one that is inconclusive skipped with its reason. Advisory verdicts pass, and what they found
    stands in the case's output. A gate that could not judge for want of a primary verdict has a case that says so.
    """
    root = ElementTree.Element("testsuites")
    for gate in gates:
        suite = ElementTree.SubElement(root, "testsuite", name=_xml(f"gate {gate.title}"))
        for it in gate.verdicts:
            cell = ".".join(part for part in (it.model, it.recipe, it.server) if part)
            words = (
                f"{it.reason}: new / old {_number(it.ratio)}, interval {_number(it.low)} to {_number(it.high)}, "
                f"margin {it.margin:g}, {it.blocks} blocks. {it.detail}"
            )
            advisory = "" if it.primary else f"advisory, {it.verdict}: "
            _case(suite, cell, it.what, _OUTCOMES.get(it.verdict, "") if it.primary else "", advisory + words)
        if gate.exit_status == 2 and not suite.findall("testcase/error"):
            _case(suite, "gate", "exit status", "error", "could not be judged: no primary verdict")
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
        suite.set("tests", str(len(suite)))
        suite.set("time", f"{gate.seconds:.3f}")
        suite.set("timestamp", _xml(gate.created))
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _case(suite: ElementTree.Element, classname: str, name: str, outcome: str, words: str) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=_xml(classname), name=_xml(name))
    if outcome:
        ElementTree.SubElement(case, outcome, message=_xml(words)[:300])
    ElementTree.SubElement(case, "system-out").text = _xml(words)


def markdown(gates: Sequence[GateFile]) -> bytes:
    """Return the verdicts as markdown tables, e.g. for the summary of a GitHub Actions step."""
    tables = []
    for gate in gates:
        rows = tuple(
            (it.name, _shown(it), _number(it.ratio), f"{_number(it.low)} to {_number(it.high)}", it.detail)
            for it in sorted(gate.verdicts, key=lambda it: (not it.primary, it.verdict == "pass"))
        )
        header = ("what", "verdict", "new / old", "interval", "detail")
        notes = (f"differs: {'; '.join(gate.differences)}",) if gate.differences else ()
        tables.append(Table(f"{gate.title}: exit status {gate.exit_status}", "Verdicts", header, rows, notes))
        if gate.compatibility:
            header = ("what", "stage", "old", "new", "error")
            broken = tuple(
                (f"{it.model} {it.recipe} {it.server or ''}", it.stage, it.old, it.new, it.error or "")
                for it in gate.compatibility
            )
            tables.append(Table(tables[-1].heading, "Compatibility", header, broken))
    return render(tables, "md").encode("utf-8", errors="backslashreplace")


def _shown(verdict: Verdict) -> str:
    return verdict.verdict if verdict.primary else f"{verdict.verdict} (advisory)"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
