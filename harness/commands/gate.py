"""``python -m harness gate``: where gates run, and the options that gate, bisect and calibrate share."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from harness.base import shipped
from harness.base.errors import HarnessError, OutOfTime
from harness.base.files import default_root, write_text
from harness.base.interruption import Interrupted
from harness.base.memory import wanting
from harness.base.spoken import Spoken
from harness.base.terminal import columns
from harness.cluster.address import LOCAL
from harness.commands import gate_far, sides
from harness.commands.unfinished import Unfinished
from harness.gate import margins
from harness.gate.gate import Gate, GateResult
from harness.gate.pace import Known
from harness.gate.part import Part
from harness.gate.plan import Unit, units
from harness.gate.schedule import Budget, parse_budget
from harness.judge import accepted, gatefile
from harness.judge.accepted import Acceptances
from harness.judge.calibration import Calibration
from harness.judge.gatefile import EXIT, GateFile, Options
from harness.judge.since import dated
from harness.machine import here, probe
from harness.machine.lock import Held, machine_lock, only_session
from harness.matrix.hardware import Hardware
from harness.matrix.load import load
from harness.matrix.plan import Matrix
from harness.records.run import Run
from harness.records.schema import Header
from harness.report import gate_report, junit
from harness.runtime.environment import Environment
from harness.runtime.environment_pair import Pair, make
from harness.runtime.shared import Shared
from harness.runtime.store import Store
from harness.servers import registry
from harness.servers.registry import SERVERS

_RESULTS = Path("results")
_STARTUP = 60.0
"""A process that is older has done more than start a command."""


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
    part: Part | None = None
    """What a node of a cluster has of a gate; the planner's of it has all the rest."""

    def gate(
        self,
        options: Options,
        resume: str | None = None,
        pair: Pair | None = None,
        *,
        calibrated: bool = True,
    ) -> GateResult:
        """Run one gate and return its outcome; the caller holds the machine.

        ``pair`` are the two environments, where they are made already. The margins are held against the machine's
        calibration, unless the gate serves to find that, or is after something else.
        """
        # The environments that are made count.
        budget = Budget(options.budget)
        budget = replace(budget, started=budget.started - self.startup)
        wanted = self.units(options)
        gates = self.results / "gates"
        earlier = Run.open(gates, resume) if resume else None
        device = probe.device(self.hardware)
        here = self.results, self.hardware.name, device.name
        calibration = Calibration.find(*here) if calibrated else Calibration.readable(*here)
        if calibrated:
            margins.hold(calibration, options, wanted, self.progress)
        known = Known.load(*here, calibration)
        self.progress(f"expected: {known.estimate(wanted, options.budget)}")
        most = max(wanted, key=lambda unit: unit.cell.gpus)
        if most.cell.gpus > 1 and (problem := probe.missing(self.hardware, most.cell.gpus)):
            raise HarnessError(
                f"{most.id} cannot be gated here: {problem}; leave it out with -k, or gate --on a cluster"
            )
        if pair is None:
            self.progress(f"making the environments of {options.old} and {options.new} ...")
            pair = make(self.store, options.old, options.new, self.base, lambda: budget.until_cut)
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
                device=device,
                python=self.base.python_version,
            )
        )
        return gate()

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


def workplace(arguments: argparse.Namespace) -> Workplace:
    """Return where the command line says gates run; of a group ``-m`` becomes the hardware of it that is here."""
    progress = Spoken(wide=arguments.wide)
    matrix = here.whole(load(arguments.matrix or shipped.matrix(Path.cwd()), registry.names(), arguments.set))
    hardware = here.of_group(matrix, arguments.hardware)
    if hardware is None:
        raise HarnessError(f"-m {arguments.hardware}: a group of {matrix.path.name} that has no members")
    if (getattr(arguments, "on", "") or LOCAL) == LOCAL and (problem := probe.missing(hardware)):
        raise HarnessError(f"-m {arguments.hardware}: not here: {problem}")
    arguments.hardware = hardware.name
    shared = Shared.at(arguments.share, progress) if arguments.share else None
    store = Store((arguments.cache or default_root()).resolve(), say=progress, shared=shared)
    with store.writing("this gate"):
        store.root.mkdir(parents=True, exist_ok=True)
    passed = (*matrix.pass_env, *arguments.pass_env)
    base = Environment(python=arguments.python or sys.executable, passed=passed)
    age = time.time() - psutil.Process().create_time()
    return Workplace(store, arguments.results, matrix, hardware, base, progress, age if age < _STARTUP else 0.0)


