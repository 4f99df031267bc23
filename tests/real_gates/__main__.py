"""``python -m tests.real_gates [--seconds 3600]``: measure more real gates, and write the table of all there are.

Gates of a tiny model, of torchao against itself and against copies of it with a planted fault (tests/planted.py), each
by the gate's own code as a user runs it. Every gate that ends adds a line to results/real_gates.jsonl; the command may
be ended at any time, and goes on with whatever fault has too few. ``--seconds 0`` writes the table alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.base.errors import HarnessError
from harness.base.files import write_text
from harness.commands.workplace import Workplace, given
from harness.judge.gatefile import GateFile, Options
from harness.machine.lock import machine_lock, only_session
from harness.matrix.load import load
from harness.report.rendering import render
from harness.runtime.environment import Environment
from harness.runtime.environment_pair import Pair, make
from harness.runtime.sources import SHAREGPT_FILE
from harness.runtime.store import Store
from tests import planted
from tests.conftest import CONVERSATIONS
from tests.real_gates import kept
from tests.real_gates.kept import Kept

REPOSITORY = Path(__file__).resolve().parents[2]
SPEED, QUALITY = "generate_throughput", "kl_divergence"
RECIPE, SERVER = "int8wo", "transformers"


@dataclass(frozen=True)
class Arm:
    """What is planted, which metric should tell, and how many gates there are to be."""

    words: str
    metric: str
    gates: int
    new: Callable[[Path], Path]


def _slower(percent: int) -> Arm:
    share = percent / 100
    return Arm(f"{percent} % slower", SPEED, 20, lambda folder: planted.slower_whole(folder, share))


ARMS = {
    "same": Arm("nothing", SPEED, 100, planted.same),
    **{f"slower-{percent}": _slower(percent) for percent in (2, 3, 5, 10)},
    "same-text": Arm("nothing", QUALITY, 20, planted.same),
    "worse-text": Arm("every 64th scale 1.2 times too large", QUALITY, 20, lambda at: planted.worse(at, 1.2, 64)),
}
SETTINGS = ("measurements.cpu.text.windows=16", "measurements.cpu.text.window_tokens=64")


def wanted(gates: list[Kept]) -> str | None:
    """Return the fault of which the smallest part of what is to be is there; None where there is enough of all."""
    share = {name: sum(it.arm == name for it in gates) / arm.gates for name, arm in ARMS.items()}
    name = min(share, key=lambda it: share[it])
    return name if share[name] < 1 else None


def measure(place: Workplace, pair: Pair, arm: str, model: Path, seed: int, margin: float, budget: float) -> Kept:
    """Measure one gate of a fault."""
    metric = ARMS[arm].metric
    options = Options(
        old=pair.old.name,
        new=pair.new.name,
        hardware="cpu",
        models=(str(model),),
        recipes=(RECIPE,),
        servers=(SERVER,),
        keyword={SPEED: "generate", QUALITY: "kl_divergence"}[metric],
        settings=SETTINGS,
        data=str(place.results.parent / "data"),
        budget=budget,
        margins=(str(margin),),
        seed=seed,
    )
    before = os.getloadavg()[0]
    gate = place.gate(options, given(pair), calibrated=False).file
    return summary(arm, gate, (before, os.getloadavg()[0]))


def summary(arm: str, gate: GateFile, load_average: tuple[float, float]) -> Kept:
    """Return what is kept of a gate."""
    metric = ARMS[arm].metric
    it = next((it for it in gate.verdicts if it.metric == metric), None)
    alarms = [it.metric for it in gate.verdicts if it.primary and it.verdict == "regressed" and it.metric != metric]
    sides = {
        side: tuple(float(f"{value:.6g}") for value in (it.samples[side] if it else ())) for side in ("old", "new")
    }
    return Kept(
        arm=arm,
        created=gate.created,
        device=gate.device,
        processors=len(psutil.Process().cpu_affinity()),
        load=(round(load_average[0], 2), round(load_average[1], 2)),
        seconds=gate.seconds,
        metric=metric,
        verdict=it.verdict if it else "error",
        reason=it.reason if it else "no verdict",
        margin=it.margin if it else 0.0,
        blocks=it.blocks if it else 0,
        ratio=it.ratio if it else None,
        low=it.low if it else None,
        high=it.high if it else None,
        old=sides["old"],
        new=sides["new"],
        alarms=tuple(alarms),
    )


def tiny_model(folder: Path) -> Path:
    """Write the tests' tiny model, unless it is there."""
    if not (folder / "model").exists():
        folder.mkdir(parents=True, exist_ok=True)
        script = REPOSITORY / "tests" / "tiny_model.py"
        subprocess.run([sys.executable, str(script), str(folder)], input="A text. " * 400, check=True, text=True)
    return folder / "model"


