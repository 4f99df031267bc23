"""A gate's verdicts as JUnit XML and as Markdown."""

from __future__ import annotations

import re
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from harness.base.text import redact
from harness.judge.findings import outcome
from harness.judge.gatefile import GateFile
from harness.judge.verdict import Verdict
from harness.records.place import Place
from harness.report.gate_words import Told, ending, folded, told, words
from harness.report.rendering import Table, escape_md, render

# What XML 1.0 cannot hold, not even escaped.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _xml(text: str) -> str:
    """Return text without credentials and without what XML cannot hold."""
    return _UNPRINTABLE.sub("\ufffd", redact(text))


_OUTCOMES = {"regressed": "failure", "error": "error", "inconclusive": "skipped"}


def junit(gates: Sequence[GateFile]) -> bytes:
    """Return verdicts as JUnit XML: a suite a gate, a test case a finding, and one for each other verdict.

    Failures and errors are what the exit status is: primary verdicts that regressed are a failure, those that could not
    be judged an error, those that are inconclusive skipped with their reason; of one cause they are one case, in words,
    its members below. What was accepted passes, with the reason. Advisory verdicts pass, and what they found stands in
    the case's output. A gate that is not finished has an error that says so, and one that could not judge for want of a
    primary verdict too.
    """
    root = ElementTree.Element("testsuites")
    for gate in gates:
        suite = ElementTree.SubElement(root, "testsuite", name=_xml(f"gate {gate.title}"))
        findings = {id(member): found for found in told(gate) for member in found.finding.members}
        for it in gate.verdicts:
            if found := findings.get(id(it)):
                # A finding stands where its worst figure would, and once.
                if it is found.finding.worst:
                    _finding(suite, found)
                continue
            cell = ".".join(_parts(it.place))
            said = (
                f"{it.reason}: new / old {_number(it.ratio)}, interval {_number(it.low)} to {_number(it.high)}, "
                f"margin {it.margin:g}, {it.blocks} blocks. {it.detail}"
            )
            advisory = "" if it.primary else f"advisory, {it.verdict}: "
            _case(suite, cell, it.what, "", advisory + said)
        if gate.finished is False:
            _case(suite, "gate", "finished", "error", "the gate did not come to its end: --resume goes on with it")
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


def _finding(suite: ElementTree.Element, found: Told) -> None:
    it = found.finding.worst
    several = len(found.members) > 1
    about, name = ("finding", found.finding.cause.words) if several else (".".join(_parts(it.place)), it.what)
    _case(suite, about, name, _OUTCOMES.get(found.outcome, ""), found.text)


def _case(suite: ElementTree.Element, classname: str, name: str, outcome: str, words: str) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=_xml(classname), name=_xml(name))
    if outcome:
        told = ElementTree.SubElement(case, outcome, message=textwrap.shorten(_xml(words), 300, placeholder=" ..."))
        told.text = _xml(words)
    ElementTree.SubElement(case, "system-out").text = _xml(words)


def markdown(gates: Sequence[GateFile]) -> bytes:
    """Return findings in words and all verdicts as markdown, e.g. for the summary of a GitHub Actions step."""
    texts = []
    for gate in gates:
        rows = tuple(
            (it.name, _shown(it), _number(it.ratio), f"{_number(it.low)} to {_number(it.high)}", it.detail)
            for it in sorted(gate.verdicts, key=lambda it: (not it.primary, it.verdict == "pass"))
        )
        header = ("what", "verdict", "new / old", "interval", "detail")
        notes = (f"differs: {'; '.join(gate.differences)}",) if gate.differences else ()
        texts.append(f"## {escape_md(f'{gate.title}: {ending(gate)}')}\n\n{words(gate)}")
        tables = [Table("", "Verdicts", header, rows, notes)]
        if gate.compatibility:
            header = ("what", "stage", "old", "new", "error")
            broken = tuple(
                (f"{it.place.model} {it.place.recipe} {it.place.server}", it.stage, it.old, it.new, it.error or "")
                for it in gate.compatibility
            )
            tables.append(Table("", "Compatibility", header, broken))
        texts.append(folded("all verdicts", render(tables, "md")))
    return "\n".join(texts).encode("utf-8", errors="backslashreplace")


def _parts(place: Place) -> list[str]:
    return [part for part in (place.model, place.recipe, place.server) if part]


def _shown(verdict: Verdict) -> str:
    return outcome(verdict) if verdict.primary else f"{verdict.verdict} (advisory)"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
