"""The engine over Ray: tasks with the resources and labels of devices, a mailbox on the head, and who died.

Ray is imported here alone, and only where a cluster is asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.reading import json_value
from harness.cluster import offer
from harness.cluster.address import LOCAL
from harness.cluster.campaign import Ended, Event, Lost
from harness.cluster.node import GPUS, WHOLE, last_words, session
from harness.cluster.offer import Offer
from harness.cluster.share import Share
from harness.cluster.units import Unit

_LOOK_SECONDS = 2.0
_SILENCE_SECONDS = 45.0
"""How long a head may say nothing before it is taken for dead."""
_CLOSE_SECONDS = 10.0
_TOGETHER_SECONDS = 0.25
"""For how long what comes is gathered: to take one thing costs the planner as much as to take many."""
_TRIES = 3
"""How often a head's server for clients is asked for one's own: it forks that with threads running, and it may die."""
_SAID = 500
"""How much is told of what Ray says of a cluster that it cannot reach."""
_TINY = 0.001
# What a node need not have of the folder that the tests lie in: they are sent without it.
_UNSENT = [
    ".git",
    "results/runs",
    "results/gates",
    "results/reference",
    "results/several-gpus",
    "results/studies",
    "build",
    "dist",
    "**/*.safetensors",
    "**/*.gguf",
    "**/*.pte",
]


class Mailbox:
    """Where nodes put what their sessions say until the planner takes it: an actor on the head."""

    def __init__(self) -> None:
        self._box: list[tuple[str, int, list[str]]] = []
        self._came = asyncio.Event()

    async def put(self, unit: str, attempt: int, lines: list[str]) -> None:
        """Take lines; whoever waits for this knows that they are off its node."""
        self._box.append((unit, attempt, lines))
        self._came.set()

    async def take(self, seconds: float) -> list[tuple[str, int, list[str]]]:
        """Return all that is there, once there is something or the time is over, with what comes just after it."""
        try:
            await asyncio.wait_for(self._came.wait(), seconds)
        except TimeoutError:
            return []
        await asyncio.sleep(min(seconds, _TOGETHER_SECONDS))
        found, self._box = self._box, []
        self._came.clear()
        return found


def measure(unit: str, attempt: int, payload: Mapping[str, Any], mailbox: Any, run: Callable[..., int]) -> int:
    """Run a unit here, as a task of Ray; returns its session's exit status."""
    import ray

    context = ray.get_runtime_context()
    begin = {"kind": "begin", "node": context.get_node_id(), "clock": time.time()}
    begin["device_kind"] = context.get_node_labels().get(offer.label(payload["hardware"]), "")
    ray.get(mailbox.put.remote(unit, attempt, [json.dumps(begin)]))
    return run(payload, lambda lines: ray.get(mailbox.put.remote(unit, attempt, lines)), ray.get_gpu_ids())


