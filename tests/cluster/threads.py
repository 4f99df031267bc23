"""An engine of threads: nodes' sessions are real, and who places them is not Ray."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from harness.cluster import node
from harness.cluster.campaign import Ended, Event
from harness.cluster.units import Unit


class Threads:
    """One device of each hardware, each with a thread of its own; ``dies`` are attempts that say nothing at their end.

    Their clocks are ``off`` by so many seconds. ``payloads`` are what nodes were given, by unit.
    """

    def __init__(self, hardware: Sequence[str], dies: Sequence[tuple[str, int]] = (), off: float = 0.0) -> None:
        self.hardware = hardware
        self.dies = dies
        self.off = off
        self.payloads: dict[str, list[Mapping[str, Any]]] = {}
        self._work: queue.Queue[Any] = queue.Queue()
        self._came: queue.Queue[tuple[str, int, list[str] | str]] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def devices(self) -> Mapping[str, int]:
        return dict.fromkeys(self.hardware, 1)

    def room(self, hardware: str) -> int:
        return self.devices().get(hardware, 0)

    def keep_to(self, hardware: str) -> str:
        return "k"

    def submit(self, unit: Unit, attempt: int, payload: Mapping[str, Any], kind: str, avoid: Sequence[str]) -> None:
        self.payloads.setdefault(unit.name, []).append(payload)
        self._work.put((unit, attempt, payload))

    def poll(self, seconds: float) -> tuple[list[tuple[str, int, Event]], list[Ended]]:
        try:
            name, attempt, told = self._came.get(timeout=seconds)
        except queue.Empty:
            return [], []
        if isinstance(told, str):
            return [], [Ended(name, attempt, told, "a-node")]
        return [(name, attempt, json.loads(line)) for line in told], []

    def rest(self) -> list[tuple[str, int, Event]]:
        found = []
        while not self._came.empty():
            found += self.poll(0.01)[0]
        return found

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()

    def _as_told(self, lines: list[str]) -> list[str]:
        """Return what a session says as one by this node's clock would."""
        told = [json.loads(line) for line in lines] if self.off else []
        for event in told:
            if event["kind"] == "line":
                record = json.loads(event["line"])
                event["line"] = json.dumps(record | {"time": record["time"] + self.off})
        return [json.dumps(event) for event in told] or lines

    def _run(self) -> None:
        while (given := self._work.get()) is not None:
            unit, attempt, payload = given
            begin = {"kind": "begin", "node": "a-node", "device_kind": "k", "clock": time.time() + self.off}
            self._came.put((unit.name, attempt, [json.dumps(begin)]))
            dies = (unit.name, attempt) in self.dies
            ended = 0

            def say(lines: list[str], name: str = unit.name, number: int = attempt, dies: bool = dies) -> None:
                nonlocal ended
                for line in self._as_told(lines):
                    # One that dies does so after its first test.
                    if not (dies and ended):
                        self._came.put((name, number, [line]))
                    ended += json.loads(line)["kind"] == "done"

            status = node.session(payload, say)
            self._came.put((unit.name, attempt, "it died" if dies else "" if status in (0, 1) else f"status {status}"))
