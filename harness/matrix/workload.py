"""A workload: what users ask of a server, as one [workloads.NAME] table: arrivals, lengths, prompts and limits."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from harness.base.errors import nearest
from harness.base.text import digest
from harness.matrix.table import Table

Kind = Literal["at-once", "constant", "poisson", "gamma", "burst", "concurrent", "trace"]

TIMES = ("ttft", "tpot", "itl", "e2e")
"""What a limit may be of: time to first token, time per output token after it, time between two, and the whole."""
QUANTILES = ("mean", "p50", "p90", "p95", "p99")

_KEYS = tuple(f"{time}_{quantile}_ms" for time in TIMES for quantile in QUANTILES)
_NEEDS: dict[str, tuple[str, ...]] = {
    "at-once": (),
    "constant": ("rate",),
    "poisson": ("rate",),
    "gamma": ("rate", "burstiness"),
    "burst": ("rate", "burst"),
    "concurrent": ("concurrency",),
    "trace": ("file",),
}


class Arrival(Table):
    """When requests come: all at once, at a rate (even, Poisson, gamma, or so many at a time), or as a trace has it.

    ``concurrent`` keeps a number of requests in flight: the next is sent where one is answered.
    """

    kind: Kind
    rate: PositiveFloat | None = Field(
        default=None, description="Requests a second; a search for the capacity sets its own."
    )
    burstiness: PositiveFloat | None = Field(
        default=None, description="Shape of the gamma distribution of the gaps: 1 is Poisson, less comes in bursts."
    )
    burst: PositiveInt | None = Field(default=None, description="Requests that come together.")
    concurrency: PositiveInt | None = Field(default=None, description="Requests in flight.")
    file: str | None = Field(
        default=None,
        description="Trace to replay, a JSON object a line: `timestamp`, `input_length` and `output_length`, or "
        "`prompt` and `output_tokens`.",
    )
    unit: Literal["s", "ms"] = Field(default="s", description="What a trace's timestamps are in.")
    speed: PositiveFloat = Field(default=1.0, description="How many times as fast as recorded a trace is replayed.")

    @model_validator(mode="after")
    def _is_whole(self) -> Arrival:
        needed = _NEEDS[self.kind]
        lacking = [name for name in needed if getattr(self, name) is None and name != "rate"]
        if lacking:
            raise ValueError(f"arrivals of kind {self.kind!r} need {' and '.join(lacking)}")
        given = [name for name in ("burstiness", "burst", "concurrency", "file") if getattr(self, name) is not None]
        if stray := [name for name in given if name not in needed]:
            raise ValueError(f"arrivals of kind {self.kind!r} take no {' and '.join(stray)}")
        if self.rate is not None and "rate" not in needed:
            raise ValueError(f"arrivals of kind {self.kind!r} have no rate")
        return self

    @property
    def has_rate(self) -> bool:
        """Whether requests come at a rate, so that a capacity can be searched for."""
        return "rate" in _NEEDS[self.kind]

    @property
    def told(self) -> str:
        """The arrivals in a few words, without their rate."""
        further = {
            "gamma": f" {self.burstiness:g}" if self.burstiness else "",
            "burst": f" of {self.burst}",
            "concurrent": f" {self.concurrency}",
        }
        return self.kind + further.get(self.kind, "")


class Lengths(Table):
    """How long prompts or answers are, in tokens: all the same, or drawn from a distribution between two bounds."""

    kind: Literal["fixed", "uniform", "normal", "lognormal"] = "fixed"
    tokens: PositiveInt | None = Field(default=None, description="Of fixed ones: the length.")
    mean: PositiveFloat | None = Field(default=None, description="Of normal and lognormal ones: the mean length.")
    deviation: PositiveFloat | None = Field(default=None, description="The standard deviation of the length.")
    low: PositiveInt = Field(default=1, description="The least length.")
    high: PositiveInt | None = Field(default=None, description="The greatest length.")

    @model_validator(mode="after")
    def _is_whole(self) -> Lengths:
        needed = {"fixed": ("tokens",), "uniform": ("high",)}.get(self.kind, ("mean", "deviation", "high"))
        if lacking := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"lengths of kind {self.kind!r} need {' and '.join(lacking)}")
        if self.high is not None and self.high < self.low:
            raise ValueError(f"high {self.high} is below low {self.low}")
        return self

    @property
    def longest(self) -> int:
        return int(self.tokens or self.high or 0)

    @property
    def told(self) -> str:
        if self.kind == "fixed":
            return str(self.tokens)
        middle = f" {self.mean:g}±{self.deviation:g}" if self.mean and self.deviation else ""
        return f"{self.kind}{middle} {self.low}-{self.high}"


class SharedPrefix(Table):
    """A beginning that prompts have in common, as a system prompt or a document that is asked about."""

    tokens: PositiveInt = Field(description="Tokens of it, which the input's length does not count.")
    groups: PositiveInt = Field(default=1, description="How many different ones there are; prompts take turns.")


Limits = dict[str, PositiveFloat]


def _limits(given: Any) -> Any:
    """Return limits as a list of sets of them; one set alone is the usual case."""
    found = [given] if isinstance(given, dict) else given
    for limits in found if isinstance(found, list) else ():
        for key in limits if isinstance(limits, dict) else ():
            if key not in _KEYS:
                raise ValueError(f"{key!r} is no limit; {nearest(str(key), _KEYS)}")
        if not limits:
            raise ValueError(f"a set of limits needs at least one, such as {_KEYS[4]}")
    return found


class Workload(Table):
    """What users ask of a server: when requests come, how long they are, what they have in common, and the limits.

    Answers end by their length and not by their end token, unless they are structured or have no ``output``.
    """

    name: str
    meaning: str = ""
    arrival: Arrival
    prompts: str = Field(
        default="random",
        description="random tokens, sharegpt, or a file with a JSON object a line: `prompt`, and `output_tokens` where "
        "`output` says nothing.",
    )
    input: Lengths | None = Field(default=None, description="Lengths of random prompts.")
    output: Lengths | None = Field(default=None, description="Lengths of the answers.")
    shared_prefix: SharedPrefix | None = None
    turns: PositiveInt = Field(
        default=1,
        description="Turns of a conversation: each sends all that was said before with a new prompt, once the last "
        "answer is there. Arrivals are then those of conversations.",
    )
    think: NonNegativeFloat = Field(default=0.0, description="Seconds between an answer and the next turn.")
    structured: dict[str, Any] | None = Field(
        default=None, description="A JSON schema that every answer has to keep, by the server's guided decoding."
    )
    slo: Annotated[list[Limits], BeforeValidator(_limits)] = Field(
        default=[],
        description="Limits on latency, such as { ttft_p99_ms = 500, tpot_p99_ms = 50 }, or a list of several sets: "
        "one of ttft, tpot, itl and e2e; mean, p50, p90, p95 or p99.",
    )
    rates: list[PositiveFloat] = Field(
        default=[], description="Requests a second to measure at, in place of shares of what the server can do."
    )
    requests: PositiveInt | None = Field(
        default=None, description="Requests of a run; without, as many as the measurements of the hardware have."
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Workload:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f"{self.name!r} cannot name a workload: letters, digits, -, _ and .")
        if self.arrival.kind == "trace":
            if self.input or self.shared_prefix or self.prompts != "random":
                raise ValueError("a trace says itself how long its prompts are, or what they are")
        elif self.prompts == "random" and (self.input is None or self.output is None):
            raise ValueError("random prompts need `input` and `output`, their lengths in tokens")
        if self.prompts != "random" and (self.input or self.shared_prefix or self.turns > 1):
            raise ValueError("`input`, `shared_prefix` and `turns` are of random prompts")
        if self.slo and not self.arrival.has_rate:
            raise ValueError(f"limits ask for the highest rate, which arrivals of kind {self.arrival.kind!r} have not")
        if self.rates and not self.arrival.has_rate:
            raise ValueError(f"arrivals of kind {self.arrival.kind!r} have no rates")
        return self

    @property
    def digest(self) -> str:
        """What tells it from another of its name: all that is sent, and not what it is held against."""
        return digest(self.model_dump(exclude={"name", "meaning", "slo", "rates", "requests"}))

    @property
    def alone(self) -> Workload:
        """The same requests, each of them sent when the one before it was answered."""
        return self.model_copy(update={"arrival": Arrival(kind="concurrent", concurrency=1)})

    @property
    def longest(self) -> int:
        """The most tokens that a conversation may come to; 0 where its prompts say that themselves."""
        if self.input is None or self.output is None:
            return 0
        prefix = self.shared_prefix.tokens if self.shared_prefix else 0
        return prefix + self.turns * (self.input.longest + self.output.longest)


def named(limits: Limits) -> str:
    """Return a set of limits in a few words: ``ttft p99 500 ms, tpot p99 50 ms``."""
    ordered = sorted(limits.items(), key=lambda item: [TIMES.index(limit_of(item[0])[0]), item[0]])
    return ", ".join(f"{' '.join(limit_of(key))} {value:g} ms" for key, value in ordered)


def limit_of(key: str) -> tuple[str, str]:
    """Return what a limit is of: a time and its quantile."""
    time, quantile, _ = key.split("_")
    return time, quantile
