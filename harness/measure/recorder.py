"""Records every figure of a block as it comes, unless the run has it already."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from harness.base.errors import DeviceLost, DiscardedBlocks, HarnessError
from harness.machine import probe
from harness.machine import watch as machine_watch
from harness.machine.processor import ProcessorWatch
from harness.machine.vendor import over
from harness.matrix.hardware import Hardware
from harness.matrix.plan import Cell
from harness.matrix.schema import Threshold
from harness.measure.alike import is_baseline_of, is_judged, told_with
from harness.measure.figures import Figure
from harness.measure.flow import Flow
from harness.measure.kept import Place, where_kept
from harness.measure.launches import shared_flag
from harness.measure.rounds import All, Rule
from harness.records.metrics import METRICS, stage_of
from harness.records.run import Run
from harness.records.schema import Device, Judgement, Measurement, Scalar, identity

State = dict[str, Scalar]
Done = TypeVar("Done")
Kept = TypeVar("Kept")


class Recorder:
    """What every kind of measurement is made through; what a resumed run already has is not measured again.

    ``tags`` go into every record's flags: which side and block of a gate it belongs to. ``neighbours`` is what is said
    of a serving figure that was measured while another GPU of the host was in use.
    """

    def __init__(self, flow: Flow, run: Run, tags: dict[str, Scalar] | None = None) -> None:
        self.flow = flow
        self.run = run
        self.tags = tags or {}
        self.measurements: list[Measurement] = []
        self._standing: dict[str, Measurement] = {}
        self.neighbours = os.environ.get(machine_watch.NEIGHBOURS, "")

    def resume(self, says_nothing: Callable[[Measurement], bool] = lambda _: False) -> list[str]:
        """Take over what the run has already measured, but for what was too noisy to be held against its limit.

        Nor does what by itself ``says_nothing`` stand, nor what is told from either. Returns a message for each line
        that could not be read.
        """
        problems: list[str] = []
        for line in self.run.lines(problems):
            if isinstance(line, Measurement) and not line.discarded:
                self._standing[identity(line)] = line
            elif isinstance(line, Judgement) and line.noisy:
                self._forget_all(it for it in self.standing() if is_judged(it, line))
        self._forget_all(filter(says_nothing, self.standing()))
        return problems

    def _forget_all(self, records: Iterable[Measurement]) -> None:
        """Forget records, and with each what was told of the same work, as steps are from a batch's latency."""
        for record in records:
            self.forget(record)
            for other in self.standing():
                if told_with(other, record):
                    self.forget(other)

    def standing(self) -> list[Measurement]:
        """Return the last record of everything that the run has measured, in earlier sessions too."""
        return list(self._standing.values())

    def forget(self, record: Measurement) -> None:
        """Let what the run has already measured be measured again."""
        self._standing.pop(identity(record), None)

    @contextlib.contextmanager
    def second_block(self) -> Iterator[None]:
        """Measure anew whatever is asked for within, in fresh workers and from no cached evaluation."""
        self.flow.close()
        standing, self._standing = self._standing, {}
        try:
            with self.flow.checkpoints.anew():
                yield
        finally:
            self._standing = standing | self._standing

    def baseline_of(self, measurement: Measurement) -> Measurement | None:
        """Return the same metric of the baseline as measured in this run, or None.

        What this session has measured comes before what a resumed run brought along, of which the latest counts that
        was measured under the same packages, from the same data and with the same options.
        """
        own = (other for other in reversed(self.measurements) if is_baseline_of(other, measurement))
        earlier = (
            other
            for other in reversed(self._standing.values())
            if is_baseline_of(other, measurement)
            and (other.packages, other.flags) == (measurement.packages, measurement.flags)
        )
        return next(itertools.chain(own, earlier), None)

    def alone(self, cell: Cell) -> str:
        """Return why a cell has no baseline to be held against, or an empty string."""
        return cell.no_baseline or self.flow.checkpoints.alone(cell)

    def take(
        self,
        cell: Cell,
        parameters: dict[str, Scalar],
        take: Callable[[], dict[str, Figure]],
        *,
        names: Sequence[str],
        engine: bool = False,
        quick: bool = False,
        inputs: str = "",
        device: Device | None = None,
        state: Callable[[], State] | None = None,
        again: Callable[[], object] = lambda: None,
        prepare: Callable[[], object] = lambda: None,
        fixed: bool = False,
    ) -> dict[str, Measurement]:
        """Measure one block and record every figure of it, unless the run already has them all.

        ``inputs`` names the data that went in by a digest: other data is another measurement. ``device`` is where it
        runs if not here, ``state`` tells that device's state. Unless the block is a ``quick`` one, it is measured once
        more where something disturbed it; ``again`` is called before every try but the first, and ``prepare`` once, if
        anything is to be measured at all. What is ``fixed`` is taken from an earlier run where :class:`Kept` has it.
        """
        state = state or functools.partial(probe.state, cell.hardware, *over(cell.gpus))
        common = _common(self, cell, parameters, engine, inputs, device)
        standing = {name: self._standing.get(identity(record_of(name, 0.0, **common))) for name in names}
        if all(standing.values()):
            found = {name: record for name, record in standing.items() if record is not None}
            self.measurements += found.values()
            return found
        kept = self._kept(cell, names, common) if fixed else None
        if kept and (earlier := kept.find()):
            return self._from_before(cell, earlier)
        prepare()
        if quick:
            before, beside = state(), ProcessorWatch() if kept else None
            with (
                self.flow.clock.timed("measure", cell),
                beside or contextlib.nullcontext(),
                _gone_if_it_is(cell.hardware),
            ):
                figures = take()
            quickly = self._keep(cell, common, figures, before, state(), "")
            if kept and beside and not beside.problems:
                kept.keep(quickly)
            return quickly

        def keep(
            figures: dict[str, Figure], before: State, after: State, problems: str, disturbed: str
        ) -> dict[str, Measurement]:
            return self._keep(cell, common, figures, before, after, problems, disturbed)

        here = device is None or (device.name == probe.host().name and not device.detail.get("emulated"))
        done = self.undisturbed(cell, ", ".join(names), take, keep, state, again, here=here)
        if kept and not any(it.discarded or it.disturbed for it in done.values()):
            kept.keep(done)
        return done

    def keeps(self, cell: Cell, parameters: dict[str, Scalar], names: Sequence[str]) -> bool:
        """Return whether an earlier run has figures that are fixed, so that :meth:`take` would measure nothing."""
        try:
            kept = self._kept(cell, names, _common(self, cell, parameters))
        except HarnessError:
            # What cannot be had fails its own tests.
            return False
        return kept is not None and kept.there

    def _kept(self, cell: Cell, names: Sequence[str], common: dict[str, Any]) -> Place | None:
        """Return where a block's figures are kept between runs; None where they are measured whatever is there."""
        if self.flow.kept is None or self.tags:
            return None
        return self.flow.kept.place(cell, {"figures": [identity(record_of(name, 0.0, **common)) for name in names]})

    def _from_before(self, cell: Cell, kept: dict[str, Measurement]) -> dict[str, Measurement]:
        self.flow.progress(f"{', '.join(kept)} of {cell.id}: measured in {where_kept(next(iter(kept.values())))}")
        for record in kept.values():
            self._stand(record)
        return kept

    def _stand(self, record: Measurement) -> None:
        self.run.append(record)
        self.measurements.append(record)
        if not record.discarded:
            self._standing[identity(record)] = record

    def undisturbed(
        self,
        cell: Cell,
        what: str,
        work: Callable[[], Done],
        keep: Callable[[Done, State, State, str, str], Kept],
        state: Callable[[], State],
        again: Callable[[], object] = lambda: None,
        *,
        here: bool = True,
    ) -> Kept:
        """Return what ``keep`` makes of the first of several tries of ``work`` that nothing disturbed on the machine.

        It is given what was done, the machine's state before and after, what made the block void, and what disturbed
        it otherwise, of every try. The processors are watched if the work is done ``here``. Raises DiscardedBlocks
        where none was quiet.
        """
        repeats = cell.measurements.blocks.repeats
        for attempt in range(repeats + 1):
            if attempt:
                again()
            before = state()
            beside = ProcessorWatch() if here else None
            with (
                self.flow.clock.timed("measure", cell),
                machine_watch.Watch(cell.hardware, *over(cell.gpus)) as watch,
                beside or contextlib.nullcontext(),
                _gone_if_it_is(cell.hardware),
            ):
                done = work()
            after, disturbed = (beside.state, beside.problems) if beside else ({}, [])
            found = keep(done, before, state() | after, "; ".join(watch.problems), "; ".join(disturbed))
            if not watch.problems:
                return found
            self.flow.progress(f"discarded a block of {cell.id} ({'; '.join(watch.problems)}), attempt {attempt + 1}")
        raise DiscardedBlocks(
            f"{what} of {cell.id}: {repeats + 1} blocks in a row were discarded: "
            f"{'; '.join(watch.problems)}. Records are kept as discarded; free or cool the machine and --resume."
        )

    def rule(
        self,
        cell: Cell,
        metric: str,
        parameters: dict[str, Scalar],
        value: Callable[[Sequence[float]], float],
        rounds: int,
        **more: int,
    ) -> Rule:
        """Return what ends the rounds of a figure early; ``value`` is what it comes to by its samples.

        ``more`` is handed to what makes the rule. A gate's rounds are of two sides in turns, and are all taken.
        """
        if self.flow.rule is None or self.tags:
            return All()
        common: dict[str, Any] = {
            "parameters": parameters,
            "cell": self.flow.cell_identity(cell),
            "packages": {},
            "device": probe.device(cell.hardware),
        }

        def record(samples: Sequence[float]) -> Measurement:
            return record_of(metric, value(samples), samples=list(samples), **common)

        limits = self._limits(cell, metric, parameters)
        baseline = self.baseline_of(record([1.0, 1.0])) if any(one.needs_baseline for one in limits) else None
        asked = [(one, baseline if one.needs_baseline else None) for one in limits]
        return self.flow.rule(rounds, record, asked, **more)

    def warming(self, tokens: int | None, of: int) -> int:
        """Return how many tokens warm up where ``of`` are timed; a gate tells by them how long a round takes."""
        return of if tokens is None or self.tags else min(tokens, of)

    def limited(self, cell: Cell, metric: str, parameters: dict[str, Scalar]) -> bool:
        """Return whether anything is asked of a figure."""
        return bool(self._limits(cell, metric, parameters))

    def _limits(self, cell: Cell, metric: str, parameters: dict[str, Scalar]) -> Sequence[Threshold]:
        random = self.flow.cell_identity(cell).model.weights == "random"
        return self.flow.limits(cell, metric, parameters, random=random)

    def attach(self, name: str, data: dict[str, Any]) -> str:
        """Keep bulky detail beside the records, under a name that the tags are part of; returns its path."""
        return self.run.attach("-".join([name, *map(str, self.tags.values())]), data)

    def note(
        self,
        cell: Cell,
        parameters: dict[str, Scalar],
        metric: str,
        figure: Figure,
        engine: bool = False,
        inputs: str = "",
    ) -> Measurement:
        """Record a figure that is known already."""
        block = {metric: figure}
        return self.take(cell, parameters, lambda: block, names=(metric,), engine=engine, quick=True, inputs=inputs)[
            metric
        ]

    def _keep(
        self,
        cell: Cell,
        common: dict[str, Any],
        figures: dict[str, Figure],
        before: State,
        after: State,
        discarded: str,
        disturbed: str = "",
    ) -> dict[str, Measurement]:
        found = {}
        others = any(state.get("other_gpus_in_use") for state in (before, after))
        for name, figure in figures.items():
            told = self.neighbours if others and stage_of(name, cell.server, common["parameters"]) == "server" else ""
            if problem := figure.problem():
                raise HarnessError(f"{name} of {cell.id} {problem}: not a number that can be recorded")
            record = record_of(
                name,
                figure.value,
                samples=list(figure.samples),
                warmup=list(figure.warmup),
                statistics=figure.statistics,
                attachment=figure.attachment,
                from_cache=figure.from_cache,
                kept_from=figure.kept_from,
                kept_time=figure.kept_time,
                state_before=before,
                state_after=after,
                discarded=discarded or figure.discarded,
                disturbed="; ".join(filter(None, (disturbed, told))) if METRICS[name].timed else "",
                **common,
            )
            self._stand(record)
            found[name] = record
        return found


