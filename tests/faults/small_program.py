"""An export of a tiny model as the mobile suite has it made: a worker, and a program in the store.

python -m tests.faults.small_program FOLDER MODEL
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.files import file_digest
from harness.base.interruption import Interruption
from harness.base.interruption import status as interruption_status
from harness.base.memory import wanting
from harness.contract.protocol import Job
from harness.runtime.environment import Environment
from harness.runtime.job import Worker
from harness.runtime.store import Store


def main() -> int:
    folder, model = map(Path, sys.argv[1:])
    store = Store(folder / "cache", say=lambda words: print(words, flush=True))

    def build(place: Path) -> dict[str, Any]:
        worker = Worker(
            Job(backend="export", specification={}),
            environment=Environment(), store=store, log=folder / "worker.log", label="export",
        )  # fmt: skip
        try:
            worker.wait_ready(240)
            given = {"checkpoint": str(model), "context": 96, "trust_remote_code": False, "output": str(place)}
            found: dict[str, Any] = worker.ask("transformers_route", 600, **given)
            return found
        finally:
            worker.close()

    with Interruption(lambda: "ended at once"):
        print("started", flush=True)
        try:
            made = store.get("program", {"of": file_digest(model / "model.safetensors")}, build, label="a program")
            program = made.folder / str(made.facts["file"])
        except HarnessError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except Exception as error:
            if not wanting(error):
                raise
            print("error: out of memory", file=sys.stderr)
            return 2
        except KeyboardInterrupt as interruption:
            print("interrupted", file=sys.stderr)
            return interruption_status(str(interruption))
    print(f"exported {program.name}, {program.stat().st_size} bytes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
