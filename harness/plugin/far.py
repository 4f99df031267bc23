"""``--on``: the session's tests run on the nodes of a cluster; their records and reports come back here.

A node runs pytest as it is on one machine, over the tests of one unit. Its events are lines of JSON: ``line`` is a
record with what is attached to it, ``report`` one of pytest's own reports, ``done`` the end of a test, ``told`` what
the judge has said, ``begin`` and ``end`` the session's own.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.base.errors import HarnessError
from harness.base.files import default_root
from harness.base.terminal import columns
from harness.cluster.address import patience
from harness.cluster.campaign import Campaign, Clocks, Engine, Event, Lost
from harness.cluster.choice import engine_on
from harness.cluster.units import Unit
from harness.judge import neighbours, spread
from harness.machine import probe
from harness.machine.watch import NEIGHBOURS
from harness.plugin.collect import units
from harness.plugin.command_line import CommandLine
from harness.plugin.comparison import Comparison
from harness.plugin.far_words import words
from harness.plugin.fixtures import hand_on
from harness.plugin.progress import terminal
from harness.plugin.reported import Reported
from harness.plugin.session import begun
from harness.plugin.stash import claim_key, matrix_of, name_of, session_key
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Header, Line, Measurement, Outcome
from harness.runtime.environment import Environment
from harness.runtime.shared import Shared, address


@dataclass
class Said:
    """What the nodes' judges have said of limits."""

    failures: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    def add(self, event: Event) -> None:
        for name, lines in vars(self).items():
            lines += [line for line in event[name] if line not in lines]


@dataclass
class FarSession(Reported):
    """A session whose figures come from nodes."""

    run: Run
    documented: Documented
    started: float
    planner_started: float
    problems: list[str]
    said: Said = field(default_factory=Said)
    comparison: Comparison | None = None
    wide: int | None = None

    @property
    def told(self) -> Said:
        return self.said

    @classmethod
    def start(cls, given: CommandLine) -> FarSession:
        """Open a new run, or go on with an old one."""
        started, planner = time.monotonic(), time.process_time()
        runs = given.results / "runs"
        run = Run.open(runs, given.resume) if given.resume else Run.create(runs)
        environment = Environment(python=given.python or sys.executable)
        begun(run, given, environment)
        run.note_cache((given.cache or default_root()).resolve())
        return cls(run, Documented.load(), started, planner, [], wide=None if given.wide else columns())


