"""Where gates run, one gate there, and the options that gate, bisect and calibrate share."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from harness.base import shipped
from harness.base.errors import HarnessError
from harness.base.files import default_root
from harness.base.spoken import Spoken
from harness.cluster.address import LOCAL
from harness.gate import margins
from harness.gate.gate import Gate, GateResult
from harness.gate.pace import Known
from harness.gate.part import Part
from harness.gate.plan import Unit, units
from harness.gate.schedule import Budget, parse_budget
from harness.judge import gatefile
from harness.judge.gatefile import Options
from harness.judge.rules import Margins
from harness.machine import here, probe
from harness.matrix.hardware import Hardware
from harness.matrix.load import load
from harness.matrix.plan import Matrix
from harness.records.run import Run
from harness.records.schema import Device, Header
from harness.runtime.environment import Environment, Left
from harness.runtime.environment_pair import Pair, make
from harness.runtime.shared import Shared
from harness.runtime.store import Store
from harness.servers import registry
from harness.servers.registry import SERVERS

RESULTS = Path("results")
_STARTUP = 60.0
"""A process that is older has done more than start a command."""


Environments = Callable[[Options, Left], Pair]
"""Gives the environments of a gate's sides within the seconds that are left."""


def given(pair: Pair) -> Environments:
    """Give environments that are there already."""
    return lambda *_: pair


@dataclass(frozen=True)
class Workplace:
    """Where gates run: cache, results, matrix, hardware, the environment that sides are made from, and who is told."""

    store: Store
    results: Path
    matrix: Matrix
    hardware: Hardware
    base: Environment
    progress: Callable[[str], None]
    startup: float = 0.0
    """Seconds that starting the command took, which count."""
    working: Callable[..., AbstractContextManager[None]] = contextlib.nullcontext
    """Says within what is being done, again and again, of the seconds that it is given."""
    part: Part | None = None
    """What a node of a cluster has of a gate; the planner's of it has all the rest."""

    def gate(
        self,
        options: Options,
        environments: Environments,
        resume: str | None = None,
        *,
        calibrated: bool = True,
    ) -> GateResult:
        """Run one gate and return its outcome; the caller holds the machine.

        The margins are held against the machine's calibration, unless the gate serves to find that, or is after
        something else.
        """
        # The environments that are made count.
        budget = Budget(options.budget)
        budget = replace(budget, started=budget.started - self.startup)
        wanted = self.units(options)
        known = Known.load(self.results, self.hardware.name, self.device.name, strict=calibrated)
        if calibrated:
            margins.hold(known.calibration, options, wanted, self.progress)
        self.progress(f"expected: {known.estimate(wanted, options.budget)}")
        most = max(wanted, key=lambda unit: unit.cell.gpus)
        if most.cell.gpus > 1 and (problem := probe.missing(self.hardware, most.cell.gpus)):
            raise HarnessError(
                f"{most.id} cannot be gated here: {problem}; leave it out with -k, or gate --on a cluster"
            )
        gates = self.results / "gates"
        earlier = Run.open(gates, resume) if resume else None
        pair = environments(options, lambda: budget.until_cut)
        for name in options.servers:
            if name in SERVERS and (lacking := pair.lacking(*SERVERS[name].distributions)):
                raise HarnessError(f"--server {name}: {lacking}; name an interpreter that has it with --python")
        run = earlier or Run.create(gates)
        gate = Gate(
            options,
            store=self.store,
            matrix=self.matrix,
            run=run,
            pair=pair,
            base=self.base,
            progress=self.progress,
            wanted=wanted,
            budget=budget,
            known=known,
            part=self.part,
        )
        if resume:
            gate.resume(gatefile.load(run.folder))
        command = ["python", "-m", "harness", "gate", options.old, options.new]
        run.append(
            Header(
                run=run.name,
                command=command,
                packages=self.base.packages(),
                device=self.device,
                python=self.base.python_version,
            )
        )
        return gate()

    def made(self, options: Options, left: Left) -> Pair:
        """Make the environments of both sides."""
        self.progress(f"making the environments of {options.old} and {options.new} ...")
        return make(self.store, options.old, options.new, self.base, left)

    @property
    def device(self) -> Device:
        """What measurements run on. Raises DeviceLost."""
        return probe.device(self.hardware)

    def units(self, options: Options) -> list[Unit]:
        """Return what is to be measured, less the servers that need another environment than this one.

        One that the command line names is not left out in silence. Raises HarnessError where nothing is left.
        """
        every = [unit for unit in units(self.matrix, options) if self.part is None or self.part.has(unit)]
        asked, absent = {unit.cell.server for unit in every}, set()
        for name, server in SERVERS.items():
            lacking = self.base.lacking(*server.distributions)
            if name in asked and server.own_environment and lacking and name not in options.servers:
                self.progress(f"left out: {name}: {lacking}; gate it by itself: --server {name} --python ITS_PYTHON")
                absent.add(name)
        if left := [unit for unit in every if unit.cell.server not in absent]:
            return left
        raise HarnessError(f"nothing to gate: {', '.join(sorted(absent))} cannot be asked here")


