"""The highest rate at which a server keeps its limits: what one run says of them, and a search that knows noise.

Requests of one run wait for each other, so that they say less than as many independent ones would: the share beyond a
limit is judged by the effective number of them (Geyer, Practical Markov Chain Monte Carlo, Statistical Science 7, 1992)
and by exact binomial bounds (Clopper and Pearson, Biometrika 26, 1934). With none beyond it, 299 requests tell that a
99th percentile holds; MLPerf's server scenario stops by the same bound (inference rules, early stopping).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

CONFIDENCE = 0.95
_FARTHEST = 64.0
"""How many times below what the server completes at most a rate is looked for that holds, before there is none."""


class Holds(Enum):
    """What runs at a rate say of a limit, at 95 % on each side."""

    YES = "holds"
    NO = "does not hold"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Limit:
    """A limit on the mean, or on a quantile (a share such as 0.99), of one of the times of requests, in ms."""

    of: str
    share: float | None
    most: float

    def __str__(self) -> str:
        return f"{self.of} {'mean' if self.share is None else f'p{100 * self.share:g}'} <= {self.most:g} ms"


@dataclass(frozen=True)
class Observed:
    """One run at a rate: the times of its requests in ms, by what they are of, in the order in which they were sent.

    ``grew`` says that the queue grew while requests came: such a rate is not sustained, however short the run was.
    ``completed`` is how many requests a second were answered, from the first sent to the last token.
    """

    rate: float
    times: Mapping[str, Sequence[float]]
    grew: bool = False
    completed: float = math.inf
    _known: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    def correlation(self, of: str) -> float:
        """Return the correlation time of one of the times."""
        if of not in self._known:
            self._known[of] = correlation_time(self.times[of])
        return self._known[of]


@dataclass(frozen=True)
class Point:
    """All runs at one rate; ``beyond`` says that the server never answered so many requests a second."""

    rate: float
    runs: tuple[Observed, ...]
    beyond: bool = False

    def strain(self, limits: Sequence[Limit]) -> float:
        """Return how much of the strictest limit is used: 1 where it is met exactly, more where it does not hold."""
        found = max(_value(self._pooled(limit.of), limit) / limit.most for limit in limits)
        return max(found, 1.0 + 1e-9) if self.grew else found

    def holds(self, limits: Sequence[Limit]) -> Holds:
        """Return whether every limit is known to hold at this rate, or one of them is known not to."""
        if self.grew:
            return Holds.NO
        found = [self._holds(limit) for limit in limits]
        if Holds.NO in found:
            return Holds.NO
        return Holds.YES if set(found) == {Holds.YES} else Holds.UNCLEAR

    def doubt(self, limits: Sequence[Limit]) -> tuple[float, float]:
        """Return by which factors the limits may be further off, or nearer, than the strain says, at 95 %.

        Of a quantile by its order statistics (Conover, Practical Nonparametric Statistics, 1999, section 3.2) with the
        effective number of requests; where these are too few for the upper one, an exponential tail stands for it.
        """
        found = []
        for limit in limits:
            values = self._pooled(limit.of)
            count = len(values) / self._correlation(limit)
            if limit.share is None:
                low, high = _mean_within(values, count)
                low, high = (max(low, 1e-9), high) if math.isfinite(high) else (min(values), max(values))
            else:
                low, high = _quantile_within(values, limit.share, count)
            middle = max(_value(values, limit), 1e-9)
            found.append((middle / limit.most, middle / max(high, 1e-9), middle / max(low, 1e-9)))
        # The strictest limit decides.
        _, further, nearer = max(found)
        return further, nearer

    def _correlation(self, limit: Limit) -> float:
        return max(run.correlation(limit.of) for run in self.runs)

    @property
    def grew(self) -> bool:
        """Whether the rate is beyond what the server completes, or the queue grew in more than half of the runs."""
        return self.beyond or 2 * sum(run.grew for run in self.runs) > len(self.runs)

    def _pooled(self, of: str) -> list[float]:
        return [value for run in self.runs for value in run.times[of]]

    def _holds(self, limit: Limit) -> Holds:
        values = self._pooled(limit.of)
        # Where none is beyond the limit, how requests depend on each other is told by their times alone.
        effective = len(values) / self._correlation(limit)
        if limit.share is None:
            low, high = _mean_within(values, effective)
            return Holds.YES if high <= limit.most else Holds.NO if low > limit.most else Holds.UNCLEAR
        low, high = share_within(sum(value > limit.most for value in values) / len(values), effective)
        allowed = 1 - limit.share
        # What is allowed is met as closely as floats are.
        return Holds.YES if high <= allowed + 1e-12 else Holds.NO if low > allowed else Holds.UNCLEAR


@dataclass(frozen=True)
class Capacity:
    """The highest rate that holds the limits, and between which rates it is known to lie.

    ``low`` to ``high`` is what it may be at 95 %, by the order statistics of the requests on both sides of it. ``yes``
    is the highest rate that is known to hold (0 where none is), ``no`` the lowest above it that is known not to.
    ``problem`` says why the search ended without the precision that was asked for.
    """

    rate: float
    low: float
    high: float
    yes: float
    no: float | None
    runs: int
    problem: str = ""


@dataclass
class Search:
    """Finds a capacity by bisection between rates; what is measured for one set of limits serves the next.

    ``run(rate)`` measures once. ``top`` is the rate that the server completes where all requests come at once.
    ``alone()`` measures requests of which each is sent when the last was answered: limits that they do not keep, no
    rate does, and the lower a rate is, the longer it would take to see that.
    """

    run: Callable[[float], Observed]
    top: float
    precision: float = 0.05
    most: int = 12
    observed: list[Observed] = field(default_factory=list)
    alone: Callable[[], Observed] | None = None
    _apart: Observed | None = None

    def __call__(self, limits: Sequence[Limit]) -> Capacity:
        """Return the capacity within limits after at most ``most`` further runs."""
        taken = 0
        while True:
            rate, why = self._next(limits)
            if rate is None:
                return self._found(limits, why)
            if self._hopeless(limits):
                return self._found(limits, "no rate holds the limits, nor do requests that are sent one at a time")
            if taken == self.most:
                return self._found(limits, f"{why}; ended after {taken} runs (load.most_runs)")
            self.observed.append(self.run(rate))
            taken += 1

    def _hopeless(self, limits: Sequence[Limit]) -> bool:
        """Return whether nothing measured holds the limits, nor do requests that never meet another."""
        low, high = self._bracket(limits)
        if low is not None or high is None or self.alone is None:
            return False
        if self._apart is None:
            self._apart = self.alone()
        return Point(0.0, (self._apart,)).strain(limits) > 1

    @property
    def points(self) -> list[Point]:
        """What was measured, by rate."""
        rates = sorted({run.rate for run in self.observed})
        most = self._most
        return [Point(rate, tuple(run for run in self.observed if run.rate == rate), rate > most) for rate in rates]

    @property
    def _most(self) -> float:
        """The most requests a second that were ever answered."""
        return max((self.top, *(run.completed for run in self.observed)))

    def _bracket(self, limits: Sequence[Limit]) -> tuple[Point | None, Point | None]:
        """Return the rates between which the limits are crossed: the last that holds, the first above that does not.

        Of rates that contradict each other, as noise has it, those count that more requests stand behind: a rate that
        holds where a lower one is known not to is passed over, and one that fails below one that is known to hold.
        """
        points = self.points
        known_yes = max((it.rate for it in points if it.holds(limits) is Holds.YES), default=0.0)
        known_no = min(
            (it.rate for it in points if it.holds(limits) is Holds.NO and it.rate > known_yes), default=math.inf
        )
        inside = [it for it in points if known_yes <= it.rate <= known_no]
        high = next((it for it in inside if it.rate > known_yes and it.strain(limits) > 1), None)
        below = [it for it in inside if high is None or it.rate < high.rate]
        low = next((it for it in reversed(below) if it.rate == known_yes or it.strain(limits) <= 1), None)
        return low, high

    def _next(self, limits: Sequence[Limit]) -> tuple[float | None, str]:
        """Return the rate to measure at next, or None, and what is not known yet."""
        low, high = self._bracket(limits)
        if high is None and low is None:
            return self.top / 2, "nothing was measured"
        if low is None and high is not None:
            if high.rate <= self.top / _FARTHEST:
                return None, f"no rate holds the limits, down to {high.rate:.3g} req/s"
            return high.rate / 2, "no rate was seen to hold the limits"
        if high is None and low is not None:
            if low.rate >= 4 * self.top:
                return None, f"every rate up to {low.rate:.3g} req/s holds the limits"
            return max(1.25 * low.rate, self.top), "no rate was seen not to hold the limits"
        assert low is not None  # noqa: S101 - for the type alone
        assert high is not None  # noqa: S101 - for the type alone
        if high.rate > low.rate * (1 + self.precision):
            return _between(low, high, limits), "the rates that it lies between are further apart than asked"
        for point in (low, high):
            # Both sides once more, with other arrivals: what holds once may have been lucky.
            if len(point.runs) < 2:
                return point.rate, "the rates that it lies between were measured once"
        return None, ""

    def _found(self, limits: Sequence[Limit], problem: str) -> Capacity:
        low, high = self._bracket(limits)
        points = self.points
        yes = max((it.rate for it in points if it.holds(limits) is Holds.YES), default=0.0)
        no = min((it.rate for it in points if it.holds(limits) is Holds.NO and it.rate > yes), default=None)
        runs = len(self.observed)
        if low is None:
            return Capacity(0.0, 0.0, high.rate if high else 0.0, yes, no, runs, problem)
        if high is None:
            return Capacity(low.rate, low.rate, low.rate, yes, no, runs, problem)
        rate = min(_crossing(low, high, limits), self._most)
        slope = _slope(points, rate, limits)
        below = min(rate, rate * low.doubt(limits)[0] ** (1 / slope))
        above = max(rate, rate * high.doubt(limits)[1] ** (1 / slope))
        # Where the queue grew, no doubt of a quantile takes that back.
        return Capacity(rate, below, min(above, no) if no and no > rate else above, yes, no, runs, problem)


def grew(arrivals: Sequence[float], ends: Sequence[float]) -> bool:
    """Return whether more requests were in flight when the last came than when half had, beyond what chance does.

    ``arrivals`` and ``ends`` are in seconds. Of Poisson counts three standard deviations are beyond chance.
    """
    if len(arrivals) < 8:
        return False
    ordered = sorted(arrivals)
    half, last = ordered[len(ordered) // 2], ordered[-1]

    def in_flight(at: float) -> int:
        return sum(start <= at < end for start, end in zip(arrivals, ends, strict=True))

    middle, end = in_flight(half), in_flight(last)
    return end - middle > 3 * math.sqrt(middle + end)


def correlation_time(values: Sequence[float]) -> float:
    """Return how many successive values say as much as one independent one: 1 where they are independent.

    The initial positive sequence of Geyer: sums of autocorrelations two by two, up to the first that is not positive.
    """
    count = len(values)
    if count < 4:
        return 1.0
    import numpy as np

    away = np.asarray(values, dtype=float) - statistics.fmean(values)
    spectrum = np.fft.rfft(away, 2 * count)
    together = np.fft.irfft(spectrum * spectrum.conj())[:count]
    if together[0] <= 0:
        return 1.0
    correlation = together / together[0]
    total = -1.0
    for lag in range(0, count // 2 - 1, 2):
        pair = float(correlation[lag] + correlation[lag + 1])
        if pair <= 0:
            break
        total += 2 * pair
    return min(max(total, 1.0), float(count))


def share_within(share: float, count: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the bounds of a share, each with this confidence, that was seen among so many independent requests."""
    # Not at the top: whoever collects the suites need not wait for scipy.
    from scipy import special

    hits = share * count
    low = float(special.betaincinv(hits, count - hits + 1, 1 - confidence)) if hits > 0 else 0.0
    high = float(special.betaincinv(hits + 1, count - hits, confidence)) if hits < count else 1.0
    return low, high