def working(place: Workplace) -> contextlib.AbstractContextManager[None]:
    """Let a workplace say within what it is at, again and again."""
    return place.progress.working() if isinstance(place.progress, Spoken) else contextlib.nullcontext()


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
        budget=parse_budget(arguments.budget),
        blocks=arguments.blocks,
        margins=tuple(arguments.margin),
        seed=arguments.seed,
    )


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`workplace` reads."""
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
    parser.add_argument("--results", type=Path, default=_RESULTS, metavar="DIR", help="where results are written")


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
        default="30m",
        metavar="TIME",
        help="as in 90s, 30m, 2h (default: 30m); nothing is begun that is not expected to end within it",
    )
    parser.add_argument("--blocks", type=_count, metavar="N", help="at most N blocks of each cell")
    parser.add_argument(
        "--margin",
        action="append",
        default=[],
        metavar="[METRIC=]SHARE",
        help="the change that is tolerated: 0.05 for latency and throughput, or METRIC=0.1 for one metric",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of the blocks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "a requirement such as torchao==0.17.0, several of them in quotes, a wheel, or a lock (as pip freeze writes)"
    parser.add_argument("old", nargs="?", help=what)
    parser.add_argument("new", nargs="?", help="the same packages in other versions, or another lock")
    sides.add_arguments(parser)
    add_common_arguments(parser)
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted gate (last: the latest)")
    gate_far.add_arguments(parser)
    parser.add_argument("--explain", action="append", default=[], metavar="METRIC", help="walk through its decisions")
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="METRIC:REASON",
        help="let this gate's regressions of a metric be, and those of later gates that are no worse; repeatable",
    )
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write gate.json here too")


def _command(arguments: argparse.Namespace, wanted: Options) -> str:
    """Return the command that asks for a gate, with where it is to look and to write."""
    words = [word for name in arguments.pass_env for word in ("--pass-env", name)]
    for option in ("python", "matrix", "cache", "share"):
        if value := getattr(arguments, option):
            words += [f"--{option}", str(value)]
    if getattr(arguments, "on", None):
        words += ["--on", arguments.on]
    if arguments.results != _RESULTS:
        words += ["--results", str(arguments.results)]
    return wanted.command(*words)


def run(arguments: argparse.Namespace) -> int:
    gate_report.check_explained(arguments.explain)
    accept = accepted.parse(arguments.accept)
    acceptances = Acceptances.load(arguments.results)
    place = workplace(arguments)
    wanted = options(arguments, *sides.of(arguments))
    wide = None if arguments.wide else columns()
    if part := Part.of_this_process():
        return gate_far.measure(replace(place, part=part, progress=part.tell), part, wanted, arguments.resume)
    sides.check(place.matrix, wanted, place.base)
    if arguments.resume:
        Run.open(place.results / "gates", arguments.resume)
    lock = only_session(machine_lock(), place.progress) if not arguments.on else Held()
    if isinstance(place.progress, Spoken):
        place.progress.allow(wanted.budget - place.startup)
    unfinished = Unfinished(place.results / "gates", time.time())
    try:
        with working(place):
            outcome = gate_far.over(arguments, wanted, place) if arguments.on else place.gate(wanted, arguments.resume)
    except OutOfTime as error:
        print(f"{error}: give more --budget", file=sys.stderr)
        return EXIT["inconclusive"]
    except KeyboardInterrupt as interruption:
        raise Interrupted(interruption, unfinished.interrupted(_command(arguments, wanted), wide)) from None
    except Exception as error:
        if wanting(error):
            unfinished.short_of_memory(_command(arguments, wanted))
        raise
    finally:
        lock.release()
    gate = _judged(outcome, place.results, accept, acceptances)
    gate = gate.model_copy(update={"command": _command(arguments, wanted)})
    write_text(outcome.folder / "gate.json", gate.text())
    write_text(outcome.folder / "report.md", gate_report.text(gate))
    if arguments.junit:
        write_text(arguments.junit, junit.junit([gate]).decode())
    if arguments.json:
        write_text(arguments.json, gate.text())
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("ab") as file:
            file.write(junit.markdown([gate]))
    print(gate_report.brief(gate, str(outcome.folder), wide, arguments.explain, coloured=sys.stdout.isatty()), end="")
    return gate.exit_status


def _judged(
    outcome: GateResult, results: Path, accept: Sequence[tuple[str, str]], acceptances: Acceptances
) -> GateFile:
    """Return a gate with what was accepted, now and before, and since which version its regressions are there."""
    gate = dated(outcome.file, earlier(results, outcome.folder))
    remarks = []
    for metric, reason in accept:
        if more := acceptances.plus(gate, metric, reason, datetime.date.today()):
            acceptances = more
        else:
            remarks.append(f"--accept {metric}: nothing to accept, it has not regressed in this gate")
    if accept and len(remarks) < len(accept):
        remarks.append(f"accepted, for gates to come: {acceptances.write(results)}")
    return acceptances.applied(gate.model_copy(update={"remarks": [*gate.remarks, *remarks]}))


def earlier(results: Path, folder: Path) -> list[GateFile]:
    """Return the stored gates but for that of a folder; those that cannot be read are left out."""
    found = []
    for path in sorted((results / "gates").glob("*/gate.json")):
        if path.parent != folder:
            with contextlib.suppress(HarnessError):
                found.append(gatefile.load(path))
    return found


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of blocks: 1 or more")
    return int(text)
