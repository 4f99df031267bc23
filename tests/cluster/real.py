"""Clusters on a network of their own: ``python -m tests.cluster.real [--write docs/results/clusters.md]``.

Machines are network namespaces with an address, a name and temporary files each (tests/cluster/networks.py): one that
pytest plans on, a head and nodes, begun as the guide says, by hand or by Slurm. A tiny model is measured by the suites
while cables are cut and machines die. What the nodes' own disks have is held against what the run has in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from harness.base.reading import json_value
from harness.base.text import duration
from harness.judge import gatefile
from harness.judge.series import DEVICE, SIDES
from harness.records.run import Run
from harness.records.schema import Measurement, Outcome
from harness.runtime.sources import SHAREGPT_FILE
from tests.cluster import networks
from tests.cluster import slurm as slurms
from tests.cluster.networks import Machine, Network
from tests.cluster.slurm import Slurm
from tests.conftest import CONVERSATIONS

PORT = 10001
"""Of Ray's server for clients, on a head."""
PATIENCE = 420.0
_RECIPES = ("int8wo",)
_VERSIONS = ("torchao==0.17.0", "torchao==0.18.0")
"""What a gate is asked to compare."""
_TINY_MODEL = Path(__file__).parents[1] / "tiny_model.py"
_PROGRAMS = Path(sys.executable).parent
_HARNESS = (sys.executable, "-m", "harness")
_SCRIPT = Path(__file__).parents[2] / "docs" / "guides" / "fleet-slurm.sh"
_KILL_WAIT = 45.0
"""Seconds: Slurm's own half a minute, and what a busy machine takes beside."""
_GPUS = 8
"""Of each of Slurm's nodes, as the script asks for: they are only counted."""

_COLUMNS = (
    *(
        "what",
        "noticed after",
        "passed (of a gate: judged)",
        "missing",
        "exit status",
        "machines",
        "figures on their disks",
    ),
    *("of them in the run", "measured again elsewhere", "lost", "took"),
)

Figure = tuple[str, str, str, float, float]
"""Recipe, metric, parameters (a gate's side and block among them), value and time: no two have the same."""


def environment() -> dict[str, str]:
    """Return what every machine's programs get: a token that Ray asks for, and a home of each machine's own."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    return environ | {
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{_PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


class Session:
    """A session of pytest that plans, by the process that ends with it, its log and the project it is run in."""

    def __init__(self, process: Any, log: Path, runs: Path) -> None:
        self.log = log
        self._process = process
        self._runs = runs

    @property
    def said(self) -> str:
        return " ".join(self.log.read_text(encoding="utf-8", errors="replace").split())

    def begun(self) -> bool:
        """Return whether it has a run of its own."""
        return "tests in" in self.said or "units in" in self.said

    def run(self) -> Run:
        """Return what it has measured. Raises AssertionError where it has no run yet."""
        found = self._run()
        assert found
        return found

    def figures(self) -> dict[Figure, Measurement]:
        """Return what the planner's run has."""
        run = self._run() if self.begun() else None
        return {figure(it): it for it in run.read()[0] if isinstance(it, Measurement)} if run else {}

    def outcomes(self) -> list[Outcome]:
        run = self._run()
        return [it for it in run.read()[0] if isinstance(it, Outcome)] if run else []

    def until(self, what: Callable[[], Any]) -> Any:
        """Wait for something while it runs. Raises AssertionError if it ends before, or nothing comes."""
        end = time.monotonic() + PATIENCE
        while not (found := what()):
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"not within {PATIENCE:.0f} s: {self.log.read_text()[-3000:]}")
            time.sleep(0.2)
        return found

    def wait(self) -> int:
        """Return its exit status once it has ended. Raises TimeoutExpired."""
        return int(self._process.wait(PATIENCE))

    def _run(self) -> Run | None:
        return Run.open(self._runs, "last") if self._runs.is_dir() and any(self._runs.iterdir()) else None


def _named(process: int, name: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process).name() == name
    return False


def figure(it: Measurement) -> Figure:
    of = {key: it.flags[key] for key in ("side", "block") if key in it.flags}
    return it.cell.recipe.name, it.metric, json.dumps(it.parameters | of, sort_keys=True), it.value, it.time


