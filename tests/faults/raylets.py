"""Faults of real raylets: ``python -m tests.faults.raylets --faults 100 [--write docs/results/raylets.md]``.

A cluster of one head and several nodes of this machine runs units by the real protocol, with sessions that sleep; one
fault after another hits it. Each node notes what it was told that the planner has (an acknowledged event): all of that
must have come, every test must end once, and what did not must be missing by name.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from harness.base.text import duration
from harness.cluster.campaign import Campaign, Event
from harness.cluster.offer import kind, label, resource
from harness.cluster.units import Unit
from tests.cluster import simulated

SYSTEM = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 7,
}
"""A node that does not answer for seven seconds is dead, rather than for a quarter of a minute."""
KINDS = {
    "raylet killed": "SIGKILL of a node's raylet while it measures",
    "node parted": "SIGSTOP of a node's raylet for twelve seconds: to its peers a network that parts; then it is back",
    "node hangs": "SIGSTOP of a node's raylet for good",
    "session killed": "SIGKILL of the process that runs a node's task",
    "not its label": "a node comes that is not what its label says: its sessions refuse",
}
REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = 4
_PARTED_SECONDS = 12.0
_STARTS = 3


def environment() -> dict[str, str]:
    """Return a token that Ray asks for, and what keeps a user's own Ray out."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": "/tmp",
        # Nodes of one machine unpack what they are sent into one folder, and race for it: they are sent none.
        "PYTHONPATH": str(REPOSITORY),
    }


@dataclass
class Nodes:
    """A head without devices, and nodes with some each."""

    cluster: Any
    each: int = 1
    nodes: list[Any] = field(default_factory=list)
    liars: list[Any] = field(default_factory=list)
    gone: list[tuple[float, Any, bool]] = field(default_factory=list)

    @classmethod
    def start(cls, count: int, each: int = 1) -> Nodes:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": SYSTEM}
        found = cls(Cluster(initialize_head=True, head_node_args=head), each)
        for _ in range(count):
            found.join()
        return found

    def join(self, *, liar: bool = False) -> None:
        """Add a node; a ``liar`` refuses whatever it is given."""
        with _variable(simulated.REFUSES, "1" if liar else ""):
            node = self.cluster.add_node(
                wait=False,
                num_cpus=self.each,
                object_store_memory=80 * 1024 * 1024,
                resources={resource("sim"): self.each},
                labels={label("sim"): kind("a simulated device")},
            )
        (self.liars if liar else self.nodes).append(node)

    def raylet(self, node: Any) -> psutil.Process:
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    def drop(self, node: Any) -> None:
        """Forget a node that died; what is left of it ends."""
        (self.liars if node in self.liars else self.nodes).remove(node)
        with contextlib.suppress(Exception):
            self.cluster.remove_node(node, allow_graceful=False)

    def bury(self) -> None:
        """Let nodes that were parted long enough answer again, and end what is left of the dead."""
        now = time.monotonic()
        for at, node, back in [it for it in self.gone if it[0] <= now]:
            self.gone.remove((at, node, back))
            if back:
                with contextlib.suppress(psutil.Error):
                    self.raylet(node).send_signal(signal.SIGCONT)
                self.gone.append((now + _PARTED_SECONDS, node, False))
                continue
            with contextlib.suppress(Exception):
                self.cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        for node in [*self.nodes, *self.liars, *(it[1] for it in self.gone)]:
            with contextlib.suppress(psutil.Error):
                self.raylet(node).send_signal(signal.SIGCONT)
        self.cluster.shutdown()


@contextlib.contextmanager
def _variable(name: str, value: str) -> Any:
    before = os.environ.pop(name, None)
    if value:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


@dataclass
class Storm:
    """Hits nodes, one fault after another, until there were enough."""

    nodes: Nodes
    count: int
    draw: random.Random
    pause: float
    until: float = float("inf")
    say: Callable[[str], None] = lambda _: None
    hit: Counter[str] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        order: list[str] = []
        # One that finds nothing to hit is followed by another.
        while sum(self.hit.values()) < self.count and time.monotonic() < self.until:
            if not order:
                order = list(KINDS)
                self.draw.shuffle(order)
            name = order.pop()
            self.nodes.bury()
            if self.over.wait(self.pause * self.draw.uniform(0.5, 1.5)):
                return
            try:
                if self._one(name):
                    self.hit[name] += 1
                    self.say(f"fault {sum(self.hit.values())}: {name}")
            except (psutil.Error, ProcessLookupError):
                continue
        self.over.set()

    def _join(self, *, liar: bool = False) -> None:
        """Add a node; of a machine that is busy Ray gives one up that has not begun within half a minute."""
        for _ in range(_STARTS):
            try:
                self.nodes.join(liar=liar)
                return
            except Exception as error:
                self.say(f"a node did not begin: {next(iter(str(error).splitlines()), '')}")

    def _one(self, name: str) -> bool:
        if name == "not its label":
            if self.nodes.liars:
                self.nodes.drop(self.nodes.liars[0])
            self._join(liar=True)
            return bool(self.nodes.liars)
        if not self.nodes.nodes:
            self._join()
            return False
        node = self.draw.choice(self.nodes.nodes)
        raylet = self.nodes.raylet(node)
        if name == "session killed":
            running = [it for it in raylet.children() if " ".join(it.cmdline()).startswith("ray::u")]
            if not running:
                return False
            running[0].kill()
            return True
        raylet.send_signal(signal.SIGKILL if name == "raylet killed" else signal.SIGSTOP)
        # One that comes late takes its place.
        self.nodes.nodes.remove(node)
        self.nodes.gone.append((time.monotonic() + _PARTED_SECONDS, node, name == "node parted"))
        self._join()
        return True


