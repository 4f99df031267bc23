"""Workloads on a server: what users meet at each rate, the capacity within limits, energy and cost."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.base.errors import HarnessError, Unsuitable, VoidLoad
from harness.machine import probe
from harness.machine.energy import Meter, taken
from harness.machine.vendor import Unseen, over
from harness.matrix.plan import Cell
from harness.matrix.workload import Workload, limit_of, named
from harness.measure.capacity import Limit, Observed, Search, good, limits_of
from harness.measure.figures import Figure
from harness.measure.load_run import Run, completes, due, figures, levelled
from harness.measure.recorder import Recorder
from harness.measure.serving import cache, through_client
from harness.records.schema import Measurement, Scalar
from harness.servers.registry import SERVERS

SATURATION = "saturation"
_LATENCIES = ("load_ttft", "load_tpot", "load_latency")
_WARMUP = 4


@dataclass
class Loads:
    """Measures workloads; what one claim has measured of a cell serves the next, until another cell's turn."""

    recorder: Recorder
    _of: tuple[str, str] = ("", "")
    _runs: list[Run] = field(default_factory=list)
    _seed: int = 0
    _meter: Meter | None = None
    _unmetered: str = ""
    _idle: float = 0.0
    _levelled: bool = False
    _completes: float = 0.0
    """Requests a second above which no queue is steady; 0 where no run at once has told it."""

    def load(self, cell: Cell, name: str) -> dict[str, Measurement]:
        """Measure a workload at all its rates: at once, then over the sweep; or as its arrivals are, if at no rate.

        Raises VoidLoad, once all of it is recorded, where some of it says nothing.
        """
        found = self._sweep(cell, self._begin(cell, name))
        if void := list(dict.fromkeys(it.discarded for it in found.values() if it.discarded)):
            raise VoidLoad(f"{name} on {cell.id} is void: {'; '.join(void)}")
        return found

    def _sweep(self, cell: Cell, workload: Workload) -> dict[str, Measurement]:
        wanted = cell.measurements.load
        found: dict[str, Measurement] = {}
        if workload.arrival.has_rate:
            found |= self._point(cell, workload, SATURATION, None)
            top = self._top(found)
            rates = {f"{rate:g} req/s": rate for rate in workload.rates}
            rates = rates or {f"{share:.0%} of saturation": share * top for share in wanted.sweep}
            for at, rate in rates.items():
                found |= self._point(cell, workload, at, rate)
        else:
            found |= self._point(cell, workload, workload.arrival.told, workload.arrival.rate)
        return found

    def capacity(self, cell: Cell, name: str) -> dict[str, Measurement]:
        """Search for the highest rate that holds each of a workload's sets of limits, from what the sweep has shown."""
        workload = self._begin(cell, name)
        if not workload.slo:
            raise Unsuitable(f"{cell.id}: the workload {name} has no limits (slo) to hold, so it has no capacity")
        # What is void of it fails the test of load; a rate at which nothing is void can be found all the same.
        swept = self._sweep(cell, workload)
        if not self._completes and f"load_requests {SATURATION}" in swept:
            # A resumed run has the sweep's records, and its runs no more.
            self._completes = self._top(swept)
        wanted, found = cell.measurements.load, {}
        for limits in workload.slo:
            told = named(limits)
            parameters: dict[str, Scalar] = {"workload": name, "slo": told}
            take = functools.partial(self._search, cell, workload, limits_of(limits, limit_of), wanted, told)
            found[f"capacity {told}"] = self._take(cell, workload, parameters, take, ("capacity",))["capacity"]
        if void := list(dict.fromkeys(it.discarded for it in found.values() if it.discarded)):
            raise VoidLoad(f"the capacity of {name} on {cell.id} is void: {'; '.join(void)}")
        return found

    def workload(self, name: str) -> Workload:
        """Return a workload by its name; raises MatrixError with the nearest where there is none."""
        if self.recorder.flow.workload is None:
            raise HarnessError(f"no workload is known here, and {name} was asked for")
        return self.recorder.flow.workload(name)

    # ------------------------------------------------------------------------------------------------------ runs

    def _begin(self, cell: Cell, name: str) -> Workload:
        """Return a workload that fits the cell's server; forget the runs of any other."""
        workload = self.workload(name)
        longest = cell.measurements.engine.max_model_len
        if workload.longest > longest:
            raise Unsuitable(
                f"{cell.id}: {name} comes to {workload.longest} tokens, and the server holds {longest}: "
                f"--set engine.max_model_len={workload.longest}, or shorter lengths"
            )
        if workload.structured and not SERVERS[cell.server].structured:
            raise Unsuitable(
                f"{cell.id}: {name} asks for structured answers, and {cell.server} is started without a grammar"
            )
        if self._of != (cell.id, name):
            self._of, self._runs, self._seed, self._completes = (cell.id, name), [], 0, 0.0
            self._meter, self._idle, self._unmetered = None, 0.0, ""
        return workload

    def _point(self, cell: Cell, workload: Workload, at: str, rate: float | None) -> dict[str, Measurement]:
        """Measure a workload at one rate, and record what users meet there."""
        wanted = cell.measurements.load
        parameters: dict[str, Scalar] = {"workload": workload.name, "at": at}
        names = ["load_requests", "load_tokens"] + ([] if at == SATURATION else list(_LATENCIES))
        runs: list[Run] = []

        def take() -> dict[str, Figure]:
            if at == SATURATION:
                runs.append(self._saturate(cell, workload))
            requests = len(runs[0].told["arrivals"]) if runs else None
            runs.extend(self._run(cell, workload, at, rate, requests) for _ in range(wanted.rounds - len(runs)))
            return {name: it for name, it in figures(runs).items() if name in names}

        found = self._take(cell, workload, parameters, take, tuple(names))
        told = {f"{metric} {at}": record for metric, record in found.items()}
        if runs:
            told |= self._further(cell, workload, at, runs)
        return told

    def _saturate(self, cell: Cell, workload: Workload) -> Run:
        """Send requests at once, twice as many each time, until no more tokens a second come of it.

        With few requests the longest answers, which run alone at the end, tell more of the rate than the server does.
        A workload that says how many requests it has is sent as it is.
        """
        wanted = cell.measurements.load
        runs = [self._run(cell, workload, SATURATION, None)]
        requests, most = len(runs[0].told["arrivals"]), wanted.saturating_requests
        while not workload.requests and not runs[-1].void and not levelled(runs) and 2 * requests <= most:
            requests *= 2
            run = self._run(cell, workload, SATURATION, None, requests)
            if run.client_limited:
                # What the client can send tells nothing of the server; what it could send before does.
                break
            runs.append(run)
        self._completes = completes(runs)
        self._levelled = levelled(runs)
        return runs[-1]

    def _further(self, cell: Cell, workload: Workload, at: str, runs: Sequence[Run]) -> dict[str, Measurement]:
        """Record what follows from runs that were just taken: goodput, saturation, energy and cost."""
        wanted, void = cell.measurements.load, next(filter(None, (run.void for run in runs)), "")
        here: dict[str, Scalar] = {"workload": workload.name, "at": at}
        met = here
        note = functools.partial(self.recorder.note, cell, engine=True, inputs=self._inputs(workload))
        found: dict[str, Measurement] = {}

        def add(metric: str, parameters: dict[str, Scalar], samples: list[float], **told: float) -> None:
            figure = Figure(statistics.median(samples), samples, statistics=told, discarded=void)
            found[f"{metric} {at} {parameters.get('slo', '')}"] = note(parameters, metric, figure)

        if at == SATURATION:
            requests, levels = float(len(runs[0].told["arrivals"])), float(self._levelled)
            samples = [run.tokens for run in runs]
            add("saturation_throughput", {"workload": workload.name}, samples, requests=requests, levelled=levels)
            # What users meet goes by how many came at once, which recipes need not have in common.
            met = {**here, "at": f"{requests:.0f} at once"}
            for name, figure in figures(runs).items():
                if name in ("load_tokens", *_LATENCIES):
                    found[f"{name} {met['at']}"] = note(met, name, figure)
        for limits in workload.slo:
            of = limits_of(limits, limit_of)
            kept = [sum(good(run.observed().times, of)) / run.told["duration"] for run in runs]
            add("goodput", {**met, "slo": named(limits)}, kept)
        joules = [run for run in runs if run.joules is not None]
        if joules:
            tokens = sum(sum(run.told["tokens"]) for run in joules)
            gross = sum(run.joules or 0.0 for run in joules)
            net = [(run.joules or 0.0) - run.idle * run.seconds for run in joules]
            add(
                "energy_per_token",
                here,
                [joule / max(1, sum(run.told["tokens"])) for joule, run in zip(net, joules, strict=True)],
                idle_watts=self._idle,
                with_idle=gross / max(1, tokens),
                tokens=float(tokens),
            )
        if wanted.price is not None:
            hour = wanted.price * cell.gpus
            cost = [hour / (3600 * run.tokens) * 1e6 if run.tokens else 0.0 for run in runs]
            add("token_cost", {**here, "price": wanted.price, "currency": wanted.currency}, cost)
        return found

    def _run(self, cell: Cell, workload: Workload, at: str, rate: float | None, requests: int | None = None) -> Run:
        """Send a workload once, over an empty prefix cache."""
        flow, wanted = self.recorder.flow, cell.measurements.load
        least = workload.requests or wanted.requests
        requests = requests or (max(least, math.ceil(rate * wanted.seconds)) if rate else least)
        flow.progress(f"load {workload.name} on {cell.id}: {at}, {requests} requests")

        def ask(number: int, at_rate: float | None, seed: int) -> dict[str, Any]:
            asked = {"workload": workload.model_dump(), "requests": number, "rate": at_rate, "seed": seed}
            return through_client(flow, cell, "load", f"{workload.name} at {at}", **asked, dataset=dataset)

        dataset = self._dataset(workload)
        if not self._seed:
            # What a server does for the first time it may compile first.
            ask(min(_WARMUP, least), None, 0)
            cache(self.recorder, cell)
            self._measure_idle(cell)
        self._seed += 1
        before, start = self._meter.read() if self._meter else None, time.monotonic()
        told = ask(requests, rate, self._seed)
        seconds = time.monotonic() - start
        joules = taken(before, self._meter.read()) if self._meter and before else None
        run = Run(rate, told, due(workload, rate, requests), joules, self._idle, seconds)
        self._runs.append(run)
        return run

    def _measure_idle(self, cell: Cell) -> None:
        """Take the power of the device with the model on it and nothing to do, where it has a counter."""
        try:
            self._meter = Meter(cell.hardware, gpus=cell.gpus)
            before = self._meter.read()
            time.sleep(cell.measurements.load.idle_seconds)
            after = self._meter.read()
            self._idle = taken(before, after) / (after.at - before.at)
        except Unseen as error:
            self._meter, self._unmetered = None, str(error)

    def _search(self, cell: Cell, workload: Workload, limits: list[Limit], wanted: Any, told: str) -> dict[str, Figure]:
        """Return the capacity within one set of limits; what was measured before it is not measured again."""
        void: list[str] = []

        class Stopped(Exception):
            """A run that says nothing."""

        def once(rate: float) -> Observed:
            return observed(
                self._run(cell, workload, f"{rate:.3g} req/s for {told}", rate), f"{rate:.3g} requests a second"
            )

        def alone() -> Observed:
            return observed(self._run(cell, workload.alone, f"one at a time for {told}", None), "one request at a time")

        def observed(run: Run, at: str) -> Observed:
            if run.void:
                void.append(f"at {at} {run.void}")
                raise Stopped
            return run.observed()

        rated = [run for run in self._runs if run.rate and not run.void]
        top = self._completes or max((run.rate for run in rated if run.rate), default=1.0)
        search = Search(once, top, wanted.precision, wanted.most_runs, [run.observed() for run in rated], alone)
        try:
            found = search(limits)
        except Stopped:
            search.most, search.alone = 0, None
            found = search(limits)
        attachment = self.recorder.attach(f"{cell.id}-{workload.name}-{len(self._runs)}-capacity", self._told(limits))
        known = {"interval_low": found.low, "interval_high": found.high, "known_to_hold": found.yes}
        known |= {"known_not_to_hold": found.no} if found.no is not None else {}
        if found.problem:
            self.recorder.flow.progress(f"capacity of {cell.id} within {told}: {found.problem}")
        figure = Figure(
            found.rate,
            statistics={**known, "runs": float(found.runs), "precise": float(not found.problem)},
            attachment=attachment,
            discarded="; ".join(void),
        )
        return {"capacity": figure}

    def _told(self, limits: Sequence[Limit]) -> dict[str, Any]:
        return {"limits": [str(limit) for limit in limits], "runs": [run.kept for run in self._runs]}

    # ------------------------------------------------------------------------------------------------- recording

    def _take(
        self, cell: Cell, workload: Workload, parameters: dict[str, Scalar], take: Any, names: Sequence[str]
    ) -> dict[str, Measurement]:
        def state() -> dict[str, Scalar]:
            return probe.state(cell.hardware, *over(cell.gpus)) | (
                {"energy": f"not available: {self._unmetered}"} if self._unmetered else {}
            )

        return self.recorder.block(cell, parameters, engine=True, inputs=self._inputs(workload)).take(
            take, names=names, state=state
        )

    def _inputs(self, workload: Workload) -> str:
        """Return what tells this workload from another of its name."""
        return self.recorder.flow.checkpoints.prompts().key if workload.prompts == "sharegpt" else workload.digest

    def _dataset(self, workload: Workload) -> str | None:
        if workload.prompts != "sharegpt":
            return None
        return str(self.recorder.flow.checkpoints.prompts().folder / "prompts.json")

    @staticmethod
    def _top(found: Mapping[str, Measurement]) -> float:
        return found[f"load_requests {SATURATION}"].value