def _common(
    recorder: Recorder,
    cell: Cell,
    parameters: dict[str, Scalar],
    engine: bool = False,
    inputs: str = "",
    device: Device | None = None,
) -> dict[str, Any]:
    """Return what all records of a block have in common."""
    flags: dict[str, Scalar] = dict(recorder.tags)
    if recorder.flow.settings:
        flags["set"] = "; ".join(recorder.flow.settings)
    if inputs:
        flags["inputs"] = inputs
    if engine:
        flags |= {**recorder.flow.fleet.options(cell), **recorder.flow.fleet.variables(cell), **shared_flag(cell)}
    return {
        "parameters": parameters,
        "cell": recorder.flow.cell_identity(cell),
        "packages": recorder.flow.fleet.packages(cell),
        "device": device or probe.device(cell.hardware),
        "flags": flags,
    }


@contextlib.contextmanager
def _gone_if_it_is(hardware: Hardware) -> Iterator[None]:
    """Have a GPU that is gone named, where what failed without it names everything else."""
    try:
        yield
    except HarnessError as error:
        try:
            probe.state(hardware)
        except DeviceLost as lost:
            raise lost from error
        raise


def record_of(name: str, value: float, **rest: Any) -> Measurement:
    """Return a record of a metric, with the unit, direction and version that its definition has; the rest is given."""
    metric = METRICS[name]
    return Measurement(
        metric=name,
        unit=metric.unit,
        direction=metric.direction,
        definition=metric.version,
        value=value,
        **rest,
    )
