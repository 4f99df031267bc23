"""What a table costs: a session's minutes for the tutorial's rows against the tutorial's commands one after another.

The tutorial's commands (torchao, part 3), for each model and recipe, each a process of its own:

- the memory script: Transformers loads the checkpoint and generates once;
- ``vllm bench latency`` (``benchmark_latency.py``) for each batch size, with that command's 10 warm-up and 30 counted
  iterations;
- one ``vllm serve``, and ``vllm bench serve`` (``benchmark_serving.py``) for each number of prompts.

Nothing else is on either side: not evaluations, agreement, generate's throughput, profiles, quantizing or exporting,
nor any server but vLLM. What a session spent on those is told beside. Every cost of the commands is taken from the
session's own records, so both sides are of one machine and stack:

- The first latency command of a cell starts as the session's engine did, with nothing compiled before. The baseline's
  next one finds a warm compile cache: it starts in that time less the compilation, and in no more than the cell's
  server took, which finds the same. The quantized recipes' commands have ``VLLM_DISABLE_COMPILE_CACHE=1``: each
  compiles, all else being warm.
- Where the session's engine found what an earlier one had compiled, the commands' start as that earlier one did, which
  had found nothing: its seconds are kept with what it compiled.
- A server starts as the session's did, though that one found what the engine had compiled; where one engine was shared,
  as that one without its compilation.
- The first client starts as the session's first did; a later one in the least time that a later client of the session
  took, and in none where the session started one client alone.

So the commands are not made to cost more than they would. The session's side has all that it waited for the workers of
those cells; a start that went on beside other work counts as if it had been waited for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.records.by_hand import ByHand, Ran
from harness.records.place import Place
from harness.records.schema import Cell, Line, Measurement, Outcome, Timing
from harness.servers.registry import TRANSFORMERS, tutorial

TUTORIAL_ITERATIONS = 10 + 30


_SERVERS = {"peak_memory": TRANSFORMERS, "latency": tutorial(), "request_throughput": tutorial()}
"""The tutorial's figures and what it measures each through."""


# A worker's start is timed as set-up where it is Transformers'; an engine's has its compilation set apart.
_STARTS = {TRANSFORMERS: ("setup",), tutorial(): ("engine start", "compile")}


