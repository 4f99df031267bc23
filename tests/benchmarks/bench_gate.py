"""How often a gate is wrong: real gates of one cell, of nothing against itself and of known faults.

Run: PYTHONPATH=. python tests/benchmarks/bench_gate.py FOLDER [--arm ARM] [--gates 20] [--budget 4m] [--margin 0.03]

Each arm is a fault planted in a copy of the installed torchao (tests/planted.py), held against the same torchao without
it. Gates are added to FOLDER, arm by arm, so that the whole may be measured in parts; the table over all that is there
goes to results/gate_calibration.md, the samples behind it to the _gates.json beside it, and what old against old
measured to the .json: the noise that bench_rules.py simulates with. With ``--gates 0`` these alone are written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

import bench_rules  # noqa: E402
import planted  # noqa: E402

from harness.base.files import default_root, write_text  # noqa: E402
from harness.commands.workplace import Workplace, given  # noqa: E402
from harness.gate import noise as gate_noise  # noqa: E402
from harness.gate.schedule import parse_budget  # noqa: E402
from harness.judge import gatefile, stats  # noqa: E402
from harness.judge.gatefile import GateFile, Options  # noqa: E402
from harness.judge.verdict import Verdict  # noqa: E402
from harness.machine.lock import machine_lock, only_session  # noqa: E402
from harness.matrix.load import load  # noqa: E402
from harness.report import noise as report_noise  # noqa: E402
from harness.report.rendering import Table, render  # noqa: E402
from harness.runtime.environment import Environment  # noqa: E402
from harness.runtime.environment_pair import make  # noqa: E402
from harness.runtime.store import Store  # noqa: E402

SPEED = "generate_throughput"
# What each arm plants, the metric that should tell, and whether the gate must call it a regression.
ARMS = {
    "same": ("nothing: old against old", SPEED, False),
    "slower-10": ("int8 linear takes 10 % longer", SPEED, True),
    "slower-5": ("int8 linear takes 5 % longer", SPEED, True),
    "worse": ("every 16th scale 1.5 times too large", "perplexity", True),
    "larger": ("64 MB held for nothing", "peak_memory", True),
}
WELCH, MEAN = 10, 5


def wheel(arm: str, folder: Path) -> Path:
    made = {
        "same": planted.same,
        "slower-10": lambda at: planted.slower(at, 0.10),
        "slower-5": lambda at: planted.slower(at, 0.05),
        "worse": planted.worse,
        "larger": lambda at: planted.larger(at, 64),
    }
    return made[arm](folder)


def measure(arguments: argparse.Namespace, arm: str) -> None:
    """Add gates to one arm until it has as many as were asked for."""
    folder = arguments.folder / arm
    wheels = arguments.folder / "wheels"
    say = lambda words: print(f"  {words}", file=sys.stderr, flush=True)  # noqa: E731
    store = Store((arguments.cache or default_root()).resolve(), say)
    matrix = load(ROOT / "suites" / "matrix.toml")
    place = Workplace(store, folder, matrix, matrix.hardware["cpu"], Environment(), say)
    old, new = wheel("same", wheels), wheel(arm, wheels)
    pair = make(store, str(old), str(new), place.base)
    for seed in range(len(outcomes(folder)), arguments.gates):
        options = Options(
            old=old.name,
            new=new.name,
            hardware="cpu",
            recipes=("int8wo",),
            servers=("transformers",),
            keyword={SPEED: "generate", "peak_memory": "memory"}.get(ARMS[arm][1], ""),
            budget=parse_budget(arguments.budget),
            margins=(str(arguments.margin),),
            seed=seed,
        )
        gate = place.gate(options, given(pair), calibrated=False).file
        found = " ".join(f"{it.verdict} ({it.reason})" for it in of(gate, ARMS[arm][1]))
        print(f"{arm} gate {seed + 1}: {found}, {gate.measuring_seconds:.0f} s", flush=True)


def outcomes(folder: Path) -> list[GateFile]:
    found = [gatefile.load(path) for path in sorted(folder.glob("gates/*/gate.json"))]
    # One that was cut off before its first block has none.
    return [gate for gate in found if gate.verdicts]


def of(gate: GateFile, metric: str) -> list[Verdict]:
    return [it for it in gate.verdicts if it.metric == metric]


def naive(rule: Any, count: int, gate: GateFile) -> bool | None:
    """Return whether a rule that others use calls the gate's own samples a regression; None with too few blocks.

    These rules know no blocks: they get the old side's processes first and the new side's after them, as times.
    """
    (it,) = of(gate, SPEED)
    old, new = it.samples["old"][:count], it.samples["new"][:count]
    if len(old) < count:
        return None
    return bool(rule(1 / np.array([*old, *new])).verdict == "regressed")


def share(found: list[bool | None]) -> str:
    """Return how many of the gates that could be asked, with the exact interval of the rate."""
    known = [it for it in found if it is not None]
    if not known:
        return "-"
    rate = stats.proportion(sum(known), len(known))
    return f"{sum(known)} of {len(known)} ({rate.low:.0%} to {rate.high:.0%})"


def detections(folder: Path) -> Table:
    rows = []
    for arm, (words, metric, _) in ARMS.items():
        gates = outcomes(folder / arm)
        if not gates:
            continue
        told = [it for gate in gates for it in of(gate, metric)]
        whole = [any(it.primary and it.verdict == "regressed" for it in gate.verdicts) for gate in gates]
        unsure = sum(it.verdict == "inconclusive" for it in told)
        ratios = [it.ratio for it in told if it.ratio is not None]
        fewest = min((it.blocks for gate in gates for it in of(gate, SPEED)), default=0)
        rows.append(
            (
                words,
                metric,
                ", ".join(sorted({f"{it['margin']:.0%}" for it in told})),
                f"{statistics.median(ratios):.3f}" if ratios else "-",
                share([it.verdict == "regressed" for it in told]),
                str(unsure),
                share(list(whole)),
                share([naive(bench_rules.one_sample, 1, gate) for gate in gates]) if metric == SPEED else "-",
                share([naive(bench_rules.mean_tolerance, MEAN, gate) for gate in gates]) if metric == SPEED else "-",
                share([_welch(gate, min(WELCH, fewest)) for gate in gates]) if metric == SPEED else "-",
                f"{statistics.median(gate.measuring_seconds for gate in gates):.0f} s",
            )
        )
    return Table(
        "Gates of one cell, SmolLM2-135M-Instruct int8wo",
        "",
        (
            "planted",
            "metric",
            "margin",
            "new / old, median",
            "called regressed",
            "inconclusive",
            "any primary metric regressed",
            "one sample, 5 %",
            "mean of 5, 8 %",
            "two-sample t-test, 5 %",
            "a gate measures",
        ),
        tuple(rows),
        (
            "in brackets the exact 95 % interval of the rate (Clopper and Pearson)",
            "the last three rules look at the same samples; the first row holds false alarms, the others detections",
        ),
    )


def told(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what every gate of every arm said of the metric that should tell, with the samples that it looked at."""
    kept = ("verdict", "reason", "margin", "ratio", "low", "high", "blocks", "samples")
    return {
        arm: [
            {"created": gate.created, "device": gate.device, **{name: getattr(it, name) for name in kept}}
            for gate in outcomes(folder / arm)
            for it in of(gate, metric)
        ]
        for arm, (_, metric, _) in ARMS.items()
    }


