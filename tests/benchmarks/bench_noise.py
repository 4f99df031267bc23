"""How much one machine's measurements vary from process to process, by the harness's own measurements.

Run: PYTHONPATH=. python tests/benchmarks/bench_noise.py 24 [--cache DIR] -o results/reference/noise-cpu

Nothing is changed between the processes, so whatever differs is noise. bench_rules.py simulates with it.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness import hardware
from harness.artifacts import Store, default_root
from harness.environment import Environment
from harness.flow import Flow
from harness.matrix import load
from harness.measure import Measure
from harness.records import Header, Measurement, Run

ROOT = Path(__file__).resolve().parents[2]


def repeat(function: Callable[[], None], rounds: int, warmup: int) -> None:
    for _ in range(rounds + warmup):
        function()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("processes", type=int, help="how many fresh processes to measure")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--recipe", default="int8wo")
    parser.add_argument("--cache", type=Path, default=default_root())
    parser.add_argument("-o", "--output", type=Path, required=True, help="the run's folder")
    arguments = parser.parse_args()
    matrix = load(ROOT / "suites" / "matrix.toml")
    cells = matrix.cells([arguments.model], [arguments.recipe])
    cell = next(cell for cell in cells if cell.hardware == "cpu" and cell.recipe.name == arguments.recipe)
    cell = replace(cell, server="transformers")
    run = Run(arguments.output)
    environment = Environment()
    command = ["bench_noise", str(arguments.processes), "--recipe", arguments.recipe]
    device = hardware.device("cpu")
    run.append(Header(run=run.name, command=command, packages=environment.decisive(), device=device))
    flow = Flow(Store(arguments.cache.resolve(), say=print), run, matrix, environment=environment, progress=print)
    try:
        for number in range(arguments.processes):
            # A Measure of its own: what one has measured it does not measure again.
            measure = Measure(flow, run)
            memory = measure.peak_memory(cell).value
            rate = measure.generate(cell, repeat).value
            print(f"process {number + 1}: {rate:.3f} tok/s, {memory:.4f} GB", flush=True)
            flow.renew(cell, "transformers")
    finally:
        flow.close()
    values: dict[str, list[float]] = defaultdict(list)
    for line in run.lines():
        if isinstance(line, Measurement):
            values[line.metric].append(line.value)
    for metric, found in values.items():
        variation = statistics.stdev(found) / statistics.fmean(found)
        print(f"{metric}: {len(found)} processes, coefficient of variation {variation:.2%}")


if __name__ == "__main__":
    main()
