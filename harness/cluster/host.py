"""``--on local`` where Ray is not installed: the GPUs of this machine side by side, a process for each session.

    python -m harness.cluster.host

is such a process: it reads a unit's payload from its standard input, and writes what the session says, a line each.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from harness.base.reading import json_value
from harness.cluster import found, node, offer
from harness.cluster.campaign import Ended, Event
from harness.cluster.offer import Offer
from harness.cluster.share import Share
from harness.cluster.units import Unit
from harness.machine.vendors import VENDORS
from harness.matrix.plan import Matrix

_CLOSE_SECONDS = 30.0


@dataclass
class _Session:
    """A unit as it runs: its process, the devices that it has, and what it has said but for whole lines."""

    unit: Unit
    attempt: int
    process: subprocess.Popen[bytes]
    devices: list[int]
    errors: IO[bytes]
    rest: bytes = b""
    printed: str = ""


@dataclass
class Host:
    """Units on the devices of this machine, as many at once as there are, each in a process of its own.

    What waits starts in the order in which it came; what needs two GPUs waits for two. ``choice`` is the variable that
    tells programs which GPUs they see.
    """

    offered: Offer
    choice: str = "CUDA_VISIBLE_DEVICES"
    _free: dict[str, list[int]] = field(default_factory=dict)
    _waiting: list[tuple[Unit, int, Mapping[str, Any]]] = field(default_factory=list)
    _running: list[_Session] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free = {it.hardware: list(range(it.count)) for it in self.offered.devices}
        self._kinds = {it.hardware: offer.kind(it.product) for it in self.offered.devices}
        self._selector = selectors.DefaultSelector()

    @classmethod
    def here(cls, matrix: Matrix) -> Host:
        """Return what this machine has of a matrix's hardware, of which ``choice`` may leave some GPUs alone."""
        offered = found.of(matrix)
        vendors = [VENDORS[matrix.hardware[it.hardware].vendor] for it in offered.devices if it.gpu]
        return cls(offered, vendors[0].choice) if vendors else cls(offered)

    @property
    def told(self) -> str:
        """What it is, in a sentence."""
        each = f", each with {Share.of([0], count).told}" if (count := self.offered.gpus) > 1 else ""
        return f"{max(1, count)} device(s) of this machine side by side{each}, without Ray: nothing listens"

    def devices(self) -> Mapping[str, int]:
        """Return how many devices of each hardware there are."""
        return {it.hardware: it.count for it in self.offered.devices}

    def room(self, hardware: str) -> int:
        """Return how many devices of a hardware there are."""
        return self.devices().get(hardware, 0)

    def keep_to(self, hardware: str) -> str:
        """Return the kind of all devices of a hardware: there is one here."""
        return self._kinds.get(hardware, "")

    def submit(self, unit: Unit, attempt: int, payload: Mapping[str, Any], kind: str, avoid: Sequence[str]) -> None:
        """Start an attempt as soon as its devices are free; there is one kind here, and one node."""
        self._waiting.append((unit, attempt, payload))

    def poll(self, seconds: float) -> tuple[list[tuple[str, int, Event]], list[Ended]]:
        """Return what came within that time, and which attempts are over."""
        events = [self._start(*it) for it in self._startable()]
        if not self._running:
            time.sleep(seconds)
        said, over = self._said(0 if events else seconds)
        return events + said, over

    def rest(self) -> list[tuple[str, int, Event]]:
        return self._said(0)[0]

    def _said(self, seconds: float) -> tuple[list[tuple[str, int, Event]], list[Ended]]:
        """Return what sessions say within that time, and which are over."""
        events: list[tuple[str, int, Event]] = []
        over: list[Ended] = []
        for key, _ in self._selector.select(seconds) if self._running else ():
            session: _Session = key.data
            chunk = os.read(key.fd, 1 << 20)
            *lines, session.rest = (session.rest + chunk).split(b"\n")
            for line in lines:
                event = json_value(line)
                if event["kind"] == "end":
                    session.printed = node.last_words(event)
                events.append((session.unit.name, session.attempt, event))
            if not chunk:
                over.append(self._ended(session))
        return events, over

    def close(self) -> None:
        """End what still runs."""
        for session in self._running:
            session.process.terminate()
        for session in list(self._running):
            with contextlib.suppress(subprocess.TimeoutExpired):
                session.process.wait(_CLOSE_SECONDS)
            session.process.kill()
            self._ended(session)
        self._selector.close()

    def _startable(self) -> list[tuple[Unit, int, Mapping[str, Any]]]:
        """Take out what can start now; whatever came later waits for what came before it on its hardware."""
        found, blocked = [], set()
        left = {name: len(them) for name, them in self._free.items()}
        for it in list(self._waiting):
            unit = it[0]
            if unit.hardware in blocked or left.get(unit.hardware, 0) < unit.devices:
                blocked.add(unit.hardware)
                continue
            left[unit.hardware] -= unit.devices
            found.append(it)
            self._waiting.remove(it)
        return found

    def _start(self, unit: Unit, attempt: int, payload: Mapping[str, Any]) -> tuple[str, int, Event]:
        free = self._free[unit.hardware]
        devices = [free.pop(0) for _ in range(unit.devices)]
        environ = {**os.environ, node.GPUS: str(self.offered.gpus)}
        if unit.gpus:
            environ[self.choice] = ",".join(self._word(number) for number in devices)
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the session has ended
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.cluster.host"],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        session = _Session(unit, attempt, process, devices, errors)
        self._running.append(session)
        assert process.stdin  # noqa: S101 - for the type alone
        assert process.stdout  # noqa: S101 - for the type alone
        self._selector.register(process.stdout, selectors.EVENT_READ, session)
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(json.dumps({"payload": dict(payload), "gpus": devices if unit.gpus else []}).encode())
        where = f"GPU {environ[self.choice]}" if unit.gpus else " ".join(map(str, [unit.hardware, *devices]))
        begin = {"kind": "begin", "node": where, "device_kind": self._kinds[unit.hardware]}
        return unit.name, attempt, begin

    def _word(self, number: int) -> str:
        """Return how programs are told of a GPU: as this session was itself, or by its number."""
        words = [it.strip() for it in os.environ.get(self.choice, "").split(",") if it.strip()]
        return words[number] if number < len(words) else str(number)

    def _ended(self, session: _Session) -> Ended:
        assert session.process.stdout  # noqa: S101 - for the type alone
        self._selector.unregister(session.process.stdout)
        session.process.stdout.close()
        status = session.process.wait()
        self._running.remove(session)
        self._free[session.unit.hardware] = sorted([*self._free[session.unit.hardware], *session.devices])
        problem = ""
        if status < 0:
            problem = f"its session was killed by signal {-status}"
        elif status not in node.WHOLE:
            session.errors.seek(0)
            said = session.errors.read().decode(errors="replace").strip().split("\n")
            problem = f"its session ended with exit status {status}: {session.printed or said[-1]}"
        session.errors.close()
        return Ended(session.unit.name, session.attempt, problem, "")


def main() -> int:
    """Run the session that standard input tells of; it ends when whoever started this does."""
    node.end_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    given = json_value(sys.stdin.buffer.read())

    def say(lines: list[str]) -> None:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()

    return node.session(given["payload"], say, given["gpus"])


if __name__ == "__main__":
    sys.exit(main())
