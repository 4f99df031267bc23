"""What commands that measure by themselves begin with: a cell of the matrix, and a flow that has the machine alone."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from harness.base.errors import HarnessError
from harness.commands.workplace import Workplace
from harness.machine.lock import machine_lock, only_session
from harness.matrix.plan import Cell, Matrix
from harness.measure.flow import Flow
from harness.records.run import Run


def cell(matrix: Matrix, model: str, recipe: str, hardware: str) -> Cell:
    """Return one cell of the matrix; raises HarnessError where there is none."""
    wanted = matrix.recipe(recipe).name
    for found in matrix.cells([model], [wanted]):
        if (found.recipe.name, found.hardware.name) == (wanted, hardware):
            return found
    raise HarnessError(f"{model} {wanted} on {hardware}: the matrix has no such cell")


@contextlib.contextmanager
def flow(arguments: argparse.Namespace, place: Workplace, kind: str) -> Iterator[Flow]:
    """Yield a flow whose run lies in ``kind``, a folder of its own beside the sessions'; waits for other sessions."""
    lock = only_session(machine_lock(), place.progress)
    try:
        made = Run.create(arguments.results / "runs" / kind)
        opened = Flow.open(
            place.store, made, place.matrix, environment=place.base, data=arguments.data, progress=place.progress
        )
        try:
            yield opened
        finally:
            opened.close()
    finally:
        lock.release()