def _mean_within(values: Sequence[float], count: float) -> tuple[float, float]:
    from scipy import special

    center = statistics.fmean(values)
    if len(values) < 2 or count <= 1:
        return 0.0, math.inf
    arm = float(special.stdtrit(count - 1, CONFIDENCE)) * statistics.stdev(values) / math.sqrt(count)
    return center - arm, center + arm


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile of values (linear interpolation)."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * share
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _quantile_within(values: Sequence[float], share: float, count: float) -> tuple[float, float]:
    arm = 1.96 * math.sqrt(share * (1 - share) / count)
    low, high = (quantile(values, min(max(share + side * arm, 0), 1)) for side in (-1, 1))
    if share + arm >= 1:
        middle = quantile(values, 0.5)
        excess = statistics.fmean(value - middle for value in values if value >= middle)
        doubt = 1 + 1.96 / math.sqrt(max(count / 2, 1))
        high = max(high, middle + excess * math.log(0.5 / (1 - share)) * doubt)
    return low, high


def _value(values: Sequence[float], limit: Limit) -> float:
    return statistics.fmean(values) if limit.share is None else quantile(values, limit.share)


def _share_of_the_way(low: Point, high: Point, limits: Sequence[Limit]) -> float:
    """Return where between two rates the strain is 1, if its logarithm is even between them."""
    before, after = (math.log(max(it.strain(limits), 1e-6)) for it in (low, high))
    # Where a queue that grew is all that tells the higher rate apart, its times say nothing of where.
    if after <= before or before > 0 or after < 1e-6:
        return 0.5
    return -before / (after - before)