class RayEngine:
    """Units as tasks of a Ray cluster, each with its devices to itself."""

    def __init__(self, ray: Any, told: str, run: Callable[..., int] = session) -> None:
        self._ray = ray
        self.told = told
        """What the cluster is and what it exposes, in a sentence."""
        self.run = run
        self._nodes: list[dict[str, Any]] = []
        self._only: dict[str, str] = {}
        self._looked = 0.0
        self._tasks: dict[Any, tuple[Unit, int, str, tuple[str, ...]]] = {}
        self._begun: dict[tuple[str, int], str] = {}
        self._printed: dict[tuple[str, int], str] = {}
        self._finished: list[Any] = []
        self._gone: Lost | None = None
        head = {"node:__internal_head__": _TINY}
        self._mailbox = ray.remote(num_cpus=0, resources=head, max_concurrency=1000)(Mailbox).remote()
        self._task = ray.remote(num_cpus=0, max_retries=0)(measure)
        self._taking: Any = None

    @classmethod
    def start(cls, on: str, here: Callable[[], Offer], root: Path, say: Callable[[str], None]) -> RayEngine:
        """Connect to the cluster of an address (``ray://HEAD:10001``, ``HEAD:6379`` or ``auto``), or start one here.

        ``here`` tells what this machine offers, ``root`` is the folder that the tests lie in, which every other node
        gets a copy of. Raises HarnessError where Ray is not installed or does not answer.
        """
        if on == LOCAL:
            # Before Ray is imported, which reads them then.
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            # Has Ray stay on the loopback, which it else does on other systems alone.
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # What goes wrong is told by this; Ray's own lines would stand between pytest's.
        os.environ.setdefault("RAY_LOGGER_LEVEL", "error")
        # Ray would end this process, unsaid, a minute after its head has died; it is noticed here before.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "3600")
        try:
            import ray
        except ImportError as error:
            raise HarnessError(f"--on {on}: Ray is not installed; pip install 'torchao-harness[ray]'") from error
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        terminated = False
        quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        try:
            if on == LOCAL:
                offered = here()
                os.environ[GPUS] = str(offered.gpus)
                ray.init(
                    address="local",
                    # So many of its workers may start at once.
                    num_cpus=max(1, sum(device.count for device in offered.devices)),
                    num_gpus=offered.gpus,
                    resources=offered.resources,
                    labels=offered.labels,
                    include_dashboard=False,
                    object_store_memory=128 * 1024 * 1024,
                    _node_ip_address="127.0.0.1",
                    **quiet,
                )
            else:
                environment = {"working_dir": str(root), "excludes": _UNSENT}
                _again(_TRIES, lambda: ray.init(address=on, runtime_env=environment, **quiet))
        except Exception as error:
            # Ray raises errors of its own, of gRPC and of the system; one of versions names them in further lines.
            told = textwrap.shorten(str(error), _SAID, placeholder=" ...") or "no more is said"
            mend = "" if "Version mismatch" in told else "; is its head up, and RAY_AUTH_TOKEN its own?"
            raise HarnessError(f"--on {on}: no cluster ({type(error).__name__}: {told}){mend}") from error
        except SystemExit:
            terminated = True
        finally:
            # Ray takes SIGTERM for itself.
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if terminated:
            # What it means is for those to say who had it before.
            signal.raise_signal(signal.SIGTERM)
            raise HarnessError(f"--on {on}: ended while the cluster was asked")
        token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
        place = "127.0.0.1 alone, dashboard off" if on == LOCAL else f"{on}, on that cluster's own ports"
        gpus = int(os.environ.get(GPUS, "0")) if on == LOCAL else 0
        each = f"; {gpus} GPUs side by side, each with {Share.of([0], gpus).told}" if gpus > 1 else ""
        engine = cls(ray, f"Ray {ray.__version__} at {place}, token authentication {'on' if token else 'off'}{each}")
        if not token:
            say("whoever reaches the cluster's ports can run code there: set RAY_AUTH_MODE=token on every node")
        return engine

    # ------------------------------------------------------------------------------------------------- what is there

    def devices(self) -> Mapping[str, int]:
        """Return how many devices of each hardware its live nodes have."""
        found: dict[str, int] = {}
        for node in self._alive():
            for hardware, amount in self._offered(node):
                found[hardware] = found.get(hardware, 0) + amount
        return found

    def room(self, hardware: str) -> int:
        """Return how many devices of a hardware the live node with most of them has."""
        return max((dict(self._offered(node)).get(hardware, 0) for node in self._alive()), default=0)

    def keep_to(self, hardware: str) -> str:
        """Have all units of a hardware run on devices of one kind, the most numerous; returns it."""
        found: dict[str, int] = {}
        for node in self._alive():
            kind = node.get("Labels", {}).get(offer.label(hardware), "")
            found[kind] = found.get(kind, 0) + dict(self._offered(node)).get(hardware, 0)
        self._only[hardware] = max(sorted(found), key=lambda kind: found[kind], default="")
        return self._only[hardware]

    def _offered(self, node: Mapping[str, Any]) -> list[tuple[str, int]]:
        """Return the devices of a node that count, by hardware."""
        prefix, labels = offer.resource(""), node.get("Labels", {})
        named = [(it.removeprefix(prefix), int(n)) for it, n in node["Resources"].items() if it.startswith(prefix)]
        return [
            (hardware, amount)
            for hardware, amount in named
            if hardware not in self._only or labels.get(offer.label(hardware), "") == self._only[hardware]
        ]

    def _alive(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        if not self._nodes or now - self._looked > _LOOK_SECONDS:
            self._nodes = [node for node in self._asked(self._ray.nodes) if node["Alive"]]
            self._looked = now
        return self._nodes

    def _able(self, unit: Unit, kind: str, avoid: Sequence[str]) -> list[dict[str, Any]]:
        """Return the nodes that a unit may run on."""
        return [
            node
            for node in self._alive()
            if dict(self._offered(node)).get(unit.hardware, 0) >= unit.devices
            and (not kind or node.get("Labels", {}).get(offer.label(unit.hardware)) == kind)
            and node["NodeID"] not in avoid
        ]

    # ---------------------------------------------------------------------------------------------------- what runs

    def submit(self, unit: Unit, attempt: int, payload: Mapping[str, Any], kind: str, avoid: Sequence[str]) -> None:
        """Hand a unit to Ray; where no node is left that would do, another kind of device or a tried node will."""
        kind = self._only.get(unit.hardware) or (kind if self._able(unit, kind, ()) else "")
        avoid = tuple(avoid) if self._able(unit, kind, avoid) else ()
        selector = {offer.label(unit.hardware): kind} if kind else {}
        if avoid:
            selector["ray.io/node-id"] = f"!in({','.join(avoid)})"
        task = self._task.options(
            name=unit.name,
            num_gpus=unit.gpus,
            resources={offer.resource(unit.hardware): unit.devices},
            label_selector=selector or None,
        )
        reference = self._asked(
            task.remote, unit.name, attempt, {**payload, "hardware": unit.hardware}, self._mailbox, self.run
        )
        self._tasks[reference] = (unit, attempt, kind, avoid)

    def poll(self, seconds: float) -> tuple[list[tuple[str, int, Event]], list[Ended]]:
        """Return what came, and which attempts are over."""
        if self._gone is not None:
            raise self._gone
        if self._taking is None:
            self._taking = self._asked(self._mailbox.take.remote, seconds)
        # Kept until it is here: an interruption meanwhile loses nothing.
        taken = self._asked(self._ray.get, self._taking)
        self._taking = None
        events = [(unit, attempt, json_value(line)) for unit, attempt, lines in taken for line in lines]
        for name, attempt, event in events:
            if event["kind"] == "begin":
                self._begun[name, attempt] = event["node"]
            if event["kind"] == "end":
                self._printed[name, attempt] = last_words(event)
        over: list[Ended] = []
        try:
            # What had ended before this emptied the mailbox has nothing there any more.
            over = [*map(self._ended, self._finished), *self._stranded()]
            self._finished = []
            if self._tasks:
                tasks = list(self._tasks)
                self._finished, _ = self._asked(self._ray.wait, tasks, num_returns=len(tasks), timeout=0)
        except Lost as error:
            # Told of once what came before is taken.
            self._gone = error
        return events, over

    def rest(self) -> list[tuple[str, int, Event]]:
        # What was being waited for, and what came since.
        return [event for _ in range(2) for event in self.poll(0.0)[0]]

    def _ended(self, reference: Any) -> Ended:
        unit, attempt, _, _ = self._tasks.pop(reference)
        node, printed = (table.pop((unit.name, attempt), "") for table in (self._begun, self._printed))
        try:
            status = self._ray.get(reference)
        except Exception as error:
            self._looked = 0.0
            cause = getattr(error, "cause", None) or error
            first = next(iter(str(cause).strip().splitlines()), "").partition(". ")[0]
            return Ended(unit.name, attempt, f"its node or session died ({type(cause).__name__}: {first})", node)
        fit = status in WHOLE
        return Ended(unit.name, attempt, "" if fit else f"its session ended with exit status {status}: {printed}", node)

    def _stranded(self) -> list[Ended]:
        """Take back what waits for nodes that are gone, and what ran there: Ray may wait for their connections."""
        found = []
        alive = {node["NodeID"] for node in self._alive()}
        for reference, (unit, attempt, kind, avoid) in list(self._tasks.items()):
            node = self._begun.get((unit.name, attempt), "")
            if reference in self._finished or node in alive:
                continue
            if node:
                self._ray.cancel(reference, force=True)
                del self._tasks[reference]
                found.append(Ended(unit.name, attempt, "its node died", node))
            elif (kind or avoid) and not self._able(unit, kind, avoid):
                self._ray.cancel(reference, force=True)
                del self._tasks[reference]
                found.append(Ended(unit.name, attempt, "no node is left that it could run on"))
        return found

    def _asked(self, ask: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """Return what Ray answers. Raises Lost where it does not, or not in time: of a head that is gone Ray waits."""
        answer = _within(_SILENCE_SECONDS, lambda: ask(*arguments, **more))
        if isinstance(answer, Exception):
            raise Lost(f"{type(answer).__name__}: {next(iter(str(answer).strip().splitlines()), '')}") from answer
        return answer

    def close(self) -> None:
        """End what still runs, and let go of the cluster; one that was started for this ends."""

        def end() -> None:
            for reference in self._tasks:
                self._ray.cancel(reference, force=False)
            self._ray.shutdown()

        # Of one whose head is gone there is nothing to end: its nodes end by themselves.
        _within(_CLOSE_SECONDS, end)


def _again(times: int, ask: Callable[[], Any]) -> Any:
    """Return what ``ask`` does, tried again where the other side ended the connection as it began."""
    for left in reversed(range(times)):
        try:
            return ask()
        except ConnectionAbortedError:
            if not left:
                raise
    return None


def _within(seconds: float, ask: Callable[[], Any]) -> Any:
    """Return what ``ask`` does, or the exception that it raised, or a TimeoutError where it took longer."""
    answers: list[Any] = []

    def answer() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else TimeoutError(f"its head has not answered for {seconds:.0f} s")
