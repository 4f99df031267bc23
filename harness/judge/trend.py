"""Change points and slow drift over stored runs: what happened to each figure, and when."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from harness.base.errors import SampleError, TooFewSamples
from harness.records.place import Place
from harness.records.run import Run
from harness.records.schema import Measurement

# Fewer runs hold two levels of LEVEL runs each only by chance.
MINIMUM_RUNS = 10


# A level that fewer runs stayed on is not told from outliers.
LEVEL = 4


_PENALTY = 4.0


# Apache Otava's own default.
_SIGNIFICANT = 0.001


# Below this share a change is not worth a line, even of a figure that repeats to the last digit.
_LEAST = 0.01


_FLOOR = 0.001


# Of a value that keeps more of the one before it no level can be told.
_MOST_KEPT = 0.95


@dataclass(frozen=True)
class ChangePoint:
    """From ``index`` on the values lie on another level; ``before`` and ``after`` are the two levels' medians."""

    index: int
    before: float
    after: float
    p: float
    time: datetime | None = None


@dataclass(frozen=True)
class Drift:
    """A slow one-way change of ``values[start:]``: from ``first`` to ``last`` along the fitted line."""

    start: int
    first: float
    last: float
    p: float


def change_points(values: Sequence[float], times: Sequence[datetime] | None = None) -> list[ChangePoint]:
    """Return where the level of a series changed.

    Candidates are those of PELT with squared error (Killick, Fearnhead and Eckley, JASA 107, 2012; the package
    ruptures) on the log scale, in units of the noise that neighbouring values show, at a penalty of 4 log n; each is
    kept if Welch's t-test tells its two sides apart (p < 0.001, as Apache Otava does) and they differ by 1 % or more.
    Values that keep a share of those before them wander, which looks like levels: where a first-order autoregression
    explains the series better, at the same penalty for each level, the noise is its long-run one, and a level counts
    for as many independent values as it is worth. Raises TooFewSamples below MINIMUM_RUNS values, and SampleError for
    values that are not finite.
    """
    import numpy as np
    from scipy.stats import ttest_ind_from_stats

    scaled = _scaled(values)
    best = min((_Levels.of(scaled, kept) for kept in {0.0, _kept(scaled)}), key=lambda one: one.cost)
    ends, worth = best.ends, best.worth
    found = []
    for start, index, end in zip([0, *ends], ends, ends[1:], strict=False):
        before, after = scaled[start:index], scaled[index:end]
        shift = abs(float(np.median(after) - np.median(before)))
        p = float(ttest_ind_from_stats(*_moments(before, worth), *_moments(after, worth), equal_var=False).pvalue)
        if p < _SIGNIFICANT and shift >= math.log1p(_LEAST):
            levels = (float(np.median(values[start:index])), float(np.median(values[index:end])))
            found.append(ChangePoint(index, *levels, p, times[index] if times else None))
    return found


def slow_drift(values: Sequence[float], times: Sequence[datetime] | None = None) -> Drift | None:
    """Return the drift over the whole series, or since the last change point, or None.

    A drift looks like a staircase of change points: a straight line through everything that explains the values
    better, by Schwarz's criterion (Ann. Statist. 6, 1978), takes their place (``start`` is 0 then). Kendall's tau
    against time (Mann, Econometrica 13, 1945) must be significant (p < 0.001), and the Theil-Sen line (Sen, JASA 63,
    1968) must move by 1 % or more over what is looked at, which is at least MINIMUM_RUNS values.
    """
    import numpy as np
    from scipy.stats import kendalltau, theilslopes

    scaled = _scaled(values)
    at = np.array([(time - times[0]).total_seconds() for time in times] if times else range(len(values)), dtype=float)
    edges = [change.index for change in change_points(values)]
    start = edges[-1] if edges and not _straight(at, scaled, edges) else 0
    at, rest = at[start:], scaled[start:]
    if len(rest) < MINIMUM_RUNS or np.ptp(rest) == 0 or np.ptp(at) == 0:
        return None
    p = float(kendalltau(at, rest).pvalue)
    slope, intercept, *_ = theilslopes(rest, at)
    first, last = float(intercept + slope * at[0]), float(intercept + slope * at[-1])
    if not p < _SIGNIFICANT or abs(last - first) < math.log1p(_LEAST):
        return None
    unscale = math.exp if min(values) > 0 else float(np.mean(np.abs(values))).__mul__
    return Drift(start, unscale(first), unscale(last), p)


def _straight(at: Any, scaled: Any, edges: Sequence[int]) -> bool:
    """Return whether a line explains the values better than levels between ``edges`` do."""
    import numpy as np

    def criterion(residuals: Any, parameters: int) -> float:
        squares = max(float(np.sum(residuals**2)), len(scaled) * _FLOOR**2)
        return len(scaled) * math.log(squares / len(scaled)) + parameters * math.log(len(scaled))

    levels = np.concatenate([part - part.mean() for part in np.split(scaled, edges)])
    line = scaled - np.polyval(np.polyfit(at, scaled, 1), at)
    return criterion(line, 2) < criterion(levels, 2 * len(edges) + 1)


def _scaled(values: Sequence[float]) -> Any:
    """Return logs, or shares of the mean size where a value is not above zero."""
    import numpy as np

    array = np.asarray(values, dtype=float)
    if len(array) < MINIMUM_RUNS:
        raise TooFewSamples("a trend", MINIMUM_RUNS, len(array), "runs")
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise SampleError(f"value {index} of the series is {array[index]}: nothing to calculate with")
    if array.min() > 0:
        return np.log(array)
    size = float(np.mean(np.abs(array)))
    return array / size if size else array


