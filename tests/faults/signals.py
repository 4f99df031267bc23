"""Ctrl-C, SIGTERM and SIGHUP, once or twice, to commands that no other kind interrupts, as real processes."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.records.run import read
from tests.bundle.test_bundle import HERE, PYTHON, write_wheel
from tests.faults import real_gates
from tests.faults.campaign import Fault, Scenario
from tests.faults.commands import Command, prepared
from tests.faults.engines import REPOSITORY, tiny_program
from tests.faults.sessions import STUCK, TRACEBACK, marked, none_left

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GATES = REPOSITORY / "results" / "gates"
_TIMEOUT = 300


@dataclass
class Asked:
    """A command: its words, about how long it takes, and what must hold of what it left, whole or not."""

    words: list[str]
    seconds: float
    due: Callable[[int, str], bool]
    whole: Callable[[], str] = lambda: ""
    """In what way what is there is not whole, after the interruption."""
    again: Callable[[], list[str]] | None = None
    variables: dict[str, str] = field(default_factory=dict)
    cwd: Path | None = None


def _writes(out: Path, words: list[str], seconds: float) -> Asked:
    """A command with one file of its own, which stays as it was or is the new one."""
    out.write_text("as it was", encoding="utf-8")
    made: list[bytes] = [b"as it was"]

    def due(status: int, _: str) -> bool:
        made.append(out.read_bytes())
        return status == 0 and made[-1] != b"as it was"

    def whole() -> str:
        text = out.read_bytes()
        return "" if text == b"as it was" or text.endswith(b"\n") else f"it ends with {text[-40:]!r}"

    return Asked(words, seconds, due, whole)


def doctor(fault: Fault) -> Asked:
    more = fault.draw.choice([[], ["--all"], ["--imports"]])
    words = ["-m", "harness", "doctor", *more]
    return Asked(words, 12 if "--imports" in more else 3, lambda status, told: status in (0, 1) and "torchao" in told)


def compatibility(fault: Fault) -> Asked:
    out = fault.folder / "matrix.md"
    names = sorted(path.parent.name for path in GATES.glob("*/gate.json"))[-1:]
    words = ["-m", "harness", "compatibility", *names, "--results", str(GATES.parent), "-o", str(out)]
    return _writes(out, words, 1)


def site(fault: Fault) -> Asked:
    _, run = prepared(fault.folder)
    out = fault.folder / "site"
    words = ["-m", "harness", "site", str(out), "--runs", str(run.folder.parent), "--gates", str(fault.folder / "none")]

    def whole() -> str:
        half = [it.name for it in out.rglob("*.html") if not it.read_bytes().rstrip().endswith(b"</html>")]
        return f"half pages: {half}" if half else ""

    return Asked(words, 4, lambda status, _: status == 0 and (out / "index.html").is_file() and not whole(), whole)


def bundle(fault: Fault) -> Asked:
    wheels, out = fault.folder / "wheels", fault.folder / "out"
    wheels.mkdir()
    write_wheel(wheels, "plain", "1.5", {f"plain/{it}.py": fault.draw.randbytes(200_000) for it in range(30)})
    write_wheel(wheels, "engine", "2.0", {"engine.py": b"import plain\n"}, requires=["plain"])
    project = fault.folder / "pyproject.toml"
    project.write_text(
        '[project]\nname = "p"\n[project.optional-dependencies]\ngpu = ["engine==2.0"]\n', encoding="utf-8"
    )
    words = ["-m", "harness", "bundle", "--python", PYTHON, "--extra", "gpu", "--platform", HERE.platform]
    words += ["--pyproject", str(project), "--part-size", "1MiB", str(out)]
    variables = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": "/dev/null"}

    def whole() -> str:
        there = [it.name for it in fault.folder.iterdir() if it.name.startswith((".out", "out"))]
        if out.exists() and any(out.iterdir()) and not (out / "manifest.json").is_file():
            return f"half a bundle: {there}"
        return ""

    def due(status: int, _: str) -> bool:
        return status == 0 and (out / "manifest.json").is_file()

    return Asked(words, 6, due, whole, variables=variables)


def choose(fault: Fault) -> Asked:
    model, _ = tiny_program()
    results = fault.folder / "results"
    words = ["-m", "harness", "choose", str(model), "--recipe", "int8wo", "--results", str(results), "--cache"]
    words += [str(fault.folder / "cache"), "--data", str(real_gates.conversations())]

    def again() -> list[str]:
        return [*words, *(["--resume", "last"] if [*results.glob("runs/*/records.jsonl")] else [])]

    def due(status: int, told: str) -> bool:
        return status in (0, 1) and "worth having" in told

    return Asked(words, 60, due, lambda: _broken(results), again, {"OMP_NUM_THREADS": "1"}, REPOSITORY)


def far_gate(fault: Fault) -> Asked:
    results = fault.folder / "results"
    words = ["-m", "tests.faults.small_far_gate", str(fault.folder)]

    def again() -> list[str]:
        return [*words, *(["--resume", "last"] if [*results.glob("gates/*/gate.json")] else [])]

    def due(status: int, told: str) -> bool:
        return status == 1 and bool(re.search(r"^\| regressed +\|.*\| generate_throughput ", told, re.MULTILINE))

    return Asked(words, 8, due, lambda: _broken(results), again)


def _broken(results: Path) -> str:
    return "; ".join(problem for path in results.rglob("records.jsonl") for problem in read(path)[1])


def interrupted(make: Callable[[Fault], Asked]) -> Callable[[Fault], None]:
    """Return a kind: it ends by itself, says so, leaves nothing half and nothing running, and comes right once more."""

    def run(fault: Fault) -> None:
        asked = make(fault)
        number, second = fault.draw.choice(NUMBERS), fault.draw.choice([None, None, 0.0, 0.3, 1.2])
        after = fault.draw.random() * asked.seconds
        twice = "" if second is None else f", again after {second} s"
        fault.what = f"{make.__name__}: {number.name} after {after:.1f} s{twice}"
        first = Command(fault.folder, *asked.words, cwd=asked.cwd, **asked.variables)
        time.sleep(after)
        kept = _records(fault.folder)
        fault.hit = first.strike(number)
        if second is not None:
            time.sleep(second)
            first.strike(number)
        status, told = first.end(_TIMEOUT), first.told
        _ended(fault, asked, number, status, told)
        none_left(fault, lambda: list(marked(first.mark, first.process.pid)))
        if problem := asked.whole():
            fault.broken("record lost", problem)
        if lost := [path for path, lines in kept.items() if lines - _records(fault.folder).get(path, set())]:
            fault.broken("record lost", f"lines of {lost} are gone")
        words = asked.again() if asked.again else asked.words
        once_more = Command(fault.folder, *words, cwd=asked.cwd, **asked.variables)
        status = once_more.end(_TIMEOUT * 2)
        if TRACEBACK in once_more.told:
            fault.broken("traceback", once_more.told[once_more.told.index(TRACEBACK) :][-500:])
        if not asked.due(status, once_more.told):
            fault.broken("not complete", f"afterwards it ended with {status}: {once_more.told[-400:]}")
        none_left(fault, lambda: list(marked(once_more.mark, once_more.process.pid)))

    return run


def _ended(fault: Fault, asked: Asked, number: signal.Signals, status: int, told: str) -> None:
    if TRACEBACK in told:
        fault.broken("traceback", told[told.index(TRACEBACK) :][-500:])
    if status == STUCK:
        fault.broken("other", f"it did not end by itself: {told[-300:]}")
    elif status in (128 + number, -number):
        # Before it has its handlers, the system ends it, and nothing is begun.
        if status > 0 and not told.strip():
            fault.broken("other", "it ended without a word")
    elif fault.hit and not asked.due(status, told):
        fault.broken("other", f"{number.name} ended it with {status}: {told[-300:]}")


def _records(folder: Path) -> dict[Path, set[bytes]]:
    return {
        path: {it for it in path.read_bytes().split(b"\n")[:-1] if it}
        for path in (folder / "results").rglob("records.jsonl")
        if path.is_file()
    }


SCENARIOS = [
    Scenario("signals: doctor", interrupted(doctor), 3),
    Scenario("signals: compatibility", interrupted(compatibility), 2),
    Scenario("signals: site", interrupted(site), 3),
    Scenario("signals: bundle", interrupted(bundle), 3),
    Scenario("signals: a gate over several devices", interrupted(far_gate), 3),
    Scenario("signals: choose, with a tiny model", interrupted(choose), 1, quick=False),
]
