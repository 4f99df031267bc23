"""``fairness``: hold one engine for batches and HTTP against an offline engine and a server, in turns."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from dataclasses import replace

from harness.base import terminal
from harness.base.errors import HarnessError
from harness.base.interruption import Interrupted
from harness.commands import own_flow, workplace
from harness.judge.fairness import MARGIN, Block, Comparison, Study
from harness.machine import probe
from harness.matrix.plan import Cell, Matrix
from harness.measure import fairness
from harness.records.metrics import METRICS
from harness.records.schema import Scalar
from harness.report import blocks
from harness.report.rendering import Table
from harness.servers import registry

_SHARE = "engine.gpu_memory_utilization"
_MARGIN = f"{100 * MARGIN:g} %"
_WORDS = {"alike": f"within {_MARGIN}", "differs": f"more than {_MARGIN} apart", "open": "not clear"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m harness fairness``."""
    parser.add_argument("model", help="a model of the matrix, a folder, or a hub id")
    parser.add_argument("recipe", nargs="?", help="a recipe of the matrix (default: the baseline)")
    parser.add_argument("--blocks", type=int, default=4, metavar="N", help="starts of all three (default: 4)")
    parser.add_argument("--rounds", type=int, default=6, metavar="N", help="rounds of each figure a block (default: 6)")
    parser.add_argument(
        "--memory", type=float, default=0.28, metavar="SHARE", help="of a GPU for each of the three (default: 0.28)"
    )
    workplace.add_place_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure in blocks, print each figure's ratio with its interval, and keep the study.

    Returns 0 where every figure is surely within MARGIN, 1 where one surely is not, else 3. What was measured in whole
    blocks is told of an interrupted study too. Raises HarnessError where there is no such cell.
    """
    if arguments.blocks < 2 or arguments.rounds < 1:
        raise HarnessError(f"--blocks {arguments.blocks} --rounds {arguments.rounds}: two blocks of a round are needed")
    if not any(it.partition("=")[0].endswith(_SHARE) for it in arguments.set):
        # All three are on the device at once; a CPU does not know this.
        arguments.set.append(f"{_SHARE}={arguments.memory}")
    place = workplace.opened(arguments)
    cell = _cell(place.matrix, arguments)
    found: dict[tuple[str, tuple[tuple[str, Scalar], ...]], list[Block]] = defaultdict(list)
    interruption: KeyboardInterrupt | None = None
    try:
        with own_flow.flow(arguments, place, "fairness") as flow:
            for number in range(arguments.blocks):
                with place.working():
                    figures = fairness.block(flow, cell, number, arguments.rounds)
                for it in figures:
                    key = (it.metric, tuple(it.parameters.items()))
                    found[key].append(Block(apart=list(it.apart), shared=list(it.shared)))
    except KeyboardInterrupt as cut:
        if not all(len(it) > 1 for it in found.values()) or not found:
            raise Interrupted(cut, "too few blocks were measured to tell of; the same command begins anew") from None
        interruption = cut
    study = Study(
        model=cell.model.name,
        recipe=cell.recipe.name,
        hardware=cell.hardware.name,
        server=cell.server,
        device=probe.device(cell.hardware).name,
        packages=flow.fleet.packages(cell),
        settings=list(arguments.set),
        created=time.time(),
        figures=[Comparison.of(name, dict(parameters), it) for (name, parameters), it in found.items()],
    )
    print(blocks.text([_table(study)], None if arguments.wide else terminal.columns()))
    kept = study.write(arguments.results)
    if interruption is not None:
        words = f"whole blocks are kept as {kept}; the same command begins another study"
        raise Interrupted(interruption, words)
    print(f"kept as {kept}")
    if study.fair:
        print(f"next: shared = true in the engine of [measurements.{study.hardware}]")
    return 0 if study.fair else 1 if any(it.state == "differs" for it in study.figures) else 3


def _cell(matrix: Matrix, arguments: argparse.Namespace) -> Cell:
    """Return the cell through the server that shares its engine."""
    server = registry.tutorial()
    recipe = arguments.recipe or matrix.baseline.name
    cell = replace(own_flow.cell(matrix, arguments.model, recipe, arguments.hardware), server=server)
    if why := cell.refusal(server):
        raise HarnessError(f"{cell.id}: {why}")
    return cell


def _table(study: Study) -> Table:
    rows = tuple(_row(it) for it in study.figures)
    note = "shared / apart with its 95 % interval over blocks, each of processes of its own"
    title = f"One engine for batches and HTTP: {study.model} {study.recipe} on {study.device}"
    return Table(title, "", ("figure", "apart", "shared", "ratio", "says"), rows, (note,))


def _row(it: Comparison) -> tuple[str, ...]:
    unit = METRICS[it.metric].unit
    sides = [[*block.apart] for block in it.blocks], [[*block.shared] for block in it.blocks]
    middle = [statistics.median(value for block in side for value in block) for side in sides]
    words = ", ".join(f"{name} {value}" for name, value in it.parameters.items())
    return (
        f"{it.metric}, {words}",
        *(f"{value:.4g} {unit}" for value in middle),
        f"{it.ratio:.4f} ({it.low:.4f} to {it.high:.4f})",
        _WORDS[it.state],
    )
