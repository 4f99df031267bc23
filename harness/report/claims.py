"""What a table says of a figure: how far its rounds are apart, and whether it is better or worse than the baseline."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from harness.base.numbers import whole
from harness.base.text import duration, when
from harness.judge import spread
from harness.judge.limits import TOO_NOISY
from harness.judge.spread import Range
from harness.records.metric import Words
from harness.records.schema import Measurement
from harness.report.lines import TableLine

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
EARLIER = "not measured in this run, but since the machine was started, of the same files and packages, in run"
DISTURBED = "†"
"""Marks a figure that was measured while the machine was doing something else too."""
_BESIDE = "baseline too noisy"
KEPT = "‡"
"""Marks a figure that an earlier run measured."""


@dataclass(frozen=True)
class Claim:
    """How many times better a figure is than the baseline's, and what that may be by the rounds of both.

    Above 1 is better whatever the metric's direction. ``within`` is None where rounds do not tell; ``mute`` says that
    the figure's own are so far apart that nothing is said of it, ``beside_mute`` that the baseline's are.
    """

    ratio: float | None
    within: Range | None = None
    mute: bool = False
    beside_mute: bool = False

    @property
    def noisy(self) -> bool:
        """Whether nothing is said of the two, by the rounds of either."""
        return self.mute or self.beside_mute

    @property
    def clear(self) -> bool:
        """Whether it is known to be better, or known to be worse."""
        return self.ratio is not None and not self.noisy and not spread.undecided(self.within, 1.0)


def claim(line: TableLine, record: Measurement, baseline: Measurement | None, ratio: float | None) -> Claim:
    """Return what can be said of a record in a line of a table, ``ratio`` times better than the baseline's."""
    if baseline is None or ratio is None:
        return Claim(ratio, mute=spread.too_wide(record))
    if line.row.statistic:
        within = spread.of_quantiles(record, baseline, line.row.statistic)
    else:
        within = spread.of_ratio(record, baseline)
    if within and line.direction == "lower":
        within = _inverse(within)
    return Claim(ratio, within, spread.too_wide(record), spread.too_wide(baseline))


def words(it: Claim, line: TableLine) -> str:
    """Return what stands beside a figure: how much better or worse, or the range that has room for both."""
    if it.noisy:
        return TOO_NOISY if it.mute else _BESIDE
    if it.ratio is None:
        return ""
    return line.ratio_text(it.ratio) if it.clear or it.within is None else _range(it.within, line.row.words)


def plus_minus(line: TableLine, record: Measurement) -> str:
    """Return the spread as it stands after a figure: the standard deviation of its rounds, or an error that it has."""
    if line.row.statistic:
        return ""
    if line.row.section == "quality" and "stderr" in record.statistics:
        return f" ± {line.row.number(record.statistics['stderr'])}"
    if within := spread.told(record):
        return f", {around(within[0])} to {around(within[1])}"
    found = spread.deviation(record)
    return "" if found is None else f" ± {around(found)}"


def around(value: float) -> str:
    """Return a spread in two significant digits, whole from ten on, and never as a power of ten."""
    if value >= 10:
        return whole(value)
    return f"{value:.2g}" if value == 0 or value >= 1e-4 else "under 0.0001"


def marks(record: Measurement) -> str:
    told = {DISTURBED: record.disturbed, KEPT: record.kept_from}
    return "".join(f" {mark}" for mark, why in told.items() if why)


def notes(records: list[Measurement]) -> list[str]:
    """Return what must be known to read these records' spreads, marks and ranges."""
    found = []
    if any(spread.deviation(it) is not None for it in records):
        found.append(
            "±: standard deviation of the rounds (of TTFT, TPOT and ITL: of all requests); two factors in brackets are "
            f"the {spread.CONFIDENCE:.0%} interval of how many times better it is than the baseline, where that has "
            "room for better and worse"
        )
    if any(spread.too_wide(it) for it in records):
        found.append(f"{TOO_NOISY}: the rounds differ by more than {spread.MOST_SPREAD:.0%} (their logarithms' spread)")
    if why := disturbances(it.disturbed for it in records):
        found.append(f"{DISTURBED}: the machine was not quiet: {'; '.join(why)}")
    if runs := earlier(records):
        found.append(f"{KEPT}: {EARLIER} {', '.join(runs)}")
    return found


def earlier(records: Iterable[Measurement]) -> list[str]:
    """Return the runs that measured what was taken from them, each with when, and how long that was before."""
    runs: dict[str, tuple[float, float]] = {}
    for it in records:
        if it.kept_from and it.kept_time is not None:
            runs[it.kept_from] = min(runs.get(it.kept_from, (it.kept_time, it.time)), (it.kept_time, it.time))
    return [f"{run} ({when(at)}, {duration(max(0.0, now - at))} before)" for run, (at, now) in sorted(runs.items())]


def disturbances(told: Iterable[str]) -> list[str]:
    """Return what disturbed some blocks, each kind once: the worst of those that differ in their numbers alone."""
    worst: dict[str, tuple[list[float], str]] = {}
    for why in (why for words in told for why in words.split("; ") if why):
        kind = _NUMBER.sub("#", why)
        numbers = [float(number.replace(",", "")) for number in _NUMBER.findall(why)]
        worst[kind] = max(worst.get(kind, (numbers, why)), (numbers, why))
    return [why for _, why in worst.values()]


def _inverse(within: Range) -> Range:
    low, high = within
    return (1 / high if high else float("inf")), (1 / low if low else float("inf"))


def _range(within: Range, unit: Words) -> str:
    low, high = within
    if unit is Words.PERCENT:
        return f"{_percent(1 / high)} to {_percent(1 / low)}" if low > 0 and high < float("inf") else ""
    return f"{_times(low)} to {_times(high)}" if low > 0 and high < float("inf") else ""


def _times(ratio: float) -> str:
    if ratio < 0.01:
        return "under 0.01x"
    return f"{ratio:.2f}x" if ratio < 1000 else "over 1000x"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f}%" if ratio < 1000 else "over +1000%"
