"""The statistics of quality: paired document by document, since both sides answered the same ones.

Sources
- McNemar, Psychometrika 12, 1947, in its exact form (the binomial test of the discordant documents).
- Tango, Statistics in Medicine 17, 1998: score interval for a difference of paired proportions. It does not collapse
  when no document changed, where a bootstrap or Wald interval would claim to know the difference exactly.
- Miller, Adding Error Bars to Evals, arXiv 2411.00640, 2024: the document is the unit, differences are paired.
- Dutta et al., Accuracy is Not All You Need, NeurIPS 2024: flips.
- Zou and Donner, Statistics in Medicine 27, 2008: intervals of sums from the parts' own intervals (MOVER).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from harness.base.errors import SampleError, TooFewSamples
from harness.judge.intervals import Interval, finite, mean_interval
from harness.records.stored import factor


@dataclass(frozen=True)
class Flips:
    """Documents answered rightly by one side only: ``lost`` by old only, ``won`` by new only."""

    lost: int
    won: int
    documents: int

    @property
    def share(self) -> float:
        """Flips a document (Dutta et al. 2024), whichever way."""
        return (self.lost + self.won) / self.documents


def flips(old: Sequence[float], new: Sequence[float]) -> Flips:
    """Count the documents whose score (0 or 1, or any in between) fell or rose."""
    differences = _differences(old, new)
    return Flips(sum(d < 0 for d in differences), sum(d > 0 for d in differences), len(differences))


def mcnemar_exact(lost: int, won: int) -> float:
    """Return the two-sided p-value of "as many are lost as won", from discordant documents alone (exact McNemar)."""
    if lost < 0 or won < 0:
        raise SampleError(f"counts of documents are not negative: lost {lost}, won {won}")
    return float(scipy.stats.binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0


def noninferiority(old: Sequence[float], new: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the difference new - old of the mean score over the same documents, to be held against a margin.

    Scores of 0 and 1 get Tango's score interval, others (a partial credit) that of :func:`paired_difference`. New is
    not worse by more than a margin where ``low > -margin``: ``stats.decide_difference(interval, margin, "higher")``.
    """
    return noninferiority_at(old, new)(confidence)


def noninferiority_at(old: Sequence[float], new: Sequence[float]) -> Callable[[float], Interval]:
    """Return :func:`noninferiority` by its confidence; the documents are counted once."""
    differences = _differences(old, new)
    if not differences:
        raise TooFewSamples("a paired difference of documents", 1, 0)
    if set(map(float, (*old, *new))) <= {0.0, 1.0}:
        found = flips(old, new)
        return functools.partial(tango_interval, found.lost, found.won, found.documents)
    return functools.partial(paired_difference, old, new)


def tango_interval(lost: int, won: int, documents: int, confidence: float = 0.95) -> Interval:
    """Return (won - lost) / documents with Tango's score interval (1998, equations 24 to 26)."""
    if not (lost >= 0 and won >= 0 and documents > 0 and lost + won <= documents):
        raise SampleError(f"lost {lost} and won {won} are not parts of {documents} documents")
    z = float(scipy.special.ndtri((1 + confidence) / 2))
    estimate = (won - lost) / documents

    def excess(difference: float) -> float:
        # The score statistic at a hypothetical difference, with the most likely share of lost documents under it.
        a = 2 * documents
        b = (a - won + lost) * difference - won - lost
        c = -lost * difference * (1 - difference)
        share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = documents * max(0.0, 2 * share + difference * (1 - difference))
        gap = won - lost - documents * difference
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0

    edge = 1e-12
    low, high = -1.0, 1.0
    if not excess(estimate) < z or not excess(estimate) > -z:
        # At hardly any confidence there is nothing to either side of the estimate but rounding.
        return Interval(estimate, estimate, estimate, confidence, "Tango score", documents)
    if excess(-1 + edge) > z:
        low = float(scipy.optimize.brentq(lambda d: min(excess(d), 1e9) - z, -1 + edge, estimate, xtol=1e-10))
    if excess(1 - edge) < -z:
        high = float(scipy.optimize.brentq(lambda d: max(excess(d), -1e9) + z, estimate, 1 - edge, xtol=1e-10))
    return Interval(estimate, low, high, confidence, "Tango score", documents)


def paired_difference(old: Sequence[float], new: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of new - old over the same documents, e.g. of their KL divergence from the baseline.

    One value a document (or window of text), never one a token: tokens of one text are not independent. Student's t
    of at least two.
    """
    return mean_interval(_differences(old, new), confidence, "a paired difference of documents")


def perplexity_ratio(old_nll: Sequence[float], new_nll: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the ratio of perplexities new / old from the mean negative log-likelihood a token of each document.

    Documents count alike, as do the equally long windows that the harness measures, so that the ratio is exp of the
    paired difference of means.
    """
    return paired_difference(old_nll, new_nll, confidence).transformed(factor)


def combine_tasks(tasks: Sequence[Interval], alike: Sequence[Sequence[float]] | None = None) -> Interval:
    """Combine the differences of several tasks: the plain mean of the tasks, each counting once whatever its size.

    That is how leaderboards average tasks, and a large task does not hide a small one. The interval is MOVER's (Zou and
    Donner 2008): each arm is the root of the summed products of the tasks' own arms, each with each and times how much
    the two are ``alike`` (their correlation, as :func:`shared` finds it), so their score intervals keep their shape.
    Without it the tasks' documents are taken to be independent of each other's.
    """
    if not tasks:
        raise TooFewSamples("a mean over tasks", 1, 0)
    if len({task.confidence for task in tasks}) > 1:
        raise SampleError("the tasks' intervals have different confidence levels")
    count = len(tasks)
    matrix = np.eye(count) if alike is None else np.asarray(alike, dtype=float)
    mean = math.fsum(task.estimate for task in tasks) / count
    below = np.array([task.estimate - task.low for task in tasks])
    above = np.array([task.high - task.estimate for task in tasks])
    low, high = (mean - math.sqrt(max(0.0, arms @ matrix @ arms)) / count for arms in (below, -above))
    high = 2 * mean - high
    documents = sum(task.n for task in tasks)
    return Interval(mean, low, high, tasks[0].confidence, "mean of tasks, MOVER", documents)


def shared(tasks: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[list[float]]:
    """Return how much the tasks' differences go together, 0 to 1, task by task: those of the same documents do.

    ``tasks`` are the old and the new scores of each. Tasks of as many documents may be the same ones asked otherwise:
    the correlation of their differences, document by document, says so where it is beyond what chance gives one pair
    in forty. Those of other documents have none.
    """
    differences = [np.asarray(_differences(old, new)) for old, new in tasks]

    def correlation(one: np.ndarray, other: np.ndarray) -> float:
        if len(one) != len(other) or len(one) < 3 or not one.std() or not other.std():
            return 0.0
        found = float(np.corrcoef(one, other)[0, 1])
        return found if found > 2 / math.sqrt(len(one)) else 0.0

    return [
        [1.0 if at == beside else correlation(one, other) for beside, other in enumerate(differences)]
        for at, one in enumerate(differences)
    ]


def _differences(old: Sequence[float], new: Sequence[float]) -> list[float]:
    if len(old) != len(new):
        raise SampleError(f"paired documents: got {len(old)} old and {len(new)} new; evaluate the same documents")
    before, after = finite(old, "old document"), finite(new, "new document")
    return [float(value) for value in after - before]
