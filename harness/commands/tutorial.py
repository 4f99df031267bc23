"""``tutorial``: run the tutorial's own commands for the rows of a run, and tell what they take and give."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from harness.base.errors import HarnessError, nearest
from harness.base.interruption import Interrupted
from harness.commands import own_flow, workplace
from harness.matrix.plan import Cell, Matrix
from harness.publish.by_hand import Bench
from harness.publish.by_hand import run as run_by_hand
from harness.records.by_hand import ByHand, Ran
from harness.records.run import Run
from harness.records.schema import Measurement
from harness.report.budget import measured, tutorial_rows
from harness.servers.registry import SERVERS, tutorial

_CACHES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m harness tutorial``."""
    parser.add_argument("name", metavar="RUN", help="a run's name, 'last', or a path to its folder")
    parser.add_argument("--model", metavar="NAME|FOLDER|HUB_ID", help="only this model, as the run was given it")
    parser.add_argument("--recipe", action="append", default=[], metavar="NAME", help="only this recipe; repeatable")
    workplace.add_place_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run every command in a process of its own, with empty caches of compilation before the first.

    What each took and gave is kept as by_hand.json in the run's folder, also of those before one that failed, and
    ``harness cost`` tells it. Returns 1 where the run has none of the tutorial's rows. Raises HarnessError for a
    recipe that it has none of, and for a command that fails.
    """
    place = workplace.opened(arguments)
    (opened,) = Run.open_all(arguments.results / "runs", [arguments.name])
    lines, _ = opened.read()
    there = [it for it in tutorial_rows(lines) if it.cell.hardware == arguments.hardware]
    names = {it.cell.recipe.name for it in there}
    for name in arguments.recipe if names else ():
        if name not in names:
            raise HarnessError(f"--recipe {name!r}: {opened.name} has no row of it; {nearest(name, names)}")
    rows = [
        it
        for it in there
        if (not arguments.recipe or it.cell.recipe.name in arguments.recipe)
        and (not arguments.model or it.cell.model.name == place.matrix.model(arguments.model).name)
    ]
    if not rows:
        place.progress(f"{opened.name}: none of the tutorial's rows on {arguments.hardware}")
        return 1
    commands = SERVERS[tutorial()].by_modules
    assert commands  # noqa: S101 - for the type alone
    ran: list[Ran] = []
    try:
        with (
            own_flow.flow(arguments, place, "by_hand") as flow,
            tempfile.TemporaryDirectory(prefix="by-hand-") as folder,
            place.working(),
        ):
            for cell, own in _cells(place.matrix, rows, arguments.model):
                checkpoint = flow.checkpoints.served(cell).folder
                prompts = flow.checkpoints.prompts().folder / "prompts.json"
                # What made the checkpoint holds memory, and is no part of the commands.
                flow.close()
                limits = cell.measurements.time_limits
                environ = place.base.environ(place.store, {name: f"{folder}/{name}" for name in _CACHES})
                environ["PATH"] = os.pathsep.join([str(Path(place.base.python).parent), environ.get("PATH", "")])
                bench = Bench(environ, Path(folder), prompts, limits.start + limits.measure, place.progress)
                ran += run_by_hand(own, checkpoint, bench, commands)
    except KeyboardInterrupt as interruption:
        words = "what was measured is kept" if ran else "nothing was measured yet"
        raise Interrupted(interruption, f"{words}; the same command begins anew") from None
    finally:
        if ran:
            device = place.device.name
            kept = ByHand(device=device, created=time.time(), ran=ran)
            print(f"kept as {kept.write(opened.folder)}")
    told = measured(lines, kept)
    print("\n".join(told.lines() if told else []))
    return 0


def _cells(matrix: Matrix, rows: list[Measurement], model: str | None) -> list[tuple[Cell, list[Measurement]]]:
    """Return the rows of each model and recipe, the baseline's first, with the matrix's cell of it."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for it in sorted(rows, key=lambda it: not it.cell.recipe.baseline):
        groups.setdefault((it.cell.model.name, it.cell.recipe.name), []).append(it)
    return [
        (own_flow.cell(matrix, model or name, recipe, own[0].cell.hardware), own)
        for (name, recipe), own in groups.items()
    ]
