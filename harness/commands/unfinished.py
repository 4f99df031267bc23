"""What a gate says that ended before its time: what it has judged so far, and the command that goes on with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.base.errors import HarnessError
from harness.judge import gatefile
from harness.judge.gatefile import GateFile


@dataclass(frozen=True)
class Unfinished:
    """A gate that began at ``started`` (time.time) and keeps what it has in a folder of ``gates``."""

    gates: Path
    started: float

    def interrupted(self, command: str, told: Callable[[GateFile, Path], str]) -> str:
        """Tell what a gate that was interrupted has judged, and return how ``command``, which asked for it, goes on.

        ``told`` puts it in words, of the gate and its folder.
        """
        if (so_far := self._so_far()) is not None:
            print(told(*so_far), end="", flush=True)
        if not (files := self._files()):
            return "nothing was measured yet; the same command begins anew"
        return (
            f"what was measured is kept: --resume last goes on\ngo on with: {command} --resume {max(files).parent.name}"
        )

    def short_of_memory(self, command: str) -> None:
        """Say of a gate that got no more memory how to go on with it once there is some."""
        if files := self._files():
            print(
                f"what was measured is kept; go on with: {command} --resume {max(files).parent.name}", file=sys.stderr
            )

    def _files(self) -> list[Path]:
        return [path for path in self.gates.glob("*/gate.json") if path.stat().st_mtime >= self.started - 1]

    def _so_far(self) -> tuple[GateFile, Path] | None:
        """Return what the gate has judged and its folder, or None where it came to no verdict."""
        if not (files := self._files()):
            return None
        latest = max(files, key=lambda path: path.stat().st_mtime)
        try:
            found = gatefile.load(latest)
        except HarnessError:
            return None
        return (found, latest.parent) if found.verdicts else None
