"""One run of a workload: its rates, what makes it void, and the figures of several runs at one rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.matrix.workload import Workload
from harness.measure.capacity import Observed, grew, quantile
from harness.measure.figures import Figure, between_rounds, percentiles, thinned

BUSY = 0.9
"""The share of one processor from which on the client, which has one thread, is what limits."""
LAG = 0.7
"""How late the client's own timers may be, as a share of the time to first token, both at the 99th percentile."""
LEAST_LAG = 20.0
"""Milliseconds by which any timer may be late."""
LEVEL = 1.1
"""Twice the requests at once that bring less than this many times the tokens a second say that the server is full."""
LATE = 0.05
"""The share of the asked rate by which the achieved one may fall short."""
_TIMES = ("ttft", "tpot", "itl", "e2e")


@dataclass(frozen=True)
class Run:
    """One run of a workload: what the client told of it, the rate that was asked for, and joules where they are known.

    ``idle`` is the device's idle power in watts, ``seconds`` the time that ``joules`` were taken over.
    """

    rate: float | None
    told: Mapping[str, Any]
    due: float = 0.0
    joules: float | None = None
    idle: float = 0.0
    seconds: float = 0.0

    @property
    def requests(self) -> float:
        """Requests completed a second."""
        return float(len(self.told["ttft"]) / self.told["duration"])

    @property
    def tokens(self) -> float:
        """Tokens generated a second."""
        return float(sum(self.told["tokens"]) / self.told["duration"])

    @property
    def achieved(self) -> float | None:
        """The rate at which requests were sent, where they have one."""
        if self.rate is None or not self.told["arrivals"]:
            return None
        last = self.told["arrivals"][-1]
        return float(self.rate * self.due / last) if last > self.due else self.rate

    @property
    def void(self) -> str:
        """Why the run says nothing, or an empty string."""
        told = self.told
        sent = len(told["ttft"]) + len(told["errors"])
        if told["errors"]:
            first = f"; the first: {told['errors'][0]}"
            return f"the server refused or dropped {len(told['errors'])} of {sent} requests{first}"
        if not told["ttft"] or not told["duration"]:
            return "no request was answered"
        if told["to_the_end"]:
            short = sum(got < asked for got, asked in zip(told["tokens"], told["asked_tokens"], strict=True))
            if short:
                return f"{short} of {sent} answers have fewer tokens than asked for"
        return self.client_limited

    @property
    def client_limited(self) -> str:
        """How the client was what limits, or an empty string."""
        told = self.told
        if told["client_cpu"] >= BUSY:
            return f"the client was the bottleneck: its one thread was busy for {told['client_cpu']:.0%} of the time"
        if self.rate and self.achieved is not None and self.achieved < (1 - LATE) * self.rate:
            return f"the client was the bottleneck: {self.achieved:.3g} of {self.rate:.3g} requests a second were sent"
        waited = quantile(told["ttft"], 0.99)
        if told["lag_p99"] > max(LEAST_LAG, LAG * waited):
            late = f"its own timers were {told['lag_p99']:.3g} ms late where the first token took {waited:.3g} ms"
            return f"the client was the bottleneck: {late} (p99 of both)"
        return ""

    @property
    def kept(self) -> dict[str, Any]:
        """What a record's attachment keeps of the run: each request's times, to a microsecond, but not each token's."""
        each = {name: [round(float(it), 3) for it in self.told[name]] for name in ("ttft", "tpot", "e2e")}
        each |= {name: [round(float(it), 6) for it in self.told[name]] for name in ("arrivals", "sent")}
        rates = {"rate": self.rate, "achieved": self.achieved, "requests": self.requests}
        return {**rates, "void": self.void, **{it: self.told[it] for it in self.told if it != "itl"}, **each}

    def observed(self) -> Observed:
        """Return the run as the search for a capacity has it."""
        ends = [start + latency / 1000 for start, latency in zip(self.told["sent"], self.told["e2e"], strict=True)]
        times = {name: self.told[name] for name in _TIMES}
        return Observed(self.rate or math.inf, times, grew(self.told["sent"], ends), self.requests)


def due(workload: Workload, rate: float | None, requests: int) -> float:
    """Return when the last request is due, in seconds; 0 where no rate says so."""
    if not rate:
        return 0.0
    if workload.arrival.kind == "burst" and workload.arrival.burst:
        return (requests - 1) // workload.arrival.burst * workload.arrival.burst / rate
    return requests / rate


def levelled(runs: Sequence[Run]) -> bool:
    """Return whether the last of runs at once, each of twice the requests, brought hardly more tokens a second."""
    return len(runs) > 1 and runs[-1].tokens < LEVEL * runs[-2].tokens


def completes(runs: Sequence[Run]) -> float:
    """Return the requests a second that a server can complete, from runs of ever more requests at once.

    What the last run took longer than the one before it is free of the end of a run, at which few answers are left.
    """
    last = runs[-1]
    if len(runs) < 2 or not last.told["tokens"]:
        return last.requests if last.told["duration"] else 0.0
    seconds = last.told["duration"] - runs[-2].told["duration"]
    tokens = sum(last.told["tokens"]) - sum(runs[-2].told["tokens"])
    further = tokens / seconds / statistics.fmean(last.told["tokens"]) if seconds > 0 and tokens > 0 else 0.0
    return max(last.requests, further)


def figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """Return what users met in runs at one rate."""
    void = next(filter(None, (run.void for run in runs)), "")
    first = runs[0]
    about = {
        "client_cpu": max(run.told["client_cpu"] for run in runs),
        "client_lag_p99_ms": max(run.told["lag_p99"] for run in runs),
        "requests": float(sum(len(run.told["ttft"]) for run in runs)),
    }
    if first.rate:
        about |= {"asked_rate": first.rate, "achieved_rate": min(run.achieved or 0.0 for run in runs)}
    found = {}
    rates = {"load_requests": [run.requests for run in runs], "load_tokens": [run.tokens for run in runs]}
    for name, samples in rates.items():
        found[name] = Figure(
            statistics.median(samples), samples, statistics=percentiles(samples) | about, discarded=void
        )
    for name, of in (("load_ttft", "ttft"), ("load_tpot", "tpot"), ("load_latency", "e2e")):
        each = [[float(value) for value in run.told[of]] for run in runs]
        samples = [value for values in each for value in values] or [0.0]
        told = percentiles(samples) | between_rounds(each) | ({"asked_rate": first.rate} if first.rate else {})
        found[name] = Figure(statistics.median(samples), thinned(samples), statistics=told, discarded=void)
    return found
