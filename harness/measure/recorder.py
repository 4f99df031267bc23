"""Records every figure of a block as it comes, unless the run has it already."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.base.errors import HarnessError
from harness.machine import probe
from harness.machine import watch as machine_watch
from harness.machine.processor import ProcessorWatch
from harness.machine.vendor import over
from harness.matrix.plan import Cell
from harness.matrix.schema import Threshold
from harness.measure.alike import is_baseline_of, is_judged, told_with
from harness.measure.figures import Figure
from harness.measure.flow import Flow
from harness.measure.kept import KeptBlock, where_kept
from harness.measure.launches import shared_flag
from harness.measure.rounds import All, Rule
from harness.measure.undisturbed import State, undisturbed
from harness.records.metrics import METRICS, stage_of
from harness.records.run import Run
from harness.records.schema import Device, Judgement, Measurement, Scalar, identity


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

    def block(
        self,
        cell: Cell,
        parameters: dict[str, Scalar],
        *,
        engine: bool = False,
        inputs: str = "",
        device: Device | None = None,
    ) -> Block:
        """Return a block of measurement of a cell, which knows what all its records have in common.

        ``inputs`` names the data that went in by a digest: other data is another measurement. ``device`` is where it
        runs if not here.
        """
        flags: dict[str, Scalar] = dict(self.tags)
        if self.flow.settings:
            flags["set"] = "; ".join(self.flow.settings)
        if inputs:
            flags["inputs"] = inputs
        if engine:
            flags |= {**self.flow.fleet.options(cell), **self.flow.fleet.variables(cell), **shared_flag(cell)}
        common = {
            "parameters": parameters,
            "cell": self.flow.cell_identity(cell),
            "packages": self.flow.fleet.packages(cell),
            "device": device or probe.device(cell.hardware),
            "flags": flags,
        }
        here = device is None or (device.name == probe.host().name and not device.detail.get("emulated"))
        return Block(self, cell, common, here=here)

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
        block = self.block(cell, parameters, engine=engine, inputs=inputs)
        return block.take(lambda: {metric: figure}, names=(metric,), quick=True)[metric]

    def stand(self, record: Measurement) -> None:
        """Keep a record of this session; unless it is void, a session that resumes the run has it."""
        self.run.append(record)
        self.measurements.append(record)
        if not record.discarded:
            self._standing[identity(record)] = record

    def known(self, record: Measurement) -> Measurement | None:
        """Return the standing record of what such a record would be of, or None."""
        return self._standing.get(identity(record))

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

    def warming(self, tokens: int | None, of: int) -> int:
        """Return how many tokens warm up where ``of`` are timed; a gate tells by them how long a round takes."""
        return of if tokens is None or self.tags else min(tokens, of)

    def attach(self, name: str, data: dict[str, Any]) -> str:
        """Keep bulky detail beside the records, under a name that the tags are part of; returns its path."""
        return self.run.attach("-".join([name, *map(str, self.tags.values())]), data)


class Block:
    """Figures that are measured together: of one cell, with the same parameters, packages and options.

    ``common`` is what all their records have in common. The work is done ``here``, or on another device.
    """

    def __init__(self, recorder: Recorder, cell: Cell, common: Mapping[str, Any], *, here: bool) -> None:
        self._recorder = recorder
        self._cell = cell
        self._common = common
        self._here = here

    def take(
        self,
        take: Callable[[], dict[str, Figure]],
        *,
        names: Sequence[str],
        quick: bool = False,
        state: Callable[[], State] | None = None,
        again: Callable[[], object] = lambda: None,
        prepare: Callable[[], object] = lambda: None,
        fixed: bool = False,
    ) -> dict[str, Measurement]:
        """Measure one block and record every figure of it, unless the run already has them all.

        ``state`` tells the state of the device where it runs. Unless the block is a ``quick`` one, it is measured once
        more where something disturbed it; ``again`` is called before every try but the first, and ``prepare`` once, if
        anything is to be measured at all. What is ``fixed`` is taken from an earlier run where :class:`Kept` has it.
        """
        recorder, cell = self._recorder, self._cell
        state = state or functools.partial(probe.state, cell.hardware, *over(cell.gpus))
        standing = {name: recorder.known(self._record(name, 0.0)) for name in names}
        if all(standing.values()):
            found = {name: record for name, record in standing.items() if record is not None}
            recorder.measurements += found.values()
            return found
        kept = self._kept(names) if fixed else None
        if kept and (earlier := kept.find()):
            return self._from_before(earlier)
        prepare()
        if quick:
            before, beside = state(), ProcessorWatch() if kept else None
            with (
                recorder.flow.clock.timed("measure", cell),
                beside or contextlib.nullcontext(),
                probe.told(cell.hardware),
            ):
                figures = take()
            done = self._keep(figures, before, state())
            quiet = beside is not None and not beside.problems
        else:
            done = undisturbed(recorder.flow, cell, ", ".join(names), take, self._keep, state, again, here=self._here)
            quiet = not any(it.discarded or it.disturbed for it in done.values())
        if kept and quiet:
            kept.keep(done)
        return done

    def keeps(self, names: Sequence[str]) -> bool:
        """Return whether an earlier run has figures that are fixed, so that :meth:`take` would measure nothing."""
        kept = self._kept(names)
        return kept is not None and kept.there

    def _kept(self, names: Sequence[str]) -> KeptBlock | None:
        """Return where a block's figures are kept between runs; None where they are measured whatever is there."""
        recorder = self._recorder
        if recorder.flow.kept is None or recorder.tags:
            return None
        return recorder.flow.kept.place(self._cell, {"figures": [identity(self._record(name, 0.0)) for name in names]})

    def _from_before(self, kept: dict[str, Measurement]) -> dict[str, Measurement]:
        where = where_kept(next(iter(kept.values())))
        self._recorder.flow.progress(f"{', '.join(kept)} of {self._cell.id}: measured in {where}")
        for record in kept.values():
            self._recorder.stand(record)
        return kept

    def rule(self, metric: str, value: Callable[[Sequence[float]], float], rounds: int, **more: int) -> Rule:
        """Return what ends the rounds of a figure early; ``value`` is what it comes to by its samples.

        ``more`` is handed to what makes the rule. A gate's rounds are of two sides in turns, and are all taken.
        """
        recorder = self._recorder
        if recorder.flow.rule is None or recorder.tags:
            return All()

        def record(samples: Sequence[float]) -> Measurement:
            return self._record(metric, value(samples), samples=list(samples))

        limits = self._limits(metric)
        baseline = recorder.baseline_of(record([1.0, 1.0])) if any(one.needs_baseline for one in limits) else None
        asked = [(one, baseline if one.needs_baseline else None) for one in limits]
        return recorder.flow.rule(rounds, record, asked, **more)

    def limited(self, metric: str) -> bool:
        """Return whether anything is asked of a figure."""
        return bool(self._limits(metric))

    def _limits(self, metric: str) -> Sequence[Threshold]:
        random = self._common["cell"].model.weights == "random"
        return self._recorder.flow.limits(self._cell, metric, self._common["parameters"], random=random)

    def _keep(
        self,
        figures: dict[str, Figure],
        before: State,
        after: State,
        discarded: str = "",
        disturbed: str = "",
    ) -> dict[str, Measurement]:
        found = {}
        others = any(state.get("other_gpus_in_use") for state in (before, after))
        for name, figure in figures.items():
            told = self._recorder.neighbours if others and self._is_of_a_server(name) else ""
            if problem := figure.problem():
                raise HarnessError(f"{name} of {self._cell.id} {problem}: not a number that can be recorded")
            record = self._record(
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
            )
            self._recorder.stand(record)
            found[name] = record
        return found

    def _record(self, name: str, value: float, **rest: Any) -> Measurement:
        return record_of(name, value, **self._common, **rest)

    def _is_of_a_server(self, name: str) -> bool:
        return stage_of(name, self._cell.server, self._common["parameters"]) == "server"


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
