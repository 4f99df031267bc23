"""``harness gate --on``: a gate's units over the devices of a cluster, and a node's side of it."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.base.errors import HarnessError
from harness.cluster.address import LOCAL, patience
from harness.cluster.campaign import PATIENCE, Lost
from harness.cluster.choice import engine_on
from harness.commands.workplace import Workplace
from harness.gate.far import Far
from harness.gate.gate import GateResult
from harness.gate.pace import Known
from harness.gate.part import Part
from harness.gate.schedule import Budget
from harness.judge import gatefile
from harness.judge.calibration import Calibration
from harness.judge.gatefile import Options
from harness.machine import probe
from harness.machine.lock import machine_lock, only_session
from harness.records.run import Run
from harness.records.schema import Header
from harness.runtime.shared import address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of where the units of a gate are measured."""
    parser.add_argument(
        "--on",
        metavar="CLUSTER",
        help="measure on a Ray cluster (ray://HEAD:10001, HEAD:6379, auto), or on all GPUs of this machine (local)",
    )
    parser.add_argument(
        "--wait-for-nodes",
        type=float,
        default=PATIENCE,
        metavar="SECONDS",
        help="of hardware that no node of --on offers (default: 120)",
    )


def over(arguments: argparse.Namespace, wanted: Options, place: Workplace) -> GateResult:
    """Run one gate over the cluster that ``--on`` names, or go on with one there."""
    budget = Budget(wanted.budget)
    budget = replace(budget, started=budget.started - place.startup)
    gates, root, here = place.results / "gates", Path.cwd(), arguments.on == LOCAL
    earlier = Run.open(gates, arguments.resume) if arguments.resume else None
    units, waiting = place.units(wanted), patience(arguments.on, arguments.wait_for_nodes)
    engine = engine_on(arguments.on, place.matrix, root, place.progress)
    try:
        run = earlier or Run.create(gates)
        command = ["python", "-m", *wanted.words(), "--on", arguments.on]
        packages, python = place.base.packages(), place.base.python_version
        run.append(Header(run=run.name, command=command, packages=packages, device=probe.host(), python=python))
        far = Far(
            wanted,
            units,
            place.hardware,
            engine,
            run,
            budget,
            place.progress,
            words=_words(arguments, root, here),
            here=here,
            root=root,
            beside=_calibration(place.results, wanted.hardware),
            known=functools.partial(Known.load, place.results, wanted.hardware),
            patience=waiting,
            there=lambda options: replace(
                options, old=_placed(options.old, root, here), new=_placed(options.new, root, here)
            ),
        )
        if earlier:
            far.resume(gatefile.load(run.folder))
        return far()
    except Lost as error:
        raise HarnessError(f"--on {arguments.on}: the cluster is gone: {error}") from error
    finally:
        engine.close()


def measure(place: Workplace, part: Part, wanted: Options, resume: str | None) -> int:
    """Run a node's part of a gate; returns its exit status.

    What a throttled or shared device was in the way of has not ended: another device may measure it.
    """
    hardware = place.hardware
    gpus = max((unit.cell.gpus for unit in place.units(wanted)), default=1)
    lock = only_session(machine_lock(), place.progress, probe.gpu_uuids(hardware, gpus) if hardware.is_gpu else ())
    try:
        outcome = place.gate(wanted, place.made, resume)
    finally:
        lock.release()
    troubles = {}
    for name, state in outcome.file.units.items():
        if state.reason == "machine-trouble":
            troubles[name] = state.problem
        else:
            part.say("done", test=name)
    if troubles:
        raise HarnessError("; ".join(f"{name}: {problem}" for name, problem in troubles.items()))
    return outcome.exit_status


def _words(arguments: argparse.Namespace, root: Path, here: bool) -> Sequence[str]:
    """Return the options of a node's gate that are not the gate's own."""
    words = [word for name in arguments.pass_env for word in ("--pass-env", name)]
    words += ["--share", address(arguments.share)] if arguments.share else []
    for option in ("python", "matrix", "cache"):
        if value := getattr(arguments, option):
            words += [f"--{option}", _placed(str(value), root, here)]
    return words


def _placed(text: str, root: Path, here: bool) -> str:
    """Return a path as a node finds it: below the folder that it gets a copy of, or where it lies here too."""
    path = Path(text)
    if len(text) > 1000 or not path.exists():
        return text
    whole = path.absolute()
    return str(whole.relative_to(root)) if not here and whole.is_relative_to(root) else str(whole)


def _calibration(results: Path, hardware: str) -> dict[str, str]:
    """Return the calibration of the hardware, for nodes that have such a device."""
    path = Calibration.path(results, hardware)
    return {str(path.relative_to(results)): path.read_text(encoding="utf-8")} if path.is_file() else {}
