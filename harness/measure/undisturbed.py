"""Work that is done again until nothing disturbed it on the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from harness.base.errors import DiscardedBlocks
from harness.machine import probe
from harness.machine import watch as machine_watch
from harness.machine.processor import ProcessorWatch
from harness.machine.vendor import over
from harness.matrix.plan import Cell
from harness.measure.flow import Flow
from harness.records.schema import Scalar

State = dict[str, Scalar]
Done = TypeVar("Done")
Kept = TypeVar("Kept")


def undisturbed(
    flow: Flow,
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
            flow.clock.timed("measure", cell),
            machine_watch.Watch(cell.hardware, *over(cell.gpus)) as watch,
            beside or contextlib.nullcontext(),
            probe.told(cell.hardware),
        ):
            done = work()
        after, disturbed = (beside.state, beside.problems) if beside else ({}, [])
        found = keep(done, before, state() | after, "; ".join(watch.problems), "; ".join(disturbed))
        if not watch.problems:
            return found
        flow.progress(f"discarded a block of {cell.id} ({'; '.join(watch.problems)}), attempt {attempt + 1}")
    raise DiscardedBlocks(
        f"{what} of {cell.id}: {repeats + 1} blocks in a row were discarded: "
        f"{'; '.join(watch.problems)}. Records are kept as discarded; free or cool the machine and --resume."
    )