def _between(low: Point, high: Point, limits: Sequence[Limit]) -> float:
    """Return the next rate: where the limits should be met, but in the middle part, so that either side shrinks."""
    share = min(max(_share_of_the_way(low, high, limits), 0.25), 0.75)
    return float(low.rate * (high.rate / low.rate) ** share)


def _crossing(low: Point, high: Point, limits: Sequence[Limit]) -> float:
    share = min(max(_share_of_the_way(low, high, limits), 0.0), 1.0)
    return float(low.rate * (high.rate / low.rate) ** share)


def _slope(points: Sequence[Point], rate: float, limits: Sequence[Limit]) -> float:
    """Return by what power of the rate the strain rises about a rate, by least squares; half at least."""
    near = [it for it in points if rate / 2 <= it.rate <= 2 * rate]
    logs = [(math.log(it.rate), math.log(max(it.strain(limits), 1e-6))) for it in near]
    if len(logs) < 2:
        return 1.0
    middle = [statistics.fmean(side) for side in zip(*logs, strict=True)]
    across = math.fsum((x - middle[0]) ** 2 for x, _ in logs)
    both = math.fsum((x - middle[0]) * (y - middle[1]) for x, y in logs)
    return max(both / across, 0.5)


def limits_of(given: Mapping[str, float], parse: Callable[[str], tuple[str, str]]) -> list[Limit]:
    """Return limits as a workload has them; ``parse`` splits a key into a time and its quantile."""
    found = []
    for key, most in sorted(given.items()):
        of, name = parse(key)
        found.append(Limit(of, None if name == "mean" else int(name[1:]) / 100, most))
    return found


def good(times: Mapping[str, Sequence[float]], limits: Iterable[Limit]) -> list[bool]:
    """Return of each request whether it keeps every limit itself, whatever quantile that is on: what goodput counts."""
    count = len(next(iter(times.values()), ()))
    return [all(times[limit.of][index] <= limit.most for limit in limits) for index in range(count)]