@dataclass
class Disks:
    """What nodes' sessions have written on their own disks, as long as this watches them."""

    nodes: Sequence[Machine]
    found: dict[str, dict[Figure, None]] = field(default_factory=dict)
    """The figures that each machine measured itself, by its name."""
    since: float = field(default_factory=time.time)

    @contextlib.contextmanager
    def watched(self) -> Iterator[Disks]:
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                self.look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()

    def look(self) -> None:
        for node in self.nodes:
            for path in sorted(node.folder.glob("harness-node-*/**/records.jsonl")):
                with contextlib.suppress(OSError, ValueError):
                    self._take(node.name, path)

    def _take(self, name: str, path: Path) -> None:
        for line in path.read_text(encoding="utf-8").splitlines():
            data = json_value(line)
            if data.get("kind") == "measurement":
                known = figure(Measurement.model_validate(data))
                # Its baseline's came along, from others, and what the run had before.
                elsewhere = any(known in them for who, them in self.found.items() if who != name)
                if known[-1] >= self.since and not elsewhere:
                    self.found.setdefault(name, {})[known] = None

    def of(self, node: Machine) -> set[Figure]:
        return set(self.found.get(node.name, ()))

    def all(self) -> set[Figure]:
        return {it for them in self.found.values() for it in them}


@dataclass(frozen=True)
class Row:
    """What a session came to: how its tests ended, and what became of the figures that nodes measured."""

    what: str
    seconds: float
    noticed: float
    status: int
    passed: int
    missing: int
    measured: int
    came: int
    machines: int
    again: int = 0
    lost: int = 0

    def followed(self, measured: set[Figure], there: Collection[Figure]) -> Row:
        """Return it with what became of the figures that did not come, by what the run has in the end."""
        names = {it[:3] for it in there}
        absent = [it for it in measured if it not in there]
        again = sum(it[:3] in names for it in absent)
        return replace(self, again=again, lost=len(absent) - again)


def row(what: str, session: Session, disks: Disks, started: float, noticed: float = 0.0) -> Row:
    """Hold what nodes measured against what the planner's run has once its session has ended."""
    status = session.wait()
    disks.look()
    there, measured = session.figures(), disks.all()
    last = Counter({it.test: it.outcome for it in session.outcomes()}.values())
    came = len(measured & there.keys())
    seconds = time.monotonic() - started
    found = Row(what, seconds, noticed, status, last["passed"], last["error"], len(measured), came, len(disks.found))
    return found.followed(measured, there)