@dataclass(frozen=True)
class Came:
    """What a storm came to."""

    hit: Counter[str]
    tests: int
    done: int
    twice: int
    lost: Sequence[str]
    missing: int
    again: int
    seconds: float
    runs: int = 1

    def __add__(self, other: Came) -> Came:
        """Return both as one: other runs of the same campaign, on clusters of their own."""
        both = (
            [getattr(it, name) for it in (self, other)]
            for name in ("hit", "tests", "done", "twice", "lost", "missing", "again", "seconds", "runs")
        )
        return Came(*(one + two for one, two in both))


def storm(faults: int, seconds: float, pause: float, seed: int, say: Callable[[str], None] = print) -> Came:
    """Run units over real raylets until so many faults have hit; units are added as long as they are."""
    from harness.cluster.engine import RayEngine

    count = 4
    nodes = Nodes.start(count)
    with tempfile.TemporaryDirectory(prefix="raylets-") as folder:
        os.environ[simulated.NOTES] = folder
        engine = RayEngine.start(nodes.cluster.address, lambda: None, Path(folder), say)  # type: ignore[arg-type,return-value]
        engine.run = simulated.session
        trouble = Storm(nodes, faults, random.Random(seed), pause, time.monotonic() + seconds, say)
        # So many that there is work for all faults; what is left then is not begun.
        many = max(8, int(faults * pause * count / (TESTS * 0.5)) * 3)
        units = [Unit(f"u{it}", "sim", tuple(f"u{it}-{test}" for test in range(TESTS)), 2.0) for it in range(many)]
        ended: Counter[str] = Counter()
        # Also of attempts that were given up: a record is one, whichever node measured it.
        came: set[str] = set()
        missing: list[str] = []
        again: list[str] = []
        begun: set[str] = set()

        def take(unit: Unit, event: Event) -> None:
            if event["kind"] == "begin":
                begun.add(unit.name)
            if event["kind"] == "done":
                ended[event["test"]] += 1
            if event["kind"] == "line":
                came.add(event["line"])

        def heard(words: str) -> None:
            if "it is run again" in words:
                again.append(words)

        stop = threading.Event()
        campaign = Campaign(
            units,
            engine,
            lambda unit, left: {"tests": list(left), "seconds": 0.5 * len(left), "notes": folder},
            take,
            lambda unit, left, why: missing.extend(f"{it}: {why}" for it in left if unit.name in begun),
            heard,
            stopped=stop.is_set,
        )
        started = time.monotonic()
        # Ray starts nodes in the main thread alone.
        thread = threading.Thread(target=lambda: (campaign.run(), trouble.over.set()), daemon=True)
        thread.start()
        trouble.run()
        thread.join(15)
        stop.set()
        thread.join(60)
        took = time.monotonic() - started
        engine.close()
        nodes.close()
        acknowledged = [line for path in Path(folder).iterdir() for line in path.read_text().split()]
    lost = sorted(set(acknowledged) - came)
    twice = sum(times - 1 for times in ended.values())
    say(f"missing: {missing[:3]}")
    return Came(trouble.hit, len(units) * TESTS, len(ended), twice, lost, len(missing), len(again), took)


def text(came: Came, cores: int) -> str:
    """Return the page of a storm."""
    rows = "".join(f"| {name} | {KINDS[name]} | {came.hit[name]} |\n" for name in KINDS)
    return (
        "# Faults of real raylets\n\n"
        f"By `python -m tests.faults.raylets --faults {sum(came.hit.values())}` on {cores} processors: a head and four "
        f"nodes of one machine, sessions that sleep, by the real protocol; {duration(came.seconds)}"
        f"{f', in {came.runs} clusters one after another' if came.runs > 1 else ''}.\n\n"
        f"| fault | what it is | hit |\n|---|---|---|\n{rows}\n"
        f"{came.done} tests ended, {came.twice} of them twice; "
        f"{len(came.lost)} of what nodes were told is kept was lost; "
        f"{came.missing} were named missing, after three attempts or with their cluster; {came.again} times a unit "
        "was sent to another node. Whatever was not begun when the last fault had hit is not counted.\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=3600, help="begin no fault after so long")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between two faults, on the mean")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    os.environ.update(environment())
    end = time.monotonic() + given.seconds
    came = storm(given.faults, given.seconds, given.pause, given.seed)
    # A cluster whose own machine has no time for its head is lost as a whole, which is told of, and another goes on.
    while (left := given.faults - sum(came.hit.values())) > 0 and (rest := end - time.monotonic()) > 0:
        came += storm(left, rest, given.pause, given.seed + came.runs)
    page = text(came, os.cpu_count() or 1)
    print(page)
    if given.write:
        given.write.write_text(page, encoding="utf-8")
    return int(bool(came.lost or came.twice or not came.done or not came.hit))


if __name__ == "__main__":
    sys.exit(main())