def session(arguments: argparse.Namespace) -> None:
    """Measure gates until there are enough, or the time is over."""
    folder, end = arguments.folder.resolve(), time.monotonic() + arguments.seconds
    say = lambda words: print(f"  {words}", file=sys.stderr, flush=True)  # noqa: E731
    base = Environment(variables={"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")})
    matrix = load(REPOSITORY / "suites" / "matrix.toml", settings=SETTINGS)
    cpu = matrix.hardware["cpu"]
    place = Workplace(Store(folder / "cache", say), folder / "results", matrix, cpu, base, say)
    write_conversations(folder / "data")
    model = tiny_model(folder / "tiny")
    pairs: dict[str, Pair] = {}
    while time.monotonic() < end and (arm := wanted(gates := kept.read(arguments.file))) is not None:
        if arm not in pairs:
            old, new = planted.same(folder / "wheels"), ARMS[arm].new(folder / "wheels")
            pairs[arm] = make(place.store, str(old), str(new), base)
        lock = None if arguments.shared else only_session(machine_lock(), say)
        try:
            found = measure(place, pairs[arm], arm, model, len(gates), arguments.margin, arguments.budget)
        except HarnessError as error:
            print(f"{arm}: not measured: {error}", flush=True)
            time.sleep(5)
            continue
        finally:
            if lock:
                lock.release()
        kept.append(arguments.file, found)
        now = datetime.datetime.now(datetime.UTC).strftime("%H:%M")
        print(
            f"{now} {arm}: {found.verdict} ({found.reason}), {found.blocks} blocks, {found.seconds:.0f} s", flush=True
        )


def write_conversations(folder: Path) -> None:
    """Write the tests' conversations where ``--data`` looks for them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SHAREGPT_FILE).write_text(json.dumps(CONVERSATIONS), encoding="utf-8")


def report(file: Path) -> str:
    """Return the table of all gates of a file."""
    gates = kept.read(file)
    arms = [(name, arm.words) for name, arm in ARMS.items()]
    timed = [(name, arm.words) for name, arm in ARMS.items() if arm.metric == SPEED]
    loads = sorted(max(it.load) for it in gates)
    facts = {
        "gates": f"{len(gates)}, each of a tiny model, {RECIPE}, through Transformers, by the gate's own code",
        "devices": "; ".join(sorted({f"{it.device}, {it.processors} processors" for it in gates})),
        "load average": f"{loads[0]:.1f} to {loads[-1]:.1f}, median {loads[len(loads) // 2]:.1f}: the gate's own work "
        "and that of others",
        "from": f"{gates[0].created} to {max(it.created for it in gates)}",
        "samples": file.name,
        "written by": "python -m tests.real_gates",
    }
    tables = [kept.verdicts(gates, arms), kept.beside(gates, timed), kept.quiet(gates, timed)]
    return render(tables, "md", title="Real gates", facts=facts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.real_gates", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no gate after so many")
    parser.add_argument("--budget", type=float, default=240.0, help="of each gate, in seconds")
    parser.add_argument("--margin", type=float, default=0.05)
    parser.add_argument("--shared", action="store_true", help="do not keep others from measuring meanwhile")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "real_gates", help="for what is made")
    parser.add_argument("--file", type=Path, default=REPOSITORY / "results" / "real_gates.jsonl")
    arguments = parser.parse_args()
    if arguments.seconds:
        session(arguments)
    if kept.read(arguments.file):
        text = report(arguments.file)
        write_text(arguments.file.with_suffix(".md"), text)
        print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
