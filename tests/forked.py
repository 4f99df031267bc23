"""Runs a test's code as ``python -m tests.forked FOLDER``: FOLDER/code.py, and beside it what the code prints.

A process that has torch and Transformers loaded forks into it (see ``run_code`` in conftest.py), so that no test waits
for their imports again. The code is this module's own: what it defines stands in ``__main__``, as after ``python -c``.
"""

import json
import os
import sys
from pathlib import Path


def _begin(folder: Path) -> str:
    for descriptor, name in enumerate(("stdout", "stderr"), 1):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.argv = json.loads((folder / "argv.json").read_text(encoding="utf-8"))
    return (folder / "code.py").read_text(encoding="utf-8")


if __name__ == "__main__":
    exec(compile(_begin(Path(sys.argv[1])), "<string>", "exec"))