def _moments(values: Any, worth: float) -> tuple[float, float, float]:
    """Return mean, standard deviation and number; figures that repeat exactly still get a trace of deviation."""
    return float(values.mean()), max(float(values.std(ddof=1)), _FLOOR / 10), max(len(values) * worth, 2.0)


@dataclass(frozen=True)
class _Levels:
    """Where levels end if each value keeps a given share of the one before it, and how badly that explains them all.

    ``worth`` is how many independent values a value counts for: the variance of a mean of n values of a first-order
    autoregression is (1 + kept) / (1 - kept) times that of n independent ones (Box, Jenkins and Reinsel, Time Series
    Analysis, 4th edition, 2008, section 2.1).
    """

    ends: list[int]
    worth: float
    cost: float

    @classmethod
    def of(cls, scaled: Any, kept: float) -> _Levels:
        import numpy as np
        import ruptures

        count, penalty = len(scaled), _PENALTY * math.log(len(scaled))
        worth = (1 - kept) / (1 + kept)
        noise = max(_step(scaled) / math.sqrt(2 * (1 - kept) * worth), _FLOOR)
        algorithm = ruptures.KernelCPD(kernel="linear", min_size=LEVEL).fit((scaled / noise).reshape(-1, 1))
        ends = [int(end) for end in algorithm.predict(pen=penalty)]
        left = np.concatenate([part - part.mean() for part in np.split(scaled, ends[:-1])])
        squares = (1 - kept**2) * left[0] ** 2 + float(np.sum((left[1:] - kept * left[:-1]) ** 2))
        cost = count * math.log(max(squares / count, _FLOOR**2)) + penalty * (len(ends) - 1)
        return cls(ends, worth, cost + (math.log(count) if kept else 0.0))


def _kept(scaled: Any) -> float:
    """Return the share of a value that is kept from the one before it, 0 to _MOST_KEPT, whatever the levels are.

    Differences of neighbours correlate by (kept - 1) / 2. The step between two levels is one difference, and is to
    decide nothing: it is cut off.
    """
    import numpy as np

    steps = np.diff(scaled)
    deviation = _step(scaled)
    if not deviation:
        return 0.0
    steps = np.clip(steps - np.median(steps), -3 * deviation, 3 * deviation)
    return min(max(1 + 2 * float(np.sum(steps[1:] * steps[:-1]) / np.sum(steps**2)), 0.0), _MOST_KEPT)


def _step(scaled: Any) -> float:
    """Return the standard deviation of what neighbours differ by: robust, and blind to levels and slow drift."""
    import numpy as np

    steps = np.diff(scaled)
    return float(np.median(np.abs(steps - np.median(steps)))) / 0.6745


@dataclass
class Trend:
    """One figure of one cell on one device over the runs that measured it, in their order."""

    label: str
    unit: str
    direction: str
    rows: list[tuple[str, Measurement]]

    @property
    def values(self) -> list[float]:
        return [row.value for _, row in self.rows]

    @property
    def times(self) -> list[datetime]:
        return [datetime.fromtimestamp(row.time, UTC) for _, row in self.rows]


def series(runs: Iterable[Run], metrics: Sequence[str] = ()) -> list[Trend]:
    """Return every series of the runs. What makes two figures comparable is that of a record's identity, less the
    packages: their versions are what a trend is about."""
    found: dict[tuple[Place, str, str], Trend] = {}
    for run in runs:
        latest: dict[tuple[Place, str, str], Measurement] = {}
        for line in run.lines():
            if not isinstance(line, Measurement) or not line.own or line.direction == "none":
                continue
            if not metrics or line.metric in metrics:
                latest[Place.of(line), line.device.name, json.dumps(line.flags, sort_keys=True)] = line
        for identity, row in latest.items():
            new = Trend(str(identity[0]), row.unit, row.direction, [])
            found.setdefault(identity, new).rows.append((run.name, row))
    for one in found.values():
        one.rows.sort(key=lambda entry: entry[1].time)
    return sorted(found.values(), key=lambda one: one.label)


def report(one: Trend) -> list[str]:
    """Return a line for each change point of a series, with the packages that changed there, and one for a drift."""
    lines = []
    drift = slow_drift(one.values, one.times)
    for change in [] if drift and drift.start == 0 else change_points(one.values, one.times):
        name, row = one.rows[change.index]
        packages = _changed(one.rows[change.index - 1][1].packages, row.packages)
        because = f"; at the same time {packages}" if packages else "; the packages did not change"
        moved = _moved(one, change.before, change.after)
        lines.append(f"change at {name}: {moved}, p {change.p:.1g}{because}")
    if drift:
        count = len(one.rows) - drift.start
        lines.append(
            f"drift over {count} runs since {one.rows[drift.start][0]}: {_moved(one, drift.first, drift.last)}, "
            f"p {drift.p:.1g}"
        )
    return lines


def _moved(one: Trend, before: float, after: float) -> str:
    word = "better" if (after < before) == (one.direction == "lower") else "worse"
    share = f"{after / before - 1:+.1%} " if before else ""
    return f"{word}, {share}from {before:.4g} to {after:.4g} {one.unit}"


def _changed(before: dict[str, str], after: dict[str, str]) -> str:
    names = sorted(before.keys() | after.keys())
    changed = [name for name in names if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {before.get(name, 'none')} -> {after.get(name, 'none')}" for name in changed)
