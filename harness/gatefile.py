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

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.model, self.recipe, self.server, self.metric, self.task) if part)


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
    return _UNPRINTABLE.sub("\ufffd", text)


def junit(gates: Sequence[GateFile]) -> bytes:
    """Return verdicts as JUnit XML: regressed is a failure, error an error, inconclusive skipped with its reason."""
    root = ElementTree.Element("testsuites")
    for gate in gates:
        outcomes = {"regressed": "failure", "error": "error", "inconclusive": "skipped"}
        count = {name: sum(it.verdict == verdict for it in gate.verdicts) for verdict, name in outcomes.items()}
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=_xml(gate.title),
            tests=str(len(gate.verdicts)),
            failures=str(count["failure"]),
            errors=str(count["error"]),
            skipped=str(count["skipped"]),
            time=f"{gate.seconds:.3f}",
            timestamp=_xml(gate.created),
        )
        for it in gate.verdicts:
            case = ElementTree.SubElement(suite, "testcase", classname=_xml(f"gate.{it.model}"), name=_xml(it.name))
            if it.verdict in outcomes:
                told = ElementTree.SubElement(case, outcomes[it.verdict], message=_xml(f"{it.reason}: {it.detail}"))
                told.text = _xml(f"ratio {it.ratio}, interval {it.low} to {it.high}, margin {it.margin}")
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def markdown(gates: Sequence[GateFile]) -> bytes:
    """Return the verdicts as markdown tables, e.g. for the summary of a GitHub Actions step."""
    tables = []
    for gate in gates:
        rows = tuple(
            (it.name, it.verdict, _number(it.ratio), f"{_number(it.low)} to {_number(it.high)}", it.detail)
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


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