@dataclass
class Fleet:
    """A network with a desk, at which pytest plans, heads and nodes, and what happens to them."""

    network: Network
    model: Path
    """A folder that all machines see."""
    say: Callable[[str], None] = print
    environ: dict[str, str] = field(default_factory=environment)

    def __post_init__(self) -> None:
        self.desk = self.network.add()
        self.desk.run([*_HARNESS, "init", "/tmp/project"], self.environ, "/tmp")

    def session(self, head: Machine, *more: str) -> Session:
        """Begin a session at the desk over the cluster of a head."""
        return self._begun([sys.executable, "-m", "pytest", "-v", "--allow-noisy", *more], "runs", head)

    def _begun(self, words: Sequence[str], runs: str, head: Machine) -> Session:
        log, project = self.desk.folder / f"session-{time.monotonic_ns()}.txt", self.desk.folder / "project"
        words = [*words, *self.words(), f"--on=ray://{head.address}:{PORT}"]
        with log.open("wb") as out:
            return Session(self.desk.start(words, self.environ, "/tmp/project", out), log, project / "results" / runs)

    def words(self) -> list[str]:
        """Return what is measured, as words of pytest's command line or of a gate's."""
        words = ["-m", "cpu", "--server", "transformers"]
        words += [f"--model={self.model / 'model'}", f"--data={self.model}"]
        return [*words, *(f"--recipe={it}" for it in _RECIPES)]

    def head(self) -> Machine:
        """Begin a cluster, as the guide says."""
        found = self.network.add()
        found.run([*_HARNESS, "offer", "--head"], self.environ, "/tmp")
        end = time.monotonic() + PATIENCE
        while not networks.answers(found.address, PORT) and time.monotonic() < end:
            time.sleep(0.5)
        self.say(f"{found.name} is a head")
        return found

    def node(self, head: Machine) -> Machine:
        """Join it."""
        found = self.network.add()
        found.run([*_HARNESS, "offer", f"--join={head.address}:6379"], self.environ, "/tmp")
        return found

    def measuring(self, session: Session, disks: Disks, nodes: Sequence[Machine]) -> Machine:
        """Wait until one of some nodes has measured something that the planner has."""

        def which() -> Machine | None:
            there = session.figures().keys()
            return next((it for it in nodes if disks.of(it) & there), None)

        found: Machine = session.until(which)
        return found

    def cut(self) -> Row:
        """A node's cable is cut in the middle for longer than Ray waits, and mended; another node comes late."""
        head = self.head()
        nodes = [self.node(head), self.node(head)]
        with Disks([head, *nodes]).watched() as disks:
            started, session = time.monotonic(), self.session(head)
            cut = self.measuring(session, disks, nodes)
            began = time.monotonic()
            cut.part()
            self.say(f"{cut.name} is cut off")
            late = self.node(head)
            disks.nodes = [*disks.nodes, late]
            session.until(lambda: "it is run again" in session.said)
            noticed = time.monotonic() - began
            cut.heal()
            self.say(f"noticed after {noticed:.0f} s; mended")
            return row("a node's cable is cut, then mended; another node comes late", session, disks, started, noticed)

    def desk_cut(self, seconds: float) -> Row:
        """The planner's own cable is cut in the middle, for less than Ray's client takes for the end."""
        head = self.head()
        with Disks([head]).watched() as disks:
            started, session = time.monotonic(), self.session(head)
            self.measuring(session, disks, [head])
            self.desk.part()
            time.sleep(seconds)
            self.desk.heal()
            self.say(f"the planner was cut off for {seconds:.0f} s")
            what = f"the planner's own cable is cut for {seconds:.0f} s, then mended"
            return row(what, session, disks, started)

    def head_dies(self) -> list[Row]:
        """All of the head's processes die in the middle; the run goes on with another cluster."""
        head = self.head()
        nodes = [self.node(head)]
        with Disks([head, *nodes]).watched() as disks:
            started, session = time.monotonic(), self.session(head)
            self.measuring(session, disks, nodes)
            began = time.monotonic()
            head.die()
            self.say("the head is dead")
            session.until(lambda: "the cluster is gone" in session.said)
            first = row("the head dies", session, disks, started, time.monotonic() - began)
        before, measured = session.figures(), disks.all()
        other = self.head()
        with Disks([other]).watched() as disks:
            started, session = time.monotonic(), self.session(other, "--resume=last")
            again = row("that run goes on with another cluster (`--resume`)", session, disks, started)
        if not before.keys() <= session.figures().keys():
            raise AssertionError("what was measured before does not stand")
        return [first.followed(measured, session.figures()), again]

    def gate(self) -> Row:
        """A gate of real versions, a recipe a node; one of the nodes dies in the middle of its blocks."""
        wheels = self.model / "wheels"
        for wanted in _VERSIONS:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={wheels}", wanted]
            subprocess.run(pip, check=True, capture_output=True)
        # What each machine makes its environments of: no index is within its reach.
        self.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
        head = self.head()
        nodes = [self.node(head), self.node(head)]
        words = [*_HARNESS, "gate", *_VERSIONS, "--recipe=int8dq", "--blocks=3", "--budget=30m"]
        with Disks([head, *nodes]).watched() as disks:
            started, session = time.monotonic(), self._begun(words, "gates", head)

            def in_blocks() -> Machine | None:
                """Return a node whose timed figures of both sides the planner has."""
                timed = {it: set() for it in nodes} if (there := session.figures()) else {}
                for it in timed:
                    timed[it] = {there[one].flags["side"] for one in disks.of(it) & there.keys() if there[one].samples}
                return next((it for it, sides in timed.items() if sides == set(SIDES)), None)

            dead = session.until(in_blocks)
            began = time.monotonic()
            dead.die()
            self.say(f"{dead.name} is dead")
            session.until(lambda: "it is run again" in session.said)
            what = f"a gate of {' and '.join(_VERSIONS)}, a recipe a node; a node dies between its blocks"
            found = row(what, session, disks, started, time.monotonic() - began)
        run = session.run()
        devices: dict[tuple[Any, ...], dict[Any, Any]] = {}
        for one in run.read()[0]:
            if isinstance(one, Measurement) and not one.discarded:
                # What the dead node did not end was measured again, on both sides: the last is what is judged.
                at = (one.cell.recipe.name, one.metric, one.cell.server, json.dumps(one.parameters), one.flags["block"])
                devices.setdefault(at, {})[one.flags["side"]] = one.flags[DEVICE]
        if mixed := [at for at, them in devices.items() if len(set(them.values())) > 1]:
            raise AssertionError(f"pairs of two devices: {mixed}")
        verdicts = gatefile.load(run.folder).verdicts
        missing = sum(it.verdict == "error" for it in verdicts)
        return replace(found, passed=len(verdicts) - missing, missing=missing)

    def slurm(self) -> Row:
        """The guide's script is submitted to Slurm as it stands, but for what it measures."""
        with Slurm(self.network, _GPUS).running(3) as slurm, Disks(slurm.nodes).watched() as disks:
            # As users' homes are, on all machines.
            project = self.network.folder / "project"
            subprocess.run([*_HARNESS, "init", str(project)], check=True, capture_output=True)
            environ = {name: value for name, value in self.environ.items() if not name.startswith("RAY_AUTH")}
            started = time.monotonic()
            log = project / "job.txt"
            options = ["--nodes=3", f"--output={log}"]
            with slurm.submitted(_SCRIPT, [*self.words(), "--allow-noisy", "-v"], options, environ, project) as job:
                session = Session(job, log, project / "results" / "runs")
                found = row("the guide's script for Slurm, submitted to three nodes", session, disks, started)
            end = time.monotonic() + _KILL_WAIT
            # What a job leaves Slurm ends by SIGTERM, and after as long by SIGKILL.
            while (
                left := [it for node in slurm.nodes for it in node.processes() if _named(it, "raylet")]
            ) and time.monotonic() < end:
                time.sleep(0.5)
            if left:
                raise AssertionError(f"the job has left raylets behind: {left}")
            return found