def starts(gates: list[GateFile]) -> Table:
    """Ask whether gates of nothing differ by more than their blocks do.

    A gate forks all of its processes from two that have imported what they need, one a side. Did those differ, as two
    starts of the same program may (address space layout, order of allocation), the gates' ratios would differ too.
    """
    found = [it.samples for gate in gates for it in of(gate, SPEED) if it.blocks > 1]
    ratios = [[new / old for old, new in zip(it["old"], it["new"], strict=True)] for it in found]
    split = stats.variance_components(ratios)
    test = bench_rules.distributions.f_oneway(*map(np.log, ratios))
    return Table(
        "Do two starts of the same program differ?",
        "",
        ("gates", "blocks", "standard deviation of blocks within a gate", "between gates", "p (F-test)"),
        (
            (
                str(len(ratios)),
                str(sum(map(len, ratios))),
                f"{split.within**0.5:.2%}",
                f"{split.between**0.5:.2%}",
                f"{test.pvalue:.2f}",
            ),
        ),
        (
            f"log ratio of {SPEED}, old against old; a gate forks its processes from two that are started once, one a "
            "side: what these differ by would stand between the gates",
        ),
    )


def noise(gates: list[GateFile]) -> dict[str, Any]:
    """Return what every process of gates of nothing measured, block by block, and what a block takes in seconds."""
    found = [{"created": gate.created, **of(gate, SPEED)[0].samples} for gate in gates]
    blocks = [unit.seconds for gate in gates for unit in gate.units.values()]
    device = gate_noise.device(gates)
    return {"metric": SPEED, "device": device, "block_seconds": statistics.median(blocks), "gates": found}


def _welch(gate: GateFile, count: int) -> bool | None:
    (it,) = of(gate, SPEED)
    old, new = 1 / np.array(it.samples["old"]), 1 / np.array(it.samples["new"])
    if len(old) < max(2, count):
        return None
    return bool(
        bench_rules.distributions.ttest_ind(new, old, equal_var=False).pvalue < 0.05 and new.mean() > old.mean()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the gates are kept")
    parser.add_argument("--arm", action="append", choices=tuple(ARMS))
    parser.add_argument("--gates", type=int, default=20)
    parser.add_argument("--budget", default="4m")
    parser.add_argument("--margin", type=float, default=0.03)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "results" / "gate_calibration.md")
    arguments = parser.parse_args()
    if arguments.gates:
        lock = only_session(machine_lock(), print)
        try:
            for arm in arguments.arm or ARMS:
                measure(arguments, arm)
        finally:
            lock.release()
    tables = [detections(arguments.folder)]
    if len(same := outcomes(arguments.folder / "same")) > 1:
        budget = float(same[0].budget_seconds)
        tables.append(starts(same))
        tables.append(report_noise.table(gate_noise.summarise(same, "cpu", budget)))
        write_text(arguments.output.with_suffix(".json"), json.dumps(noise(same), indent=1))
    kept = arguments.output.with_name(f"{arguments.output.stem}_gates.json")
    write_text(
        kept, json.dumps({arm: gates for arm, gates in told(arguments.folder).items() if gates}, indent=1) + "\n"
    )
    text = render(tables, "md", title="How often a gate is wrong")
    write_text(arguments.output, text)
    print(text)


if __name__ == "__main__":
    main()
