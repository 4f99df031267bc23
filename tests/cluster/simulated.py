"""A node's session that only sleeps: what it says is said as by a real one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

REFUSES = "SIMULATED_REFUSES"
"""Set on a node whose device is not what its label says."""
NOTES = "SIMULATED_NOTES"


def session(payload: Mapping[str, Any], say: Callable[[list[str]], object], gpus: object = None) -> int:
    """Take as long as ``seconds`` of the payload say, over its tests.

    Where it has a folder for ``notes``, each test stands there of which the planner's side has acknowledged the record.
    """
    if os.environ.get(REFUSES):
        say([json.dumps({"kind": "end", "status": 4, "printed": "not here: another device\n", "logs": {}})])
        return 4
    for test in payload["tests"]:
        time.sleep(payload["seconds"] / len(payload["tests"]))
        folder = payload.get("notes")
        record = [json.dumps({"kind": "line", "line": test})] if folder else []
        say([*record, json.dumps({"kind": "done", "test": test})])
        if folder:
            with Path(folder, str(os.getpid())).open("a", encoding="utf-8") as file:
                file.write(f"{test}\n")
    say([json.dumps({"kind": "end", "status": 0, "printed": "", "logs": {}})])
    return 0
