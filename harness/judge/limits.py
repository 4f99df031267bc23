"""Holds measurements against thresholds, and says measured, limit and published value side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from harness.base.errors import ThresholdFailure, TooNoisy
from harness.judge import spread
from harness.matrix.plan import Cell, Matrix
from harness.matrix.schema import Threshold
from harness.records.place import Place
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Judgement, Line, Measurement, describe

TOO_NOISY = "too noisy to say"


class Measured(Protocol):
    """What a judge asks of a session's measurements."""

    def baseline_of(self, measurement: Measurement) -> Measurement | None:
        """Return the same figure of the baseline, or None where it was not measured."""

    def alone(self, cell: Cell) -> str:
        """Return why a cell has no baseline to be held against, or an empty string."""


class Judge:
    """Judges measurements by the thresholds of a matrix; every judgement is recorded, then failures are raised."""

    def __init__(self, matrix: Matrix, measure: Measured, run: Run, documented: Documented) -> None:
        self.matrix = matrix
        self.measure = measure
        self.run = run
        self.documented = documented
        self.failures: list[str] = []
        self.known: list[str] = []
        self.unjudged: list[str] = []
        self.noisy: list[str] = []
        self.shown: list[str] = []
        self.later = False
        """Whether the baseline is measured elsewhere meanwhile: limits that need it are judged by another session."""
        self.waits = False
        """Whether such a limit was met."""

    def __call__(self, cell: Cell, measurements: Measurement | Iterable[Measurement], alone: str = "") -> None:
        """Hold each measurement against every threshold that applies to it.

        ``alone`` says why a baseline may be missing: limits that need it are then told of as not judged, as are those
        of a model that came quantized.

        Raises ThresholdFailure that lists all limits that do not hold, and those that need a baseline which this
        run has not measured. A limit that is known not to hold is judged and recorded as any other. Raises TooNoisy
        where none of those fails, and the rounds of a figure are too far apart to say whether a limit holds.
        """
        if isinstance(measurements, Measurement):
            measurements = [measurements]
        problems, reasons = [], []
        noisy: list[str] = []
        for measurement in measurements:
            random = measurement.cell.model.weights == "random"
            for threshold in self.matrix.others(cell, measurement.metric, measurement.parameters, random=random):
                self._show(cell, measurement, threshold)
            for threshold in self.matrix.limits(cell, measurement.metric, measurement.parameters, random=random):
                baseline = self.measure.baseline_of(measurement) if threshold.needs_baseline else None
                missing = threshold.needs_baseline and baseline is None
                if missing and (why := alone or self.measure.alone(cell)):
                    what = f"{describe(measurement)} of {cell.id}: {threshold.comparison} {threshold.limit:g}"
                    self.unjudged.append(f"{what}: {why}")
                    continue
                if missing and self.later:
                    self.waits = True
                    continue
                if missing:
                    problem, known = self._unjudged(cell, measurement, threshold), ""
                else:
                    judgement, problem = self._hold(cell, measurement, threshold, baseline)
                    known = threshold.known_failure
                    if judgement.noisy:
                        noisy.append(problem)
                        continue
                if problem:
                    problems.append(problem)
                    reasons.append(known)
                    (self.known if known else self.failures).append(f"{problem}; known: {known}" if known else problem)
                elif threshold.known_failure:
                    self.known.append(
                        f"{describe(measurement)} of {cell.id}: the limit {threshold.comparison} "
                        f"{threshold.limit:g} holds now; its known_failure can be taken out of {self.matrix.path.name}"
                    )
        self.noisy += noisy
        if problems:
            problems += noisy
            known = "; ".join(dict.fromkeys(reasons)) if all(reasons) else ""
            raise ThresholdFailure("\n".join(problems), known)
        if noisy:
            raise TooNoisy("\n".join(noisy))

    def _show(self, cell: Cell, measurement: Measurement, threshold: Threshold) -> None:
        """Say what a limit would have been that was chosen for other models, and where it comes from."""
        baseline = self.measure.baseline_of(measurement) if threshold.needs_baseline else None
        if threshold.needs_baseline and baseline is None:
            return
        measured = compare(threshold.comparison, measurement.value, baseline.value if baseline else None)
        word = "within" if holds(threshold.comparison, measured, threshold.limit) else "beyond"
        chosen = " and ".join(threshold.chosen_on or ()) or f"the models of {self.matrix.path.name}"
        if kin := [name for name in self.matrix.kin(cell.recipe) if name in (threshold.recipes or ())]:
            chosen = f"{' and '.join(kin)} of {chosen}"
        self.shown.append(
            f"{describe(measurement)} of {cell.id}: {threshold.comparison} {measured:.4g}, {word} the "
            f"{threshold.limit:g} of {chosen} ({threshold.origin})"
        )

    def _unjudged(self, cell: Cell, measurement: Measurement, threshold: Threshold) -> str:
        return (
            f"{describe(measurement)} of {cell.id}: the limit {threshold.comparison} {threshold.limit:g} needs the "
            f"baseline of the same run, which has not been measured: select {self.matrix.baseline.name} too, or "
            "--resume a run that has it"
        )

    def _hold(
        self, cell: Cell, measurement: Measurement, threshold: Threshold, baseline: Measurement | None
    ) -> tuple[Judgement, str]:
        """Judge and record; returns the judgement, and in words what is wrong, which is nothing if the limit holds."""
        measured = compare(threshold.comparison, measurement.value, baseline.value if baseline else None)
        within = spread.of_comparison(threshold.comparison, measurement, baseline)
        noisy = spread.undecided(within, threshold.limit)
        passed = holds(threshold.comparison, measured, threshold.limit) and not noisy
        figure = self.documented.find(
            cell.model.name,
            cell.recipe.name,
            cell.hardware.name,
            measurement.metric,
            measurement.parameters,
            server=measurement.cell.server or None,
        )
        judgement = Judgement(
            cell=measurement.cell,
            metric=measurement.metric,
            parameters=measurement.parameters,
            passed=passed,
            noisy=noisy,
            measured=measured,
            low=within[0] if within else None,
            high=within[1] if within else None,
            limit=threshold.limit,
            comparison=threshold.comparison,
            origin=threshold.origin,
            published=figure.value if figure else None,
            known="" if passed or noisy else threshold.known_failure,
        )
        self.run.append(judgement)
        if passed:
            return judgement, ""
        unit = "" if measurement.unit == "1" else f" {measurement.unit}"
        against = f" (baseline {baseline.value:.6g}{unit})" if baseline else ""
        published = f"{figure.value:g}{unit}" if figure else "nothing"
        may_be = f" (by its rounds {within[0]:.4g} to {within[1]:.4g})" if within else ""
        lead = f"{TOO_NOISY}: " if noisy else ""
        return judgement, (
            f"{describe(measurement)} of {cell.id}: {lead}measured {measurement.value:.6g}{unit}{against}, "
            f"{threshold.comparison} {measured:.4g}{may_be}, limit {threshold.limit:g}, published {published}; "
            f"the limit's origin: {threshold.origin}"
        )


def compare(comparison: str, value: float, baseline: float | None) -> float:
    """Return what is held against the limit: the value, its ratio to, or its difference from the baseline."""
    if comparison in ("max", "min"):
        return value
    if baseline is None:
        raise ValueError(f"{comparison} needs a baseline")
    if comparison.endswith("_ratio"):
        return value / baseline if baseline else float("nan")
    return value - baseline


def holds(comparison: str, measured: float, limit: float) -> bool:
    """Return whether a limit holds; the limit itself is still within. NaN never holds."""
    return measured <= limit if comparison.startswith("max") else measured >= limit


def last(lines: Iterable[Line]) -> list[Judgement]:
    """Return the last judgement of each limit on each figure: a resumed run holds some of them twice."""
    found = {(Place.of(it), it.comparison, it.limit): it for it in lines if isinstance(it, Judgement)}
    return list(found.values())