def opened(arguments: argparse.Namespace) -> Workplace:
    """Return where the command line says gates run; of a group ``-m`` becomes the hardware of it that is here."""
    matrix = here.whole(load(arguments.matrix or shipped.matrix(Path.cwd()), registry.names(), arguments.set))
    hardware = here.of_group(matrix, arguments.hardware)
    if hardware is None:
        raise HarnessError(f"-m {arguments.hardware}: a group of {matrix.path.name} that has no members")
    if (getattr(arguments, "on", "") or LOCAL) == LOCAL and (problem := probe.missing(hardware)):
        raise HarnessError(f"-m {arguments.hardware}: not here: {problem}")
    arguments.hardware = hardware.name
    progress = Spoken(wide=arguments.wide)
    shared = Shared.at(arguments.share, progress) if arguments.share else None
    store = Store((arguments.cache or default_root()).resolve(), say=progress, shared=shared)
    with store.writing("this gate"):
        store.root.mkdir(parents=True, exist_ok=True)
    passed = (*matrix.pass_env, *arguments.pass_env)
    base = Environment(python=arguments.python or sys.executable, passed=passed)
    age = time.time() - psutil.Process().create_time()
    startup = age if age < _STARTUP else 0.0
    return Workplace(store, arguments.results, matrix, hardware, base, progress, startup, progress.working)


def options(arguments: argparse.Namespace, old: str, new: str) -> Options:
    """Return a gate's options as the command line gives them."""
    return Options(
        old=old,
        new=new,
        hardware=arguments.hardware,
        models=tuple(arguments.model),
        recipes=tuple(arguments.recipe),
        servers=tuple(arguments.server),
        keyword=arguments.keyword,
        tasks=tuple(arguments.task),
        workloads=tuple(arguments.workload),
        settings=tuple(arguments.set),
        data=str(arguments.data.resolve()) if arguments.data else "",
        limit=arguments.limit,
        budget=arguments.budget,
        blocks=arguments.blocks,
        margins=tuple(arguments.margin),
        seed=arguments.seed,
    )


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`opened` reads."""
    parser.add_argument("-m", dest="hardware", required=True, metavar="NAME", help="the hardware, or a group of it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="measure otherwise than the matrix says"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="read tasks' documents and ShareGPT from here")
    parser.add_argument("--python", metavar="FILE", help="the interpreter whose packages are measured")
    parser.add_argument(
        "--pass-env", action="append", default=[], metavar="NAME", help="hand this variable on to workers; repeatable"
    )
    parser.add_argument("--matrix", type=Path, metavar="FILE", help="the matrix (default: the suites')")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where artifacts are kept")
    parser.add_argument(
        "--share", metavar="URL", help="a store of artifacts that all nodes reach: a folder, s3://, gs://"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where results are written")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that gate, bisect and calibrate share; they mean what they mean to pytest."""
    add_place_arguments(parser)
    parser.add_argument("-k", dest="keyword", default="", metavar="EXPRESSION", help="only cells and metrics so named")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME|FOLDER|HUB_ID", help="only this model; repeatable"
    )
    parser.add_argument(
        "--recipe", action="append", default=[], metavar="NAME|CONFIG", help="only this recipe; repeatable"
    )
    parser.add_argument(
        "--server", action="append", default=[], choices=tuple(registry.gated()), help="only this server; repeatable"
    )
    parser.add_argument("--task", action="append", default=[], metavar="NAME", help="a lm-evaluation-harness task")
    parser.add_argument(
        "--workload", action="append", default=[], metavar="NAME", help="gate capacity under this workload; repeatable"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N documents of each task")
    parser.add_argument(
        "--budget",
        type=parse_budget,
        default="30m",
        metavar="TIME",
        help="as in 90s, 30m, 2h (default: 30m); nothing is begun that is not expected to end within it",
    )
    parser.add_argument("--blocks", type=_count, metavar="N", help="at most N blocks of each cell")
    parser.add_argument(
        "--margin",
        action="append",
        type=_margin,
        default=[],
        metavar="[METRIC=]SHARE",
        help="the change that is tolerated: 0.05 for latency and throughput, or METRIC=0.1 for one metric",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of the blocks")


def _margin(text: str) -> str:
    """Return a margin as it is given, if it is one. Raises HarnessError."""
    Margins([text])
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of blocks: 1 or more")
    return int(text)
