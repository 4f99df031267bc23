"""The committed runs, and of those the main job's: the one whose table the README shows."""

import re
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE = _REPOSITORY / "results" / "reference"
_TABLE = re.compile(r"harness table results/reference/(\S+) --layout main")
(_NAME,) = _TABLE.findall((_REPOSITORY / "README.md").read_text(encoding="utf-8"))
MAIN_JOB = REFERENCE / _NAME
