"""How long `pytest suites --collect-only -q` takes, as a user types it: a new process each round.

Run: python -m pytest tests/benchmarks/bench_collection.py
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_collect_only(benchmark):
    """Collection stays quick because the planner imports no torch."""
    command = [sys.executable, "-m", "pytest", "suites", "--collect-only", "-q"]

    def collect():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert "tests collected" in done.stdout

    benchmark.pedantic(collect, rounds=7, warmup_rounds=1)