class Kept:
    """What a run has measured, by model and hardware, as a node's session needs it to go on from there."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], list[Measurement]] = {}

    def add(self, line: Line) -> None:
        if isinstance(line, Measurement) and not line.discarded:
            self._of.setdefault((line.cell.model.name, line.cell.hardware), []).append(line)

    def of(self, model: str, hardware: str, recipe: str) -> list[Measurement]:
        """Return the records of a cell, and those of its baseline, which limits are held against."""
        found = self._of.get((model, hardware), ())
        return [it for it in found if it.cell.recipe.baseline or it.cell.recipe.name == recipe]


class Far:
    """Runs what is measured on a cluster; all other tests run here, before.

    ``start`` gives the engine, once there is something to run on it.
    """

    def __init__(self, config: pytest.Config, given: CommandLine, start: Callable[[Far], Engine]) -> None:
        if given.against:
            raise pytest.UsageError(
                "--on with --against: a baseline is of one machine; measure with --on first, then compare with "
                "`python -m harness gate` or a session there"
            )
        if getattr(config.option, "dist", "no") != "no":
            raise pytest.UsageError("--on with -n: cells are side by side by themselves, one a device; leave out -n")
        self.config = config
        self.given = given
        self.root = config.rootpath
        self._start = start
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._done: set[str] = set()
        self._items: dict[str, pytest.Item] = {}
        self._kept = Kept()
        self._clocks = Clocks(self.say)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        option = self.config.option
        if option.collectonly or (session.testsfailed and not option.continue_on_collection_errors):
            # pytest says so.
            return None
        far = {item.nodeid: item for item in session.items if claim_key in item.stash and not _is_skipped(item)}
        if not far:
            return None
        self._items = far
        with _usage():
            self._patience = patience(self.given.on, self.given.wait_for_nodes)
            if self.given.share:
                # Each node would say so of itself, after its session has begun.
                Shared.at(address(self.given.share), self.say)
            if self.given.resume:
                Run.open(self.given.results / "runs", self.given.resume)
            engine = self._start(self)
        try:
            self._measure(session, engine, far)
        finally:
            engine.close()
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        return True

    def _measure(self, session: pytest.Session, engine: Engine, far: Mapping[str, pytest.Item]) -> None:
        with _usage():
            self.session = FarSession.start(self.given)
            self._resume()
        self.config.stash[session_key] = self.session
        self.session.run.written = lambda line: hand_on(self.config, line, self.session.run)
        with self.session.run.path.open(encoding="utf-8") as file:
            self._begins = file.readline()
        self._order = [item.nodeid for item in session.items]
        self._near = {item.nodeid: item for item in session.items if item.nodeid not in far}
        self._pytest = session
        try:
            self._flush()
            self._campaign(engine).run()
        except KeyboardInterrupt:
            # What waits for one before it has ended all the same.
            self._order = [test for test in self._order if test in self._done]
            self._flush()
            raise

    def say(self, words: str) -> None:
        """Write a line between pytest's own."""
        if write := terminal(self.config):
            write(words)

    def _campaign(self, engine: Engine) -> Campaign:
        estimate = self.session.estimate()
        claims = {nodeid: item.stash[claim_key] for nodeid, item in self._items.items()}
        seconds = {nodeid: estimate.of(name_of(item)) for nodeid, item in self._items.items()}
        there: Mapping[str, int] = {}
        # Of a cluster that is gone already all is missing, as the campaign finds.
        with contextlib.suppress(Lost):
            there = engine.devices()
        self._units = units(claims, seconds, self._apart(there))
        found = [unit for unit, _ in self._units.values()]
        told = ", ".join(f"{count} {name}" for name, count in sorted(there.items())) or "no device yet"
        self.say(f"{len(claims)} tests in {len(found)} units on {told}")
        return Campaign(
            found,
            engine,
            self._payload,
            self._take,
            self._over,
            self.say,
            stopped=self._stopped,
            patience=self._patience,
        )

    def _stopped(self) -> bool:
        """Return whether pytest has had enough, as by -x."""
        return bool(self._pytest.shouldfail or self._pytest.shouldstop)

    def _apart(self, there: Mapping[str, int]) -> dict[str, int]:
        """Return the hardware of this host where serving is known to be disturbed by neighbours, with its devices.

        Of what nobody has checked, or what is not clear, the records of serving say so.
        """
        self._neighbours, found = "", {}
        for hardware in dict.fromkeys(item.stash[claim_key].cell.hardware for item in self._items.values()):
            count = there.get(hardware.name, 0)
            if self.given.on != "local" or not hardware.is_gpu or count < 2:
                continue
            try:
                check = neighbours.load(self.given.results, hardware.name, probe.device(hardware).name)
            except HarnessError as error:
                self.say(str(error))
                check = None
            if check is None:
                self._neighbours = "another GPU of this host served or computed too, and no check says what that does"
                self.say(
                    f"nobody has checked what neighbours do to serving on {hardware}: rows of serving say so; hold a "
                    "run on one GPU and this one against each other with `python -m harness neighbours`"
                )
            elif worse := check.disturbs("server"):
                found[hardware.name] = count
                self.say(f"serving on {hardware} is measured one cell at a time: neighbours disturb {worse[0].what}")
        return found

    def _resume(self) -> None:
        if not self.given.resume:
            return
        # Not at the top: measuring is no matter of a session that only plans.
        from harness.measure.recorder import Recorder

        recorder = Recorder(None, self.session.run)  # type: ignore[arg-type]
        self.session.problems += recorder.resume(spread.too_wide)
        for record in recorder.standing():
            self._kept.add(record)

    # ------------------------------------------------------------------------------------------------ to the nodes

    def _payload(self, unit: Unit, tests: Sequence[str]) -> Mapping[str, Any]:
        _, cell = self._units[unit.name]
        header = Header(run="unit", command=[], packages={}, device=probe.host())
        lines: list[Line] = [header, *self._kept.of(cell.model.name, cell.hardware.name, cell.recipe.name)]
        files = {"records.jsonl": "".join(f"{line.model_dump_json()}\n" for line in lines)}
        for line in lines:
            if isinstance(line, Measurement) and line.attachment:
                with contextlib.suppress(OSError):
                    files[line.attachment] = (self.session.run.folder / line.attachment).read_text(encoding="utf-8")
        here = self.given.on == "local"
        return {
            "tests": list(tests),
            "words": words(self.config, here=here),
            "folder": str(self.root),
            "here": here,
            "run": str(self.session.run.path.resolve()),
            "begins": self._begins,
            "files": files,
            "variables": {NEIGHBOURS: self._neighbours} if self._neighbours else {},
        }

    # ---------------------------------------------------------------------------------------------- from the nodes

    def _take(self, unit: Unit, event: Event) -> None:
        kind = event["kind"]
        if kind == "line":
            self._record(unit, event)
        elif kind == "report":
            self._reports.setdefault(event["test"], []).append(self._report(event["report"]))
        elif kind == "done":
            self._done.add(event["test"])
            self._flush()
        elif kind == "later":
            self._reports.pop(event["test"], None)
        elif kind == "told":
            self.session.said.add(event)
        elif kind == "begin":
            # What an attempt before said of tests that it did not end.
            for test in unit.tests:
                if test not in self._done:
                    self._reports.pop(test, None)
            self._clocks.began(unit.name, event)
            self.say(f"{unit.name} begins on node {event['node'][:8]}")
        elif kind == "end":
            self.session.run.keep_logs(unit.name, event["logs"])

    def _record(self, unit: Unit, event: Event) -> None:
        run = self.session.run
        line = run.adopt(event["line"], event["attachment"], lambda at: self._clocks.dated(unit.name, at))
        run.append(line)
        self._kept.add(line)

    def _report(self, data: dict[str, Any]) -> pytest.TestReport:
        report = self.config.hook.pytest_report_from_serializable(config=self.config, data=data)
        # JSON has no tuples.
        for name in ("longrepr", "location"):
            if isinstance(getattr(report, name), list):
                setattr(report, name, tuple(getattr(report, name)))
        return report  # type: ignore[no-any-return]

    def _over(self, unit: Unit, left: Sequence[str], why: str) -> None:
        for test in left:
            item = self._items[test]
            reason = f"missing: {unit.name} was not measured: {why}"
            report = pytest.TestReport(
                nodeid=test,
                location=item.location,
                keywords={},
                outcome="failed",
                longrepr=f"{reason}\ngo on with --resume {self.session.run.name}, on this cluster, another, or none",
                when="setup",
                start=time.time(),
                stop=time.time(),
            )
            self._reports[test] = [report]
            self._done.add(test)
            self.session.run.append(Outcome(test=name_of(item), outcome="error", seconds=0.0, reason=reason))
        self._flush()

    def _flush(self) -> None:
        """Hand pytest the reports of all tests up to the first that has not ended, in the order of one machine.

        After the one that pytest stops at there is none, as if no other had been measured beside it.
        """
        hook = self.config.hook
        while self._order and not self._stopped() and (self._order[0] in self._done or self._order[0] in self._near):
            test = self._order.pop(0)
            if test in self._near:
                item = self._near[test]
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
                continue
            item = self._items[test]
            hook.pytest_runtest_logstart(nodeid=test, location=item.location)
            for report in self._reports.pop(test, ()):
                hook.pytest_runtest_logreport(report=report)
            hook.pytest_runtest_logfinish(nodeid=test, location=item.location)


def on_ray(far: Far) -> Engine:
    """Return the engine over what ``--on`` names."""
    # What it exposes is told of also where pytest is to be quiet.
    say = terminal(far.config, loud=True) or far.say
    return engine_on(far.given.on, matrix_of(far.config), far.root, say)


@contextlib.contextmanager
def _usage() -> Iterator[None]:
    """End the session with what a user has to mend."""
    try:
        yield
    except HarnessError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)


def _is_skipped(item: pytest.Item) -> bool:
    return item.get_closest_marker("skip") is not None