@dataclass(frozen=True)
class Cost:
    """Seconds of a session for the tutorial's rows (``spent``) and of the tutorial's commands for the same rows.

    ``besides`` are the session's seconds for other things, by stage. ``missing`` names the starts that the session did
    not record: where there are any, ``tutorial`` lacks them and no ratio can be told.
    """

    spent: float
    tutorial: float
    besides: Mapping[str, float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def ratio(self) -> float | None:
        return None if self.missing else self.spent / self.tutorial

    def lines(self) -> list[str]:
        """Return the cost as the summary tells it."""
        told = [f"the tutorial's rows, in all their sessions: {self.spent / 60:.1f} minutes"]
        if self.ratio is None:
            told.append(
                "against the tutorial's commands one after another it cannot be told: no start was recorded of "
                f"{', '.join(self.missing)}; select test_engine and test_server too"
            )
        else:
            told.append(
                "the tutorial's commands for them one after another, from the records' own starts and rounds: "
                f"{self.tutorial / 60:.1f} minutes (ratio {self.ratio:.2f})"
            )
        if self.besides:
            stages = ", ".join(f"{stage} {seconds / 60:.1f}" for stage, seconds in self.besides.items())
            told.append(f"besides, for what those commands do not give, in minutes: {stages}")
        return told


@dataclass(frozen=True)
class Measured:
    """What a session spent for the tutorial's rows against the tutorial's own commands, which were run beside it."""

    spent: float
    by_hand: ByHand
    rows: Sequence[Measurement]

    def lines(self) -> list[str]:
        """Return it as a summary tells it: the ratio, and each figure by hand beside the session's."""
        taken = self.by_hand.seconds
        told = [
            f"the tutorial's commands for them one after another, run on {self.by_hand.device}: "
            f"{taken / 60:.1f} minutes (measured ratio {self.spent / taken:.2f})"
        ]
        for ran in self.by_hand.ran:
            ours = next((row.value for row in self.rows if _same(ran, row)), None)
            if ours and ran.value:
                what = ", ".join(f"{name} {value}" for name, value in ran.parameters.items())
                told.append(
                    f"  {ran.model} {ran.recipe}: {ran.metric} ({what}): {ours:.4g}, by hand {ran.value:.4g} "
                    f"(ratio {ours / ran.value:.4f})"
                )
        return told


def measured(lines: Iterable[Line], by_hand: ByHand) -> Measured | None:
    """Return the cost of a run's rows against commands that were run; None where it has none of their cells."""
    lines = list(lines)
    rows = tutorial_rows(lines)
    ran = {(it.model, it.recipe) for it in by_hand.ran}
    mine = [row for row in rows if (row.cell.model.name, row.cell.recipe.name) in ran]
    if not mine:
        return None
    spent, _ = _spent(lines, {_key(row.cell) for row in mine}, _Starts(_standing(lines)))
    return Measured(spent, by_hand, mine)


def tutorial_rows(lines: Iterable[Line]) -> list[Measurement]:
    """Return the rows of the tutorial that a run has: peak memory, latency and serving."""
    return [row for row in _standing(lines) if _is_tutorial(row) and row.value > 0]


def _same(ran: Ran, row: Measurement) -> bool:
    of = (row.metric, row.cell.model.name, row.cell.recipe.name, row.parameters)
    return of == (ran.metric, ran.model, ran.recipe, ran.parameters)


def cost(lines: Iterable[Line]) -> Cost | None:
    """Return what a run's lines say of the cost of the tutorial's rows; None where it has none of them."""
    lines = list(lines)
    rows = _standing(lines)
    figures = tutorial_rows(lines)
    if not figures:
        return None
    starts = _Starts(rows)
    tutorial = sum(starts.of(row) + _rounds(row) for row in figures)
    tutorial += sum(starts.servers(row.cell) for row in _one_a_cell(figures, "request_throughput"))
    if not tutorial and not starts.missing:
        return None
    spent, besides = _spent(lines, {_key(row.cell) for row in figures}, starts)
    return Cost(spent, tutorial, besides, tuple(dict.fromkeys(starts.missing)))


def _standing(lines: Iterable[Line]) -> list[Measurement]:
    """Return the last measurement of each figure that was not discarded."""
    rows: dict[Place, Measurement] = {}
    for line in lines:
        if isinstance(line, Measurement) and not line.discarded:
            rows[Place.of(line).named] = line
    return list(rows.values())


def _is_tutorial(row: Measurement) -> bool:
    return _SERVERS.get(row.metric) == row.cell.server


def _key(cell: Cell) -> Place:
    return Place.of(cell).named


def _one_a_cell(rows: Iterable[Measurement], metric: str) -> list[Measurement]:
    return list({_key(row.cell): row for row in rows if row.metric == metric}.values())


def _rounds(row: Measurement) -> float:
    """Return the seconds that a command takes once its process has started."""
    if row.metric == "latency":
        return TUTORIAL_ITERATIONS * row.value
    if row.metric == "request_throughput":
        return float(row.parameters.get("num_prompts", 0)) / row.value if row.value else 0.0
    return row.statistics.get("seconds", 0.0)


class _Starts:
    """What the processes of the tutorial's commands take to start, handed out in the order of the commands."""

    def __init__(self, rows: Iterable[Measurement]) -> None:
        self.missing: list[str] = []
        self._recorded: dict[tuple[Place, str], float] = {}
        self._cold: dict[tuple[Place, str], float] = {}
        self._compiling: dict[Place, float] = {}
        self._clients: dict[str, list[float]] = defaultdict(list)
        self._begun: set[object] = set()
        self._shared: set[Place] = set()
        for row in rows:
            kind = str(row.parameters.get("kind", ""))
            if row.metric == "engine_start":
                self._recorded[_key(row.cell), kind] = row.value
                self._cold[_key(row.cell), kind] = max(row.value, row.statistics.get("cold_start", 0.0))
                if row.flags.get("shared_engine"):
                    self._shared.add(_key(row.cell))
                # One client asks all cells' servers, and each cell names it.
                if kind == "client" and row.value not in self._clients[row.cell.hardware]:
                    self._clients[row.cell.hardware].append(row.value)
            elif row.metric == "compile_time":
                self._compiling[_key(row.cell)] = row.statistics.get("cold_compile", row.value)

    def of(self, row: Measurement) -> float:
        """Return the start of the process of the command that gives a row; a server's is not among them."""
        if row.metric == "request_throughput":
            return self._client(row.cell)
        if row.metric == "latency":
            return self._engine(row.cell)
        return self._start(row.cell, TRANSFORMERS)

    def servers(self, cell: Cell) -> float:
        found = self._start(cell, "server")
        # One that is the engine too compiled; by itself it would have found what that left.
        return found - self._compiling.get(_key(cell), 0.0) if _key(cell) in self._shared else found

    def known(self, cell: Place) -> float:
        """Return the recorded starts of a cell; a client starts beside its server and adds nothing.

        Nor does a server that is the engine too.
        """
        besides = {"client", "server"} if cell in self._shared else {"client"}
        return sum(seconds for (of, kind), seconds in self._recorded.items() if of == cell and kind not in besides)

    def _start(self, cell: Cell, kind: str) -> float:
        seconds = self._cold.get((_key(cell), kind))
        if seconds is None:
            self.missing.append(f"the {kind} of {cell.model.name} {cell.recipe.name} on {cell.on}")
        return seconds or 0.0

    def _engine(self, cell: Cell) -> float:
        cold = self._start(cell, "engine")
        if self._first((_key(cell), "engine")):
            return cold
        compiling = self._compiling.get(_key(cell), 0.0)
        warm = min(cold - compiling, self.servers(cell) if (_key(cell), "server") in self._recorded else cold)
        return warm if cell.recipe.baseline else min(cold, warm + compiling)

    def _client(self, cell: Cell) -> float:
        recorded = self._clients.get(cell.hardware)
        if not recorded:
            return self._start(cell, "client")
        return recorded[0] if self._first((cell.hardware, "client")) else min(recorded[1:], default=0.0)

    def _first(self, of: object) -> bool:
        first = of not in self._begun
        self._begun.add(of)
        return first


def _spent(lines: Iterable[Line], cells: set[Place], starts: _Starts) -> tuple[float, dict[str, float]]:
    """Return a session's seconds for the tutorial's rows of ``cells``, and its other ones by stage.

    A test's timings and records stand before its outcome, so that what was measured in a test counts where it gave one
    of the rows, discarded or not; records that know no outcomes are as of one test.
    """
    spent = 0.0
    besides: dict[str, float] = defaultdict(float)
    waited = dict.fromkeys(cells, 0.0)
    test: list[Line] = []

    def end_of_test() -> None:
        nonlocal spent
        gave = {_key(it.cell) for it in test if isinstance(it, Measurement) and _is_tutorial(it)}
        for it in test:
            if not isinstance(it, Timing):
                continue
            cell = _key(it.cell) if it.cell else None
            if cell in waited and it.stage in _STARTS[cell.server]:
                waited[cell] += it.seconds
            elif cell in gave and it.stage == "measure":
                spent += it.seconds
            else:
                besides[it.stage] += it.seconds
        test.clear()

    for line in lines:
        test.append(line)
        if isinstance(line, Outcome):
            end_of_test()
    end_of_test()
    return spent + sum(max(seconds, starts.known(cell)) for cell, seconds in waited.items()), dict(besides)