@contextlib.contextmanager
def fleet(say: Callable[[str], None] = print) -> Iterator[Fleet]:
    """A fleet without a cluster yet; all of it is gone afterwards."""
    # Not below /tmp, where each machine has files of its own.
    with tempfile.TemporaryDirectory(prefix="harness-fleet-", dir="/var/tmp") as folder:
        model = Path(folder, "model")
        model.mkdir()
        model.joinpath(SHAREGPT_FILE).write_text(json.dumps(CONVERSATIONS), encoding="utf-8")
        text = " ".join(turn["value"] for it in CONVERSATIONS for turn in it["conversations"])  # type: ignore[attr-defined]
        command = [sys.executable, str(_TINY_MODEL), str(model)]
        subprocess.run(command, input=text, text=True, check=True, capture_output=True)
        with Network(Path(folder)) as network:
            yield Fleet(network, model, say)


def page(rows: Sequence[Row]) -> str:
    """Return the page of what was seen."""
    lines = [
        f"| {it.what} | {f'{it.noticed:.0f} s' if it.noticed else '-'} | {it.passed} | {it.missing} | {it.status} | "
        f"{it.machines} | {it.measured} | {it.came} | {it.again} | {it.lost} | {duration(it.seconds)} |"
        for it in rows
    ]
    return (
        "# Clusters on a network of their own\n\n"
        "By `python -m tests.cluster.real`: a head and nodes begun by `harness offer` in network namespaces of one "
        "machine, each with an address, temporary files and a home of its own, with token authentication; pytest in "
        "one more, over `ray://`, or by Slurm with a controller and three nodes on such a network. A tiny model is "
        f"measured (bf16, {', '.join(_RECIPES)}) by the suites, on {os.cpu_count()} processors, load "
        f"{os.getloadavg()[0]:.0f} at the end. Ray's health check has its defaults.\n\n"
        f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|\n"
        + "\n".join(lines)
        + "\n\nFigures that a node which is cut off has measured and cannot send are measured again elsewhere. "
        "**Lost** would be one that no run has in the end.\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--only", choices=["cut", "desk", "head", "gate", "slurm"])
    given = parser.parse_args()
    if why := networks.missing():
        print(f"not here: {why}")
        return 2
    # Ended so, it takes its machines with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rows: list[Row] = []
    with fleet() as found:
        played: dict[str, Callable[[], Sequence[Row]]] = {
            "cut": lambda: [found.cut()],
            "desk": lambda: [found.desk_cut(15.0)],
            "head": found.head_dies,
            "gate": lambda: [found.gate()],
            "slurm": lambda: [found.slurm()],
        }
        if given.only:
            played = {given.only: played[given.only]}
        elif why := slurms.missing():
            print(f"left out: {why}")
            del played["slurm"]
        for play in played.values():
            rows += play()
            if given.write:
                # What has been seen stands, whatever becomes of the rest.
                given.write.write_text(page(rows), encoding="utf-8")
    print(page(rows))
    return int(any(it.lost for it in rows))


if __name__ == "__main__":
    sys.exit(main())
